"""Muon for the matrices of the layers, as torch/optim/_muon.py has it, and AdamW for everything else."""

from collections.abc import Sequence
from typing import ClassVar, Self

from gptcalc.formula import product_size
from gptcalc.optimizers.adam import Adam
from gptcalc.optimizers.base import Optimizer, Parameter, Variables, each, number, product, state, temporary
from gptcalc.plan import Plan
from gptcalc.tape.record import Recorder, Slot

#: Newton-Schulz iterations of a step [_muon.py, DEFAULT_NS_STEPS].
N_ITERATIONS = 5


class Muon(Optimizer):
    """Muon (Jordan et al. 2024): a momentum buffer in the gradient's dtype, and a step that works in bf16.

    It takes the weights with two axes that are in layers: matrices. Tables of tokens and positions, the unembedding
    (also where it is tied to the token table), norms, biases, and experts that are stacked along a third axis are
    AdamW's, which is stepped after it; the implementation that is asked for is that of AdamW, since Muon has but one
    (for-loop). For each matrix of n × m, n ≤ m, a step takes the update, a copy of it in bf16 (of bf16 weights, none),
    two Gram matrices n × n, and a next iterate beside the last.
    """

    since: ClassVar = {"foreach": (2, 9), "fused": (2, 9), "for-loop": (2, 9)}

    def __init__(self, impl: str) -> None:
        """By the implementation of AdamW."""
        self.others = Adam(impl)

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """As a plan asks for it."""
        return cls(plan.optimizer_impl)

    def update(self, record: Recorder, parameters: Sequence[Parameter], *, first: bool) -> None:
        """Muon's step, then AdamW's."""
        super().update(record, [one for one in parameters if is_hidden_matrix(one)], first=first)
        self.others.update(record, [one for one in parameters if not is_hidden_matrix(one)], first=first)

    def create(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """The momentum of each matrix."""
        for tensor, *_ in each(record, parameters):
            state(record, tensor, "momentum_buffer", "aten::zeros_like")

    def step(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """The temporaries of each matrix's update; the last update lives until the next one is there."""
        local = Variables(record)
        for one in each(record, parameters):
            local.assign("update", temporary(record, one.tensor, "aten::lerp"))
            local.assign("update", _orthogonal(record, one))
        local.end()


def is_hidden_matrix(one: Parameter) -> bool:
    """Whether Muon takes the weight: it has two axes, and is in a layer."""
    return one.layer is not None and len(one.axes) == 2


def _orthogonal(record: Recorder, one: Parameter) -> Slot:
    """`_zeropower_via_newtonschulz`: what it returns, held once; the update that it is given is its caller's."""
    tensor, inside = one.tensor, Variables(record)
    short = min(one.axes, key=product_size)
    if tensor.dtype != "bf16":
        inside.assign("ortho_grad", temporary(record, tensor, "aten::_to_copy", dtype="bf16"))
    norm = number(record, tensor, "aten::norm", dtype="bf16")
    least = number(record, tensor, "aten::clamp", dtype="bf16")
    record.release(norm)
    record.release(least)
    for _ in range(N_ITERATIONS):
        for name, op in (("gram_matrix", "aten::mm"), ("gram_update", "aten::addmm"), ("ortho_grad", "aten::addmm")):
            dims, what = (None, "next iterate") if name == "ortho_grad" else ((*short, *short), name.replace("_", " "))
            made = temporary(record, tensor, op, dims=dims, dtype="bf16", what=what)
            record.kernel(product(made.tensor))
            inside.assign(name, made)
    return inside.give_back("ortho_grad")
