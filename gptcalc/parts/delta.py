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
    causal convolution over `kernel` tokens.
    """

    without_ops = None
    kind: Literal["gated_delta_net"] = "gated_delta_net"
    n_key_heads: Size
    n_value_heads: Size
    d_key: Size
    d_value: Size
    kernel: Size
    norm_eps: float = 1e-6

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
        projected = [("linear_attn", rows) for rows in (*wide, value)]
        yield from linear("in_proj_qkvz", projected, width, bias=False)
        yield from linear("in_proj_ba", [("linear_attn", (heads,)), ("linear_attn", (heads,))], width, bias=False)
        yield Weight("norm.weight", "norm", (Slice("linear_attn", ((value[1],),)),))
        yield from linear("out_proj", [("linear_attn", width)], value, bias=False)

    def remembered(self) -> Remembered:
        """The states, and of each convolved feature the last `kernel` tokens."""
        heads, key, value = Dim("Nv", self.n_value_heads), Dim("Hk", self.d_key), Dim("Hv", self.d_value)
        shared, kernel = Dim("Nk", self.n_key_heads), Dim("kernel", self.kernel)
        convolved = ((shared, key, kernel), (shared, key, kernel), (heads, value, kernel))
        return Remembered("none", (), ((heads, key, value), *convolved))
