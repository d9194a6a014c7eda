"""A whole run: points in blocks, restarts of a block's points in turn, a profile after each block.

Restarts of one point are spread over the time that its block takes, so that what drifts slowly (heat, clocks,
neighbours) is among their differences, and in the interval.
"""

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

from gptcalc.bench.cases import Workload, WrongResultError, prepare
from gptcalc.bench.device import Machine
from gptcalc.bench.plan import CASES, Job
from gptcalc.bench.sampling import Sampler
from gptcalc.bench.stopwatch import Stopwatch
from gptcalc.errors import GptcalcError
from gptcalc.ledger.profile import Clocks, Point, Problem, Profile, State
from gptcalc.units import format_bytes

#: Points whose restarts take turns; what is lost when a run is stopped.
BLOCK = 12
#: Seconds for one number where no time is given for all.
NUMBER_S = 2.0
#: The least that one number gets.
LEAST_S = 0.02
#: Of the free memory, what the block's pools may take, and what all may.
POOLS_SHARE, MEMORY_SHARE = 0.25, 0.9


class Step(NamedTuple):
    """Where a run is: the seconds that sampling may take at most in all, those done, and what is being measured."""

    total_s: float
    done_s: float
    what: str


class _Trial:
    """One point under way."""

    def __init__(self, job: Job, workload: Workload, checked: str, states: Sequence[State]) -> None:
        self.job, self.workload, self.checked, self.states = job, workload, checked, states
        self.samplers: dict[State, Sampler] = {}
        self.problem: Problem | None = None

    def start(self, number_s: float) -> None:
        self.samplers = {state: Sampler(number_s, perf_counter) for state in self.states}

    @property
    def open(self) -> bool:
        return self.problem is None and any(sampler.stopped is None for sampler in self.samplers.values())

    @property
    def point(self) -> Point:
        work = self.workload
        measured = {state: record for state, sampler in self.samplers.items() if (record := sampler.measured)}
        problem = self.problem
        if not measured and problem is None:
            problem = Problem(kind="throttled", text="the clock was throttled in every sample")
        return Point(
            case=self.job.case,
            dtype=self.job.dtype,
            backend=self.job.backend,
            shape=self.job.shape,
            must_move=work.must_move,
            torch_moves=work.torch_moves,
            torch_why=work.torch_why,
            checked=self.checked,
            measured={} if problem else measured,
            problem=problem,
        )


