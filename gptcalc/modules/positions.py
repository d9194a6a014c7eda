"""How the input learns where it stands: a learned table, or sinusoids that store nothing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from gptcalc.modules.checks import check_length
from gptcalc.modules.itemised import Dims, Itemised, empty, init_normal, register


class PositionalEmbedding(Itemised):
    """A learned row of width D for each of C positions (Radford et al. 2018, §4.1): C·D parameters.

    The first `offset` rows of the table, beyond C, belong to no position.
    """

    def __init__(self, max_seq_len: int, embed_dim: int, *, offset: int = 0) -> None:
        """Allocate `weight` (C, D) and draw it from N(0, 0.02²)."""
        super().__init__()
        self.max_seq_len, self.offset = max_seq_len, offset
        self.weight = empty(max_seq_len + offset, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Rows from N(0, 0.02²)."""
        init_normal(self.weight)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """The rows (T, D) of x from `start` on: token IDs (B, T), or what is computed of them (B, T, …).

        Raises a `ValueError` where `start` + T > C.
        """
        end = start + x.shape[1]
        check_length(end, self.max_seq_len)
        places = torch.arange(start + self.offset, end + self.offset, device=x.device)
        return functional.embedding(places, self.weight)

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """The table."""
        yield "positions", self.weight


class SinusoidalPositionalEmbedding(Itemised):
    """Fixed sinusoids (Vaswani et al. 2017, §3.5): no parameters, any length, any width.

    PE(pos, 2i) = sin(pos / 10000^(2i/D)), PE(pos, 2i+1) = cos(pos / 10000^(2i/D)); an odd D ends with a sine.
    `max_seq_len` is what the model was meant for, not a limit.

    With `halves` all sines come first, then all cosines, of frequencies down to 1/10000 itself, and an odd D ends with
    a zero (tensor2tensor, fairseq). The first token stands at `offset`.
    """

    def __init__(
        self, max_seq_len: int | None = None, *, embed_dim: int, halves: bool = False, offset: int = 0
    ) -> None:
        """Nothing is allocated."""
        super().__init__()
        self.max_seq_len, self.embed_dim = max_seq_len, embed_dim
        self.halves, self.offset = halves, offset

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """The rows (T, D) from `start` on: token IDs (B, T) → the default dtype; embeddings (B, T, D) → their dtype."""
        dtype = x.dtype if x.dtype.is_floating_point else torch.get_default_dtype()
        # An angle of 100,000 radians has an error of 0.004 in fp32; Apple's GPUs have no fp64.
        exact = torch.float32 if x.device.type == "mps" else torch.float64
        width, first = self.embed_dim, start + self.offset
        last, step, span = (width // 2, 1, max(width // 2 - 1, 1)) if self.halves else (width, 2, width)
        evens = torch.arange(0, last, step, dtype=exact, device=x.device)
        positions = torch.arange(first, first + x.shape[1], dtype=exact, device=x.device)
        angles = torch.outer(positions, 10_000.0 ** (-evens / span))
        if self.halves:
            waves = torch.cat((angles.sin(), angles.cos()), dim=-1)
            waves = functional.pad(waves, (0, 1)) if width % 2 else waves
        else:
            waves = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
        return waves[:, :width].to(dtype)

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """Nothing is stored."""
        yield from ()

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        return f"embed_dim={self.embed_dim}"


@register("learned")
def _learned(dims: Dims, *, offset: int = 0) -> PositionalEmbedding:
    return PositionalEmbedding(max_seq_len=dims.n_ctx, embed_dim=dims.d_model, offset=offset)


@register("sinusoidal")
def _sinusoidal(dims: Dims, *, halves: bool = False, offset: int = 0) -> SinusoidalPositionalEmbedding:
    return SinusoidalPositionalEmbedding(max_seq_len=dims.n_ctx, embed_dim=dims.d_model, halves=halves, offset=offset)
