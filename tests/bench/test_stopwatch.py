"""Stopwatches: an event stopwatch on a simulated asynchronous queue, and torch's timer on the CPU."""

from collections import deque
from collections.abc import Callable
from itertools import pairwise
from time import sleep

import pytest

from gptcalc.bench.stopwatch import BATCH, MOST_SETS, OUTRUN, CpuStopwatch, EventStopwatch, StarvedError

MIB = 1 << 20


class Simulated:
    """A device with a queue: the host enqueues at its own pace, the device works when it gets to it."""

    holds = holds_warm = True

    def __init__(self, kernel_s: float, enqueue_s: float, slow: Callable[[float], bool] | None = None) -> None:
        self.kernel_s, self.enqueue_s, self.slow = kernel_s, enqueue_s, slow
        self.host = self.device = 0.0
        self.flushes = self.rests = 0
        self.log: deque[str] = deque(maxlen=4 * BATCH)

    def enqueue(self, name: str, device_s: float, host_s: float = 1e-6) -> None:
        self.host += host_s
        self.device = max(self.device, self.host) + device_s
        self.log.append(name)

    def kernel(self, name: str) -> Callable[[], object]:
        def run() -> None:
            self.host += self.enqueue_s
            slowed = self.slow is not None and self.slow(self.device)
            self.enqueue(name, self.kernel_s * (2 if slowed else 1))

        return run

    def now(self) -> float:
        return self.host

    def event(self) -> "Event":
        return Event(self)

    def flush(self) -> None:
        self.flushes += 1
        self.enqueue("flush", 10e-6)

    def hold(self, seconds: float) -> None:
        if self.holds:
            self.enqueue("hold", seconds)

    def synchronize(self) -> None:
        self.host = max(self.host, self.device)

    def throttled(self) -> bool:
        return self.slow is not None and self.slow(self.device)

    def rest(self, seconds: float) -> None:
        self.rests += 1
        self.host += seconds


class Event:
    """A moment on the simulated device."""

    def __init__(self, stream: Simulated) -> None:
        self.stream, self.at = stream, 0.0

    def record(self) -> None:
        self.stream.enqueue("event", 0.0)
        self.at = self.stream.device

    def query(self) -> bool:
        return self.stream.host >= self.at

    def elapsed_time(self, end: "Event") -> float:
        return (end.at - self.at) * 1e3


@pytest.mark.parametrize("state", ["cold", "warm"])
@pytest.mark.parametrize("kernel_us", [1, 5, 100])
def test_short_kernels_are_timed_without_the_gap_before_them(state: str, kernel_us: int) -> None:
    """A kernel that takes less than the host takes to enqueue it is timed as itself, not as the host."""
    stream = Simulated(kernel_us * 1e-6, enqueue_s=50e-6)
    batch = EventStopwatch(stream, MIB, stream.now).collect([stream.kernel("a"), stream.kernel("b")], state, 0.02)
    assert set(batch.samples) == {kernel_us * 1000}
    assert not batch.rejected


def test_queue_that_is_not_held_times_the_host() -> None:
    """The control: without a hold the simulated queue would show the host's 50 µs, and such samples are dropped."""
    stream = Simulated(1e-6, enqueue_s=50e-6)
    stream.holds = False
    start, end = stream.event(), stream.event()
    start.record()
    stream.kernel("a")()
    end.record()
    assert start.query()
    assert start.elapsed_time(end) * 1e3 > 40


def test_too_short_hold_grows_until_no_sample_is_starved() -> None:
    """Where a run suddenly takes the host longer than it was held for, starved samples go and the hold doubles."""
    stream = Simulated(5e-6, enqueue_s=10e-6)
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1
        stream.enqueue_s = 10e-6 if calls < 5 else 300e-6
        stream.kernel("a")()

    batch = EventStopwatch(stream, MIB, stream.now).collect([run], "warm", 0.05)
    assert set(batch.samples) == {5000}
    assert len(batch.samples) > 2 * BATCH


