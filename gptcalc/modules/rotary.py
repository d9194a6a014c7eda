"""Rotary positions (Su et al. 2021): query and key are rotated by angles that grow with the position. No parameters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gptcalc.modules.checks import InputValueError


class Angles(NamedTuple):
    """Cosines and sines, each (T, R) for R rotated features."""

    cos: Tensor
    sin: Tensor


class Rotary(NamedTuple):
    """Rotations of the first `fraction` of `d_head` features, by transformers' convention of halves."""

    d_head: int
    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: str | None = None
    interleaved: bool = False

    @property
    def n_rotated(self) -> int:
        """R: features that are rotated, the first of each head."""
        return int(self.d_head * self.fraction)

    def angles(self, like: Tensor, start: int = 0) -> Angles:
        """The table for T positions from `start` on of `like` (B, T, …), in its dtype and on its device."""
        if self.scaling is not None:
            raise InputValueError(
                f"rotary scaling: read {self.scaling!r}; allowed: none (only plain angles can be run)"
            )
        if self.n_rotated % 2:
            raise InputValueError(
                f"rotary: read {self.n_rotated} rotated features of d_head={self.d_head}; allowed: an even number"
            )
        exponents = torch.arange(0, self.n_rotated, 2, dtype=torch.float32, device=like.device) / self.n_rotated
        positions = torch.arange(start, start + like.shape[1], dtype=torch.float32, device=like.device)
        half = torch.outer(positions, 1.0 / self.theta**exponents)
        both = torch.cat((half, half), dim=-1)
        return Angles(both.cos().to(like.dtype), both.sin().to(like.dtype))

    def rotate(self, x: Tensor, angles: Angles) -> Tensor:
        """Rotate (B, heads, T, H): feature i is paired with feature i + R/2."""
        turned, kept = x[..., : self.n_rotated], x[..., self.n_rotated :]
        first, second = turned.chunk(2, dim=-1)
        turned = turned * angles.cos + torch.cat((-second, first), dim=-1) * angles.sin
        return torch.cat((turned, kept), dim=-1) if kept.shape[-1] else turned
