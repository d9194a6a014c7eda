"""Three layers of a group stand for all of it: every figure is that of a recording of every layer."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import ALL, FAMILIES, GPT2, LLAMA, MIXTRAL, OPTIMIZERS, instants, tape_inference, tape_training, toy_plans
from support import examples

from gptcalc.catalog import resolve
from gptcalc.formula import Dim
from gptcalc.ledger.passes import RECORDED
from gptcalc.ledger.step import inference, training
from gptcalc.optimizers import optimizer
from gptcalc.parts import experts
from gptcalc.plan import Plan
from gptcalc.spec import LayerGroup, Spec
from gptcalc.tape import Tensor, Turn, turns
from gptcalc.tape.kernels import TARGETS, CudaKernels
from gptcalc.tape.record import Recorder
from gptcalc.tape.replay import Group, Recording, alive_at, fold, kind_of, replay

if TYPE_CHECKING:
    from gptcalc.tape.replay import Fold, Place

PLAN = Plan(batch=3, seq=13, attention="flash")
KERNELS = CudaKernels(TARGETS["sm90"], (2, 13))


def stacked(config: dict[str, Any], *groups: tuple[int, int]) -> Spec:
    """A model of groups of layers, so many of each, with MLPs so wide."""
    layers = tuple(
        LayerGroup(n_layers=n_layers, block=resolve(config, {"d_ff": d_ff}).spec.layers[0].block)
        for n_layers, d_ff in groups
    )
    return resolve(config, {}).spec.model_copy(update={"layers": layers})


def whole(recording: Recording) -> Fold:
    """All of it, folded."""
    return fold(recording, range(len(recording.record.stages)))


def alive(recording: Recording, place: Place) -> Counter[tuple[str, str, int]]:
    """What is alive, by label, kind and bytes."""
    found: Counter[tuple[str, str, int]] = Counter()
    for slot, count in alive_at(recording, place):
        found[slot.tensor.label, kind_of(slot), slot.bytes] += count
    return found


def check(folded: Recording, full: Recording) -> None:
    """Points, figures and what is alive at every point: the same of both, and in themselves consistent."""
    short, long = whole(folded), whole(full)
    assert [(point.label, point.layer, point.alive) for point in short.points] == [
        (point.label, point.layer, point.alive) for point in long.points
    ]
    assert short.rounded == long.rounded
    for ours, theirs in zip(short.points, long.points, strict=True):
        found = alive(folded, ours.place)
        assert found == alive(full, theirs.place)
        assert sum(size * count for (_, _, size), count in found.items()) == ours.requested
        assert all(count > 0 for count in found.values())
    check_figures(folded, short)
    for expandable in (False, True):
        assert replay(folded, expandable=expandable) == replay(full, expandable=expandable)


def check_figures(recording: Recording, folded: Fold) -> None:
    """Requested and rounded peaks by the fold are those by the replay, and those of every instant."""
    seen = list(instants(recording))
    for stage, (peak, end) in enumerate(replay(recording, expandable=False)):
        here = [(requested, rounded) for number, _, requested, rounded in seen if number == stage]
        assert peak.requested == max(requested for requested, _ in here)
        assert peak.rounded == folded.rounded[stage] == max(rounded for _, rounded in here)
        assert (end.requested, end.rounded) == here[-1]
        if any(point.stage == stage for point in folded.points):
            assert peak.requested == folded.peak([stage]).requested
            assert peak.requested == max(point.requested for point in folded.points if point.stage == stage)


# --- Folding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_layers", range(1, 8))
@pytest.mark.parametrize("family", FAMILIES)
def test_any_number_of_layers_folds(family: str, n_layers: int) -> None:
    """From one layer to seven, of any family, in training and in inference."""
    spec = stacked(FAMILIES[family], (n_layers, 47))
    check(tape_training(spec, PLAN, recorded=RECORDED), tape_training(spec, PLAN))
    check(tape_inference(spec, PLAN, recorded=RECORDED), tape_inference(spec, PLAN))


@pytest.mark.parametrize(
    "groups", [((3, 47), (5, 31)), ((1, 47), (4, 47)), ((6, 31), (1, 131)), ((2, 9), (3, 8), (4, 7))]
)
@pytest.mark.parametrize("config", [GPT2, LLAMA, MIXTRAL], ids=lambda config: config["model_type"])
def test_groups_of_layers_fold(config: dict[str, Any], groups: tuple[tuple[int, int], ...]) -> None:
    """Layers of several kinds are folded kind by kind, each beside the next."""
    spec = stacked(config, *groups)
    check(tape_training(spec, PLAN, recorded=RECORDED), tape_training(spec, PLAN))
    check(tape_inference(spec, PLAN, recorded=RECORDED), tape_inference(spec, PLAN))


@pytest.mark.parametrize("update", OPTIMIZERS, ids=lambda update: "-".join(map(str, update.values())))
def test_every_optimizer_folds(update: dict[str, object]) -> None:
    """Temporaries of the weights of seven layers: of all at once, in reverse, or one after the other."""
    spec, plan = stacked(GPT2, (7, 96)), PLAN.model_copy(update=update)
    check(tape_training(spec, plan, recorded=RECORDED), tape_training(spec, plan))


@pytest.mark.parametrize("attention", ["flash", "efficient", "math", "eager"])
def test_kernels_buffers_fold(attention: str) -> None:
    """Workspaces are taken once, however many layers there are; what kernels take is given back in each."""
    spec, plan = stacked(GPT2, (6, 96)), PLAN.model_copy(update={"attention": attention})
    full = tape_training(spec, plan, kernels=KERNELS)
    check(tape_training(spec, plan, kernels=KERNELS, recorded=RECORDED), full)
    assert {
        slot.tensor.label for slot, _ in alive_at(full, whole(full).points[-1].place) if slot.kind == "workspace"
    } == {
        "cuBLAS workspace (forward)",
        "cuBLAS workspace (backward)",
    }


@settings(max_examples=examples(15), deadline=None)
@given(drawn=toy_plans(), n_layers=st.integers(1, 9), update=st.sampled_from(OPTIMIZERS))
def test_drawn_models_fold(drawn: tuple[Spec, Plan], n_layers: int, update: dict[str, object]) -> None:
    """Whatever is drawn, three recorded layers say what all of them say."""
    spec, plan = drawn
    (group,) = spec.layers
    spec = spec.model_copy(update={"layers": (group.model_copy(update={"n_layers": n_layers}),)})
    plan = plan.model_copy(update=update)
    check(tape_training(spec, plan, recorded=RECORDED), tape_training(spec, plan))
    check(tape_inference(spec, plan, recorded=RECORDED), tape_inference(spec, plan))


@pytest.mark.parametrize("n_experts", [9, 10, 17])
@pytest.mark.parametrize("worst", [False, True])
def test_experts_of_as_many_rows_fold(n_experts: int, worst: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    """Of equal experts three are recorded: every instant, by the names of the experts, is as if all of them were."""
    spec, plan = resolve(MIXTRAL | {"num_local_experts": n_experts}, {}).spec, PLAN
    update = optimizer(plan, (2, 13))
    few = [
        training(spec, plan, ["flash"], update, KERNELS, worst=worst),
        inference(spec, plan, ["flash"], KERNELS, worst=worst),
    ]
    monkeypatch.setattr(experts, "turns", lambda what, loads: (Turn(what, range(n, n + 1)) for n in range(len(loads))))
    every = [
        training(spec, plan, ["flash"], update, KERNELS, worst=worst),
        inference(spec, plan, ["flash"], KERNELS, worst=worst),
    ]

    for folded, full in zip(few, every, strict=True):
        n_segments = [sum(len(stage.segments) for stage in one.record.stages) for one in (folded, full)]
        assert n_segments[0] < n_segments[1]
        check(folded, full)
        peak = whole(folded).peak(range(len(folded.record.stages))).place
        same = whole(full).peak(range(len(full.record.stages))).place
        names = [[slot.tensor.label for slot, _ in alive_at(*one)] for one in ((folded, peak), (full, same))]
        assert names[0] == names[1]


def test_experts_run_downwards_in_a_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a megabyte and more, where it matters to what the allocator holds which is freed first."""
    config = MIXTRAL | {"num_local_experts": 17, "hidden_size": 256, "intermediate_size": 1000}
    spec, plan = resolve(config | {"max_position_embeddings": 400}, {}).spec, Plan(batch=3, seq=400, attention="flash")
    update = optimizer(plan, (2, 13))
    few = training(spec, plan, ["flash"], update, None)
    monkeypatch.setattr(experts, "turns", lambda what, loads: (Turn(what, range(n, n + 1)) for n in range(len(loads))))
    every = training(spec, plan, ["flash"], update, None)
    for expandable in (False, True):
        assert replay(few, expandable=expandable) == replay(every, expandable=expandable)