class Bench:
    """A run over `jobs` on one machine; iterate to get the profile after each block."""

    def __init__(
        self,
        machine: Machine,
        jobs: Sequence[Job],
        profile: Profile,
        time_budget_s: float | None,
        progress: Callable[[Step], None],
    ) -> None:
        """`profile` may hold points already; those that have numbers are not measured again."""
        self.machine, self.profile, self.progress = machine, profile, progress
        done = {point.key for point in profile.points if not point.problem}
        self.jobs = [job for job in jobs if job.key not in done]
        self.places = {job.key: place for place, job in enumerate(jobs)}
        self.total_s = NUMBER_S * sum(map(_numbers, self.jobs)) if time_budget_s is None else time_budget_s
        self.limited = time_budget_s is not None
        self.started = perf_counter()
        self.stopwatch: Stopwatch = machine.stopwatch()

    def __iter__(self) -> Iterator[Profile]:
        """The profile, each time with one block more."""
        before = self.machine.clocks()
        waiting = list(self.jobs)
        while waiting and not (self.limited and self._spent_s() >= self.total_s):
            points = list(self._block(waiting))
            after = self.machine.clocks()
            known = {point.key: point for point in (*self.profile.points, *points)}
            self.profile = self.profile.model_copy(
                update={
                    "clocks": Clocks(before=before, after=after) if before and after else None,
                    "points": tuple(sorted(known.values(), key=lambda point: self.places.get(point.key, -1))),
                }
            )
            yield self.profile

    def _spent_s(self) -> float:
        return perf_counter() - self.started

    def _number_s(self, waiting: int) -> float:
        """Seconds for one of so many numbers that are still to be measured."""
        return max((self.total_s - self._spent_s()) / waiting, LEAST_S) if self.limited else NUMBER_S

    def _block(self, waiting: list[Job]) -> Iterator[Point]:
        """Take the next jobs off `waiting` and measure them, their restarts in turn."""
        trials: list[_Trial] = []
        free = self.machine.free_bytes()
        pools = 0
        while waiting and len(trials) < BLOCK and (free is None or pools <= POOLS_SHARE * free):
            job = waiting.pop(0)
            self._show(f"checking {job.case}")
            trial = self._prepare(job, free, pools)
            if isinstance(trial, Point):
                yield trial
            else:
                trials.append(trial)
                pools += trial.workload.pool_bytes
        number_s = self._number_s(sum(map(_numbers, (*(trial.job for trial in trials), *waiting))))
        for trial in trials:
            trial.start(number_s)
        while open_trials := [trial for trial in trials if trial.open]:
            for trial in open_trials:
                self._show(_title(trial.job))
                self._restart(trial)
        yield from (trial.point for trial in trials)

    def _show(self, what: str) -> None:
        self.progress(Step(self.total_s, min(self._spent_s(), self.total_s), what))

    def _prepare(self, job: Job, free: int | None, pools: int) -> "_Trial | Point":
        """A trial whose kernel gave the right result, or the point that says why there is none."""
        device = self.machine.device
        try:
            work = prepare(job, device.kind, cache_bytes=device.cache_bytes, units=device.units)
            needed = work.fixed_bytes + self._sets(work, "cold") * work.set_bytes
            if free is not None and pools + needed > MEMORY_SHARE * free:
                text = f"needs {format_bytes(needed)} of memory; {format_bytes(max(free - pools, 0))} are free"
                return _failed(job, Problem(kind="memory", text=text))
            checked = work.check()
        except WrongResultError as error:
            return _failed(job, Problem(kind="wrong", text=str(error)))
        except GptcalcError as error:
            return _failed(job, Problem(kind="backend", text=str(error)))
        except (RuntimeError, MemoryError) as error:
            if not self.machine.out_of_memory(error):
                raise
            return _failed(job, Problem(kind="memory", text="the device ran out of memory"))
        states = [
            state for state in CASES[job.case].states if self.stopwatch.sets_needed(state, _bytes(work)) is not None
        ]
        return _Trial(job, work, checked, states)

    def _sets(self, work: Workload, state: State) -> int:
        return self.stopwatch.sets_needed(state, _bytes(work)) or 1

    def _restart(self, trial: _Trial) -> None:
        """One restart: fresh inputs, and samples of each number that needs more."""
        states = [state for state, sampler in trial.samplers.items() if sampler.stopped is None]
        started = perf_counter()
        try:
            sets = trial.workload.sets(max(self._sets(trial.workload, state) for state in states))
            for state in states:
                trial.samplers[state].restart(
                    lambda seconds, state=state: self.stopwatch.collect(sets, state, seconds), started
                )
                started = perf_counter()
        except (RuntimeError, MemoryError) as error:
            if not self.machine.out_of_memory(error):
                raise
            trial.problem = Problem(kind="memory", text="the device ran out of memory while it was timed")


def _numbers(job: Job) -> int:
    return len(CASES[job.case].states)


def _bytes(work: Workload) -> int:
    """What one run of a set brings into the cache."""
    return sum(term.bytes for term in work.must_move)


def _failed(job: Job, problem: Problem) -> Point:
    return Point(case=job.case, dtype=job.dtype, backend=job.backend, shape=job.shape, problem=problem)


def _title(job: Job) -> str:
    if CASES[job.case].ceiling:
        return job.case
    shape = f"{job.shape.rows:,} × {job.shape.d_model:,}"
    return f"{job.case} {shape} {job.dtype}{' compiled' if job.backend == 'compile' else ''}"
