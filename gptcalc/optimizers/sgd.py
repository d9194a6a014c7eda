"""Stochastic gradient descent, as torch/optim/sgd.py has it."""

from collections.abc import Sequence
from typing import ClassVar, Self

from gptcalc.optimizers.base import Optimizer, Parameter, each, state
from gptcalc.plan import Plan
from gptcalc.tape.record import Recorder


class SGD(Optimizer):
    """Stochastic gradient descent: nothing, or with momentum one buffer for each weight; no step takes more."""

    since: ClassVar = {"foreach": (1, 12), "fused": (2, 3), "for-loop": (1, 0)}
    hears: ClassVar = ("momentum",)

    def __init__(self, *, momentum: bool) -> None:
        """With momentum or without."""
        self.momentum = momentum

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """As a plan asks for it."""
        return cls(momentum=plan.momentum > 0)

    def create(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """The momentum buffers, copies of the first gradients."""
        for tensor, *_ in each(record, parameters if self.momentum else ()):
            state(record, tensor, "momentum_buffer", "aten::clone")

    def step(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """Everything happens in place."""
