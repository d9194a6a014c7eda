"""What a profile's samples mean: medians with their intervals, bandwidths, `t0 + bytes/bandwidth`, and comparisons.

Every number here is computed from the raw record, each time that it is read.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from statistics import median
from typing import Literal, NamedTuple

from gptcalc.errors import InvalidValueError
from gptcalc.gpus import Gpu, gpu_of_device
from gptcalc.ledger.profile import Backend, Measured, Point, Profile, Shape, State
from gptcalc.stats import Interval, Line, fit_line, quartile_range, ratio, repeatable, trend

#: Sampling aims at a 95 % interval of this whole width, relative to the median.
TARGET = 0.005
#: A result is noisy where its interval is wider than this.
NOISY = 0.02
#: Samples scatter where the quartiles are further apart than this, relative (as torch.utils.benchmark warns).
SCATTERED = 0.10
#: An interval of fewer samples rests on little.
FEW = 30


class Mark(NamedTuple):
    """A reason to doubt a number, and what to do about it; the list below is closed."""

    sign: str
    name: str
    remedy: str


NOISE = Mark(
    "~",
    "noisy",
    f"another run may differ by more than {NOISY:.0%}: close what else runs on the device, or raise --time-budget",
)
SCATTER = Mark(
    "^", "scattered", "single runs differ by more than 10%, though the median may be known: see what else runs"
)
DRIFT = Mark("/", "drifting", "restarts went steadily one way: let the device warm up or cool down, and run it again")
THROTTLED = Mark(
    "!", "throttled", "samples at a lowered clock were thrown out: let the device cool, or see its power limit"
)
SPARSE = Mark("<", "few samples", f"fewer than {FEW} samples: raise --time-budget")
MARKS = (NOISE, SCATTER, DRIFT, THROTTLED, SPARSE)


class Result(NamedTuple):
    """One number of a profile, in nanoseconds: `time` is the median and where a second run finds it at 95 %.

    `iqr` is the distance between the quartiles of all samples, `marks` every reason to doubt the number.
    """

    point: Point
    state: State
    measured: Measured
    time: Interval
    iqr: float
    marks: tuple[Mark, ...]

    @property
    def n(self) -> int:
        """Samples of all restarts."""
        return sum(map(len, self.measured.restarts))

    @property
    def bytes(self) -> int:
        """Bytes that the kernel must move."""
        return sum(term.bytes for term in self.point.must_move)

    @property
    def bandwidth(self) -> float:
        """Bytes that must be moved, per second."""
        return self.bytes / self.time.estimate * 1e9

    @property
    def torch_bytes(self) -> int:
        """Bytes that torch's own kernels move, by what is known of them."""
        return sum(term.bytes for term in self.point.torch_moves) or self.bytes

    @property
    def medians(self) -> tuple[float, ...]:
        """The median of each restart."""
        return tuple(median(samples) for samples in self.measured.restarts)


class Fit(NamedTuple):
    """`t0 + bytes / bandwidth` of one kernel over a sweep; `line.residuals` belong to `results`, in order."""

    case: str
    dtype: str
    backend: Backend
    state: State
    line: Line
    results: tuple[Result, ...]

    @property
    def start_ns(self) -> float:
        """t0."""
        return self.line.start

    @property
    def bandwidth(self) -> float:
        """Bytes per second that each further byte goes at."""
        return self.line.rate * 1e9


class Duel(NamedTuple):
    """Two backends on the same work: `speedup` is eager's time over the compiled one's."""

    eager: Result
    compiled: Result
    speedup: Interval

    @property
    def winner(self) -> Literal["eager", "compile", "neither"]:
        """The faster one, where the interval leaves no doubt."""
        if self.speedup.low > 1:
            return "compile"
        return "eager" if self.speedup.high < 1 else "neither"


class Timing(NamedTuple):
    """A profile, read: `ceiling` is the copy's bandwidth in bytes per second, `floor` the empty kernel's time in ns.

    `gpu` is the datasheet, where the device's name has one.
    """

    profile: Profile
    results: tuple[Result, ...]
    ceiling: float | None
    floor: float | None
    gpu: Gpu | None
    fits: tuple[Fit, ...]
    duels: tuple[Duel, ...]

    @property
    def problems(self) -> tuple[Point, ...]:
        """The points without a number."""
        return tuple(point for point in self.profile.points if point.problem)


