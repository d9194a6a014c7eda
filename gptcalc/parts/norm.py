"""Normalisations of the residual stream."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from gptcalc.formula import Dim, Product
from gptcalc.inventory import Slice, Weight, Weighted
from gptcalc.spec import AnyPart, Spec

if TYPE_CHECKING:
    from gptcalc.tape import Op, Setting, Tensor


class RMSNorm(Weighted):
    """x / rms(x) · weight (Zhang & Sennrich 2019): no mean, no bias.

    With `unit_offset` the gain is 1 + weight (Gemma); one that is not `learned` has no weight.
    """

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
        return self.normalise(setting, x, setting.width)

    def normalise(self, setting: "Setting", x: "Tensor", *axes: Dim, apart: str = "") -> "tuple[Op, ...]":
        """X to the same shape: over its last axis, with a gain of the shape `axes`.

        `apart` tells its values from those of another norm of x.
        """
        from gptcalc import tape

        gain = setting.weight("norm weight", "weight", *axes) if self.learned else None

        def norm(gain: tape.Tensor | None, bias: tape.Tensor | None) -> tape.Op:  # noqa: ARG001  it has no bias
            return tape.rms_norm(x, gain, f"normalised {x.label}{apart}", setting.chip, of=f"{x.label}{apart}")

        return _affine(setting, norm, gain, None, self.name if self.unit_offset else None)


class LayerNorm(Weighted):
    """(x − mean) / √(variance + ε) · weight + bias (Ba et al. 2016).

    With `unit_offset` the gain is 1 + weight (Nemotron); one that is not `learned` has neither weight nor bias (OLMo).
    """

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
        return self.normalise(setting, x, setting.width)

    def normalise(self, setting: "Setting", x: "Tensor", *axes: Dim, apart: str = "") -> "tuple[Op, ...]":
        """X to the same shape: over its last axis, with gain and shift of the shape `axes`.

        `apart` tells its values from those of another norm of x.
        """
        from gptcalc import tape

        gain = setting.weight("norm weight", "weight", *axes) if self.learned else None
        bias = setting.weight("norm bias", "bias", *axes) if self.learned and self.bias else None

        def norm(gain: tape.Tensor | None, bias: tape.Tensor | None) -> tape.Op:
            return tape.layer_norm(x, gain, bias, f"normalised {x.label}{apart}", setting.chip, of=f"{x.label}{apart}")

        return _affine(setting, norm, gain, bias, self.name if self.unit_offset else None)


def _affine(
    setting: "Setting",
    norm: "Callable[[Tensor | None, Tensor | None], Op]",
    gain: "Tensor | None",
    bias: "Tensor | None",
    offset: str | None,
) -> "tuple[Op, ...]":
    """A `norm` with its gain, which of the norm named `offset` is 1 + weight; a gain of many axes is multiplied in."""
    from gptcalc import tape

    rows, own = tape.Rows(setting), []
    if gain is not None and offset is not None:
        gain = rows(tape.shift(gain, f"1 + weight of {offset}"))
        own.append(gain)
    if gain is None or len(gain.dims) == 1:
        rows(norm(gain, bias))
    else:
        plain = rows(norm(None, None))
        y = rows(tape.multiply(plain, gain, f"{plain.label} by gain"))
        rows.drop(plain)
        if bias is not None:
            rows(tape.add(y, bias, f"{plain.label} by gain and shift"))
            own.append(y)
    if own:
        rows.drop(*own)
    return tuple(rows)


def inside(norm: AnyPart | None, *axes: Product) -> Iterator[Weight]:
    """The gain, of the shape `axes`, of an RMSNorm inside a part, under its own name; nothing where there is none."""
    if isinstance(norm, RMSNorm):
        for row in norm.over("norm_weight", *axes):
            yield row._replace(name=f"{norm.name}.{row.name}")
