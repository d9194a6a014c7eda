"""Activations as transformers has them [activations.py, ACT2FN]: some are Python, and keep every step of theirs."""

from collections.abc import Callable

from gptcalc import tape
from gptcalc.parts import activation
from gptcalc.tape import Op, Rows, Tensor


def activate(rows: Rows, name: str, x: Tensor, label: str) -> Tensor:
    """`ACT2FN[name]` of x, which the caller holds; x itself where it is linear."""
    if name not in _PYTHON:
        return activation.activate(rows, name, x, label)
    return _PYTHON[name](rows, x, label)


def _half_times(
    rows: Rows, x: Tensor, label: str, inside: Callable[[], Tensor], bend: Callable[[Tensor], Op]
) -> Tensor:
    """x/2 · (1 + what bends what is `inside`): the two factors are kept."""
    half = rows(tape.scale(x, "x/2"))
    inner = inside()
    bent = rows(bend(inner))
    rows.drop(inner)
    shifted = rows(tape.shift(bent, f"1 + {bent.label}"))
    rows.drop(bent)
    out = rows(tape.multiply(half, shifted, label))
    rows.drop(half, shifted)
    return out


def _tanh(x: Tensor) -> Op:
    return tape.activation("tanh", x, "tanh")


def _gelu_new(rows: Rows, x: Tensor, label: str) -> Tensor:
    """0.5·x · (1 + tanh(√(2/π)·(x + 0.044715·x³)))."""

    def inside() -> Tensor:
        cube = rows(tape.power(x, "x³"))
        small = rows(tape.scale(cube, "0.044715·x³"))
        rows.drop(cube)
        both = rows(tape.add(x, small, "x + 0.044715·x³"))
        rows.drop(small)
        scaled = rows(tape.scale(both, "√(2/π)·(x + 0.044715·x³)"))
        rows.drop(both)
        return scaled

    return _half_times(rows, x, label, inside, _tanh)


def _gelu_fast(rows: Rows, x: Tensor, label: str) -> Tensor:
    """0.5·x · (1 + tanh(0.7978845608·x · (1 + 0.044715·x·x)))."""

    def inside() -> Tensor:
        scaled, small = rows(tape.scale(x, "0.7978845608·x")), rows(tape.scale(x, "0.044715·x"))
        square = rows(tape.multiply(small, x, "0.044715·x²"))
        rows.drop(small)
        shifted = rows(tape.shift(square, "1 + 0.044715·x²"))
        rows.drop(square)
        both = rows(tape.multiply(scaled, shifted, "0.7978845608·x·(1 + 0.044715·x²)"))
        rows.drop(scaled, shifted)
        return both

    return _half_times(rows, x, label, inside, _tanh)


def _gelu_python(rows: Rows, x: Tensor, label: str) -> Tensor:
    """x·0.5 · (1 + erf(x/√2))."""
    return _half_times(
        rows,
        x,
        label,
        lambda: rows(tape.over_number(x, "x/√2")),
        lambda inner: tape.activation("erf", inner, "erf"),
    )


def _gelu_10(rows: Rows, x: Tensor, label: str) -> Tensor:
    """GELU, between −10 and 10."""
    free = rows(tape.activation("gelu", x, f"unbounded {label}"))
    out = rows(tape.clamp(free, label, 2))
    rows.drop(free)
    return out


#: Those that are written out, by name.
_PYTHON: dict[str, Callable[[Rows, Tensor, str], Tensor]] = {
    **dict.fromkeys(("gelu_accurate", "gelu_new", "gelu_python_tanh"), _gelu_new),
    "gelu_10": _gelu_10,
    "gelu_fast": _gelu_fast,
    "gelu_python": _gelu_python,
}
