"""What the layers of one forward pass share, and what stays from one pass to the next: the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor
from torch.utils.checkpoint import checkpoint

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
    """One layer's keys and values, (B, K, T, H) each, in a dtype of their own; the first `start` tokens are known.

    Of a layer that sees a `window` there is room for no more tokens than that: token t lies at t modulo the window,
    in place of one that is out of sight. Of `chunked` ones a new chunk begins at the first place.
    """

    key: Tensor
    value: Tensor
    window: int | None = None
    chunked: bool = False

    @property
    def room(self) -> Room:
        """What fits in."""
        return Room(self.key.shape[0], self.key.shape[2] if self.window is None else None)

    def write(self, key: Tensor, value: Tensor, start: int) -> None:
        """Copy the new tokens' keys and values (B, K, T, H) to where they belong."""
        room, end = self.key.shape[2], start + key.shape[2]
        first = start if self.window is None else max(start, end - room)
        while first < end:
            place = first if self.window is None else first % room
            count = min(end - first, room - place)
            for kept, new in ((self.key, key), (self.value, value)):
                kept[:, :, place : place + count].copy_(new[:, :, first - start : first - start + count])
            first += count

    def read(self, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """What the last of `end` tokens sees, in the dtype of `like`: a copy only where that differs."""
        seen = end
        if self.window is not None:
            seen = (end - 1) % self.window + 1 if self.chunked else min(end, self.window)
        return self.key[:, :, :seen].to(like.dtype), self.value[:, :, :seen].to(like.dtype)


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

    def __init__(self, start: int = 0, attention: str = "auto", *, again: bool = False) -> None:
        """Nothing is made yet; the core of attention may run `again` in the backward pass, instead of being kept."""
        self.start, self.attention, self.again = start, attention, again
        self._made: dict[Hashable, Any] = {}

    def of_layer(self, attention: str, *, again: bool) -> Pass:
        """The same pass as a layer sees it that has its own `attention`: it may run again when others have run."""
        own = Pass(self.start, attention, again=again)
        own._made = self._made
        return own

    def core(self, function: Callable[..., Made]) -> Callable[..., Made]:
        """The core of an attention, which keeps what it is called with, and the rest only where it runs but once."""
        return partial(checkpoint, function, use_reentrant=False) if self.again else function

    def once(self, what: Hashable, make: Callable[[], Made]) -> Made:
        """`what`, made by the first layer that asks for it."""
        if what not in self._made:
            self._made[what] = make()
        made: Made = self._made[what]
        return made