class Change(NamedTuple):
    """The same number in two profiles; `ratio` is after over before, with its 95 % interval."""

    before: Result
    after: Result
    ratio: Interval
    verdict: Literal["faster", "slower", "same"]

    def regressed(self, threshold: float) -> bool:
        """Whether it surely became slower, and by more than `threshold` (0.05 is five percent)."""
        return self.verdict == "slower" and self.ratio.estimate - 1 > threshold


class Comparison(NamedTuple):
    """Two profiles; `only_before` and `only_after` count the numbers that have no partner."""

    before: Profile
    after: Profile
    changes: tuple[Change, ...]
    only_before: int
    only_after: int


def timing(profile: Profile) -> Timing:
    """Everything that a profile says."""
    results = _results(profile)
    by_case = {result.point.case: result for result in results}
    device = profile.device
    return Timing(
        profile,
        results,
        by_case["copy"].bandwidth if "copy" in by_case else None,
        by_case["empty"].time.estimate if "empty" in by_case else None,
        gpu_of_device(device.name, device.memory_bytes, device.units) if device.kind != "cpu" else None,
        tuple(_fits(results)),
        tuple(_duels(results)),
    )


def compare(before: Profile, after: Profile) -> Comparison:
    """Every number that both have. Raises `InvalidValueError` where there is none."""
    old, new = ({(r.point.key, r.state): r for r in _results(profile)} for profile in (before, after))
    common = [key for key in new if key in old]
    if not common:
        raise InvalidValueError("--against: the two runs have no case, shape, dtype and backend in common")
    changes = tuple(_change(old[key], new[key]) for key in common)
    return Comparison(before, after, changes, len(old) - len(common), len(new) - len(common))


def _results(profile: Profile) -> tuple[Result, ...]:
    return tuple(
        _result(point, state, measured) for point in profile.points for state, measured in point.measured.items()
    )


def _result(point: Point, state: State, measured: Measured) -> Result:
    samples = [sample for restart in measured.restarts for sample in restart]
    unmarked = Result(point, state, measured, repeatable(measured.restarts), quartile_range(samples), ())
    return unmarked._replace(marks=tuple(_marks(unmarked)))


def _change(before: Result, after: Result) -> Change:
    change = ratio(before.measured.restarts, after.measured.restarts)
    verdict: Literal["faster", "slower", "same"] = "same"
    if change.low > 1:
        verdict = "slower"
    elif change.high < 1:
        verdict = "faster"
    return Change(before, after, change, verdict)


def _marks(result: Result) -> Iterator[Mark]:
    if result.time.width > NOISY:
        yield NOISE
    if result.iqr > SCATTERED * result.time.estimate:
        yield SCATTER
    if _drifts(result.medians):
        yield DRIFT
    if result.measured.rejected:
        yield THROTTLED
    if result.n < FEW:
        yield SPARSE


def _drifts(medians: tuple[float, ...]) -> bool:
    """Whether restarts rise or fall steadily, and by more than the target."""
    third = max(len(medians) // 3, 1)
    return trend(medians) and abs(median(medians[-third:]) / median(medians[:third]) - 1) > TARGET


def _fits(results: Iterable[Result]) -> Iterator[Fit]:
    sweeps: dict[tuple[str, str, Backend, State], list[Result]] = defaultdict(list)
    for result in results:
        point = result.point
        sweeps[point.case, point.dtype, point.backend, result.state].append(result)
    for (case, dtype, backend, state), swept in sweeps.items():
        line = fit_line([r.bytes for r in swept], [r.time.estimate for r in swept])
        if line:
            yield Fit(case, dtype, backend, state, line, tuple(swept))


def _duels(results: Iterable[Result]) -> Iterator[Duel]:
    sides: dict[tuple[str, str, Shape, State], dict[Backend, Result]] = defaultdict(dict)
    for result in results:
        point = result.point
        sides[point.case, point.dtype, point.shape, result.state][point.backend] = result
    for side in sides.values():
        if len(side) == 2:
            eager, compiled = side["eager"], side["compile"]
            yield Duel(eager, compiled, ratio(compiled.measured.restarts, eager.measured.restarts))
