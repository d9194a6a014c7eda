"""A whole run on a machine that is made up: turns, budgets, what fails, what was there already."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gptcalc.bench import run as running  # noqa: E402  torch may be missing
from gptcalc.bench.plan import Job  # noqa: E402
from gptcalc.bench.reference import WrongResultError  # noqa: E402
from gptcalc.bench.run import BLOCK, Bench, Step  # noqa: E402
from gptcalc.bench.sampling import Batch  # noqa: E402
from gptcalc.bench.stopwatch import StarvedError  # noqa: E402
from gptcalc.errors import InvalidValueError  # noqa: E402
from gptcalc.ledger.profile import Clocks, Device, Moved, Profile, Shape, Software, State  # noqa: E402


class Made:
    """A machine with a clock of its own, on which every run takes a millisecond and every check a second."""

    def __init__(self, free: int | None = None) -> None:
        self.device = Device(kind="cuda", name="made up", cache_bytes=1 << 20)
        self.now, self.log, self.free, self.throttled = 0.0, [], free, False
        self.large = 0
        self.faults: dict[str, BaseException] = {}

    @property
    def stopwatch(self) -> "Made":
        return self

    def sets_needed(self, state: State, _: int) -> int | None:
        return 2 if state == "cold" else 1

    def collect(self, sets: Sequence[Callable[[], object]], _: State, seconds: float) -> Batch:
        self.now += seconds
        if len(self.log) > 20 and (fault := self.faults.get("collect")):
            raise fault
        for one in sets:
            one()
        n = len(self.log)
        return Batch((), 10) if self.throttled else Batch((1_000_000 + n % 7 * 10_000,) * 10, 0)

    def free_bytes(self) -> int | None:
        return self.free

    def clocks(self) -> Clocks:
        return Clocks(sm=(1900, 1980), memory=(3201, 3201))

    def prepare(self, job: Job, _: str, **__: object) -> Any:
        """A workload."""

        def check() -> str:
            self.now += 1
            if fault := self.faults.get(f"check {job.shape.rows}"):
                raise fault
            return "right"

        def sets(n: int) -> list[Callable[[], object]]:
            if fault := self.faults.get(f"sets {job.shape.rows}"):
                raise fault
            return [lambda: self.log.append(job.shape.rows)] * n

        return SimpleNamespace(
            must_move=(Moved(label="x", formula="M", bytes=job.shape.rows),),
            torch_moves=(),
            torch_why="",
            set_bytes=100 if job.shape.rows != self.large else 10_000,
            fixed_bytes=1000,
            pool_bytes=500,
            check=check,
            sets=sets,
        )


def jobs(n: int) -> list[Job]:
    """Kernels told apart by their rows."""
    shape = {"d_model": 1, "n_vocab": 1, "n_ctx": 1, "seq": 1}
    return [Job("layernorm.forward", "fp32", "eager", Shape(rows=1 + at, **shape)) for at in range(n)]


def start(
    machine: Made,
    monkeypatch: pytest.MonkeyPatch,
    asked: Sequence[Job],
    budget_s: float | None = None,
    **more: Any,
) -> tuple[list[Profile], list[Step]]:
    """Every profile of a run, and every step that it showed."""
    monkeypatch.setattr(running, "prepare", machine.prepare)
    monkeypatch.setattr(running, "perf_counter", lambda: machine.now)
    profile = Profile(
        command="test",
        started="now",
        device=machine.device,
        software=Software(gptcalc="0", torch="2", python="3", system="x"),
        asked=len(asked),
        points=tuple(more.get("points", ())),
    )
    steps: list[Step] = []
    found: list[Profile] = more.get("found", [])
    found.extend(Bench(machine, asked, profile, budget_s, steps.append))  # type: ignore[arg-type]
    return found, steps


def problems(profile: Profile) -> dict[int, str]:
    """Kinds of problems by rows."""
    return {point.shape.rows: point.problem.kind for point in profile.points if point.problem}


def test_points_of_a_block_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point's restarts are spread over its block: all others come between two of them."""
    machine = Made()
    (profile,), _ = start(machine, monkeypatch, jobs(3))
    turns = [rows for at, rows in enumerate(machine.log) if not at or machine.log[at - 1] != rows]
    assert turns[:6] == [1, 2, 3, 1, 2, 3]
    assert len(profile.points) == 3
    assert all(point.checked == "right" and set(point.measured) == {"cold", "warm"} for point in profile.points)


