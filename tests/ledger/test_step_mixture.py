"""Mixtures of experts: the tape's allocations and frees are those of the traced reference, one by one."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from operator import le
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import events_of
from support import examples

from gptcalc.catalog import resolve
from gptcalc.formula import Dim, product_size
from gptcalc.ledger import step
from gptcalc.optimizers import optimizer
from gptcalc.parts import experts
from gptcalc.plan import Plan
from gptcalc.tape import Tensor, all_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from random import Random

    from gptcalc.formula import Product
    from gptcalc.spec import Spec
    from gptcalc.tape import Setting
    from gptcalc.tape.replay import Recording

pytestmark = pytest.mark.usefixtures("frozen")

#: Every layer is recorded, as it is traced.
ALL = 1000


class Case(NamedTuple):
    """A toy mixture and what is done with it."""

    spec: Spec
    plan: Plan

    def training(self, recorded: int = ALL) -> Recording:
        """Its training, two steps."""
        plan = self.plan
        how = optimizer(plan, (2, 13))
        return step.training(self.spec, plan, self._kernels, how, None, recorded=recorded)

    def inference(self, recorded: int = ALL) -> Recording:
        """Prefill and decode."""
        return step.inference(self.spec, self.plan, self._kernels, None, recorded=recorded)

    @property
    def _kernels(self) -> list[str]:
        return [self.plan.attention] * len(self.spec.layers)


@st.composite
def cases(draw: st.DrawFn, *, busy: bool = False) -> Case:
    """Experts from one to nine, any number of them active, odd widths, lengths that no number of experts divides.

    Where they are `busy`, activations weigh more than weights.
    """
    precision: Any = draw(st.sampled_from(["fp32", "bf16", "fp16"]))
    wide = precision == "fp32"
    n_experts = draw(st.integers(1, 5) | st.just(9))
    dropout = draw(st.sampled_from([0.0, 0.1]))
    dims = {
        "n_layers": draw(st.integers(1, 2)),
        "d_model": draw(st.integers(1, 8 if busy else 40)),
        "n_heads": 4,
        "n_kv_heads": 4 if wide else draw(st.sampled_from([1, 2, 4])),
        "d_head": 8,
        "d_ff": draw(st.integers(30 if busy else 1, 60)),
        "n_vocab": draw(st.integers(1, 50)),
        "n_ctx": 8,
        "n_experts": n_experts,
        "n_active": draw(st.integers(1, n_experts)),
        "residual_dropout": dropout,
        "embedding_dropout": dropout,
        "attention_dropout": 0.0,
        "tied": draw(st.booleans()),
    }
    plan = Plan(
        batch=draw(st.integers(1, 3)),
        seq=draw(st.integers(8 if busy else 1, 8)),
        precision=precision,
        kv_dtype=precision,
        attention="efficient" if wide else "flash",
        optimizer=draw(st.sampled_from(["adamw", "adam", "sgd"])),
        optimizer_impl=draw(st.sampled_from(["foreach", "for-loop"])),
    )
    return Case(resolve("mixtral-8x7b", dims).spec, plan)


def grouped(events: Iterable[tuple[bool, int]]) -> list[tuple[int, Counter[int]]]:
    """Bytes of each allocation, with those of the frees that follow it, in whichever order."""
    found: list[tuple[int, Counter[int]]] = [(0, Counter())]
    for is_alloc, size in events:
        if is_alloc:
            found.append((size, Counter()))
        else:
            found[-1][1][size] += 1
    return found


def taped(recording: Recording) -> list[tuple[str, list[tuple[int, Counter[int]]]]]:
    """The phases of a recording, with what happens in them."""
    return [(stage.name, grouped(events_of(recording, stage))) for stage in recording.record.stages]


def traced(case: Case, *, training: bool) -> list[tuple[str, list[tuple[int, Counter[int]]]]]:
    """The phases of the traced reference."""
    pytest.importorskip("torch")
    from gptcalc.witness.trace import trace_inference, trace_training

    trace = (trace_training if training else trace_inference)(case.spec, case.plan)
    return [(phase.name, grouped((e.kind == "alloc", e.bytes) for e in phase.events)) for phase in trace.phases]


def peaks(recording: Recording) -> list[int]:
    """The most bytes that are alive at once while layers run, in each phase."""
    alive, found = 0, []
    for stage in recording.record.stages:
        most = 0
        for run in recording.runs(stage):
            for event in run.events * run.times:
                alive += event.slot.bytes * (event.times if event.alloc else -event.times)
                if run.segment.layer is not None:
                    most = max(most, alive)
        found.append(most)
    return found


@contextmanager
def worst_routing() -> Iterator[None]:
    """The tapes within are those of the worst routing."""
    balanced = step.setting

    def worst(*arguments: Any, **named: Any) -> Setting:
        return balanced(*arguments, **named)._replace(worst_routing=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "setting", worst)
        yield


@contextmanager
def worst_load() -> Iterator[None]:
    """The reference's experts within get their rows as in the worst routing: the first ones one of every token."""
    pytest.importorskip("torch")
    from gptcalc.modules.mixture import Experts

    def worst(of: Any, chosen: Any) -> list[int]:
        tokens, n_active = chosen.shape
        return [tokens] * n_active + [0] * (of.n_experts - n_active)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experts, "_load", worst)
        yield


