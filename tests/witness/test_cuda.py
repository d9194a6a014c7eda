"""The witness on the GPU: on a stand-in for torch's allocator everywhere, and on the GPU where there is one."""

from __future__ import annotations

import gc
import gzip
import json
import os
import subprocess
import sys
import weakref
from collections import Counter
from functools import cache
from itertools import product
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from support import DATA, ROOT

from gptcalc import tape
from gptcalc.allocator import Allocator, Figures
from gptcalc.catalog import resolve
from gptcalc.errors import InvalidValueError
from gptcalc.formula import Dim
from gptcalc.ledger.memory import PHASES, ModeName, record
from gptcalc.ledger.snapshot import (
    BETWEEN,
    TOLERANCE,
    Environment,
    Event,
    Recorded,
    Taken,
    alive_at_peak,
    compare,
    events_to_figures,
    from_json,
    gaps,
    recorded,
    segments_held,
    to_json,
)
from gptcalc.plan import Plan
from gptcalc.tape import Tensor
from gptcalc.tape.kernels import CudaKernels, target, torch_version
from gptcalc.tape.replay import requests
from gptcalc.units import MIB

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402  it opens torch

from gptcalc.modules import ops  # noqa: E402
from gptcalc.witness import cuda  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gptcalc.spec import Spec

GPT2 = resolve({"model_type": "gpt2", "vocab_size": 67, "n_positions": 19, "n_embd": 30, "n_layer": 3, "n_head": 5}, {})
SPEC = GPT2.spec
PLAN = Plan(batch=3, seq=13, attention="math", torch=".".join(torch.__version__.split(".")[:2]))
MODES: tuple[ModeName, ...] = ("training", "inference")
RECORDS = sorted((DATA / "measurements" / "records").glob("*.json.gz"))
#: A request (its name, bytes), or, with no bytes, its end.
Asked = list[tuple[int, int]]


def of_tape(mode: ModeName, spec: Spec = SPEC, plan: Plan = PLAN) -> list[Asked]:
    """What the tape requests, phase by phase: a machine on which it is right."""
    recording = record(mode, spec, plan, CudaKernels(target(plan.target), torch_version(plan.torch)), n_steps=3)
    phases: list[Asked] = []
    for stage in recording.record.stages:
        phases.append([])
        for run in recording.runs(stage):
            asked = list(requests(recording, run.segment))
            phases[-1] += [
                (base + by_layer * layer + by_number * number, size)
                for layer, number in product(run.layers, run.numbers)
                for size, base, by_layer, by_number in asked
            ]
    return phases


class FakeCuda:
    """`torch.cuda`: its allocator serves a phase's requests when the statistics are read that were reset before it."""

    def __init__(self, phases: Iterable[Asked], *, expandable: bool = False) -> None:
        self.waiting = list(phases)
        self.allocator = Allocator(expandable=expandable)
        self.memory = self
        self.blocks: dict[int, Any] = {}
        self.pending, self.recording, self.cleared = False, False, 0
        self.trace: list[dict[str, Any]] = []

    def current_device(self) -> int:
        return 1

    def get_device_properties(self, device: int) -> SimpleNamespace:
        assert device == 1
        return SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=150_110_011_392)

    def synchronize(self) -> None:
        pass

    def empty_cache(self) -> None:
        self.cleared += 1

    def reset_peak_memory_stats(self) -> None:
        self.pending = True

    def memory_stats(self) -> dict[str, int]:
        if self.pending:
            self.pending = False
            self.allocator.reset_peak()
            self._serve(self.waiting.pop(0))
        figures = {"peak": self.allocator.peak(), "current": self.allocator.current()}
        return {
            f"{name}_bytes.all.{what}": getattr(found, name)
            for what, found in figures.items()
            for name in Taken._fields
        }

    def _serve(self, asked: Asked) -> None:
        for name, size in asked:
            held = self.allocator.reserved
            if size:
                block = self.blocks[name] = self.allocator.malloc(size)
                if self.allocator.reserved > held:
                    self._note("segment_alloc", len(self.trace), self.allocator.reserved - held)
                self._note("alloc", id(block), size)
            else:
                block = self.blocks.pop(name)
                ended = block.requested
                self.allocator.free(block)
                self._note("free_requested", id(block), ended)
                self._note("free_completed", id(block), ended)

    def _note(self, action: str, address: int, size: int) -> None:
        if self.recording:
            frames = [{"filename": "/home/user/secret.py", "line": 7, "name": "main"}]
            entry = {"action": action, "addr": address, "size": size, "stream": 0, "frames": frames, "time_us": 1}
            self.trace.append(entry)

    def _record_memory_history(self, enabled: str | None, **settings: object) -> None:
        assert enabled is None or settings["context"] is None
        self.recording, self.trace = enabled is not None, []

    def _snapshot(self) -> dict[str, Any]:
        found = list(self.trace)
        self._note("snapshot", 0, 0)
        return {"segments": [], "device_traces": [[], found]}


