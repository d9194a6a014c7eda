"""Normalisations of the residual stream."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from gptcalc.formula import Dim
from gptcalc.inventory import Slice, Weight, Weighted
from gptcalc.spec import Spec

if TYPE_CHECKING:
    from gptcalc.tape import Op, Setting, Tensor


class RMSNorm(Weighted):
    """x / rms(x) · weight (Zhang & Sennrich 2019): no mean, no bias."""

    kind: Literal["rms_norm"] = "rms_norm"
    eps: float = 1e-6

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """The gain (D)."""
        width = ((Dim("D", spec.d_model),),)
        yield Weight("weight", "norm", (Slice("norm_weight", width),), source="Zhang & Sennrich 2019, §4")

    def ops(self, setting: "Setting", x: "Tensor") -> "tuple[Op, ...]":
        """X (M, D) to the same shape, by `torch.nn.functional.rms_norm`: one fused kernel on CUDA."""
        from gptcalc import tape

        rows = tape.Rows(setting)
        weight = setting.weight("norm weight", "weight", setting.width)
        rows(tape.rms_norm(x, weight, f"normalised {x.label}", setting.chip))
        return tuple(rows)


class LayerNorm(Weighted):
    """(x − mean) / √(variance + ε) · weight + bias (Ba et al. 2016)."""

    kind: Literal["layer_norm"] = "layer_norm"
    eps: float = 1e-5
    bias: bool = True

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """The gain (D), and the shift (D) where there is one."""
        width = ((Dim("D", spec.d_model),),)
        yield Weight("weight", "norm", (Slice("norm_weight", width),))
        if self.bias:
            yield Weight("bias", "norm", (Slice("norm_bias", width),))

    def ops(self, setting: "Setting", x: "Tensor") -> "tuple[Op, ...]":
        """X (M, D) to the same shape."""
        from gptcalc import tape

        rows = tape.Rows(setting)
        weight = setting.weight("norm weight", "weight", setting.width)
        bias = setting.weight("norm bias", "bias", setting.width) if self.bias else None
        rows(tape.layer_norm(x, weight, bias, f"normalised {x.label}", setting.chip))
        return tuple(rows)
