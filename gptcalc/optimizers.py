"""Optimizers: the states that each keeps for a weight, and what a step allocates, by implementation.

A new optimizer is one class here. Sources: torch/optim/adam.py, adamw.py, sgd.py.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

from gptcalc.errors import InvalidValueError
from gptcalc.tape.record import Home, Recorder, Slot
from gptcalc.tape.rows import Tensor


class Parameter(NamedTuple):
    """A weight to be trained, in the order of `module.parameters()`."""

    tensor: Tensor
    layer: Home
    label: str


class Optimizer(Protocol):
    """States are made in the first step, before anything else of it."""

    #: torch's first release with each implementation.
    since: ClassVar[dict[str, tuple[int, int]]]

    def create(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """Allocate the states."""

    def step(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """What a step allocates and frees."""


def _state(record: Recorder, tensor: Tensor, name: str, op: str, dtype: str = "") -> Slot:
    state = Tensor(f"{name} of {tensor.label}", tensor.dims if not dtype else (), dtype or tensor.dtype, tensor.name)
    return record.hold(record.alloc(state, "optimizer", op))


def _temporary(record: Recorder, tensor: Tensor, op: str) -> Slot:
    made = Tensor(f"{op.removeprefix('aten::')} for {tensor.label}", tensor.dims, tensor.dtype, tensor.name)
    return record.hold(record.alloc(made, "temporary", op))


class Adam:
    """Adam and AdamW (Kingma & Ba 2015; Loshchilov & Hutter 2019): two moments in the weight's dtype.

    `foreach` takes the roots of all second moments at once: one more copy of all weights. `for-loop` takes a root and
    its quotient, and the last quotient lives until the next one is there. `fused` takes nothing, but keeps its count of
    steps on the device, an fp32 number for each weight. With weight decay the gradient (Adam) or the weight (AdamW) is
    changed in place or, at torch's defaults, not at all.
    """

    since: ClassVar = {"foreach": (1, 12), "fused": (2, 0), "for-loop": (1, 0)}

    def __init__(self, impl: str) -> None:
        """By implementation."""
        self.impl = impl

    def create(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """First and second moment of each weight; fused, the count of steps before them."""
        for tensor, layer, label in parameters:
            record.segment(label, layer)
            if self.impl == "fused":
                _state(record, tensor, "step", "aten::zeros", "fp32")
            for name in ("exp_avg", "exp_avg_sq"):
                _state(record, tensor, name, "aten::zeros_like")

    def step(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """The temporaries of the update."""
        if self.impl == "foreach":
            roots = []
            for tensor, layer, label in parameters:
                record.segment(label, layer)
                roots.append(_temporary(record, tensor, "aten::_foreach_sqrt"))
            for (_, layer, label), root in zip(reversed(parameters), reversed(roots), strict=True):
                record.segment(label, layer)
                record.release(root)
        if self.impl == "for-loop":
            last: Slot | None = None
            for tensor, layer, label in parameters:
                record.segment(label, layer)
                root = _temporary(record, tensor, "aten::sqrt")
                quotient = _temporary(record, tensor, "aten::div")
                record.release(root)
                if last is not None:
                    record.release(last)
                last = quotient
            if last is not None:
                record.segment("optimizer")
                record.release(last)


class SGD:
    """Stochastic gradient descent: nothing, or with momentum one buffer for each weight; no step takes more."""

    since: ClassVar = {"foreach": (1, 12), "fused": (2, 3), "for-loop": (1, 0)}

    def __init__(self, *, momentum: bool) -> None:
        """With momentum or without."""
        self.momentum = momentum

    def create(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """The momentum buffers, copies of the first gradients."""
        for tensor, layer, label in parameters if self.momentum else ():
            record.segment(label, layer)
            _state(record, tensor, "momentum_buffer", "aten::clone")

    def step(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """Everything happens in place."""


def optimizer(name: str, impl: str, momentum: float, torch: tuple[int, int]) -> Optimizer:
    """The optimizer that a plan names, or an error that says which pairs torch has."""
    made: Optimizer = SGD(momentum=momentum > 0) if name == "sgd" else Adam(impl)
    if momentum and name != "sgd":
        raise InvalidValueError(f"momentum: read {momentum} with {name}; allowed: 0, or the optimizer sgd")
    if impl not in made.since or torch < made.since[impl]:
        allowed = [key for key, version in made.since.items() if version <= torch]
        raise InvalidValueError(
            f"optimizer implementation: torch {torch[0]}.{torch[1]} has no {impl} {name}; allowed: {', '.join(allowed)}"
        )
    return made