def gpu(phases: Iterable[Asked], **settings: bool) -> cuda.Gpu:
    """A GPU whose allocator is asked for `phases`, while the module itself runs on the CPU."""
    return cuda.Gpu(FakeCuda(phases, **settings), "cpu")


# --- Measuring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_machine_that_does_as_predicted_agrees(
    *, mode: ModeName, expandable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the allocator is asked for what the tape says, every figure of every phase is the predicted one."""
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", f"expandable_segments:{expandable}")
    measured = cuda.measure(SPEC, PLAN, mode, records=True, gpu=gpu(of_tape(mode), expandable=expandable))
    assert measured.plan == PLAN.model_copy(update={"expandable_segments": expandable})
    rows = compare(cuda.predict(SPEC, measured), measured)
    assert [(row.phase, row.figure) for row in rows] == [
        (phase, figure) for phase in (*PHASES[mode], BETWEEN) for figure in ("requested", "allocated", "reserved")
    ]
    assert {row.error for row in rows} == {0.0}
    assert gaps(SPEC, measured) == ()
    assert measured.notes == ()


@pytest.mark.parametrize("mode", MODES)
def test_the_record_replays_to_what_was_measured(mode: ModeName) -> None:
    """The recorded requests through the allocator's model, and the segments by themselves, give the figures again."""
    measured = cuda.measure(SPEC, PLAN, mode, records=True, gpu=gpu(of_tape(mode)))
    names = [phase.name for phase in measured.recorded]
    assert (names[0], names[-1]) == ("build", "after")
    figures = dict(zip(names, events_to_figures(measured.recorded), strict=True))
    held = dict(zip(names, segments_held(measured.recorded), strict=True))
    for phase, taken in measured.phases.items():
        assert Taken(figures[phase].requested, figures[phase].allocated, figures[phase].reserved) == taken
        assert held[phase] == taken.reserved


def test_the_last_step_is_the_one_that_counts() -> None:
    """States are made in the first optimizer step: its forward pass takes less than those that are measured."""
    phases = of_tape("training")
    measured = cuda.measure(SPEC, PLAN, "training", records=True, gpu=gpu(phases))
    figures = events_to_figures(measured.recorded)
    forwards = [
        found.requested for found, phase in zip(figures, measured.recorded, strict=True) if phase.name == "forward"
    ]
    assert forwards[0] < forwards[1] == forwards[2] == measured.phases["forward"].requested


def test_without_records_nothing_is_recorded() -> None:
    """The allocator's history is kept only where it is asked for, and ended afterwards."""
    device = gpu(of_tape("training"))
    assert cuda.measure(SPEC, PLAN, "training", gpu=device).recorded == ()
    device = gpu(of_tape("training"))
    assert cuda.measure(SPEC, PLAN, "training", records=True, gpu=device).recorded
    assert not device.cuda.recording
    assert device.cuda.cleared == 2


def test_the_plan_is_what_the_machine_is() -> None:
    """Generation and release are the machine's, whatever was asked."""
    asked = PLAN.model_copy(update={"target": "sm80", "torch": "2.0", "expandable_segments": True})
    measured = cuda.measure(SPEC, asked, "inference", gpu=gpu(of_tape("inference")))
    assert (measured.plan.target, measured.plan.expandable_segments) == ("sm90", False)
    assert torch.__version__.startswith(f"{measured.plan.torch}.")
    assert measured.environment.device == "NVIDIA H200"


