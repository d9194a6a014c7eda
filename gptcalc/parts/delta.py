"""Linear attention: a state of fixed size stands for all tokens before."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from gptcalc.formula import Dim, Product
from gptcalc.inventory import Slice, Weight, Weighted, linear
from gptcalc.parts.remembered import Remembered
from gptcalc.spec import Size, Spec

if TYPE_CHECKING:
    from gptcalc.tape import Op, Setting, Tensor


class GatedDeltaNet(Weighted):
    """The gated delta rule (Yang et al. 2025): Nv states (Hk, Hv) that forget, and are corrected by each token.

    Query and key have Nk heads of size Hk, value and output gate Nv heads of size Hv; query, key and value go through a
    causal convolution over `kernel` tokens. The output gate, β and the decay have layers of their own where they are
    `apart` (Qwen 3.5).
    """

    without_ops = ("apart",)
    kind: Literal["gated_delta_net"] = "gated_delta_net"
    n_key_heads: Size
    n_value_heads: Size
    d_key: Size
    d_value: Size
    kernel: Size
    norm_eps: float = 1e-6
    apart: bool = False

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """Layers to query, key, value and gate, to β and decay; the convolution, decays, norm and output layer."""
        width, heads = (Dim("D", spec.d_model),), Dim("Nv", self.n_value_heads)
        key, value = (Dim("Nk", self.n_key_heads), Dim("Hk", self.d_key)), (heads, Dim("Hv", self.d_value))
        lasting = ((heads,),)
        yield Weight("dt_bias", "bias", (Slice("linear_attn", lasting),))
        yield Weight("A_log", "norm", (Slice("linear_attn", lasting),))
        wide = (key, key, value)
        tail: tuple[Product, ...] = ((), (Dim("kernel", self.kernel),))
        yield Weight("conv1d.weight", "matmul", tuple(Slice("linear_attn", (rows, *tail)) for rows in wide))
        together = {"in_proj_qkvz": (*wide, value), "in_proj_ba": ((heads,), (heads,))}
        apart = {"in_proj_qkv": wide, "in_proj_z": (value,), "in_proj_b": ((heads,),), "in_proj_a": ((heads,),)}
        for name, outputs in (apart if self.apart else together).items():
            yield from linear(name, [("linear_attn", rows) for rows in outputs], width, bias=False)
        yield Weight("norm.weight", "norm", (Slice("linear_attn", ((value[1],),)),))
        yield from linear("out_proj", [("linear_attn", width)], value, bias=False)

    def remembered(self) -> Remembered:
        """The states, and of each convolved feature the last `kernel` tokens."""
        heads, key, value = Dim("Nv", self.n_value_heads), Dim("Hk", self.d_key), Dim("Hv", self.d_value)
        shared, kernel = Dim("Nk", self.n_key_heads), Dim("kernel", self.kernel)
        convolved = ((shared, key, kernel), (shared, key, kernel), (heads, value, kernel))
        return Remembered("none", (), convolved, in_fp32=((heads, key, value),))

    def _kept(self) -> tuple[Product, Product]:
        """The axes of a sequence's states, and of what is convolved."""
        heads, key, value = Dim("Nv", self.n_value_heads), Dim("Hk", self.d_key), Dim("Hv", self.d_value)
        width = 2 * self.n_key_heads * self.d_key + self.n_value_heads * self.d_value
        return (heads, key, value), (Dim("(2·Nk·Hk+Nv·Hv)", width), Dim("kernel", self.kernel))

    def cache(self, batch: Dim, seq: Dim, dtype: str) -> "tuple[Tensor, Tensor]":  # noqa: ARG002  of any length
        """Room for the states of B sequences, in fp32 whatever the dtype, and for what is convolved."""
        from gptcalc import tape

        states, features = self._kept()
        return (
            tape.Tensor("states", (batch, *states), "fp32"),
            tape.Tensor("inputs of the convolution", (batch, *features), dtype),
        )

    def ops(self, setting: "Setting", x: "Tensor") -> "tuple[Op, ...]":
        """(B, T, D) to the same: projections, a convolution, the rule in chunks or for one token, a gated norm."""
        from gptcalc.parts import delta_rule

        return delta_rule.delta_net(self, setting, x)