def test_what_lies_between_two_experts_is_refused() -> None:
    """An expert that frees what another made, or what all share, has no other that stands for it."""
    record = Recorder(None)
    record.stage("forward")
    shared = record.hold(record.alloc(value("shared", 8), "temporary", "op"))
    record.segment("forward", None, Turn("expert", range(1)))
    first = record.hold(record.alloc(value("of expert 0", 8), "temporary", "op"))
    record.segment("forward", None, Turn("expert", range(1, 5)))
    with pytest.raises(RuntimeError, match=r"of expert 0 of expert 0 is allocated or freed for each of range\(1, 5\)"):
        record.release(first)
    with pytest.raises(RuntimeError, match="shared of all is allocated or freed for each of"):
        record.release(shared)


def test_things_in_a_row_of_one_kind_are_in_turns() -> None:
    """The first and the last by themselves, those between together; of a few each by itself."""
    kinds = "aaaaabbbccd"
    assert [(str(turn), list(turn.numbers)) for turn in turns("expert", kinds)] == [
        ("expert 0", [0]),
        ("expert 1", [1, 2, 3]),
        *((f"expert {n}", [n]) for n in range(4, 11)),
    ]


def test_a_deep_model_is_folded_from_three_layers() -> None:
    """A hundred layers are no more rows than three, and as many points, allocations and bytes as a hundred."""
    spec = stacked(LLAMA, (100, 47))
    recording = tape_training(spec, PLAN, recorded=RECORDED)
    few = tape_training(stacked(LLAMA, (3, 47)), PLAN)
    n_segments = [[len(stage.segments) for stage in one.record.stages] for one in (recording, few)]
    assert n_segments[0] == n_segments[1]
    forward = [point for point in whole(recording).points if point.stage == 1]
    assert [point.layer for point in forward if point.layer is not None] == list(range(100))
    steps = [after.requested - before.requested for before, after in pairwise(forward[2:-1])]
    assert set(steps[1:]) == {steps[1]}
    check_figures(recording, whole(recording))


