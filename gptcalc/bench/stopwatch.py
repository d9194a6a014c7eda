"""How long a kernel runs: device events on a GPU, `torch.utils.benchmark` on a CPU.

A stopwatch gets input sets, each a callable that runs the kernel once on inputs of its own. Cold: the sets are taken in
turn, and what the last one left in the cache is driven out. Warm: one set again and again.
"""

from collections.abc import Callable, Sequence
from itertools import cycle
from time import perf_counter
from typing import Any, Protocol

from gptcalc.bench.sampling import Batch
from gptcalc.errors import GptcalcError
from gptcalc.ledger.profile import State

Run = Callable[[], object]

#: Cold inputs, all sets together, are so many times the cache.
OUTRUN = 4
#: More sets than this take longer to make than to run.
MOST_SETS = 512
#: Sets of a GPU, whose cache is flushed besides: as many as outrun it, but at least and at most so many.
GPU_SETS = (2, 4)
#: Samples between two looks at the clocks.
BATCH = 16
#: A sample counts only at this share of the highest SM clock or more (NVBench's `throttle-threshold`).
THROTTLED_BELOW = 0.75
#: After a throttled batch the device rests, as in NVBench.
RECOVERY_S = 0.05
#: The queue is held this many times as long as the host takes to fill it.
HOLD_MARGIN = 2.0
#: A queue that a hold of so many seconds does not fill is no queue.
LONGEST_HOLD_S = 0.5


class StarvedError(GptcalcError):
    """A device that works while the host waits: what it takes cannot be told from what the host takes."""


class Stopwatch(Protocol):
    """One for each kind of device."""

    def sets_needed(self, state: State, set_bytes: int) -> int | None:
        """How many input sets make the state true; `None` where so many would be needed that it cannot be measured."""
        ...

    def collect(self, sets: Sequence[Run], state: State, seconds: float) -> Batch:
        """Samples of one restart, for about so many seconds. Raises `GptcalcError` where none can be taken."""
        ...


class CpuStopwatch:
    """`torch.utils.benchmark`: it chooses how often a sample runs the kernel, and fixes the threads."""

    def __init__(self, cache_bytes: int, threads: int) -> None:
        """`cache_bytes` is the last cache before memory."""
        self.cache_bytes, self.threads = cache_bytes, threads

    def sets_needed(self, state: State, set_bytes: int) -> int | None:
        """Enough to outrun the cache: nothing else empties it."""
        if state == "warm":
            return 1
        needed = max(2, -(-OUTRUN * self.cache_bytes // max(set_bytes, 1)))
        return needed if needed <= MOST_SETS else None

    def collect(self, sets: Sequence[Run], state: State, seconds: float) -> Batch:
        """A sample is the mean of one of torch's blocks."""
        from torch.utils.benchmark import Timer

        for run in sets if state == "cold" else sets[:1]:
            run()
        timer = Timer("run()", globals={"run": in_turn(sets) if state == "cold" else sets[0]}, num_threads=self.threads)
        times = timer.blocked_autorange(min_run_time=seconds).times
        return Batch(tuple(max(round(time * 1e9), 1) for time in times), 0)


def in_turn(sets: Sequence[Run]) -> Run:
    """A callable that runs the next set each time."""
    following = cycle(sets).__next__

    def run() -> object:
        return following()()

    return run


class Stream(Protocol):
    """What an event stopwatch needs of a device: an asynchronous queue. Tests have a simulated one."""

    def event(self) -> Any:
        """An event with `record()`, `query()` and `elapsed_time(end)` in milliseconds."""
        ...

    def flush(self) -> None:
        """Enqueue a write over a buffer larger than the cache."""
        ...

    def hold(self, seconds: float) -> None:
        """Enqueue a wait, so that the host can fill the queue behind it."""
        ...

    def synchronize(self) -> None:
        """Wait until the queue is empty."""
        ...

    #: Whether the queue can be held without touching the cache.
    holds_warm: bool

    def throttled(self) -> bool:
        """Whether the clock is lowered at present; false where nobody can say."""
        ...

    def rest(self, seconds: float) -> None:
        """Let the device cool."""
        ...


class EventStopwatch:
    """Events around each run, in a queue that is held until the run is in it.

    Without the hold, a kernel shorter than the host takes to enqueue it would be timed with the gap before it. Where
    the start event has passed before the run is enqueued, the sample is dropped and the hold doubled.
    """

    def __init__(self, stream: Stream, cache_bytes: int, now: Callable[[], float] = perf_counter) -> None:
        """`cache_bytes` is the L2, `now` the host's clock in seconds."""
        self.stream, self.cache_bytes, self.now = stream, cache_bytes, now

    def sets_needed(self, state: State, set_bytes: int) -> int | None:
        """A few, so that no run finds the last one's inputs; the flush does the rest."""
        if state == "warm":
            return 1 if self.stream.holds_warm else None
        least, most = GPU_SETS
        return max(least, min(most, -(-OUTRUN * self.cache_bytes // max(set_bytes, 1))))

    def collect(self, sets: Sequence[Run], state: State, seconds: float) -> Batch:
        """One sample a run, in batches between which the clock is looked at."""
        chosen = sets if state == "cold" else sets[:1]
        hold, run_s = self._warm_up(chosen)
        batch = max(1, min(BATCH, int(seconds / max(run_s, 1e-9))))
        kept: list[int] = []
        rejected = 0
        run = in_turn(chosen)
        started = self.now()
        while True:
            samples, starved, throttled = self._batch(run, state, hold, batch)
            hold *= 2 if starved else 1
            if hold > LONGEST_HOLD_S and not kept:
                raise StarvedError(
                    "each run waits for the device (CUDA_LAUNCH_BLOCKING, a debugger?): it cannot be timed"
                )
            if throttled:
                rejected += len(samples)
                self.stream.rest(RECOVERY_S)
            else:
                kept += samples
            if self.now() - started >= seconds and (kept or rejected):
                return Batch(tuple(kept), rejected)

    def _warm_up(self, sets: Sequence[Run]) -> tuple[float, float]:
        """Run everything; return how long the queue must be held, by what the host takes, and how long a run takes."""
        for run in sets:
            run()
        enqueued_s, run_s = 0.0, 0.0
        for run in sets:
            self.stream.synchronize()
            before = self.now()
            run()
            enqueued_s = max(enqueued_s, self.now() - before)
            self.stream.synchronize()
            run_s = max(run_s, self.now() - before)
        return HOLD_MARGIN * enqueued_s, run_s

    def _batch(self, run: Run, state: State, hold: float, size: int) -> tuple[list[int], bool, bool]:
        pairs, starved = [], False
        for _ in range(size):
            start, end = self.stream.event(), self.stream.event()
            if state == "cold":
                self.stream.flush()
            self.stream.hold(hold)
            start.record()
            run()
            end.record()
            if start.query():
                starved = True
            else:
                pairs.append((start, end))
        throttled = self.stream.throttled()
        self.stream.synchronize()
        return [max(round(start.elapsed_time(end) * 1e6), 1) for start, end in pairs], starved, throttled
