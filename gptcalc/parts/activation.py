"""What each activation runs, op by op, as the reference module has it."""

from gptcalc import tape
from gptcalc.tape import Rows, Tensor

#: Activations that are one kernel. All forms of the tanh approximation of GELU are, in the reference module.
KERNELS = {
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_accurate", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu"),
    **dict.fromkeys(("silu", "swish"), "silu"),
    "leaky_relu": "leaky_relu",
    "mish": "mish",
    "relu": "relu",
    "relu6": "hardtanh",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}


def activate(rows: Rows, activation: str, x: Tensor, label: str) -> Tensor:
    """The activation of x, which the caller holds; x itself where it is linear."""
    if activation == "linear":
        return x
    if activation in KERNELS:
        return rows(tape.activation(KERNELS[activation], x, label))
    first, then = {
        "gelu_10": (tape.activation("gelu", x, f"unbounded {label}"), _bounded),
        "quick_gelu": (tape.scale(x, f"scaled {x.label}"), _sigmoid_times),
        "relu2": (tape.activation("relu", x, f"root of {label}"), _squared),
    }[activation]
    before = rows(first)
    return then(rows, x, before, label)


def _bounded(rows: Rows, x: Tensor, before: Tensor, label: str) -> Tensor:  # noqa: ARG001  the signature of all
    out = rows(tape.activation("hardtanh", before, label))
    rows.drop(before)
    return out


def _sigmoid_times(rows: Rows, x: Tensor, before: Tensor, label: str) -> Tensor:
    share = rows(tape.activation("sigmoid", before, f"share of {x.label}"))
    rows.drop(before)
    out = rows(tape.multiply(x, share, label))
    rows.drop(share)
    return out


def _squared(rows: Rows, x: Tensor, before: Tensor, label: str) -> Tensor:  # noqa: ARG001
    out = rows(tape.square(before, label))
    rows.drop(before)
    return out