def test_device_that_does_not_queue_is_an_error() -> None:
    """Where launches block, no hold helps: that is said, and the run does not go on for ever."""
    stream = Simulated(5e-6, enqueue_s=10e-6)

    def blocking() -> None:
        stream.kernel("a")()
        stream.synchronize()

    with pytest.raises(StarvedError, match="CUDA_LAUNCH_BLOCKING"):
        EventStopwatch(stream, MIB, stream.now).collect([blocking], "warm", 0.05)


def test_gpu_sets_are_two_to_four() -> None:
    """Inputs far larger than the cache need two sets, small ones four; without a hold nothing is warm."""
    stream = Simulated(5e-6, enqueue_s=1e-6)
    stopwatch = EventStopwatch(stream, 10 * MIB, stream.now)
    assert [stopwatch.sets_needed("cold", size * MIB) for size in (1, 12, 14, 1000)] == [4, 4, 3, 2]
    assert stopwatch.sets_needed("warm", MIB) == 1
    stream.holds_warm = False
    assert stopwatch.sets_needed("warm", MIB) is None


def test_throttled_batches_are_thrown_out_and_counted() -> None:
    """What ran while the clock was low is counted and not used, and the device rests before it goes on."""
    stream = Simulated(100e-6, enqueue_s=10e-6, slow=lambda at: at % 0.02 < 0.008)
    batch = EventStopwatch(stream, MIB, stream.now).collect([stream.kernel("a")], "warm", 0.4)
    assert batch.rejected >= BATCH
    assert stream.rests == batch.rejected // BATCH
    assert sorted(batch.samples)[len(batch.samples) // 2] == 100_000


def test_cold_flushes_before_each_sample_and_rotates() -> None:
    """Cold: each sample finds an emptied cache and other inputs than the last; warm: the same inputs, and no flush."""
    stream = Simulated(5e-6, enqueue_s=1e-6)
    kernels = [stream.kernel(name) for name in "abc"]
    stopwatch = EventStopwatch(stream, MIB, stream.now)
    batch = stopwatch.collect(kernels, "cold", 0.002)
    assert stream.flushes == len(batch.samples) + batch.rejected
    assert "".join(name for name in stream.log if len(name) == 1)[:6] in "abcabcabc"
    flushes = stream.flushes
    stream.log.clear()
    stopwatch.collect(kernels, "warm", 0.002)
    assert stream.flushes == flushes
    assert {name for name in stream.log if len(name) == 1} == {"a"}


def test_slow_kernels_are_not_run_a_whole_batch_of_times() -> None:
    """A kernel of a second ends one restart after about the time that it was given."""
    stream = Simulated(1.0, enqueue_s=1e-5)
    batch = EventStopwatch(stream, MIB, stream.now).collect([stream.kernel("a")], "warm", 0.1)
    assert len(batch.samples) == 1
    assert stream.host < 5


def test_cpu_sets_outrun_the_cache() -> None:
    """Cold inputs on a CPU are four times the cache together; where that takes too many sets, nothing is cold."""
    stopwatch = CpuStopwatch(32 * MIB, threads=1)
    assert stopwatch.sets_needed("warm", 10) == 1
    assert stopwatch.sets_needed("cold", 10 * MIB) * 10 * MIB >= OUTRUN * 32 * MIB
    assert stopwatch.sets_needed("cold", 1 << 40) == 2
    assert stopwatch.sets_needed("cold", OUTRUN * 32 * MIB // MOST_SETS - 1) is None


def test_cpu_times_are_those_of_one_run() -> None:
    """A sample is the time of one run in nanoseconds, and cold runs take the sets in turn."""
    pytest.importorskip("torch")
    seen: list[int] = []
    sets = [lambda n=n: (seen.append(n), sleep(0.002)) for n in range(3)]
    batch = CpuStopwatch(MIB, threads=1).collect(sets, "cold", 0.05)
    assert all(2_000_000 <= sample < 50_000_000 for sample in batch.samples)
    assert seen[:3] == [0, 1, 2]
    assert all((after - before) % 3 == 1 for before, after in pairwise(seen))
    seen.clear()
    CpuStopwatch(MIB, threads=1).collect(sets, "warm", 0.01)
    assert set(seen) == {0}
