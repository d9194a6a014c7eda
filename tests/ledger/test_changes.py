"""What would make a run fit: suggestions fit, their next steps do not, and every candidate is suggested somewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from gptcalc.catalog import resolve
from gptcalc.ledger.asked import settle, with_dropout
from gptcalc.ledger.changes import BF16_SINCE, COSTS, LEAST_OF_SEQ, ROWS, Change, Run, Suggestions, suggest
from gptcalc.ledger.fit import Room, budget, fit, room
from gptcalc.ledger.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gptcalc.plan import Plan

TOTALS = Totals()
#: GPT-2 so small that what torch keeps for products does not hide what else there is.
SMALL = {"n_layers": 2, "d_model": 256, "n_heads": 4, "n_vocab": 8192}
#: Each candidate: what is asked for, and what is suggested once there is room for just that.
REACHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "set to none": ({"zero_grads": True, "seq": 512, "n_layers": 12}, {"zero_grads": False}),
    "no outputs": ({"keep_outputs": True, "seq": 512, "n_layers": 12}, {"keep_outputs": False}),
    "last logits": ({"mode": "inference", "logits": "all", "batch": 4}, {"logits": "last"}),
    "torch's attention": ({"attention": "eager", "batch": 4}, {"attention": "auto"}),
    "fused": ({"seq": 16, "n_layers": 12}, {"optimizer_impl": "fused"}),
    "expandable segments": ({"batch": 5}, {"expandable_segments": True}),
    "in backward": ({"seq": 16, "n_layers": 12}, {"optimizer_in_backward": True}),
    "chunks": ({"batch": 4}, {"chunked_loss": 3}),
    "selective": ({"attention": "eager", "batch": 4}, {"checkpointing": "selective"}),
    "for-loop": ({"seq": 16, "optimizer": "adafactor", "n_layers": 12}, {"optimizer_impl": "for-loop"}),
    "micro-batches": ({"batch": 12}, {"batch": 4, "grad_accum": 3}),
    "full": ({"batch": 4, "n_layers": 12}, {"checkpointing": "full"}),
    "fewer served": ({"mode": "inference", "batch": 64}, {"batch": 21}),
    "autocast": ({"precision": "fp32", "seq": 512, "n_layers": 12}, {"precision": "autocast-bf16"}),
    "autocast on a T4": (
        {"precision": "fp32", "seq": 512, "n_layers": 12, "target": "sm75"},
        {"precision": "autocast-fp16"},
    ),
    "16 bits": ({"precision": "autocast-bf16", "seq": 16}, {"precision": "bf16"}),
    "16 bits on a T4": ({"precision": "fp32", "mode": "inference", "target": "sm75"}, {"precision": "fp16"}),
    "KV cache": ({"mode": "inference", "kv_dtype": "fp32", "batch": 32}, {"kv_dtype": "bf16"}),
    "8 bits": ({"seq": 16, "optimizer_impl": "fused", "n_layers": 12}, {"optimizer": "adamw8bit"}),
    "no buffers": ({"seq": 16, "grad_dtype": "fp32"}, {"grad_dtype": "none"}),
    "no master weights": ({"seq": 16, "master_weights": "fp32"}, {"master_weights": "none"}),
    "no AMSGrad": ({"seq": 16, "amsgrad": True}, {"amsgrad": False}),
    "fewer in micro-batches": ({"batch": 13}, {"batch": 6, "grad_accum": 2}),
    "batch": ({"batch": 13}, {"batch": 7}),
    "seq": ({"batch": 4}, {"seq": 704}),
    "no dropout": ({"batch": 4}, {"dropout": 0.0}),
    "adafactor": ({"seq": 16, "optimizer_impl": "for-loop"}, {"optimizer": "adafactor"}),
    "muon": ({"seq": 16, "optimizer_impl": "foreach", "n_layers": 12}, {"optimizer": "muon"}),
    "momentum": ({"seq": 16, "optimizer": "sgd", "momentum": 0.9}, {"momentum": 0.0}),
    "sgd": ({"seq": 16, "optimizer_impl": "foreach"}, {"optimizer": "sgd"}),
}


def parted(asked: Mapping[str, Any], model: Mapping[str, Any] = SMALL) -> tuple[dict[str, Any], dict[str, Any]]:
    """The overrides of the model, and the settings of the run, of training where nothing else is said."""
    own = {**model, **{field: value for field, value in asked.items() if field == "n_layers"}}
    return own, {"mode": "training", **{field: value for field, value in asked.items() if field != "n_layers"}}


def needs(overrides: Mapping[str, Any], asked: Mapping[str, Any]) -> int:
    """What torch's allocator holds in the larger of the modes: the engine's own answer, without what is searched."""
    spec = resolve("gpt2", with_dropout(overrides, asked)).spec
    plan, modes, _ = settle(spec, asked)
    return max(TOTALS(spec, plan, mode).reserved for mode in modes)


def within(size: int) -> Room:
    """A budget of so many bytes."""
    return budget("1B")._replace(capacity=size, usable=budget("1B").usable._replace(low=size, high=size))


def suggested(overrides: Mapping[str, Any], asked: Mapping[str, Any], size: int) -> Suggestions:
    """What would make it fit so many bytes."""
    return suggest("gpt2", overrides, asked, [within(size)], TOTALS)


def next_step(change: Mapping[str, Any], plan: Plan) -> dict[str, Any] | None:
    """The next milder number of a change with one: `None` where it has none, or where that is what was asked."""
    total = plan.batch * plan.grad_accum
    if "chunked_loss" in change:
        return {"chunked_loss": change["chunked_loss"] - 1}
    if "grad_accum" in change:
        even = total % change["batch"] == 0
        sizes = [size for size in range(change["batch"] + 1, plan.batch + 1) if not even or total % size == 0]
        return {"batch": sizes[0], "grad_accum": total // sizes[0]}
    field = next((field for field in ("batch", "seq") if field in change), None)
    return {field: change[field] + 1} if field else None


def runs() -> Iterator[Run]:
    """The runs of the cases above."""
    for asked, _ in REACHED.values():
        overrides, run = parted(asked)
        spec = resolve("gpt2", overrides).spec
        plan, modes, _ = settle(spec, run)
        yield Run(spec, plan, modes, run)


RUNS = tuple(runs())


@pytest.mark.parametrize(("asked", "expected"), REACHED.values(), ids=REACHED.keys())
def test_every_candidate_is_suggested_where_there_is_room_for_it(
    asked: dict[str, Any], expected: dict[str, Any]
) -> None:
    """With as much room as the run takes after the change, the change is among those suggested, and exactly fits."""
    overrides, run = parted(asked)
    size = needs(overrides, {**run, **expected})
    assert size < needs(overrides, run)

    found = {tuple(change.settings.items()): change for change in suggested(overrides, run, size).singles}

    change = found.get(tuple(expected.items()))
    assert change is not None, list(found)
    assert change.tightest.fit.margin == (0, 0)
    assert change.notes[0]
    assert bool(change.alters) == (change.cost == "quality")


def test_every_row_has_a_case_in_which_it_is_suggested() -> None:
    """Of each row, what it sets is among the changes above, to the word or to the fields."""
    reached = [expected for _, expected in REACHED.values()]
    for row in ROWS:
        found = [ways for ways in map(row.ways, RUNS) if ways and ways.most > 0]
        own = [dict(ways.at(n)) for ways in found for n in range(1, min(ways.most, 1500) + 1)]
        assert [way for way in own if way in reached], row.note


@settings(max_examples=examples(15), deadline=None)
@given(
    st.sampled_from(["training", "inference", "both"]),
    st.integers(1, 12),
    st.sampled_from([8, 64, 200]),
    st.sampled_from(["fp32", "bf16", "autocast-bf16"]),
    st.sampled_from(["adamw", "sgd", "adafactor"]),
    st.fractions(0, 1),
)
def test_every_suggestion_fits_and_its_next_step_does_not(  # noqa: PLR0913, PLR0917  what is drawn
    mode: str, batch: int, seq: int, precision: str, optimizer: str, share: Any
) -> None:
    """Asked of the engine anew, in any room between the smallest that helps and what was asked for."""
    asked: dict[str, Any] = {"mode": mode, "batch": batch, "seq": seq, "precision": precision}
    asked |= {} if mode == "inference" else {"optimizer": optimizer}
    overrides = {"n_layers": 2, "d_model": 64, "n_heads": 2, "n_vocab": 900}
    size = int(needs(overrides, asked) * share)
    if size in (0, needs(overrides, asked)):
        return
    plan = settle(resolve("gpt2", overrides).spec, asked).plan

    found = suggested(overrides, asked, size)

    assert bool(found.singles) + bool(found.pairs) + bool(found.together) + bool(found.closest or found.weights) == 1
    for change in (*found.singles, *found.pairs, *([found.together] if found.together else [])):
        assert needs(overrides, {**asked, **change.settings}) <= size
    for change in found.singles:
        milder = next_step(change.settings, plan)
        assert milder is None or needs(overrides, {**asked, **milder}) > size
    assert [COSTS.index(change.cost) for change in found.singles] == sorted(
        COSTS.index(change.cost) for change in found.singles
    )


PAIRS_OF = {"precision": "fp32", "batch": 8, "seq": 512}


@pytest.fixture(scope="module")
def pairs() -> tuple[dict[str, Any], dict[str, Any], int, Suggestions]:
    """Pairs for a run in a room that no single change makes large enough."""
    overrides, run = parted(PAIRS_OF, {**SMALL, "n_layers": 8})
    least = [{"batch": 1}, {"batch": 1, "grad_accum": 8}, {"seq": 512 // LEAST_OF_SEQ}, {"precision": "bf16"}]
    size = min(needs(overrides, {**run, **change}) for change in least) - 2**21
    return overrides, run, size, suggested(overrides, run, size)


def test_no_part_of_a_pair_is_enough(pairs: tuple[dict[str, Any], dict[str, Any], int, Suggestions]) -> None:
    """There are pairs, each fits, and neither of its settings alone does."""
    overrides, run, size, found = pairs

    assert not found.singles
    assert len(found.pairs) > 1
    assert len({tuple(change.settings.items()) for change in found.pairs}) == len(found.pairs)
    for change in found.pairs:
        assert len(change.notes) == 2
        assert needs(overrides, {**run, **change.settings}) <= size
        for part in parts(change):
            assert needs(overrides, {**run, **part}) > size, part


def test_the_numbers_of_a_pair_are_the_limit(pairs: tuple[dict[str, Any], dict[str, Any], int, Suggestions]) -> None:
    """The next step of either part does not fit."""
    overrides, run, size, found = pairs
    plan = settle(resolve("gpt2", overrides).spec, run).plan
    numbers = 0
    for change in found.pairs:
        for part in parts(change):
            milder = next_step(part, plan)
            numbers += milder is not None
            assert milder is None or needs(overrides, {**run, **change.settings, **milder}) > size
    assert numbers


def parts(change: Change) -> list[dict[str, Any]]:
    """The settings of a change, those that go together in one."""
    found = [{field: value} for field, value in change.settings.items() if field not in ("batch", "grad_accum")]
    together = {field: value for field, value in change.settings.items() if field in ("batch", "grad_accum")}
    return [*found, *([together] if together else [])]


def test_more_changes_are_combined_where_no_pair_is_enough() -> None:
    """LLaMA 3 8B is trained on 24 GB with three changes, and with no two of them."""
    asked = {"mode": "training", "gpu": "rtx-4090"}
    found = suggest("llama-3-8b", {}, asked, [room("rtx-4090")], TOTALS)
    change = found.together

    assert change is not None
    assert not found.singles
    assert not found.pairs
    assert change.tightest.fit.fits
    assert len(change.settings) == len(change.notes) == 3
    spec = resolve("llama-3-8b", {}).spec
    for field in change.settings:
        others = {name: value for name, value in change.settings.items() if name != field}
        plan = settle(spec, {**asked, **others}).plan
        assert not fit(TOTALS(spec, plan, "training"), room("rtx-4090")).fits


def test_what_comes_closest_is_said_where_nothing_is_enough() -> None:
    """The changes together lack something, less than the run as it was asked for."""
    overrides, run = parted({"batch": 4})
    found = suggested(overrides, run, 2**24)

    assert found.closest is not None
    assert found._replace(closest=None, larger=None) == Suggestions()
    lacks = -found.closest.tightest.fit.margin.low
    assert 0 < lacks == needs(overrides, {**run, **found.closest.settings}) - 2**24 < needs(overrides, run) - 2**24


def test_weights_alone_that_are_too_large_are_said_at_once() -> None:
    """No run of DeepSeek V3 is asked of the engine for an H100: its weights in 16 bits are two bytes each."""
    totals = Totals()
    found = suggest("deepseek-v3", {}, {"gpu": "h100"}, [room("h100")], totals)

    assert found.weights == 2 * 671_026_404_352
    assert found.larger is None
    assert not totals.runs


def test_the_smallest_gpu_that_holds_the_run_is_named() -> None:
    """On it the run fits as it is, on its own kernels; of GPUs with as much memory as was named none does."""
    spec = resolve("gpt2", {}).spec
    found = suggest("gpt2", {}, {"gpu": "8GiB", "batch": 32, "mode": "training"}, [room("8GiB")], TOTALS)

    assert found.larger is not None
    plan = settle(spec, {"batch": 32, "mode": "training", "gpu": found.larger.name}).plan
    assert plan.target == found.larger.target
    assert fit(TOTALS(spec, plan, "training"), found.larger).fits
    assert found.larger.usable.low > room("8GiB").usable.low


def test_a_change_for_one_mode_leaves_the_other_as_it_is() -> None:
    """Training alone is too large: what is suggested has the figures of inference that were there before."""
    overrides, run = parted({"mode": "both", "batch": 8})
    size = needs(overrides, {**run, "checkpointing": "full"})
    before = needs(overrides, {**run, "mode": "inference"})
    found = suggested(overrides, run, size)

    change = next(change for change in found.singles if change.settings == {"checkpointing": "full"})
    assert [(outcome.mode, outcome.figures.reserved) for outcome in change.outcomes] == [
        ("training", size),
        ("inference", before),
    ]


def test_pure_training_in_fp16_is_never_suggested() -> None:
    """A T4 multiplies in fp16 alone: its gradients would overflow without a scaler."""
    overrides, run = parted({"precision": "fp32", "batch": 8, "target": "sm75"})
    assert BF16_SINCE > (7, 5)
    found = suggested(overrides, run, needs(overrides, {**run, "precision": "fp16"}))

    assert not [
        change for change in (*found.singles, *found.pairs) if change.settings.get("precision") in ("fp16", "bf16")
    ]


def test_a_sequence_is_not_cut_to_less_than_a_sixteenth() -> None:
    """A shorter one would do, and is not suggested."""
    overrides, run = parted({"batch": 16})
    size = needs(overrides, {**run, "seq": 1024 // LEAST_OF_SEQ - 24})
    assert needs(overrides, {**run, "seq": 1024 // LEAST_OF_SEQ}) > size
    assert not [change for change in suggested(overrides, run, size).singles if "seq" in change.settings]
