"""Activations by the name that configs give them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from gptcalc.errors import UnknownNameError
from gptcalc.modules import ops


def _gelu_10(x: Tensor) -> Tensor:
    return functional.hardtanh(functional.gelu(x), -10.0, 10.0)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _relu2(x: Tensor) -> Tensor:
    return functional.relu(x).square()


def _linear(x: Tensor) -> Tensor:
    return x


_TANH_GELU = partial(functional.gelu, approximate="tanh")

#: The tanh approximation (Hendrycks & Gimpel 2016) is one kernel here; GPT-2's `gelu_new` writes it out op by op.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_10": _gelu_10,
    "gelu_accurate": _TANH_GELU,
    "gelu_fast": _TANH_GELU,
    "gelu_new": _TANH_GELU,
    "gelu_python": functional.gelu,
    "gelu_pytorch_tanh": _TANH_GELU,
    "gelu_python_tanh": _TANH_GELU,
    "leaky_relu": functional.leaky_relu,
    "linear": _linear,
    "mish": ops.mish,
    "quick_gelu": _quick_gelu,
    "relu": functional.relu,
    "relu2": _relu2,
    "relu6": functional.relu6,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "swish": functional.silu,
    "tanh": torch.tanh,
}


def activation_named(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name, or an error with those that there are."""
    if name not in _ACTIVATIONS:
        raise UnknownNameError.near("activation", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]