@given(cases())
@settings(max_examples=examples(16), deadline=None)
def test_training_allocates_and_frees_as_the_reference_does(case: Case) -> None:
    """Two steps of a toy mixture: the same bytes in the same order, phase by phase."""
    assert taped(case.training()) == traced(case, training=True)


@given(cases())
@settings(max_examples=8, deadline=None)
def test_inference_allocates_and_frees_as_the_reference_does(case: Case) -> None:
    """Prefill and decode of a toy mixture: the same bytes in the same order, phase by phase."""
    assert taped(case.inference()) == traced(case, training=False)


@given(cases())
@settings(max_examples=8, deadline=None)
def test_experts_without_rows_allocate_and_free_as_the_reference_does(case: Case) -> None:
    """With the worst routing idle experts run too: they take no activations, but gradients of their weights."""
    with worst_routing(), worst_load():
        assert taped(case.training()) == traced(case, training=True)
        assert taped(case.inference()) == traced(case, training=False)


@given(cases() | cases(busy=True), st.randoms(), st.booleans())
@settings(max_examples=examples(60), deadline=None)
def test_no_routing_needs_more_than_the_worst(case: Case, random: Random, alike: bool) -> None:  # noqa: FBT001
    """However tokens choose their experts, even all alike, no phase's layers need more than with the worst routing."""
    with worst_routing():
        bounds = [peaks(case.training()), peaks(case.inference())]

    def chosen(setting: Setting, n_experts: int, n_active: int) -> list[Product]:
        choices = [random.sample(range(n_experts), n_active) for _ in range(product_size(setting.tokens))]
        rows = Counter(expert for own in choices for expert in (choices[0] if alike else own))
        return [(Dim("R", rows[expert]),) for expert in range(n_experts)]

    balanced = [peaks(case.training()), peaks(case.inference())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experts, "load", chosen)
        drawn = [peaks(case.training()), peaks(case.inference())]
    for bound, even, other in zip(bounds, balanced, drawn, strict=True):
        assert all(map(le, even, bound))
        assert all(map(le, other, bound))


def test_worst_routing_needs_more_where_experts_are_idle() -> None:
    """Two of eight experts with all tokens: each has four times the rows of even routing, and so have its gradients."""
    dims = {"n_layers": 2, "n_vocab": 1000}
    case = Case(resolve("mixtral-8x7b", dims).spec, Plan(batch=4, seq=4096, attention="flash", optimizer="sgd"))
    even = max(peaks(case.training()))
    with worst_routing():
        assert even < max(peaks(case.training()))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.data(), st.booleans())
def test_every_token_has_its_rows(batch: int, seq: int, n_experts: int, data: st.DataObject, worst: bool) -> None:  # noqa: FBT001
    """However tokens are routed, there are B·T·k rows, and no expert has more than one of a token."""
    n_active = data.draw(st.integers(1, n_experts))
    spec = resolve("mixtral-8x7b", {}).spec
    setting = step.setting(spec, Plan(batch=batch, seq=seq), seq, training=True)._replace(worst_routing=worst)
    loads = [product_size(rows) for rows in experts.load(setting, n_experts, n_active)]
    assert len(loads) == n_experts
    assert sum(loads) == batch * seq * n_active
    assert max(loads) <= batch * seq


@pytest.mark.parametrize(
    ("seq", "rows"), [(4096, {"(B·T·k/E)": 8}), (4097, {"⌈B·T·k/E⌉": 2, "⌊B·T·k/E⌋": 6})], ids=["even", "odd"]
)
def test_formulas_name_the_rows_of_an_expert(seq: int, rows: dict[str, int]) -> None:
    """What is kept of eight experts reads as their share of B·T·k rows, rounded where it is not whole."""
    case = Case(resolve("mixtral-8x7b", {"n_layers": 1}).spec, Plan(batch=1, seq=seq, attention="flash"))
    parts = [part for stage in case.training().record.stages[:2] for part in stage.segments]
    slots = [(event.slot, part.turn) for part in parts for event in part.events if event.alloc]
    tensors = [slot.of(number).tensor for slot, turn in slots for number in (turn.numbers if turn else [0])]
    formulas = {tensor.label: all_of(tensor).formula().letters for tensor in tensors}
    assert formulas["rows by expert"] == "2×B×T×k×D"
    assert formulas["weighted outputs"] == "4×B×T×k×D"
    of_experts = Counter(formulas[f"gated rows of expert {number}"] for number in range(8))
    assert of_experts == {f"2×{share}×Fe": count for share, count in rows.items()}


def test_the_width_of_a_share_stands_last() -> None:
    """A compound dim is printed where its first letter belongs."""
    share, width, both = Dim("⌈B·T·k/E⌉", 3), Dim("D", 5), Dim("(2×F)", 14)
    assert all_of(Tensor("x", (width, both, share), "bf16")).formula().letters == "2×⌈B·T·k/E⌉×(2×F)×D"