# --- Which layers stand for which ------------------------------------------------------------------------------------


def test_a_recorded_layer_stands_for_those_between() -> None:
    """The first and the last stand for themselves, the one between for all others; of few, each for itself."""
    recording = Recording(Recorder(None), (Group(0, 3, 7), Group(3, 2, 2), Group(5, 3, 3), Group(8, 1, 1)))
    assert [list(recording.actual(layer)) for layer in range(9)] == [
        [0],
        [1, 2, 3, 4, 5],
        [6],
        *([7], [8]),
        *([9], [10], [11]),
        [12],
    ]
    with pytest.raises(IndexError):
        recording.actual(9)


def test_layers_run_downwards_after_a_later_one() -> None:
    """In a backward pass the layers between are taken from the last to the first; after a segment of none, upwards."""
    record = Recorder(None)
    recording = Recording(record, (Group(0, 3, 6),))
    record.stage("up and down")
    for layer in (0, 1, 2, 1, 0):
        record.segment("layer", layer)
    record.segment("head")
    record.segment("layer", 1)
    runs = [list(run.layers) for run in recording.runs(record.stages[0])]
    assert runs == [[0], [0], [1, 2, 3, 4], [5], [4, 3, 2, 1], [0], [0], [1, 2, 3, 4]]


def value(label: str, n_bytes: int) -> Tensor:
    """So many bytes."""
    return Tensor(label, (Dim("M", n_bytes),), "uint8")


