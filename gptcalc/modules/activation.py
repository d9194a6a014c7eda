"""Activations by the name that configs give them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional

from gptcalc.errors import UnknownNameError

#: The tanh approximation (Hendrycks & Gimpel 2016) is one kernel here; GPT-2's `gelu_new` writes it out op by op.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


def activation_named(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name, or an error with those that there are."""
    if name not in _ACTIVATIONS:
        raise UnknownNameError.near("activation", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]
