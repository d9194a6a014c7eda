"""The evidence that a largest batch fits and one beyond does not: its logic everywhere, its runs on a GPU."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT

from gptcalc.ledger.fit import Room, fit, room
from gptcalc.ledger.memory import CONTEXT
from gptcalc.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

with pytest.MonkeyPatch.context() as path:
    path.syspath_prepend(str(ROOT / "benchmarks"))
    import cuda_fits

MIB = 2**20
TOY = {"model_type": "gpt2", "vocab_size": 500, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 2}
CASE = cuda_fits.Case(
    "toy", "gpt2", {"seq": 64}, overrides={"d_model": 64, "n_layers": 2, "n_heads": 2, "n_vocab": 500}
)
PLAN = Plan(seq=64)
SPACE = room("800MiB")
TOTALS = cuda_fits.TOTALS


def device(error: int = 0) -> tuple[Callable[..., dict[str, Any]], list[int]]:
    """A device whose runs take what is predicted and `error` bytes; and the batches that were tried on it."""
    tried: list[int] = []

    def run(case: cuda_fits.Case, plan: Plan, limit: int | None) -> dict[str, Any]:
        tried.append(plan.batch)
        allocated = TOTALS(case.spec(), plan, case.mode).allocated + error
        assert limit is not None
        return {"skipped": "out of memory in forward" if allocated > limit else ""}

    return run, tried


def test_a_true_prediction_agrees() -> None:
    """The batch that fits runs, the first that does not fit does not, and bisection stays between the two."""
    run, tried = device()
    row = cuda_fits.evidence(CASE, SPACE, PLAN, run)
    fits, fails = row["largest"]["batch"], row["beyond"]["batch"]

    assert (row["failure"], row["agrees"], row["largest"]["agrees"], row["beyond"]["agrees"]) == ("", True, True, True)
    assert (row["largest"]["verdict"], row["beyond"]["verdict"]) == ("fits", "does not fit")
    assert 1 < fits < fails
    assert tried[:2] == [fits, fails]
    assert all(fits < batch < fails for batch in tried[2:])
    assert fits <= row["last"]["runs"] < row["last"]["fails"] <= fails


def test_both_ends_are_where_the_answer_turns() -> None:
    """One more than the largest batch is no longer said to fit, one less than the refused is not refused."""
    answers = cuda_fits.Answers(CASE, PLAN, SPACE)
    promised = answers.promised()
    assert promised is not None
    beyond = answers.refused(promised)

    assert answers(promised).fits
    assert not answers(promised + 1).fits
    assert answers(beyond).verdict == "does not fit"
    assert answers(beyond - 1).verdict != "does not fit"


@pytest.mark.parametrize(("error", "largest", "beyond"), [(400 * MIB, False, True), (-400 * MIB, True, False)])
def test_a_wrong_prediction_is_found(error: int, largest: bool, beyond: bool) -> None:  # noqa: FBT001  outcomes
    """What takes more than is predicted does not run where it should; what takes less runs where it should not."""
    row = cuda_fits.evidence(CASE, SPACE, PLAN, device(error)[0])

    assert (row["agrees"], row["largest"]["agrees"], row["beyond"]["agrees"]) == (False, largest, beyond)
    assert "last" not in row


def test_each_limit_is_the_harder_one() -> None:
    """The largest batch has the room less the largest context, the refused one the room less the smallest."""
    limits: list[int | None] = []

    def run(_: object, __: Plan, limit: int | None) -> dict[str, Any]:
        limits.append(limit)
        return {"skipped": "" if len(limits) == 1 else "out of memory"}

    cuda_fits.evidence(CASE, SPACE, PLAN, run)
    assert limits[:2] == [SPACE.capacity - CONTEXT[1], SPACE.capacity - CONTEXT[0]]
    limits.clear()
    cuda_fits.evidence(CASE, SPACE._replace(name="local"), PLAN, run)
    assert set(limits) == {None}


def test_a_run_that_fails_otherwise_is_no_proof() -> None:
    """Only memory that runs out shows that a batch does not fit."""

    def run(_: object, __: Plan, limit: int | None) -> dict[str, Any]:
        return {"skipped": "forward failed: no kernel" if limit == SPACE.capacity - CONTEXT[0] else ""}

    row = cuda_fits.evidence(CASE, SPACE, PLAN, run)
    assert (row["agrees"], row["beyond"]["agrees"]) == (False, False)
    assert "no kernel" in cuda_fits.line(row)


def test_a_room_for_nothing_says_so() -> None:
    """Where not even one sequence fits there is no promise to keep."""
    row = cuda_fits.evidence(CASE, room("100MiB"), PLAN, device()[0])

    assert row["failure"] == "not even a batch of 1 is said to fit"


def test_the_cases_are_three_models_and_more_in_rooms_that_hold_them() -> None:
    """Every case has a batch that fits the smallest room, of three models at least."""
    smallest = min((room(name) for name in cuda_fits.ROOMS if name != "local"), key=lambda one: one.capacity)

    assert len({case.model for case in cuda_fits.CASES}) >= 3
    assert len({case.name for case in cuda_fits.CASES}) == len(cuda_fits.CASES)
    for case in cuda_fits.CASES:
        plan = Plan.model_validate(case.plan | {"batch": 1})
        assert fit(TOTALS(case.spec(), plan, case.mode), smallest).fits, case.name


def test_without_a_gpu_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine without a GPU is said in one line, exit code 2, and leaves no file."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["cuda_fits.py", "--probe"])
    assert cuda_fits.main() == 2
    said = capsys.readouterr().err.strip()
    assert re.search("finds no CUDA device|built without CUDA", said)

    monkeypatch.setattr(cuda_fits, "child", lambda *_, until: {"skipped": f"died with 2: {said}"})  # noqa: ARG005
    assert cuda_fits.whole(tmp_path / "fits.json", 0.0) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_limited_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator may have the limit's share of the total; what the process holds beside it is what is left."""
    torch = pytest.importorskip("torch")
    from gptcalc.witness import cuda

    shares: list[float] = []
    free = iter([90 * MIB, 40 * MIB] * 2)
    here = cuda.Environment("NVIDIA H200", "sm90", 100 * MIB, "2.13", "13.0", 1, None, {})
    measured = cuda.Measured("training", PLAN, here, {}, None, (), (), ("a note",), "out of memory in build")
    monkeypatch.setattr(cuda, "local_gpu", lambda: None)
    monkeypatch.setattr(cuda, "measure", lambda *_, gpu: measured)  # noqa: ARG005
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (next(free), 100 * MIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 8 * MIB)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    row = json.loads(json.dumps(cuda_fits.one(CASE, PLAN, 25 * MIB)))
    cuda_fits.one(CASE, PLAN, None)

    assert shares == [0.25]
    assert (row["skipped"], row["limit"], row["notes"]) == ("out of memory in build", 25 * MIB, ["a note"])
    assert row["outside"] == {"before": 2 * MIB, "after": 52 * MIB}
    assert row["environment"]["target"] == "sm90"


