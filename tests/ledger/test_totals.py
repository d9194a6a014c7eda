"""The figures alone, and the largest batch or length that fits: the very ones of `memory`, in whichever order asked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import FAMILIES, OPTIMIZERS, toy_specs
from support import examples

from gptcalc.allocator import Figures
from gptcalc.catalog import presets, resolve
from gptcalc.errors import GptcalcError
from gptcalc.ledger.fit import Range, Room, fit
from gptcalc.ledger.memory import ModeName, is_reported, last_step, memory, need, record
from gptcalc.ledger.solve import Search
from gptcalc.ledger.totals import Totals, What
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.tape.kernels import TARGETS, CudaKernels, target, torch_version
from gptcalc.tape.replay import replay

MODES: tuple[ModeName, ...] = ("training", "inference")
#: On both sides of what kernels and mixtures turn on: views of one, sorted IDs, a short norm's partial sums, cuDNN.
NUMBERS = {
    "batch": (1, 2, 3, 5, 8, 48, 128, 236, 237, 3072, 5041, 5042, 65_535, 65_536),
    "seq": (1, 2, 7, 8, 9, 63, 64, 65, 128, 129, 1_024, 3_073),
}


def asked(spec: Spec, plan: Plan, mode: ModeName) -> Figures | str:
    """What a recording of that very plan comes to, as in `memory`, or the error."""
    try:
        need(spec, plan, (mode,))
        recording = record(mode, spec, plan, CudaKernels(target(plan.target), torch_version(plan.torch)))
    except GptcalcError as error:
        return str(error)
    names = [stage.name for stage in recording.record.stages]
    found = replay(recording, expandable=plan.expandable_segments)
    peaks = [found[stage][0] for stage in last_step(recording) if is_reported(mode, names[stage], plan)]
    return Figures(*map(max, zip(*peaks, strict=True)))


def test_asked_is_what_memory_says() -> None:
    """To the byte, of what this file compares with."""
    spec, plan = resolve(FAMILIES["mixtral"], {}).spec, Plan(batch=3, seq=13, checkpointing="full")
    for mode in memory(spec, plan, MODES).modes:
        assert mode.totals == asked(spec, plan, mode.name)


def figures(totals: Totals, spec: Spec, plan: Plan, mode: ModeName, what: Any) -> Figures | str:
    """What a search is told, or its error."""
    try:
        return totals.course(spec, plan, mode, what)(getattr(plan, what))
    except GptcalcError as error:
        return str(error)


@st.composite
def toys(draw: st.DrawFn) -> tuple[Spec, Plan]:
    """A toy model with a plan of whatever there is."""
    spec, _ = draw(toy_specs())
    plan = {
        "batch": draw(st.sampled_from((1, 2, 3))),
        "seq": draw(st.sampled_from((1, 7, 13, 19))),
        "precision": draw(st.sampled_from(("fp32", "bf16", "fp16", "autocast-bf16", "autocast-fp16"))),
        "attention": draw(st.sampled_from(("auto", "auto", "eager", "math"))),
        "checkpointing": draw(st.sampled_from(("none", "full", "selective"))),
        "chunked_loss": draw(st.sampled_from((1, 1, 2))),
        "grad_dtype": draw(st.sampled_from(("none", "none", "bf16"))),
        "grad_accum": draw(st.sampled_from((1, 1, 3))),
        "logits": draw(st.sampled_from(("last", "all"))),
        "torch": draw(st.sampled_from(("2.13", "2.15", "2.9"))),
        "expandable_segments": draw(st.booleans()),
        **draw(st.sampled_from(OPTIMIZERS)),
    }
    return spec, Plan(**plan)


@settings(max_examples=examples(12), deadline=None)
@given(st.data())
def test_shared_recordings_give_the_figures_of_memory(data: st.DataObject) -> None:
    """Of any model and plan, for numbers and devices in any order, also where a kernel changes between them."""
    spec, plan = data.draw(toys())
    mode, what = data.draw(st.sampled_from(MODES)), data.draw(st.sampled_from(("batch", "seq")))
    learned = spec.positions is not None and spec.positions.kind == "learned"
    allowed = [n for n in NUMBERS[what] if what == "batch" or not learned or n <= spec.n_ctx]
    totals = Totals()
    for number, chip in data.draw(
        st.lists(st.tuples(st.sampled_from(allowed), st.sampled_from(tuple(TARGETS))), min_size=2, max_size=4)
    ):
        one = plan.model_copy(update={what: number, "target": chip})
        found = figures(totals, spec, one, mode, what)
        assert found == asked(spec, one, mode)
        if isinstance(found, Figures):
            assert totals.course(spec, one, mode, what).weights <= found.requested


@pytest.mark.parametrize("name", [preset.name for preset in presets()][::12])
def test_figures_of_published_models_are_those_of_memory(name: str) -> None:
    """Four layers of each, with batches and devices on both sides of what decides about kernels."""
    whole = resolve(name, {}).spec
    groups = tuple(group.model_copy(update={"n_layers": min(group.n_layers, 4)}) for group in whole.layers[:3])
    spec, totals = whole.model_copy(update={"layers": groups}), Totals()
    for mode in MODES:
        for batch, chip in ((5, "sm75"), (96, "sm90"), (7, "sm80"), (2, "sm80"), (100, "sm90"), (1, "sm120")):
            plan = Plan(batch=batch, seq=768, target=chip, checkpointing="full")
            found = asked(spec, plan, mode)
            assert figures(totals, spec, plan, mode, "batch") == found
            if isinstance(found, Figures):
                assert totals.course(spec, plan, mode).weights <= found.requested


def test_one_recording_serves_many_batches_and_devices() -> None:
    """Between two thresholds nothing is recorded anew, and a figure that is known is not replayed."""
    spec, totals = resolve("gpt2-small", {}).spec, Totals()
    for chip in ("sm80", "sm86", "sm89"):
        for batch in range(4, 60):
            totals(spec, Plan(batch=batch, seq=1024, target=chip, precision="fp32"), "inference")
    assert len(totals.runs) == 1
    assert len(totals.figures) == 56


@settings(max_examples=examples(15), deadline=None)
@given(st.integers(0, 10**8), st.sampled_from(sorted(FAMILIES)), st.sampled_from(MODES), st.booleans())
def test_what_is_sought_fits_and_the_next_does_not(size: int, family: str, mode: ModeName, batch: bool) -> None:  # noqa: FBT001
    """In any room; the answer is the same whatever was sought before, and `within` knows what the figures say."""
    what: What = "batch" if batch else "seq"
    spec, plan = resolve(FAMILIES[family], {}).spec, Plan(batch=2, seq=13)
    least = 3 if size % 2 else 1
    room, other = (Room("", "", n, "given", Range(n, n), budgeted=True) for n in (size, 3 * size // 4))
    search = Search()
    search(spec, plan, mode, other, what)
    found = search(spec, plan, mode, room, what, least=least)
    assert found == Search()(spec, plan, mode, room, what, least=least)
    for tried, fits in ((found.largest, True), (found.beyond, False)):
        if tried is not None:
            one = plan.model_copy(update={what: tried.number})
            assert tried.totals == asked(spec, one, mode)
            assert tried.fit == fit(tried.totals, room)
            assert tried.fit.fits is fits
            within = Totals().course(spec, plan, mode, what).within(tried.number, size)
            assert within == (tried.totals if fits else None)
    assert found.largest is not None or (found.beyond is not None and found.beyond.number == least)
    assert found.largest is None or found.largest.number >= least
    assert found.beyond is None or found.largest is None or found.beyond.number == found.largest.number + 1
