"""Quantiles, intervals and fits against what is known of them."""

from itertools import chain
from math import gamma, pi, sqrt
from random import Random
from statistics import median, quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcalc.stats import T_975, fit_line, quartile_range, ratio, repeatable, t_975, tick, trend

Times = st.lists(st.integers(1, 10**6), min_size=3, max_size=40)


def student(t: float, degrees: int) -> float:
    """The probability within ±t, by Simpson's rule over Student's density."""
    scale = gamma((degrees + 1) / 2) / (sqrt(degrees * pi) * gamma(degrees / 2))
    steps = 4000
    width = 2 * t / steps
    heights = [scale * (1 + (-t + n * width) ** 2 / degrees) ** (-(degrees + 1) / 2) for n in range(steps + 1)]
    return width / 3 * (heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2]))


@pytest.mark.parametrize("degrees", range(1, len(T_975) + 1))
def test_quantiles_hold_95_percent(degrees: int) -> None:
    """95 % of Student's distribution lie within ±t."""
    assert student(t_975(degrees), degrees) == pytest.approx(0.95, abs=2e-5)


def test_quantile_between_degrees_is_on_the_safe_side() -> None:
    """Fractional degrees of freedom take the wider interval, many take that of 30, fewer than one that of one."""
    assert t_975(4.9) == t_975(4)
    assert t_975(10**6) == t_975(30)
    assert t_975(0.3) == t_975(1)


@given(Times)
def test_quartiles_are_the_standard_librarys(samples: list[int]) -> None:
    """The quartiles are those of linear interpolation."""
    low, _, high = quantiles(samples, n=4, method="inclusive")
    assert quartile_range(samples) == pytest.approx(high - low)


def test_quartiles_by_hand() -> None:
    """Of 1, 2, 4, 8, 16, 32 the quartiles lie a quarter from 2 to 4, and three quarters from 8 to 16: 2.5 and 14."""
    assert quartile_range([32, 1, 16, 2, 8, 4]) == 11.5


def test_tick_is_the_least_step() -> None:
    """The least difference of two different samples, and nothing where all are equal."""
    assert tick([5, 9, 5, 12]) == 3
    assert tick([5, 5]) == 0


def test_interval_by_hand() -> None:
    """Median of medians ± t₄·s·√(π/5), for medians 98 … 102 whose deviation is √2.5."""
    interval = repeatable([[101], [98, 98, 98], [100, 90, 110], [102], [99]])
    assert interval.estimate == 100
    half = 2.7764 * sqrt(2.5) * sqrt(pi / 5)
    assert interval == pytest.approx((100, 100 - half, 100 + half), rel=1e-4)
    assert interval.width == pytest.approx(2 * half / 100, rel=1e-4)


def test_further_restarts_narrow_or_widen_the_interval() -> None:
    """The spread is that of all restarts: further ones that agree narrow the interval."""
    first = [[100], [101], [100], [101], [100]]
    assert repeatable([*first, [100], [101]]).width < repeatable(first).width
    assert repeatable([*first, [100], [150]]).width > repeatable(first).width


def test_interval_of_a_trend_holds_all_of_it() -> None:
    """Where restarts rise steadily, the interval holds the first and the last."""
    interval = repeatable([[100 + n] for n in range(20)])
    assert interval.low <= 100
    assert interval.high >= 119


@pytest.mark.parametrize(
    ("values", "steady"),
    [
        ([1, 2, 3, 4, 5], True),
        ([5, 4, 3, 2, 1], True),
        ([1, 2, 3, 5, 4], False),
        ([1, 1, 1, 1, 1], False),
        ([1, 2], False),
        ([3, 1, 4, 1, 5, 9, 2, 6, 5, 3], False),
    ],
)
def test_trend(values: list[int], steady: bool) -> None:  # noqa: FBT001
    """A trend is a run that chance gives less than one time in twenty."""
    assert trend(values) is steady


