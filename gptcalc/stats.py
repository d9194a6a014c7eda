"""Medians, intervals and fits of repeated measurements, on plain numbers.

Times are floats here: they are estimates. Nothing in this file knows what was measured.
"""

from collections.abc import Sequence
from itertools import combinations, pairwise
from math import floor, pi, sqrt
from statistics import median, quantiles, stdev
from typing import NamedTuple

#: Student's t: the 0.975 quantile by degrees of freedom from 1; from 30 on the last, which is on the safe side.
T_975 = (
    12.7063, 4.3027, 3.1825, 2.7765, 2.5706, 2.4470, 2.3647, 2.3061, 2.2622, 2.2282,
    2.2010, 2.1789, 2.1605, 2.1448, 2.1315, 2.1200, 2.1099, 2.1010, 2.0931, 2.0860,
    2.0797, 2.0739, 2.0687, 2.0639, 2.0596, 2.0556, 2.0519, 2.0485, 2.0453, 2.0423,
)  # fmt: skip


def t_975(degrees: float) -> float:
    """Student's t quantile for a two-sided 95 % interval; fractional degrees round down, to the safe side."""
    return T_975[max(1, min(floor(degrees + 1e-9), len(T_975))) - 1]


class Interval(NamedTuple):
    """An estimate and where it lies at 95 %."""

    estimate: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """The whole width, relative to the estimate."""
        return (self.high - self.low) / self.estimate if self.estimate else 0.0


def tick(samples: Sequence[float]) -> float:
    """The least step between two different samples: a clock cannot say more than this; 0 where all are equal."""
    values = sorted(set(samples))
    return min((after - before for before, after in pairwise(values)), default=0.0)


def _half_tick(restarts: Sequence[Sequence[float]]) -> float:
    """How near a number is known at best, on either side, by the clock of all its samples."""
    return tick([sample for samples in restarts for sample in samples]) / 2


#: Restarts before an interval may end the sampling: t₄ is 2.8, where t₂ would be 4.3.
LEAST_RESTARTS = 5


def repeatable(restarts: Sequence[Sequence[float]]) -> Interval:
    """The median of a number that was measured in several restarts, and where a second such run finds it at 95 %.

    The estimate is the median of the restarts' medians, so that one bad restart does not move it. Restarts differ by
    more than their samples do (addresses, clocks, neighbours), so the spread s is that between restarts' medians. A
    second run of n restarts has the same spread: its estimate lies within ±t·s·√(π/2)·√(2/n), the true one within 1/√2
    of that; √(π/2) is what a median of medians scatters more than their mean.

    Sampling looks at this after each restart and stops at the first narrow one, and so stops on lucky ones. What pays
    for it is t, which stays that of the least number of restarts (as in Stein 1945, Annals of Mathematical Statistics
    16(3), whose s is that of the first restarts too). Where restarts drift, n helps nothing, and the interval holds all
    of them. Nothing is known to less than a tick of the clock.
    """
    medians = [median(samples) for samples in restarts]
    estimate = median(medians)
    half = max(
        t_975(min(len(medians), LEAST_RESTARTS) - 1) * stdev(medians) * sqrt(pi / len(medians)),
        _half_tick(restarts),
    )
    ends = [estimate - half, estimate + half]
    if trend(medians):
        ends += medians
    return Interval(estimate, max(min(ends), 0.0), max(ends))


def trend(values: Sequence[float]) -> bool:
    """Whether values rise or fall steadily, in order: Kendall's S is beyond chance at 95 % (Mann 1945)."""
    n = len(values)
    steps = abs(sum((late > early) - (late < early) for early, late in combinations(values, 2)))
    return (steps - 1) / sqrt(n * (n - 1) * (2 * n + 5) / 18) > 1.96


def quartile_range(samples: Sequence[float]) -> float:
    """The distance between the quartiles (IQR) of two samples or more, by linear interpolation."""
    low, _, high = quantiles(samples, n=4, method="inclusive")
    return high - low


def ratio(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> Interval:
    """`after / before` of two numbers, each measured in restarts, and where the true ratio lies at 95 %.

    Welch's interval (1947) of the restarts' medians, carried over to the ratio, where to first order relative variances
    add; with degrees of freedom, ticks and drifts as in `repeatable`.
    """
    sides = [[median(samples) for samples in restarts] for restarts in (before, after)]
    first, second = (median(medians) for medians in sides)
    parts = [pi / 2 * (stdev(medians) / median(medians)) ** 2 / len(medians) for medians in sides]
    ticks = _half_tick(before) / first + _half_tick(after) / second
    total = sum(parts)
    least = [min(len(medians), LEAST_RESTARTS) - 1 for medians in sides]
    degrees = total**2 / sum(part**2 / own for part, own in zip(parts, least, strict=True)) if total else 1
    estimate = second / first
    half = estimate * max(t_975(degrees) * sqrt(total), ticks)
    ends = [estimate - half, estimate + half]
    if any(map(trend, sides)):
        ends += [min(sides[1]) / max(sides[0]), max(sides[1]) / min(sides[0])]
    return Interval(estimate, max(min(ends), 0.0), max(ends))


class Line(NamedTuple):
    """`time = start + amount / rate`, and for each point by how much the line misses it, relative."""

    start: float
    rate: float
    residuals: tuple[float, ...]


def fit_line(amounts: Sequence[float], times: Sequence[float]) -> Line | None:
    """The line with the least sum of squared relative residuals; `None` where there is none that rises.

    Relative, since a sweep spans decades: each point counts alike. A start below zero is put to zero. Amounts and times
    are positive; three different amounts are the least that says anything.
    """
    if len(set(amounts)) < 3:
        return None
    weights = [1 / time**2 for time in times]
    total = sum(weights)
    mean_amount = sum(w * a for w, a in zip(weights, amounts, strict=True)) / total
    mean_time = sum(w * t for w, t in zip(weights, times, strict=True)) / total
    over = sum(w * (a - mean_amount) ** 2 for w, a in zip(weights, amounts, strict=True))
    both = sum(w * (a - mean_amount) * (t - mean_time) for w, a, t in zip(weights, amounts, times, strict=True))
    slope = both / over
    start = mean_time - slope * mean_amount
    if start < 0:
        start = 0.0
        slope = sum(a / t for a, t in zip(amounts, times, strict=True)) / sum(
            (a / t) ** 2 for a, t in zip(amounts, times, strict=True)
        )
    if slope <= 0:
        return None
    predicted = [start + slope * amount for amount in amounts]
    return Line(start, 1 / slope, tuple(p / t - 1 for p, t in zip(predicted, times, strict=True)))
