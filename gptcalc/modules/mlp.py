"""What each token computes on its own: a dense or a gated network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor

from gptcalc.modules import ops
from gptcalc.modules.activation import activation_named
from gptcalc.modules.itemised import Dims, Itemised, register
from gptcalc.modules.linear import Linear


@register("dense")
class DenseMLP(Itemised):
    """D up to F, an activation, F down to D (Vaswani et al. 2017, §3.3)."""

    def __init__(  # noqa: PLR0913  the fields of the part
        self,
        dims: Dims,
        *,
        d_ff: int,
        activation: str,
        bias: bool,
        up_name: str = "up_proj",
        down_name: str = "down_proj",
        transposed: bool = False,
        dropout: float = 0.0,
    ) -> None:
        """Build the two layers under their published names."""
        super().__init__()
        self.activation, self.dropout = activation_named(activation), dropout
        self.up_name, self.down_name = up_name, down_name
        self.attach(up_name, Linear(dims.d_model, [("mlp_up", d_ff)], bias=bias, transposed=transposed))
        self.attach(down_name, Linear(d_ff, [("mlp_down", dims.d_model)], bias=bias, transposed=transposed))

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) to (…, D)."""
        y: Tensor = self.child(self.down_name)(self.activation(self.child(self.up_name)(x)))
        return ops.dropout(y, self.dropout, self.training)

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """Up, then down."""
        yield from self.child(self.up_name).itemise()
        yield from self.child(self.down_name).itemise()


@register("gated")
class GatedMLP(Itemised):
    """activation(gate(x)) · up(x), then down (Shazeer 2020).

    With a `fused_name` gate and up are one layer, the gate's rows first; `role` is what its weights are itemised under.
    """

    def __init__(  # noqa: PLR0913  the fields of the part
        self,
        dims: Dims,
        *,
        d_ff: int,
        activation: str,
        bias: bool,
        gate_name: str = "gate_proj",
        up_name: str = "up_proj",
        down_name: str = "down_proj",
        fused_name: str = "",
        role: Literal["mlp", "shared_experts"] = "mlp",
        dropout: float = 0.0,
    ) -> None:
        """Build the layers under their published names."""
        super().__init__()
        self.activation, self.dropout = activation_named(activation), dropout
        self.fused_name, self.gate_name, self.up_name, self.down_name = fused_name, gate_name, up_name, down_name
        gate, up = (f"{role}_gate", d_ff), (f"{role}_up", d_ff)
        layers = {fused_name: [gate, up]} if fused_name else {gate_name: [gate], up_name: [up]}
        for name, outputs in layers.items():
            self.attach(name, Linear(dims.d_model, outputs, bias=bias))
        self.attach(down_name, Linear(d_ff, [(f"{role}_down", dims.d_model)], bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) to (…, D)."""
        inner = self._inner(x)
        y: Tensor = self.child(self.down_name)(inner)
        return ops.dropout(y, self.dropout, self.training)

    def _inner(self, x: Tensor) -> Tensor:
        """(…, D) to (…, F)."""
        inner: Tensor
        if not self.fused_name:
            inner = self.activation(self.child(self.gate_name)(x)) * self.child(self.up_name)(x)
            return inner
        fused: Any = self.child(self.fused_name)
        gate, up = fused.split(fused(x))
        inner = self.activation(gate) * up
        return inner

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """Gate, up, then down."""
        first = [self.fused_name] if self.fused_name else [self.gate_name, self.up_name]
        for name in (*first, self.down_name):
            yield from self.child(name).itemise()