@pytest.mark.parametrize(
    ("attention", "chosen"), [("math", ("math",)), ("eager", ("eager",)), ("auto", ("flash",))], ids=str
)
def test_the_kernel_that_torch_chooses_is_noted(attention: str, chosen: tuple[str, ...]) -> None:
    """Torch is asked at the call itself which kernel it takes; on a CPU it picks its flash attention."""
    spec = resolve({"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 9}, {}).spec
    plan = Plan(batch=2, seq=5, precision="fp32", kv_dtype="fp32", attention=attention)
    phases: list[Asked] = [[] for _ in range(3)]
    assert cuda.measure(spec, plan, "inference", gpu=gpu(phases)).attention == chosen


def test_what_is_held_before_is_said() -> None:
    """A process that holds other tensors cannot give a clean figure: the result says so."""
    device = gpu(of_tape("training"))
    device.cuda._serve([(-1, 3 * MIB)])
    measured = cuda.measure(SPEC, PLAN, "training", gpu=device)
    assert measured.notes == ("3,145,728 bytes were allocated before the run; they are in every figure",)


# --- What goes wrong -------------------------------------------------------------------------------------------------


def _full(*_: object, **__: object) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total of 139.80 GiB\nx")


@pytest.mark.parametrize(
    ("mode", "where", "place"),
    [
        ("training", "build", (cuda, "decoder")),
        ("training", "forward of step 1", (ops, "attention")),
        ("training", "optimizer of step 1", (torch.optim.AdamW, "step")),
        ("inference", "prefill of step 1", (ops, "attention")),
    ],
)
def test_running_out_of_memory_is_a_result(
    mode: ModeName, where: str, place: tuple[object, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are no figures then, but the phase, and torch's own first words; everything is as it was before."""
    monkeypatch.setattr(*place, _full)
    before = functional.scaled_dot_product_attention
    device = gpu(of_tape(mode))
    measured = cuda.measure(SPEC, PLAN, mode, records=True, gpu=device)
    assert measured.skipped == f"out of memory in {where}: CUDA out of memory. Tried to allocate 20.00 GiB"
    assert (measured.phases, measured.persistent, measured.recorded) == ({}, None, ())
    assert functional.scaled_dot_product_attention is before
    assert gc.isenabled()
    assert torch.get_default_dtype() == torch.float32
    assert not device.cuda.recording
    assert from_json(to_json(measured)) == measured


def test_after_running_out_nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of a run that failed are let go, so that the next one has the whole card."""
    seen: list[weakref.ref[Any]] = []
    build = cuda.decoder

    def watched(*args: Any, **kwargs: Any) -> Any:
        model = build(*args, **kwargs)
        seen.append(weakref.ref(model))
        return model

    monkeypatch.setattr(cuda, "decoder", watched)
    monkeypatch.setattr(torch.optim.AdamW, "step", _full)
    assert cuda.measure(SPEC, PLAN, "training", gpu=gpu(of_tape("training"))).skipped
    assert seen[0]() is None


def test_a_kernel_that_the_card_does_not_have_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's one line says it; no traceback."""

    def absent(*_: object, **__: object) -> Any:
        raise RuntimeError("No available kernel. Aborting execution.")

    monkeypatch.setattr(ops, "attention", absent)
    measured = cuda.measure(SPEC, PLAN, "training", gpu=gpu(of_tape("training")))
    assert measured.skipped == "forward of step 1 failed: No available kernel. Aborting execution."
    (seen,) = cuda.cuda(GPT2, PLAN, ["training"], gpu(of_tape("training")))
    assert seen.skipped == measured.skipped


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version.cuda": None, "version.hip": None}, "was built without CUDA"),
        ({"version.hip": "6.4"}, "is built for ROCm"),
        ({"version.cuda": "13.0", "version.hip": None, "cuda.is_available": lambda: False}, "finds no CUDA device"),
        (
            {
                "version.cuda": "13.0",
                "version.hip": None,
                "cuda.is_available": lambda: True,
                "cuda.get_allocator_backend": lambda: "cudaMallocAsync",
            },
            "the allocator's backend is cudaMallocAsync",
        ),
    ],
)
def test_without_a_gpu_there_is_one_line(
    changes: Mapping[str, object], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says why, and which witnesses need none."""
    for name, value in changes.items():
        monkeypatch.setattr(f"torch.{name}", value)
    with pytest.raises(InvalidValueError, match=why) as raised:
        cuda.measure(SPEC, PLAN, "training")
    assert "\n" not in str(raised.value)
    assert "trace" in str(raised.value)


# --- Naming the gap --------------------------------------------------------------------------------------------------


def test_a_workspace_that_is_not_there_is_named() -> None:
    """Where only torch's own storages are allocated, what is predicted beside them is named by its bytes and words."""
    mode: ModeName = "training"
    workspace = 32 * MIB
    phases = [[(name, size) for name, size in phase if size != workspace] for phase in of_tape(mode)]
    measured = cuda.measure(SPEC, PLAN, mode, records=True, gpu=gpu(phases))
    found = {gap.phase: gap for gap in gaps(SPEC, measured)}
    for phase in PHASES[mode]:
        gap = found[phase]
        assert (gap.bytes, gap.predicted, gap.measured, gap.amount) == (workspace, 2, 0, -2 * workspace)
        assert gap.labels == ("addmm: cuBLAS workspace (forward)", "mm: cuBLAS workspace (backward)")
    (seen,) = cuda.cuda(GPT2, PLAN, [mode], gpu(phases))
    assert [finding.kind for finding in seen.findings][:2] == ["forward, allocated", "forward, alive at the peak"]
    assert seen.findings[1].name.startswith("of 33,554,432 bytes (")
    assert (seen.findings[1].expected, seen.findings[1].found) == ("2", "0")


def test_a_buffer_that_nobody_predicted_is_named() -> None:
    """A kernel's own buffer, alive at a phase's peak, is named by its bytes and by what was requested before it."""
    phases = of_tape("training")
    backward = phases[10]  # build, then forward, backward, optimizer, end of three steps
    total = most = at = 0
    live = dict(pair for phase in phases[:10] for pair in phase)
    for place, (name, size) in enumerate(backward):
        total += size or -live[name]
        live[name] = size or live[name]
        if total > most:
            most, at = total, place
    before = backward[at][1]
    backward[at + 1 : at + 1] = [(-1, 7_777_777), (-1, 0)]
    measured = cuda.measure(SPEC, PLAN, "training", records=True, gpu=gpu(phases))
    (gap,) = gaps(SPEC, measured)
    assert (gap.phase, gap.bytes, gap.predicted, gap.measured, gap.labels) == ("backward", 7_777_777, 0, 1, ())
    assert gap.after[0].startswith(f"{before:,} (")
    (seen,) = cuda.cuda(GPT2, PLAN, ["training"], gpu(phases))
    named = [finding for finding in seen.findings if finding.kind == "backward, alive at the peak"]
    assert [(finding.expected, finding.found) for finding in named] == [("0", "1")]
    assert f"of 7,777,777 bytes, requested after {before:,}" in named[0].name


def test_agreement_is_about_allocated_bytes() -> None:
    """Half a percent of what was measured is allowed, a byte more is not; other figures explain and decide nothing."""
    measured = cuda.measure(SPEC, PLAN, "inference", gpu=gpu(of_tape("inference")))
    predicted = cuda.predict(SPEC, measured)
    allocated = measured.phases["prefill"].allocated
    slack = int(allocated * TOLERANCE)
    for wrong, agrees in ((slack, True), (slack + 1, False)):
        figures = Figures(0, 0, allocated + wrong, 0)
        (first, *_) = predicted.phases
        changed = predicted._replace(phases=(first._replace(figures=figures), *predicted.phases[1:]))
        rows = {(row.phase, row.figure): row for row in compare(changed, measured)}
        assert rows["prefill", "allocated"].agrees is agrees
        assert rows["prefill", "requested"].agrees
        assert rows["prefill", "requested"].error == -100.0
        assert rows["prefill", "allocated"].error == pytest.approx(0.5, rel=0.01)


def test_another_kernel_than_predicted_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch chooses another attention kernel, this is said before any byte."""
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *_, **__: 3)
    (seen,) = cuda.cuda(GPT2, PLAN, ["inference"], gpu(of_tape("inference")))
    (finding,) = seen.findings
    assert finding == ("attention", "inference step", "math", "cudnn")
    assert "NVIDIA H200" in seen.subject


# --- torch's snapshots -----------------------------------------------------------------------------------------------


def entry(action: str, address: int = 0, size: int = 0, stream: int = 0) -> dict[str, Any]:
    """What torch notes."""
    return {"action": action, "addr": address, "size": size, "stream": stream, "frames": [{"name": "f"}]}


TRACE = [
    entry("free_completed", 0xF00, 999),  # of before the record
    entry("snapshot"),
    entry("segment_alloc", 0xA00, 2 * MIB),
    entry("alloc", 0xA00, 1000),
    entry("snapshot"),
    entry("free_requested", 0xA00, 1000),
    entry("alloc", 0xB00, 3000, 4),  # while another stream still uses what is to be freed
    entry("free_completed", 0xA00, 1000),
    entry("oom", 0, 1 << 40),
    entry("user_defined"),
    entry("alloc", 0xA00, 500),
    entry("segment_free", 0xC00, MIB),
    entry("snapshot"),
]
CUT = (
    Recorded("build", 0, (Event("reserve", 0, 2 * MIB, 0), Event("alloc", 1, 1000, 0))),
    Recorded(
        "forward",
        1,
        (
            Event("alloc", 2, 3000, 4),
            Event("free", 1, 1000, 0),
            Event("alloc", 3, 500, 0),
            Event("return", 0, MIB, 0),
        ),
    ),
)


@pytest.mark.parametrize("own", [True, False], ids=["with-its-own-mark", "without"])
def test_a_snapshot_is_cut_into_phases(*, own: bool) -> None:
    """Addresses become numbers of requests, frames stay behind; the snapshot that is read may have noted itself."""
    assert recorded(TRACE if own else TRACE[:-1], [("build", 0), ("forward", 1)]) == CUT


def test_a_snapshot_without_marks_is_not_cut() -> None:
    """Where torch noted fewer snapshots than were taken, no phase can be told from another."""
    assert recorded(TRACE[:3], [("build", 0), ("forward", 1)]) == ()
    assert recorded(TRACE, []) == ()


def test_the_live_set_is_that_of_the_first_maximum() -> None:
    """What is alive where most is requested in a phase, each with the size that was requested before it."""
    events = [Event("alloc", 1, 10, 0), Event("alloc", 2, 30, 0), Event("free", 2, 30, 0), Event("alloc", 3, 30, 0)]
    phases = [Recorded("a", 0, tuple(events[:1])), Recorded("b", 1, tuple(events[1:])), Recorded("c", 1, ())]

    def alive(number: int) -> list[tuple[int, int]]:
        return [(event.request, before) for event, before in alive_at_peak(phases, number)]

    assert alive(0) == [(1, 0)]
    assert alive(1) == [(1, 0), (2, 10)]
    assert alive(2) == [(1, 0), (3, 30)]


def test_segments_are_summed_by_phase() -> None:
    """What CUDA gave and took back, each phase at its most."""
    assert segments_held(CUT) == (2 * MIB, 2 * MIB)
    assert segments_held([*CUT, Recorded("backward", 1, ())])[2] == MIB


def test_one_stream_is_replayed() -> None:
    """The allocator keeps a pool for each stream, its model one: a record of two is refused, not replayed wrongly."""
    with pytest.raises(ValueError, match="a record of 2 streams"):
        events_to_figures(CUT)


def test_a_record_is_kept_as_json() -> None:
    """What is written is read again, without a frame of anybody's program."""
    measured = cuda.measure(SPEC, PLAN, "training", records=True, gpu=gpu(of_tape("training")))
    text = json.dumps(to_json(measured))
    assert from_json(json.loads(text)) == measured
    assert "secret" not in text
    with pytest.raises(ValueError, match="schema"):
        from_json(to_json(measured) | {"schema": "gptcalc.measured/9"})


@pytest.mark.parametrize(
    ("settings", "expandable", "unknown"),
    [
        ({}, False, ()),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, True, ()),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64, expandable_segments:true"}, True, ("max_split_size_mb:64",)),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:False"}, False, ()),
        ({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, False, ("CUBLAS_WORKSPACE_CONFIG=:16:8",)),
    ],
)
def test_settings_that_the_prediction_does_not_know_are_said(
    *, settings: dict[str, str], expandable: bool, unknown: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expandable segments are modelled; every other setting of the allocator or of cuBLAS is a note."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    device = gpu(of_tape("inference"))
    here = device.environment()
    assert (here.expandable_segments, here.unknown) == (expandable, unknown)
    notes = cuda.measure(SPEC, PLAN, "inference", gpu=device).notes
    assert notes == tuple(f"{setting} is set, which the prediction does not know" for setting in unknown)


@pytest.mark.parametrize(("version", "release"), [("2.11.0+cu130", "2.11"), ("2.14.0a0+git1", "2.14"), ("x", "x")])
def test_a_release_is_two_numbers(version: str, release: str) -> None:
    """As a plan has it."""
    assert Environment("", "sm90", 0, version, None, None, None, {}).release == release


# --- The grid --------------------------------------------------------------------------------------------------------


def test_the_grid_is_as_wide_as_it_was_decided() -> None:
    """Every value of every choice is there, each beside at least three values of every other; all can be predicted."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import cuda_grid
    finally:
        sys.path.pop(0)
    cases = list(cuda_grid.grid())
    assert len({case.name for case in cases}) == len(cases) >= 30
    table = [
        (case.model, case.plan["precision"], case.plan["attention"], (case.plan["batch"], case.plan["seq"]))
        for case in cases
    ]
    wanted = [
        set(cuda_grid.MODELS),
        {"fp32", "bf16", "fp16"},
        {"auto", "flash", "efficient", "math", "eager"},
        {(1, 256), (3, 777), (8, 1024), (16, 1024)},
    ]
    for axis, values in enumerate(wanted):
        assert values <= {row[axis] for row in table}
        for value in values:
            rows = [row for row in table if row[axis] == value]
            for other in range(4):
                assert other == axis or len({row[other] for row in rows}) >= 2, (value, other)
    options = {
        "precision": {"autocast-bf16", "autocast-fp16"},
        "optimizer": {"adamw", "adam", "sgd", "adafactor", "muon", "adamw8bit"},
        "checkpointing": {"full", "selective"},
        "master_weights": {"fp32"},
        "grad_dtype": {"fp32"},
        **{key: {True} for key in ("amsgrad", "optimizer_in_backward", "zero_grads", "keep_outputs")},
    }
    for field, wanted in options.items():
        assert wanted <= {case.plan.get(field) for case in cases}, field
    for field in ("chunked_loss", "grad_accum", "grad_clip"):
        assert any(case.plan.get(field) for case in cases), field
    implementations = Counter(case.plan.get("optimizer_impl") for case in cases)
    assert min(implementations[name] for name in ("foreach", "fused", "for-loop")) >= 3
    for case in cases:
        model, plan = case.resolved()
        assert plan.seq <= model.spec.n_ctx


# --- Records of real runs --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not RECORDS, reason="no record in tests/data/measurements/records: no GPU has been lent yet")
@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_real_records_replay_to_what_was_measured(path: Any) -> None:
    """The allocator's model, asked for what a GPU was asked for, hands out and holds what the GPU did."""
    measured = from_json(json.loads(gzip.decompress(path.read_bytes()))["measured"])
    figures = events_to_figures(measured.recorded, expandable=measured.plan.expandable_segments)
    last = {phase.name: found for phase, found in zip(measured.recorded, figures, strict=True)}
    for phase, taken in measured.phases.items():
        assert Taken(last[phase].requested, last[phase].allocated, last[phase].reserved) == taken, phase


@pytest.mark.skipif(not RECORDS, reason="no record in tests/data/measurements/records: no GPU has been lent yet")
@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_real_records_are_predicted(path: Any) -> None:
    """Of every kept run, allocated bytes are within half a percent, phase by phase."""
    kept = json.loads(gzip.decompress(path.read_bytes()))
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from cuda_grid import Case
    finally:
        sys.path.pop(0)
    model, _ = Case(**kept["case"]).resolved()
    measured = from_json(kept["measured"])
    off = [row for row in compare(cuda.predict(model.spec, measured), measured) if not row.agrees]
    assert not off, gaps(model.spec, measured)


# --- On a GPU --------------------------------------------------------------------------------------------------------

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(cuda.missing()), reason=f"no GPU to measure: {cuda.missing()}"),
]
ENV = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
TOY = {"n_layers": 2, "d_model": 128, "n_vocab": 1009}
REAL: dict[str, dict[str, Any]] = {
    "toy": {"overrides": TOY, "plan": {"batch": 2, "seq": 77}},
    "toy-fp32-eager": {"overrides": TOY, "plan": {"batch": 2, "seq": 77, "precision": "fp32", "attention": "eager"}},
    "toy-inference": {"overrides": TOY, "plan": {"batch": 2, "seq": 77}, "mode": "inference"},
    "small-flash": {"plan": {"batch": 1, "seq": 256, "attention": "flash"}},
    "small-fp32-fused": {"plan": {"batch": 3, "seq": 777, "precision": "fp32", "optimizer_impl": "fused"}},
    "small-math-loop": {"plan": {"batch": 2, "seq": 512, "attention": "math", "optimizer_impl": "for-loop"}},
    "small-inference": {"plan": {"batch": 3, "seq": 777}, "mode": "inference"},
}


