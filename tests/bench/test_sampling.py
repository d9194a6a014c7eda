"""Sampling, stopping and intervals on a fake clock, against distributions whose median is known."""

from collections.abc import Callable
from math import log, pi, sqrt
from random import Random
from statistics import median, stdev

import pytest
from fake import BUDGET_S, TRUE_NS, Draw, FakeKernel, gauss, measure

from gptcalc.bench.sampling import LONGEST_S, SHARE, Batch, Sampler
from gptcalc.ledger.profile import Measured
from gptcalc.ledger.timing import TARGET
from gptcalc.stats import LEAST_RESTARTS, Interval, repeatable, t_975

Quote = Callable[[FakeKernel], Interval]

RUNS = 250
#: 95 % less three standard errors of a share of so many runs.
HONEST = 0.95 - 3 * sqrt(0.95 * 0.05 / RUNS)


def skewed(rng: Random) -> float:
    """Interruptions only ever add time: the mean is biased by 5 %, the median by 5 % · ln 2."""
    return 1 + rng.expovariate(1 / 0.05)


def one_in_ten(rng: Random) -> float:
    """One sample in ten takes three times as long."""
    return (3 if rng.random() < 0.1 else 1) * (1 + rng.gauss(0, 0.005))


def bad_restart(rng: Random) -> float:
    """One restart in ten is a tenth slower from end to end."""
    return 1.1 if rng.random() < 0.1 else 1 + rng.gauss(0, 0.002)


DISTRIBUTIONS: dict[str, tuple[Draw, Draw, float]] = {
    "noise": (gauss(0.002), gauss(0.01), 1.0),
    "quiet": (gauss(0.0003), gauss(0.001), 1.0),
    "bias": (gauss(0.002), skewed, 1 + 0.05 * log(2)),
    "one outlier in ten": (gauss(0.002), one_in_ten, 1.0),
    "restarts differ more than samples": (gauss(0.01), gauss(0.0005), 1.0),
    "one bad restart in ten": (bad_restart, gauss(0.002), 1.0),
}


def shares(quote: Quote, restart: Draw, noise: Draw, truth: float) -> tuple[float, float]:
    """How often an interval holds the truth, and how often it holds what a second run finds."""
    rng = Random(7)
    first, second = ([quote(FakeKernel(rng, restart, noise)) for _ in range(RUNS)] for _ in range(2))
    true = sum(interval.low <= truth * TRUE_NS <= interval.high for interval in first)
    again = sum(one.low <= two.estimate <= one.high for one, two in zip(first, second, strict=True))
    return true / RUNS, again / RUNS


def quoted(kernel: FakeKernel) -> Interval:
    """What gptcalc quotes."""
    measured = measure(kernel)
    return repeatable(measured.restarts)


def peeking(kernel: FakeKernel) -> Interval:
    """A liar: looks after each restart and stops at the first narrow interval."""
    medians: list[float] = []
    while True:
        medians.append(median(kernel.begin()(BUDGET_S * SHARE).samples))
        if len(medians) > 1:
            half = t_975(len(medians) - 1) * stdev(medians) * sqrt(pi / len(medians))
            interval = Interval(median(medians), median(medians) - half, median(medians) + half)
            if interval.width < TARGET or kernel.now() > BUDGET_S:
                return interval


def within_one(kernel: FakeKernel) -> Interval:
    """A liar: one restart, and the interval of the median by the ranks of its samples."""
    samples = sorted(kernel.begin()(BUDGET_S).samples)
    middle, reach = len(samples) / 2, 1.96 * sqrt(len(samples)) / 2
    return Interval(median(samples), samples[int(middle - reach)], samples[int(middle + reach)])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_interval_is_honest(name: str) -> None:
    """The quoted interval holds the true median, and the median of a second run, at least 95 times in 100."""
    true, again = shares(quoted, *DISTRIBUTIONS[name])
    assert true >= HONEST
    assert again >= HONEST


@pytest.mark.parametrize(
    ("liar", "name"), [(peeking, "noise"), (within_one, "noise"), (within_one, "restarts differ more than samples")]
)
def test_lying_rule_fails(liar: Quote, name: str) -> None:
    """A rule that stops on luck, or that never restarts, quotes an interval that a second run leaves too often."""
    assert shares(liar, *DISTRIBUTIONS[name])[1] < HONEST


def test_quiet_kernel_stops_early() -> None:
    """A kernel whose restarts agree is done after the least number, with a tenth of the budget left at least."""
    kernel = FakeKernel(1, gauss(0.0002), gauss(0.001))
    measured = measure(kernel)
    assert measured.stopped == "precise"
    assert len(measured.restarts) == LEAST_RESTARTS
    assert kernel.now() < 0.3 * BUDGET_S
    assert repeatable(measured.restarts).width < TARGET


