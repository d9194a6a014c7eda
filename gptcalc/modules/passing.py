"""What the layers of one forward pass share, and what stays from one pass to the next: the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor

from gptcalc.modules.checks import InputValueError

Made = TypeVar("Made")


class Room(NamedTuple):
    """How many sequences fit in, and of how many tokens at most; None is any number."""

    sequences: int
    tokens: int | None


class Kept(Protocol):
    """What a layer keeps from pass to pass: whatever its attention makes, reads and writes."""

    @property
    def room(self) -> Room:
        """What fits in."""


class LayerCache(NamedTuple):
    """One layer's keys and values, (B, K, T, H) each, in a dtype of their own; the first `start` tokens are known."""

    key: Tensor
    value: Tensor

    @property
    def room(self) -> Room:
        """What fits in."""
        return Room(self.key.shape[0], self.key.shape[2])

    def write(self, key: Tensor, value: Tensor, start: int) -> None:
        """Copy the new tokens' keys and values (B, K, T, H) to where they belong."""
        end = start + key.shape[2]
        self.key[:, :, start:end].copy_(key)
        self.value[:, :, start:end].copy_(value)

    def read(self, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The first `end` tokens, in the dtype of `like`: a copy only where that differs."""
        return self.key[:, :, :end].to(like.dtype), self.value[:, :, :end].to(like.dtype)


class KVCache(NamedTuple):
    """Room for B sequences of T tokens in every layer, allocated as a whole before it is used."""

    layers: tuple[Kept, ...]

    def check(self, batch: int, end: int) -> None:
        """Whether there is room for tokens up to `end` of `batch` sequences."""
        for layer in self.layers:
            sequences, tokens = layer.room
            if batch != sequences or (tokens is not None and end > tokens):
                of = "" if tokens is None else f" of up to {tokens} tokens"
                raise InputValueError(f"cache: read {batch} sequences up to token {end}; allowed: {sequences}{of}")


class Pass:
    """One forward pass from position `start` on, its attention by `attention` (see `ops.attention`).

    Angles and masks are made once, where the first layer asks for them.
    """

    def __init__(self, start: int = 0, attention: str = "auto") -> None:
        """Nothing is made yet."""
        self.start, self.attention = start, attention
        self._made: dict[Hashable, Any] = {}

    def once(self, what: Hashable, make: Callable[[], Made]) -> Made:
        """`what`, made by the first layer that asks for it."""
        if what not in self._made:
            self._made[what] = make()
        made: Made = self._made[what]
        return made
