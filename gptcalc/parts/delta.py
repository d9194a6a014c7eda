"""Linear attention: a state of fixed size stands for all tokens before."""

from collections.abc import Iterator
from typing import Literal

from gptcalc.formula import Dim
from gptcalc.inventory import Slice, Weight, Weighted, linear
from gptcalc.parts.remembered import Remembered
from gptcalc.spec import Size, Spec


class GatedDeltaNet(Weighted):
    """The gated delta rule (Yang et al. 2025): Nv states (Hk, Hv) that forget, and are corrected by each token.

    Query and key have Nk heads of size Hk, value and output gate Nv heads of size Hv; query, key and value go through a
    causal convolution over `kernel` tokens. The output gate, β and the decay have layers of their own where they are
    `apart` (Qwen 3.5).
    """

    #: Where the ops of the others are known, these of `apart` are not.
    without_ops = None
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
        tail = ((Dim("1", 1),), (Dim("kernel", self.kernel),))
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
        return Remembered("none", (), ((heads, key, value), *convolved))