def test_noisier_kernel_restarts_more() -> None:
    """Where restarts differ, more are taken, until the interval is as narrow as the record says."""
    precise = [
        measured
        for seed in range(40)
        if (measured := measure(FakeKernel(seed, gauss(0.0015), gauss(0.001)))).stopped == "precise"
    ]
    assert {len(measured.restarts) for measured in precise} - {LEAST_RESTARTS}
    assert all(repeatable(measured.restarts).width <= TARGET for measured in precise)


def test_hopeless_noise_ends() -> None:
    """Where no number of restarts would do, sampling ends with the time, and says so."""
    assert measure(FakeKernel(3, gauss(0.05), gauss(0.01))).stopped == "budget"
    kernel = FakeKernel(3, gauss(0.05), gauss(0.01))
    sampler = Sampler(BUDGET_S, kernel.now)
    while sampler.stopped is None:
        started = kernel.now()
        kernel.clock += BUDGET_S / 4  # fresh inputs take long
        sampler.restart(kernel.begin(), started)
    assert sampler.stopped == "budget"
    assert sampler.measured
    assert 2 <= len(sampler.measured.restarts) < LEAST_RESTARTS


def test_slow_kernel_has_two_restarts_at_least() -> None:
    """Where one restart takes longer than all the time that there is, a second one is taken, and no third."""
    kernel = FakeKernel(9, gauss(0.001), gauss(0.001))
    measured = measure(kernel, budget_s=1e-4)
    assert (len(measured.restarts), measured.stopped) == (2, "budget")


def test_more_time_is_more_restarts() -> None:
    """Restarts stay as short as they are where there is more time: it is their number that narrows the interval."""
    short, long = (measure(FakeKernel(4, gauss(0.02), gauss(0.001)), budget_s) for budget_s in (2.0, 8.0))
    assert len(long.restarts) > 3 * len(short.restarts)
    assert repeatable(long.restarts).width < 0.7 * repeatable(short.restarts).width
    assert all(sum(samples) < 1.1e9 * LONGEST_S for samples in long.restarts)


def test_throttled_samples_are_counted_and_not_used() -> None:
    """Samples at half the clock are thrown out and counted: the median is that of the others."""
    measured = measure(FakeKernel(5, gauss(0.001), gauss(0.002)).having(throttled=0.4))
    interval = repeatable(measured.restarts)
    assert measured.rejected > 0.2 * sum(map(len, measured.restarts))
    assert interval.low <= TRUE_NS <= interval.high


def test_nothing_but_throttling_ends_without_a_number() -> None:
    """A device that is throttled all the time gives no number, and sampling still ends."""
    kernel = FakeKernel(5, gauss(0.001), gauss(0.002)).having(throttled=1.0)
    sampler = Sampler(BUDGET_S, kernel.now)
    while sampler.stopped is None:
        started = kernel.now()
        sampler.restart(kernel.begin(), started)
    assert sampler.measured is None
    assert kernel.now() < 3 * BUDGET_S


def test_drift_widens_the_interval() -> None:
    """A steady drift over the run is in the interval: it holds the times of the first restart and of the last."""
    measured = measure(FakeKernel(5, gauss(0.0001), gauss(0.0005)).having(drift_per_s=0.1))
    interval = repeatable(measured.restarts)
    assert interval.low <= median(measured.restarts[0]) < median(measured.restarts[-1]) <= interval.high


def test_coarse_clock_is_not_taken_for_precision() -> None:
    """Where every restart reads the same tick, the interval is still as wide as the tick."""
    measured = measure(FakeKernel(5, gauss(0.0001), gauss(0.01)).having(tick=20_000))
    interval = repeatable(measured.restarts)
    assert interval.high - interval.low >= 20_000


def test_restart_keeps_every_sample_in_order() -> None:
    """The record holds all samples as they came, restart by restart, and the time that setting up took is spent too."""
    batches = [Batch((3, 1, 2), 0), Batch((5,), 2), Batch((4, 4), 0), Batch((6,), 0), Batch((7,), 0)]
    clock = iter([0.1 * n for n in range(99)])
    sampler = Sampler(100.0, lambda: next(clock))
    for batch in batches:
        sampler.restart(lambda _, batch=batch: batch, 0.0)
    sampler.stopped = "budget"
    assert sampler.measured == Measured(restarts=((3, 1, 2), (5,), (4, 4), (6,), (7,)), rejected=2, stopped="budget")
    assert sampler.spent_s == pytest.approx(1.0)
