"""Normalisations of the residual stream."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from gptcalc.formula import Dim, Product
from gptcalc.inventory import Slice, Weight, Weighted
from gptcalc.spec import Spec

if TYPE_CHECKING:
    from gptcalc.tape import Op, Setting, Tensor


class RMSNorm(Weighted):
    """x / rms(x) · weight (Zhang & Sennrich 2019): no mean, no bias.

    With `unit_offset` the gain is 1 + weight (Gemma); one that is not `learned` has no weight.
    """

    without_ops = ("learned", "unit_offset")
    kind: Literal["rms_norm"] = "rms_norm"
    eps: float = 1e-6
    learned: bool = True
    unit_offset: bool = False

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """The gain (D)."""
        yield from self.over("norm_weight", (Dim("D", spec.d_model),))

    def over(self, component: str, *axes: Product) -> Iterator[Weight]:
        """The gain of a norm inside a part, of the shape `axes`."""
        if self.learned:
            yield Weight("weight", "norm", (Slice(component, axes),), source="Zhang & Sennrich 2019, §4")

    def ops(self, setting: "Setting", x: "Tensor") -> "tuple[Op, ...]":
        """X (M, D) to the same shape, by `torch.nn.functional.rms_norm`: one fused kernel on CUDA."""
        from gptcalc import tape

        rows = tape.Rows(setting)
        weight = setting.weight("norm weight", "weight", setting.width)
        rows(tape.rms_norm(x, weight, f"normalised {x.label}", setting.chip))
        return tuple(rows)


class LayerNorm(Weighted):
    """(x − mean) / √(variance + ε) · weight + bias (Ba et al. 2016).

    With `unit_offset` the gain is 1 + weight (Nemotron); one that is not `learned` has neither weight nor bias (OLMo).
    """

    without_ops = ("learned", "unit_offset")
    kind: Literal["layer_norm"] = "layer_norm"
    eps: float = 1e-5
    bias: bool = True
    learned: bool = True
    unit_offset: bool = False

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """The gain (D), and the shift (D) where there is one."""
        for row in self.over("norm_weight", (Dim("D", spec.d_model),)):
            shifts = row.name == "bias"
            yield row._replace(slices=(row.slices[0]._replace(component="norm_bias"),)) if shifts else row

    def over(self, component: str, *axes: Product) -> Iterator[Weight]:
        """Gain and shift of a norm inside a part, of the shape `axes`."""
        if self.learned:
            yield Weight("weight", "norm", (Slice(component, axes),))
        if self.learned and self.bias:
            yield Weight("bias", "norm", (Slice(component, axes),))

    def ops(self, setting: "Setting", x: "Tensor") -> "tuple[Op, ...]":
        """X (M, D) to the same shape."""
        from gptcalc import tape

        rows = tape.Rows(setting)
        weight = setting.weight("norm weight", "weight", setting.width)
        bias = setting.weight("norm bias", "bias", setting.width) if self.bias else None
        rows(tape.layer_norm(x, weight, bias, f"normalised {x.label}", setting.chip))
        return tuple(rows)