def test_a_profile_comes_after_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done is there to be saved after each block, with the clocks that were seen."""
    profiles, steps = start(Made(), monkeypatch, jobs(2 * BLOCK + 1))
    assert [len(profile.points) for profile in profiles] == [BLOCK, 2 * BLOCK, 2 * BLOCK + 1]
    assert profiles[-1].clocks
    assert profiles[-1].clocks.sm == (1900, 1980)
    assert all(before.done_s <= after.done_s <= after.total_s for before, after in pairwise(steps))


def test_time_for_all_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that was given is shared among all numbers, checks included, and kept to within a tenth."""
    machine = Made()
    start(machine, monkeypatch, jobs(10), budget_s=60)
    assert 30 < machine.now < 66


def test_time_that_is_up_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where checks alone take longer than the time, later blocks are not begun."""
    profiles, _ = start(Made(), monkeypatch, jobs(5 * BLOCK), budget_s=BLOCK * 2)
    assert BLOCK <= len(profiles[-1].points) < 5 * BLOCK


def test_what_fails_is_told_and_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong results, failing backends and lack of memory, in the check or later, are problems of their point alone."""
    machine = Made()
    machine.faults = {
        "check 1": WrongResultError("off by 1"),
        "check 2": InvalidValueError("torch.compile: no compiler"),
        "check 3": RuntimeError("out of memory"),
        "sets 4": RuntimeError("out of memory"),
        "sets 5": StarvedError("waits"),
    }
    (profile,), _ = start(machine, monkeypatch, jobs(6))
    assert problems(profile) == {1: "wrong", 2: "backend", 3: "memory", 4: "memory", 5: "backend"}
    assert {point.shape.rows for point in profile.points if point.measured} == {6}


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is none of these is a bug, and is raised."""
    machine = Made()
    machine.faults = {"sets 1": RuntimeError("shapes differ")}
    with pytest.raises(RuntimeError, match="shapes differ"):
        start(machine, monkeypatch, jobs(1))


def test_memory_is_refused_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point that needs more than is free is a problem with both amounts, and its kernel never runs."""
    machine = Made(free=1000)
    (profile,), _ = start(machine, monkeypatch, jobs(1))
    assert problems(profile) == {1: "memory"}
    assert profile.points[0].problem
    assert "1.07 KiB" in profile.points[0].problem.text
    assert machine.log == []


def test_what_does_not_fit_beside_others_is_tried_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point that does not fit while other points' random numbers are there is measured in a block of its own."""
    profiles, _ = start(Made(free=1600), monkeypatch, jobs(2))
    assert [len(profile.points) for profile in profiles] == [1, 2]
    assert not problems(profiles[-1])


def test_what_never_fits_ends_no_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point that is too large for the whole memory is a problem at once, beside others that are measured."""
    machine = Made(free=4000)
    machine.large = 2
    (profile,), _ = start(machine, monkeypatch, jobs(3))
    assert problems(profile) == {2: "memory"}


def test_stopped_block_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a block: its points with two restarts are in the profile, and are measured again."""
    machine = Made()
    machine.faults = {"collect": KeyboardInterrupt()}
    found: list[Profile] = []
    with pytest.raises(KeyboardInterrupt):
        start(machine, monkeypatch, jobs(3), found=found)
    assert [point.shape.rows for point in found[-1].points] == [1, 2, 3]
    assert {record.stopped for point in found[-1].points for record in point.measured.values()} == {"interrupted"}
    again = Made()
    (after,), _ = start(again, monkeypatch, jobs(3), points=found[-1].points)
    assert set(again.log) == {1, 2, 3}
    assert all(point.is_final for point in after.points)


def test_pools_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the random numbers of few points take a quarter of the memory, blocks are smaller."""
    profiles, _ = start(Made(free=4000), monkeypatch, jobs(6))
    assert [len(profile.points) for profile in profiles] == [3, 6]


def test_a_throttled_device_ends_without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every sample is thrown out, the point says so, and the run ends."""
    machine = Made()
    machine.throttled = True
    (profile,), _ = start(machine, monkeypatch, jobs(2), budget_s=5)
    assert problems(profile) == {1: "throttled", 2: "throttled"}


def test_what_is_there_is_kept_and_what_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on measures what has no number yet, and a point that failed takes its new place."""
    first = Made()
    first.faults = {"check 2": RuntimeError("out of memory")}
    (*_, before), _ = start(first, monkeypatch, jobs(3))
    machine = Made()
    (after,), _ = start(machine, monkeypatch, jobs(4), points=before.points)
    assert set(machine.log) == {2, 4}
    assert len(after.points) == 4
    assert not problems(after)
    assert [point.shape.rows for point in after.points] == [1, 2, 3, 4]
    assert (after.points[0], after.points[2]) == (before.points[0], before.points[2])