@cache
def one(name: str) -> dict[str, Any]:
    """The row of a case that ran in a process of its own."""
    case = {"name": name, "model": "gpt2", **REAL[name]}
    command = [sys.executable, str(ROOT / "benchmarks" / "cuda_grid.py"), "--one", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=ENV)
    assert done.returncode == 0, done.stderr
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1].removeprefix("ROW "))
    assert not row["failure"]
    return row


class TestOnTheGpu:
    pytestmark = on_gpu

    @pytest.mark.parametrize("name", REAL)
    def test_allocated_bytes_are_within_half_a_percent(self, name: str) -> None:
        """Of every phase, and of what stays between steps."""
        row = one(name)
        off = [found for found in row["figures"] if found["figure"] == "allocated" and abs(found["error"]) > 0.5]
        assert not off, row["gaps"]

    @pytest.mark.parametrize("name", ["toy", "small-flash", "small-inference"])
    def test_the_allocators_model_is_the_allocator(self, name: str) -> None:
        """Asked for what the GPU was asked for, it hands out and holds the same bytes in every phase."""
        assert one(name)["allocator"] == []

    @pytest.mark.parametrize("name", ["toy", "small-flash", "small-inference"])
    def test_torch_chooses_the_kernel_that_was_predicted(self, name: str) -> None:
        """What `--attention auto` predicts for this card and this release."""
        row = one(name)
        assert row["attention"]["measured"] == [row["attention"]["predicted"]]

    def test_cublas_takes_a_workspace_for_each_thread(self) -> None:
        """One with the first product, one with the first product of the backward thread, each of the known size."""
        script = """
import torch
from torch.nn import functional
x, w = (torch.ones(64, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
now = lambda: torch.cuda.memory_stats()["requested_bytes.all.current"]
start = now()
y = functional.linear(x, w).sum()
forward = now()
y.backward()
print(torch.__version__, *torch.cuda.get_device_capability(), forward - start, now() - forward)
"""
        command = [sys.executable, "-c", script]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout
        version, major, minor, forward, backward = text.split()
        release = torch_version(".".join(version.split(".")[:2]))
        x, y = (Tensor(label, (Dim("D", 64), Dim("D", 64)), "bf16") for label in "xy")
        kept = CudaKernels(target(f"sm{major}{minor}"), release).kept(tape.linear(x, x, None, y))
        expected = round(sum(tensor.bytes for tensor in kept) / MIB)
        assert [round(int(found) / MIB) for found in (forward, backward)] == [expected] * 2