def test_the_earliest_of_equal_peaks_is_the_peak() -> None:
    """Two stretches reach 8 bytes: the first is where the answer stands, at the event that reached it first."""
    record = Recorder(None)
    recording = Recording(record, ())
    record.stage("step")
    for label in ("first", "second"):
        record.segment(label)
        for size in (8, 3, 8):
            record.release(record.hold(record.alloc(value(f"{label} {size}", size), "temporary", "op")))
    folded = whole(recording)
    peak = folded.peak([0])
    assert (peak.label, peak.requested, peak.place.event) == ("first", 8, 0)
    assert folded.rounded == (512,)
    assert [(slot.tensor.label, count) for slot, count in alive_at(recording, peak.place)] == [("first 8", 1)]


def test_a_stretch_that_only_frees_peaks_at_its_start() -> None:
    """The point says what there was before the first event."""
    record = Recorder(None)
    record.stage("build")
    held = record.hold(record.alloc(value("held", 100), "weights", "build"))
    record.stage("end")
    record.release(held)
    recording = Recording(record, ())
    last = fold(recording, range(1, 2)).points[-1]
    assert (last.alive, last.place.event, last.place.stage) == ({"weights": 100}, -1, 1)
    assert [(slot.bytes, count) for slot, count in alive_at(recording, last.place)] == [(100, 1)]


def test_only_the_wanted_stages_have_points() -> None:
    """A first step is folded for its sums; points are of the steps that are asked for, rounded peaks of all."""
    recording = tape_training(stacked(GPT2, (4, 47)), PLAN, recorded=RECORDED)
    folded = fold(recording, range(5, 9))
    assert {point.stage for point in folded.points} == {5, 6, 7, 8}
    assert folded.points == tuple(point for point in whole(recording).points if point.stage >= 5)
    assert folded.rounded == whole(recording).rounded


def test_a_kept_temporary_is_an_activation() -> None:
    """The kind of a value that autograd keeps says so; kept logits and weights stay what they are."""
    record = Recorder(None)
    record.stage("step")
    kinds = {}
    for kind in ("temporary", "logits", "weights"):
        slot = record.alloc(value(kind, 1), kind, "op")
        kinds[kind] = [kind_of(slot)]
        slot.keepers.append("aten::gelu")
        kinds[kind].append(kind_of(slot))
    assert kinds == {
        "temporary": ["temporary", "activations"],
        "logits": ["logits", "logits"],
        "weights": ["weights", "weights"],
    }


def test_the_last_of_the_layers_between_may_be_the_peak() -> None:
    """Each of five layers keeps 512 bytes, and then all but the last take 2,048 in passing: the fourth is the peak."""
    record = Recorder(None)
    recording = Recording(record, (Group(0, 3, 5),))
    record.stage("forward")
    for layer in range(3):
        record.segment("layer", layer)
        record.hold(record.alloc(value("kept", 512), "temporary", "op"))
        if layer < 2:
            record.release(record.hold(record.alloc(value("in passing", 2048), "temporary", "op")))
    folded = whole(recording)
    peak = folded.peak([0])
    assert (peak.layer, peak.requested) == (3, 4 * 512 + 2048)
    assert folded.rounded == (4 * 512 + 2048,)
    assert replay(recording, expandable=False)[0][0].rounded == 4 * 512 + 2048


def test_a_layer_frees_what_the_layer_before_made() -> None:
    """A residual stream over five layers, recorded in three: the replay finds each block where it was handed out."""
    record = Recorder(None)
    recording = Recording(record, (Group(0, 3, 5),))
    record.stage("forward")
    before = None
    for layer in range(3):
        record.segment("layer", layer)
        out = record.hold(record.alloc(value("out", 10 * 1024 * 1024), "temporary", "op"))
        if before is not None:
            record.release(before)
        before = out
    record.segment("head")
    assert before is not None
    record.release(before)
    ((peak, end),) = replay(recording, expandable=False)
    assert peak == (20 << 20, 20 << 20, 20 << 20, 20 << 20)
    assert end == (0, 0, 0, 20 << 20)
    steps = [requested for _, _, requested, _ in instants(recording)]
    assert max(accumulate(after - now for now, after in pairwise(steps))) == peak.requested


def test_all_means_all() -> None:
    """The comparison is with a recording in which every layer stands for itself."""
    recording = tape_training(stacked(GPT2, (7, 47)), PLAN, recorded=ALL)
    assert [list(recording.actual(layer)) for layer in range(7)] == [[layer] for layer in range(7)]