def test_ratio_holds_what_was_planted() -> None:
    """After over before, with an interval that holds the true ratio in 95 of 100 draws and narrows with the noise."""
    rng = Random(11)
    hits, widths = 0, []
    for _ in range(400):
        before = [[rng.gauss(100, 1)] for _ in range(5)]
        after = [[rng.gauss(110, 2)] for _ in range(8)]
        change = ratio(before, after)
        hits += change.low <= 1.1 <= change.high
        widths.append(change.width)
        assert change.estimate == pytest.approx(median(chain(*after)) / median(chain(*before)))
    assert hits >= 0.93 * 400
    assert median(widths) < 0.09


def test_ratio_by_hand() -> None:
    """1.1 ± t₈·1.1·√(2·π/2·s²/5), for two sets of five whose relative deviation s is √2.5 %."""
    before = [[101], [98], [100], [102], [99]]
    after = [[1.1 * time] for (time,) in before]
    half = 2.3061 * 1.1 * sqrt(2 * pi / 2 * 0.01**2 * 2.5 / 5)
    assert ratio(before, after) == pytest.approx((1.1, 1.1 - half, 1.1 + half), rel=1e-4)


def test_ratio_knows_no_more_than_the_clocks_tick() -> None:
    """Restarts that all read the same tick are not known to less than half of it on either side."""
    change = ratio([[5120, 5120, 4096]] * 5, [[6144, 6144, 7168]] * 5)
    assert change.estimate == pytest.approx(1.2)
    half = 1.2 * (512 / 5120 + 512 / 6144)
    assert change == pytest.approx((1.2, 1.2 - half, 1.2 + half))
    assert change.low < 1.02


def test_ratio_of_what_drifts_holds_all_of_it() -> None:
    """Where either side drifts, the interval holds the ratio of any of its restarts to any of the other's."""
    rising = [[100 + n] for n in range(20)]
    change = ratio([[100], [101], [100], [101], [100]], rising)
    assert change.low <= 100 / 101
    assert change.high >= 119 / 100


def test_interval_ends_at_zero() -> None:
    """A time is not negative, however little is known of it."""
    assert repeatable([[1], [100]]).low == 0
    assert ratio([[1], [100]], [[1], [100]]).low == 0


@given(st.floats(0, 10_000), st.floats(0.01, 5000), st.lists(st.integers(1000, 10**9), min_size=3, unique=True))
def test_line_is_found_again(start: float, rate: float, amounts: list[int]) -> None:
    """Times that lie on a line give its start and its rate, and no residuals."""
    line = fit_line(amounts, [start + amount / rate for amount in amounts])
    assert line
    assert line.rate == pytest.approx(rate, rel=1e-3)
    assert max(map(abs, line.residuals)) < 1e-6


def test_line_weighs_small_and_large_alike() -> None:
    """An error of ten percent moves the fit as much at the small end of a sweep as at the large one."""
    amounts = [10**n for n in range(3, 9)]
    times = [100 + amount / 10 for amount in amounts]
    small, large = times.copy(), times.copy()
    small[0] *= 1.1
    large[-1] *= 1.1
    first, second = fit_line(amounts, small), fit_line(amounts, large)
    assert first
    assert second
    assert first.rate == pytest.approx(10, rel=0.01)
    assert second.rate < 9.9
    assert sum(r * r for r in first.residuals) < 0.011
    assert sum(r * r for r in second.residuals) < 0.011


def test_line_never_starts_below_zero() -> None:
    """A kernel cannot end before it starts: where the best line would, it goes through zero."""
    line = fit_line([1, 2, 3], [1.0, 2.5, 4.0])
    assert line
    assert line.start == 0
    assert sum(line.residuals) == pytest.approx(-sum(r * r for r in line.residuals), abs=1e-9)


@pytest.mark.parametrize(("amounts", "times"), [([1, 2], [1, 2]), ([5, 5, 5], [1, 2, 3]), ([1, 2, 3], [3, 2, 1])])
def test_no_line(amounts: list[float], times: list[float]) -> None:
    """Fewer than three sizes, or times that fall with the bytes, say nothing of bandwidth."""
    assert fit_line(amounts, times) is None