def test_the_file_has_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row for each case in each room, in a file that is whole, also of those that the time was too short for."""
    rows = iter([True, False])

    def row_of(case: cuda_fits.Case, name: str, *_: object) -> dict[str, Any]:
        now[0] += 1
        return cuda_fits.evidence(case, SPACE._replace(name=name), PLAN, device(0 if next(rows) else 400 * MIB)[0])

    now = [0.0]
    monkeypatch.setattr(cuda_fits, "child", lambda *_, until: {"environment": {}, "local": {}})  # noqa: ARG005
    monkeypatch.setattr(cuda_fits, "row_of", row_of)
    monkeypatch.setattr(cuda_fits, "CASES", (CASE,))
    monkeypatch.setattr(cuda_fits, "ROOMS", ("1GiB", "2GiB", "3GiB"))
    monkeypatch.setattr(cuda_fits.time, "monotonic", lambda: now[0])
    code = cuda_fits.whole(tmp_path / "deep" / "fits.json", 2.0)
    found = json.loads((tmp_path / "deep" / "fits.json").read_text())

    assert (code, found["schema"]) == (1, "gptcalc.cuda_fits/1")
    assert [row.get("agrees") for row in found["rows"]] == [True, False, None]
    assert found["rows"][2]["failure"] == "not run: the time was spent"
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 2 promises kept, 1 not tried"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["2GiB", "local"])
def test_the_largest_batch_runs_and_one_beyond_does_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the GPU: what is said to fit runs in that room, and what is said not to fit runs out of memory."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    import time

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    machine = cuda_fits.child("--probe", until=time.monotonic() + 120)
    case = cuda_fits.Case("small", "gpt2", {"seq": 1024})
    row = cuda_fits.row_of(case, name, machine, time.monotonic() + 240)

    assert row["failure"] == ""
    assert row["agrees"], json.dumps(row, indent=1)
    for ran in (row["largest"]["ran"], row["beyond"]["ran"]):
        assert CONTEXT[0] / 2 < ran["outside"]["before"] <= CONTEXT[1]


def test_a_room_survives_json() -> None:
    """What the probe says of the local GPU is the same room on the other side of a pipe."""
    machine = {
        "local": json.loads(json.dumps(room("24GiB")._replace(name="local")._asdict())),
        "environment": {
            "device": "NVIDIA H200",
            "target": "sm90",
            "memory_bytes": 1,
            "torch": "2.13.0+cu130",
            "cuda": "13.0",
            "cudnn": 1,
            "driver": None,
            "settings": {},
        },
    }
    seen: list[Room] = []

    def evidence(_: object, space: Room, plan: Plan, __: object) -> dict[str, Any]:
        seen.append(space)
        return {"plan": plan}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_fits, "evidence", evidence)
        found = cuda_fits.row_of(CASE, "local", machine, 0.0)

    assert seen == [room("24GiB")._replace(name="local", notes=[])]
    assert seen[0].usable.low == seen[0].capacity
    assert (found["plan"].target, found["plan"].torch, found["plan"].expandable_segments) == ("sm90", "2.13", False)
