"""Normalisations of the residual stream."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional

from gptcalc.modules import ops
from gptcalc.modules.itemised import Dims, Itemised, empty, init_constant, register


@register("layer_norm")
class LayerNorm(Itemised):
    """(x − mean) / √(variance + ε) · weight + bias over the last axis, of size D (Ba et al. 2016).

    `learned=False` has neither weight nor bias.
    """

    def __init__(self, dims: Dims, *, eps: float = 1e-5, bias: bool = True, learned: bool = True) -> None:
        """Allocate and initialise."""
        super().__init__()
        self.width, self.eps = dims.d_model, eps
        self.weight: nn.Parameter | None
        self.bias: nn.Parameter | None
        self.register_parameter("weight", empty(self.width) if learned else None)
        self.register_parameter("bias", empty(self.width) if learned and bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gain one, shift zero: at the start the norm only normalises."""
        init_constant(self.weight, 1.0)
        init_constant(self.bias, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) to (…, D)."""
        return functional.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """Gain and shift, where there are any."""
        if self.weight is not None:
            yield "norm_weight", self.weight
        if self.bias is not None:
            yield "norm_bias", self.bias


@register("rms_norm")
class RMSNorm(Itemised):
    """x / √(mean(x²) + ε) · weight over the last axis (Zhang & Sennrich 2019), computed in fp32."""

    def __init__(self, dims: Dims, *, eps: float = 1e-6) -> None:
        """Allocate and initialise."""
        super().__init__()
        self.eps = eps
        self.weight = empty(dims.d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gain one."""
        init_constant(self.weight, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) to (…, D)."""
        return ops.rms_norm(x, self.weight, self.eps)

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """The gain."""
        yield "norm_weight", self.weight
