"""Normalisations of the residual stream."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional

from gptcalc.modules import ops
from gptcalc.modules.itemised import Dims, Itemised, empty, init_constant, register


class Norm(Itemised):
    """What both norms have: a gain of `shape` (by default D), over whose last axis they normalise.

    A gain of more axes, as one for each head, is multiplied in afterwards. With `unit_offset` it is 1 + weight.
    """

    def __init__(  # noqa: PLR0913  the fields of the part
        self,
        dims: Dims,
        *,
        eps: float,
        bias: bool,
        learned: bool,
        unit_offset: bool,
        shape: tuple[int, ...] | None,
    ) -> None:
        """Allocate and initialise."""
        super().__init__()
        shape = (dims.d_model,) if shape is None else shape
        self.width, self.eps, self.unit_offset = shape[-1], eps, unit_offset
        self.weight: nn.Parameter | None
        self.bias: nn.Parameter | None
        self.register_parameter("weight", empty(*shape) if learned else None)
        self.register_parameter("bias", empty(*shape) if learned and bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gain one, shift zero: at the start the norm only normalises."""
        init_constant(self.weight, 0.0 if self.unit_offset else 1.0)
        init_constant(self.bias, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) to (…, D)."""
        gain = self.weight if self.weight is None or not self.unit_offset else self.weight + 1.0
        if gain is None or gain.dim() == 1:
            return self.normalise(x, gain, self.bias)
        y = self.normalise(x, None, None) * gain
        return y if self.bias is None else y + self.bias

    def normalise(self, x: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:
        """The norm over the last axis."""
        raise NotImplementedError(type(self).__name__)

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """Gain and shift, where there are any."""
        if self.weight is not None:
            yield "norm_weight", self.weight
        if self.bias is not None:
            yield "norm_bias", self.bias


@register("layer_norm")
class LayerNorm(Norm):
    """(x − mean) / √(variance + ε) · weight + bias over the last axis (Ba et al. 2016).

    `learned=False` has neither weight nor bias.
    """

    def __init__(  # noqa: PLR0913  the fields of the part
        self,
        dims: Dims,
        *,
        eps: float = 1e-5,
        bias: bool = True,
        learned: bool = True,
        unit_offset: bool = False,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Allocate and initialise."""
        super().__init__(dims, eps=eps, bias=bias, learned=learned, unit_offset=unit_offset, shape=shape)

    def normalise(self, x: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:
        """By torch's `layer_norm`."""
        return functional.layer_norm(x, (self.width,), gain, bias, self.eps)


@register("rms_norm")
class RMSNorm(Norm):
    """x / √(mean(x²) + ε) · weight over the last axis (Zhang & Sennrich 2019), computed in fp32."""

    def __init__(
        self,
        dims: Dims,
        *,
        eps: float = 1e-6,
        learned: bool = True,
        unit_offset: bool = False,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Allocate and initialise."""
        super().__init__(dims, eps=eps, bias=False, learned=learned, unit_offset=unit_offset, shape=shape)

    def normalise(self, x: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:  # noqa: ARG002  it has none
        """By torch's `rms_norm`."""
        return ops.rms_norm(x, gain, self.eps)
