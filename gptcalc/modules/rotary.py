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
    """Rotations of the first `fraction` of `d_head` features: of halves, or of neighbours that are `interleaved`."""

    d_head: int
    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: str | None = None
    interleaved: bool = False
    backwards: bool = False

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
        half = torch.outer(positions, (-1.0 if self.backwards else 1.0) / self.theta**exponents)
        both = torch.stack((half, half), dim=-1).flatten(-2) if self.interleaved else torch.cat((half, half), dim=-1)
        return Angles(both.cos().to(like.dtype), both.sin().to(like.dtype))

    def rotate(self, x: Tensor, angles: Angles) -> Tensor:
        """Rotate the first R features of x (B, T, heads, H)."""
        if self.n_rotated == x.shape[-1]:
            return self._turn(x, angles)
        turned, kept = x.split_with_sizes((self.n_rotated, x.shape[-1] - self.n_rotated), dim=-1)
        return torch.cat((self._turn(turned, angles), kept), dim=-1)

    def _turn(self, x: Tensor, angles: Angles) -> Tensor:
        """Feature i is paired with feature i + R/2, or, where they are interleaved, 2·i with 2·i + 1."""
        cos, sin = angles.cos.unsqueeze(1), angles.sin.unsqueeze(1)
        if self.interleaved:
            first, second = x.view(*x.shape[:-1], -1, 2).unbind(-1)
            return x * cos + torch.stack((-second, first), dim=-1).flatten(-2) * sin
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin
