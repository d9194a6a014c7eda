"""What an optimizer keeps of each weight, and what each implementation takes in a step."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import GPT2, LLAMA, MOMENTS, tape_training, toy_plans
from support import examples

from gptcalc.catalog import resolve
from gptcalc.errors import InvalidValueError
from gptcalc.formula import Dim
from gptcalc.optimizers import Parameter, optimizer
from gptcalc.optimizers.adam import Adam
from gptcalc.optimizers.sgd import SGD
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.tape import Tensor
from gptcalc.tape.record import Recorder
from gptcalc.tape.replay import replay

#: Three weights: outside, in a layer, outside.
WEIGHTS = [
    Parameter(Tensor(label, (rows, columns), "bf16", name), layer, where, ((rows,), (columns,)))
    for label, rows, columns, name, layer, where in (
        ("table", Dim("V", 7), Dim("D", 3), "table", None, "input"),
        ("w", Dim("V", 5), Dim("D", 3), "layers.{}.w", 0, "layer"),
        ("bias", Dim("V", 1), Dim("D", 3), "bias", None, "head"),
    )
]
SIZES = [2 * 3 * size for size in (7, 5, 1)]


def events(update: Adam | SGD, *, create: bool = False) -> list[tuple[str, int, str]]:
    """What happens: allocated or freed with its bytes, and in which stretch."""
    record = Recorder(None)
    record.stage("optimizer")
    (update.create if create else update.step)(record, WEIGHTS)
    return [
        (f"{'+' if event.alloc else '-'}{event.slot.tensor.label}", event.slot.bytes, segment.label)
        for segment in record.stages[0].segments
        for event in segment.events
    ]


def test_foreach_takes_all_roots_at_once() -> None:
    """The root of every second moment in the order of weights; they are let go in reverse."""
    table, w, bias = SIZES
    assert events(Adam("foreach")) == [
        ("+_foreach_sqrt for table", table, "input"),
        ("+_foreach_sqrt for w", w, "layer"),
        ("+_foreach_sqrt for bias", bias, "head"),
        ("-_foreach_sqrt for bias", bias, "head"),
        ("-_foreach_sqrt for w", w, "layer"),
        ("-_foreach_sqrt for table", table, "input"),
    ]


def test_for_loop_keeps_the_last_quotient() -> None:
    """A root, its quotient, the root's end, and only then the end of the quotient of the weight before."""
    table, w, bias = SIZES
    assert events(Adam("for-loop")) == [
        *(("+sqrt for table", table, "input"), ("+div for table", table, "input"), ("-sqrt for table", table, "input")),
        *(("+sqrt for w", w, "layer"), ("+div for w", w, "layer"), ("-sqrt for w", w, "layer")),
        ("-div for table", table, "layer"),
        *(("+sqrt for bias", bias, "head"), ("+div for bias", bias, "head"), ("-sqrt for bias", bias, "head")),
        ("-div for w", w, "head"),
        ("-div for bias", bias, "head"),
    ]


def test_fused_and_sgd_take_nothing() -> None:
    """Fused kernels work in place, and so does SGD in every implementation."""
    assert events(Adam("fused")) == events(SGD(momentum=True)) == events(SGD(momentum=False)) == []


@pytest.mark.parametrize("impl", ["foreach", "for-loop", "fused"])
def test_adam_keeps_two_moments_of_each_weight(impl: str) -> None:
    """In the weight's dtype and size; fused, a count of steps in fp32 on the device before them."""
    expected = []
    for (tensor, _, where, _), size in zip(WEIGHTS, SIZES, strict=True):
        count = [(f"+step of {tensor.label}", 4, where)] if impl == "fused" else []
        moments = [(f"+{name} of {tensor.label}", size, where) for name in ("exp_avg", "exp_avg_sq")]
        expected += [*count, *moments]
    assert events(Adam(impl), create=True) == expected


def test_sgd_keeps_a_buffer_with_momentum_alone() -> None:
    """A copy of the first gradient of each weight, or nothing."""
    expected = [
        (f"+momentum_buffer of {tensor.label}", size, where)
        for (tensor, _, where, _), size in zip(WEIGHTS, SIZES, strict=True)
    ]
    assert events(SGD(momentum=True), create=True) == expected
    assert events(SGD(momentum=False), create=True) == []


def test_states_are_of_their_weight_and_kind() -> None:
    """A state bears its weight's name, so that it is counted with the weight's component, and lives in its layer."""
    record = Recorder(None)
    record.stage("optimizer")
    Adam("fused").create(record, WEIGHTS)
    slots = [event.slot for segment in record.stages[0].segments for event in segment.events]
    assert {(slot.kind, slot.refs) for slot in slots} == {("optimizer", 1)}
    assert [(slot.tensor.name, slot.home) for slot in slots[3:6]] == [("layers.{}.w", 0)] * 3
    assert [(slot.tensor.dims, slot.tensor.dtype) for slot in slots[3:5]] == [
        ((), "fp32"),
        (WEIGHTS[1].tensor.dims, "bf16"),
    ]


def built(spec: Spec, plan: Plan) -> list[int]:
    """The bytes of the weights, in order."""
    build = tape_training(spec, plan).record.stages[0]
    slots = [event.slot for segment in build.segments for event in segment.events]
    return [slot.bytes for slot in slots if slot.kind == "weights"]


def taken(plan: Plan, weights: list[int]) -> int:
    """What a step takes at most: a copy of all weights, or of one twice and of the one before it once, or nothing."""
    if plan.optimizer == "sgd" or plan.optimizer_impl == "fused":
        return 0
    if plan.optimizer_impl == "foreach":
        return sum(weights)
    return max(before + 2 * weight for before, weight in pairwise([0, *weights]))


@settings(max_examples=examples(25), deadline=None)
@given(drawn=toy_plans(), update=st.sampled_from(MOMENTS))
def test_the_peak_of_a_step(drawn: tuple[Spec, Plan], update: dict[str, Any]) -> None:
    """Weights, gradients, states, what is taken; and IDs, targets, the loss: nothing else lives in the optimizer."""
    spec, plan = drawn[0], drawn[1].model_copy(update=update)
    weights = built(spec, plan)
    n_states = 2 if plan.optimizer != "sgd" else 1 if plan.momentum else 0
    counts = 4 * len(weights) if plan.optimizer != "sgd" and plan.optimizer_impl == "fused" else 0
    stays = (2 + n_states) * sum(weights) + counts + 2 * 8 * plan.batch * plan.seq + 4
    figures = replay(tape_training(spec, plan, recorded=3), expandable=False)
    assert figures[7][0].requested == stays + taken(plan, weights)
    assert figures[7][1].requested == stays
    assert figures[8][1].requested == stays - sum(weights) - 4


def test_adam_and_adamw_are_alike() -> None:
    """At torch's defaults weight decay allocates nothing: neither coupled nor decoupled."""
    spec = resolve(LLAMA, {}).spec
    for impl in ("foreach", "for-loop", "fused"):
        one, other = (
            replay(
                tape_training(spec, Plan(batch=2, seq=5, attention="flash", optimizer=name, optimizer_impl=impl)),
                expandable=False,
            )
            for name in ("adam", "adamw")
        )
        assert one == other


def asked(name: str, impl: str = "foreach", **fields: Any) -> Plan:
    """A plan that asks for an optimizer, whether or not there is such a pair."""
    return Plan(seq=4).model_copy(update={"optimizer": name, "optimizer_impl": impl, **fields})


# --- Which pairs there are -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "impl", "torch", "exists"),
    [
        ("adamw", "foreach", (2, 0), True),
        ("adamw", "fused", (2, 0), True),
        ("adam", "fused", (2, 0), True),
        ("adam", "for-loop", (2, 0), True),
        ("sgd", "foreach", (2, 0), True),
        ("sgd", "fused", (2, 2), False),
        ("sgd", "fused", (2, 3), True),
        ("sgd", "for-loop", (2, 15), True),
        ("adamw", "compiled", (2, 13), False),
    ],
)
def test_torch_has_the_pair_or_an_error_says_so(name: str, impl: str, torch: tuple[int, int], exists: bool) -> None:  # noqa: FBT001  a table
    """SGD became fused in 2.3; an unknown pair is refused with the implementations that the release has."""
    if exists:
        assert isinstance(optimizer(asked(name, impl), torch), SGD if name == "sgd" else Adam)
        return
    allowed = "foreach, for-loop" if name == "sgd" else "foreach, fused, for-loop"
    with pytest.raises(InvalidValueError) as error:
        optimizer(asked(name, impl), torch)
    version = f"{torch[0]}.{torch[1]}"
    assert str(error.value) == f"optimizer implementation: torch {version} has no {impl} {name}; allowed: {allowed}"


def test_momentum_is_sgds() -> None:
    """Adam has its own; asked for with it, an error says who takes it."""
    assert isinstance(optimizer(asked("sgd", momentum=0.9), (2, 13)), SGD)
    for name in ("adam", "adamw"):
        with pytest.raises(InvalidValueError, match=f"momentum: read 0.9 with {name}; allowed with sgd"):
            optimizer(asked(name, momentum=0.9), (2, 13))


def test_momentum_decides_whether_there_is_a_buffer() -> None:
    """Of zero there is none."""
    spec = resolve(GPT2, {}).spec
    plan = Plan(batch=2, seq=5, attention="flash", optimizer="sgd")
    ends = [
        replay(tape_training(spec, plan.model_copy(update={"momentum": momentum})), expandable=False)[-1][1].requested
        for momentum in (0.0, 0.9)
    ]
    assert ends[1] - ends[0] == sum(built(spec, plan))
