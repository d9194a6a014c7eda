"""Checks of what goes in: a sentence with shapes and limits, instead of a device assert that ends the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from gptcalc.errors import InvalidValueError

#: Targets of this value do not count, as in `torch.nn.functional.cross_entropy`.
IGNORED_TARGET = -100

_INDEX_DTYPES = (torch.int64, torch.int32)

_TRUSTED = ContextVar("trusted", default=False)


class InputValueError(InvalidValueError, ValueError):
    """A tensor of the wrong dtype or shape, or a hyperparameter that cannot be run."""


class InputRangeError(InvalidValueError, IndexError):
    """A token that is not in the vocabulary."""


@contextmanager
def trusted() -> Iterator[None]:
    """Look at shapes only: values were validated at the door, and to look at them waits for the device."""
    token = _TRUSTED.set(True)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def is_hollow(x: Tensor) -> bool:
    """Whether a tensor has a shape and no values: on the meta device, or a fake one of any device."""
    return x.is_meta or isinstance(x, FakeTensor)


def check_tokens(input_ids: Tensor, n_vocab: int) -> None:
    """Token IDs: (B, T), int64 or int32, each from 0 to V − 1."""
    _check_form("input_ids", input_ids)
    if _has_values(input_ids):
        low, high = (int(bound) for bound in input_ids.aminmax())
        _check_range("input_ids", low, high, n_vocab)


def check_targets(targets: Tensor, input_ids: Tensor, n_vocab: int) -> None:
    """Targets: the shape of `input_ids`, each a token or −100 (not counted)."""
    _check_form("targets", targets)
    if targets.shape != input_ids.shape:
        raise InputValueError(
            f"targets: read shape {tuple(targets.shape)}; allowed: that of input_ids, {tuple(input_ids.shape)}"
        )
    if _has_values(targets):
        counted = targets.masked_fill(targets == IGNORED_TARGET, 0)
        low, high = (int(bound) for bound in counted.aminmax())
        _check_range("targets", low, high, n_vocab)


def check_length(n_tokens: int, n_ctx: int) -> None:
    """A sequence must fit into a table of C positions."""
    if n_tokens > n_ctx:
        raise InputValueError(f"input_ids: read a sequence of {n_tokens} tokens; allowed: at most n_ctx={n_ctx}")


def _check_form(what: str, tokens: Tensor) -> None:
    if not isinstance(tokens, Tensor):
        raise InputValueError(f"{what}: read a {type(tokens).__name__}; allowed: a tensor (batch, tokens)")
    if tokens.dtype not in _INDEX_DTYPES:
        raise InputValueError(f"{what}: read dtype {tokens.dtype}; allowed: {', '.join(map(str, _INDEX_DTYPES))}")
    if tokens.dim() != 2:
        raise InputValueError(f"{what}: read shape {tuple(tokens.shape)}; allowed: two axes (batch, tokens)")


def _check_range(what: str, low: int, high: int, n_vocab: int) -> None:
    if low < 0 or high >= n_vocab:
        raise InputRangeError(
            f"{what}: read values from {low} to {high}; allowed: 0 to {n_vocab - 1} (n_vocab={n_vocab})"
        )


def _has_values(tokens: Tensor) -> bool:
    """Whether values may be looked at: not where there are none, not while ops are compiled, captured or recorded."""
    if torch.compiler.is_compiling() or is_hollow(tokens) or not tokens.numel() or _TRUSTED.get():
        return False
    if _get_current_dispatch_mode() is not None:  # a recorder must see the model's ops and no others
        return False
    return not (tokens.is_cuda and torch.cuda.is_current_stream_capturing())
