"""A linear layer that may compute several components at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gptcalc.modules.itemised import Itemised, empty, init_constant, init_normal


class Linear(Itemised):
    """x @ W (+ b). The weight is (out, in) as `nn.Linear` keeps it, or (in, out) `transposed` as GPT-2's `Conv1D` does.

    `outputs` are (component key, size), in the order of the output's columns.
    """

    def __init__(
        self, d_in: int, outputs: Sequence[tuple[str, int]], *, bias: bool = False, transposed: bool = False
    ) -> None:
        """Allocate and initialise."""
        super().__init__()
        self.keys = [key for key, _ in outputs]
        self.sizes = [size for _, size in outputs]
        self.transposed = transposed
        d_out = sum(self.sizes)
        self.weight = empty(d_in, d_out) if transposed else empty(d_out, d_in)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", empty(d_out) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights from N(0, 0.02²), biases zero."""
        init_normal(self.weight)
        init_constant(self.bias, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        if not self.transposed:
            return functional.linear(x, self.weight, self.bias)
        if self.bias is None:
            return x @ self.weight
        rows = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return rows.view(*x.shape[:-1], rows.shape[-1])

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """The output (…, out) cut into its components."""
        return y.split_with_sizes(self.sizes, dim=-1)

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """The weight cut where `split` cuts the output, then the bias."""
        yield from zip(self.keys, self.weight.split_with_sizes(self.sizes, dim=int(self.transposed)), strict=True)
        if self.bias is not None:
            yield from zip([f"{key}_bias" for key in self.keys], self.bias.split_with_sizes(self.sizes), strict=True)

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        return f"{' + '.join(self.keys)}, weight={tuple(self.weight.shape)}, bias={self.bias is not None}"
