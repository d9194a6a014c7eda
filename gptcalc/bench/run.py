"""A whole run: points in blocks, restarts of a block's points in turn, a profile after each block.

Restarts of one point are spread over the time that its block takes, so that what drifts slowly (heat, clocks,
neighbours) is among their differences, and in the interval.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import NamedTuple

from gptcalc.bench.cases import Workload, WrongResultError, prepare
from gptcalc.bench.device import Machine, out_of_memory
from gptcalc.bench.plan import CASES, Job
from gptcalc.bench.sampling import Sampler
from gptcalc.errors import GptcalcError
from gptcalc.ledger.profile import Point, Problem, Profile, Shape, State
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
    """One point under way; `sets` says how many input sets each of its numbers needs."""

    def __init__(self, job: Job, workload: Workload, checked: str, sets: dict[State, int]) -> None:
        self.job, self.workload, self.checked, self.sets = job, workload, checked, sets
        self.samplers: dict[State, Sampler] = {}
        self.problem: Problem | None = None

    def start(self, number_s: float) -> None:
        self.samplers = {state: Sampler(number_s, perf_counter) for state in self.sets}

    def interrupt(self) -> None:
        for sampler in self.samplers.values():
            sampler.interrupt()

    @property
    def open(self) -> bool:
        return self.problem is None and any(sampler.stopped is None for sampler in self.samplers.values())

    @property
    def point(self) -> Point | None:
        """What was found; nothing where it was stopped before there were two restarts."""
        work = self.workload
        measured = {state: record for state, sampler in self.samplers.items() if (record := sampler.measured)}
        problem = self.problem
        if not measured and problem is None:
            if not any(sampler.rejected for sampler in self.samplers.values()):
                return None
            problem = Problem(
                kind="throttled",
                text="the clock was lowered in every sample: let the device cool, or see what holds its clock down",
            )
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
        done = {point.key for point in profile.points if point.is_final}
        self.jobs = [job for job in jobs if job not in done]
        self.places: dict[tuple[str, str, str, Shape], int] = {job: place for place, job in enumerate(jobs)}
        self.stop: BaseException | None = None
        self.total_s = NUMBER_S * sum(map(_numbers, self.jobs)) if time_budget_s is None else time_budget_s
        self.limited = time_budget_s is not None
        self.started = perf_counter()

    def __iter__(self) -> Iterator[Profile]:
        """The profile, each time with one block more; when it is stopped, with what the block has, before it raises."""
        waiting = list(self.jobs)
        while waiting and not (self.limited and self._spent_s() >= self.total_s):
            points = self._block(waiting)
            known = {point.key: point for point in (*self.profile.points, *points)}
            self.profile = self.profile.model_copy(
                update={
                    "clocks": self.machine.clocks() or self.profile.clocks,
                    "points": tuple(sorted(known.values(), key=lambda point: self.places.get(point.key, -1))),
                }
            )
            yield self.profile
            if self.stop:
                raise self.stop

    def _spent_s(self) -> float:
        return perf_counter() - self.started

    def _number_s(self, waiting: int) -> float:
        """Seconds for one of so many numbers that are still to be measured."""
        return max((self.total_s - self._spent_s()) / waiting, LEAST_S) if self.limited else NUMBER_S

    def _block(self, waiting: list[Job]) -> list[Point]:
        """Take the next jobs off `waiting` and measure them, their restarts in turn."""
        trials: list[_Trial] = []
        failed: list[Point] = []
        try:
            self._fill(waiting, trials, failed)
            number_s = self._number_s(sum(map(_numbers, (*(trial.job for trial in trials), *waiting))))
            for trial in trials:
                trial.start(number_s)
            while open_trials := [trial for trial in trials if trial.open]:
                for trial in open_trials:
                    self._show(_title(trial.job))
                    self._restart(trial)
        except KeyboardInterrupt as stop:
            self.stop = stop
            for trial in trials:
                trial.interrupt()
        return failed + [point for trial in trials if (point := trial.point)]

    def _fill(self, waiting: list[Job], trials: list[_Trial], failed: list[Point]) -> None:
        """Jobs whose kernels give the right results, as many as fit into memory side by side."""
        free = self.machine.free_bytes()
        pools = 0
        while waiting and len(trials) < BLOCK and (free is None or pools <= POOLS_SHARE * free):
            job = waiting[0]
            self._show(f"checking {job.case}")
            left = None if free is None else free - pools
            try:
                trial = self._prepare(job, left)
            except _DoesNotFitError as error:
                if trials and _fits(error.needed, free):
                    return  # when the pools of these are gone
                failed.append(_failed(job, Problem(kind="memory", text=str(error))))
            except WrongResultError as error:
                failed.append(_failed(job, Problem(kind="wrong", text=str(error))))
            except GptcalcError as error:
                failed.append(_failed(job, Problem(kind="backend", text=str(error))))
            else:
                trials.append(trial)
                pools += trial.workload.pool_bytes
            waiting.pop(0)

    def _show(self, what: str) -> None:
        self.progress(Step(self.total_s, min(self._spent_s(), self.total_s), what))

    def _prepare(self, job: Job, free: int | None) -> _Trial:
        """A trial whose kernel gave the right result."""
        device = self.machine.device
        work = prepare(job, device.kind, cache_bytes=device.cache_bytes, units=device.units)
        # By its sizes alone, before `must_move` is asked for: that counts distinct IDs, and so draws one for each row,
        # which for a shape that no memory holds takes minutes, or all of the memory.
        _must_fit(work.fixed_bytes + work.set_bytes, free)
        with _memory():
            brought = sum(term.bytes for term in work.must_move)
            needed = {state: self.machine.stopwatch.sets_needed(state, brought) for state in CASES[job.case].states}
            sets = {state: n for state, n in needed.items() if n is not None}
            _must_fit(work.fixed_bytes + max(sets.values(), default=0) * work.set_bytes, free)
            return _Trial(job, work, work.check(), sets)

    def _restart(self, trial: _Trial) -> None:
        """One restart: fresh inputs, and samples of each number that needs more."""
        states = [state for state, sampler in trial.samplers.items() if sampler.stopped is None]
        started = perf_counter()
        try:
            with _memory():
                sets = trial.workload.sets(max(trial.sets[state] for state in states))
                for state in states:
                    trial.samplers[state].restart(
                        lambda seconds, state=state: self.machine.stopwatch.collect(sets, state, seconds), started
                    )
                    started = perf_counter()
        except _DoesNotFitError as error:
            trial.problem = Problem(kind="memory", text=str(error))
        except GptcalcError as error:
            trial.problem = Problem(kind="backend", text=str(error))


class _DoesNotFitError(GptcalcError):
    """Memory is too small: for so many bytes at least, as was computed before, or as was found out."""

    def __init__(self, text: str, needed: int = 0) -> None:
        super().__init__(text)
        self.needed = needed


def _fits(needed: int, free: int | None) -> bool:
    return free is None or needed <= MEMORY_SHARE * free


def _must_fit(needed: int, free: int | None) -> None:
    if free is not None and not _fits(needed, free):
        text = f"needs at least {format_bytes(needed)} of memory; {format_bytes(max(free, 0))} are free"
        raise _DoesNotFitError(text, needed)


@contextmanager
def _memory() -> Iterator[None]:
    """Lack of memory as an error of one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise _DoesNotFitError("the device ran out of memory") from None


def _numbers(job: Job) -> int:
    return len(CASES[job.case].states)


def _failed(job: Job, problem: Problem) -> Point:
    return Point(case=job.case, dtype=job.dtype, backend=job.backend, shape=job.shape, problem=problem)


def _title(job: Job) -> str:
    if CASES[job.case].ceiling:
        return job.case
    shape = f"{job.shape.rows:,} × {job.shape.d_model:,}"
    return f"{job.case} {shape} {job.dtype}{' compiled' if job.backend == 'compile' else ''}"
