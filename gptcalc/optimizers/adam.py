"""Adam and AdamW, as torch/optim/adam.py and adamw.py have them."""

from collections.abc import Sequence
from typing import ClassVar, Self

from gptcalc.optimizers.base import Optimizer, Parameter, Variables, each, let_go, state, temporary
from gptcalc.plan import Plan
from gptcalc.tape.record import Recorder


class Adam(Optimizer):
    """Adam and AdamW (Kingma & Ba 2015; Loshchilov & Hutter 2019): two moments in the weight's dtype.

    `foreach` takes the roots of all second moments at once: one more copy of all weights. `for-loop` takes a root and
    its quotient, and the last quotient lives until the next one is there. `fused` takes nothing, but keeps its count of
    steps on the device, an fp32 number for each weight. With weight decay the gradient (Adam) or the weight (AdamW) is
    changed in place or, at torch's defaults, not at all. AMSGrad (Reddi et al. 2018) keeps the greatest second moment
    too, which is updated in place; its root is taken instead.
    """

    since: ClassVar = {"foreach": (1, 12), "fused": (2, 0), "for-loop": (1, 0)}
    hears: ClassVar = ("amsgrad",)

    def __init__(self, impl: str, *, amsgrad: bool = False) -> None:
        """By implementation."""
        self.impl, self.amsgrad = impl, amsgrad

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """As a plan asks for it."""
        return cls(plan.optimizer_impl, amsgrad=plan.amsgrad)

    def create(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """First and second moment of each weight, and the greatest second; fused, the count of steps before them."""
        for tensor, *_ in each(record, parameters):
            if self.impl == "fused":
                state(record, tensor, "step", "aten::zeros", dims=(), dtype="fp32")
            for name in ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if self.amsgrad else ())):
                state(record, tensor, name, "aten::zeros_like")

    def step(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """The temporaries of the update."""
        if self.impl == "foreach":
            roots = [temporary(record, one.tensor, "aten::_foreach_sqrt") for one in each(record, parameters)]
            let_go(record, parameters, roots)
        if self.impl == "for-loop":
            local = Variables(record)
            for tensor, *_ in each(record, parameters):
                root = temporary(record, tensor, "aten::sqrt")
                quotient = temporary(record, tensor, "aten::div")
                record.release(root)
                local.assign("denom", quotient)
            local.end()
