"""What a profile's samples mean."""

from itertools import pairwise
from random import Random

import pytest
from test_profile import toy_profile

from gptcalc.errors import InvalidValueError
from gptcalc.ledger.profile import Measured, Moved, Point, Profile, Shape
from gptcalc.ledger.timing import DRIFT, NOISE, SCATTER, SPARSE, THROTTLED, Result, compare, timing
from gptcalc.units import MIB

RNG = Random(3)


def point(case: str, times: list[list[int]], *, n_bytes: int = MIB, backend: str = "eager", rejected: int = 0) -> Point:
    """A kernel with these samples, cold."""
    return Point.model_validate(
        {
            "case": case,
            "dtype": "fp32",
            "backend": backend,
            "shape": Shape(rows=n_bytes, d_model=8, n_vocab=50, n_ctx=4, seq=1),
            "must_move": [Moved(label="x", formula="M", bytes=n_bytes)],
            "measured": {"cold": Measured(restarts=times, rejected=rejected, stopped="budget")},
        }
    )


def profile(*points: Point) -> Profile:
    """A run of these."""
    return toy_profile().model_copy(update={"points": points, "asked": len(points)})


def steady(
    time: int, *, between: float = 0.0005, within: float = 0.002, restarts: int = 6, samples: int = 6
) -> list[list[int]]:
    """Samples around a time, whose restarts differ by so much."""
    return [
        [round(time * factor * RNG.gauss(1, within)) for _ in range(samples)]
        for factor in (RNG.gauss(1, between) for _ in range(restarts))
    ]


def only(times: list[list[int]], rejected: int = 0) -> Result:
    """The one number of a run."""
    (result,) = timing(profile(point("layernorm.forward", times, rejected=rejected))).results
    return result


def test_steady_numbers_have_no_mark() -> None:
    """Restarts that agree are not doubted."""
    assert only(steady(100_000)).marks == ()


@pytest.mark.parametrize(
    ("mark", "times", "rejected"),
    [
        (NOISE, steady(100_000, between=0.03), 0),
        (SCATTER, steady(100_000, within=0.2, samples=200), 0),
        (DRIFT, [[round(100_000 * (1 + 0.01 * n))] * 6 for n in range(6)], 0),
        (THROTTLED, steady(100_000), 3),
        (SPARSE, steady(100_000, samples=3), 0),
    ],
)
def test_each_doubt_has_its_mark(mark: object, times: list[list[int]], rejected: int) -> None:
    """Noise, scatter, drift, throttling and few samples are each marked, and with a remedy."""
    found = only(times, rejected)
    assert mark in found.marks
    assert all(one.remedy for one in found.marks)


def test_steps_below_the_target_are_no_drift() -> None:
    """Restarts that rise by less than anybody asks to know are not called drifting."""
    assert DRIFT not in only([[100_000 + 20 * n] * 6 for n in range(6)]).marks


def test_bandwidth_is_bytes_over_the_median() -> None:
    """A MiB in 1,048,576 ns is 1 GB/s; the copy's is the ceiling and the empty kernel's time the floor."""
    read = timing(profile(point("copy", [[MIB], [MIB]]), point("empty", [[2000], [2100]], n_bytes=8)))
    assert read.results[0].bandwidth == pytest.approx(1e9)
    assert read.ceiling == pytest.approx(1e9)
    assert read.floor == pytest.approx(2050)


def test_datasheet_is_found_by_name() -> None:
    """A GPU's datasheet is found by the device's name; a CPU has none, whatever it is called."""
    run = profile(point("copy", [[MIB], [MIB]]))
    device = run.device.model_copy(
        update={"kind": "cuda", "name": "NVIDIA H200", "units": 132, "memory_bytes": 143156 * MIB}
    )
    gpu = timing(run.model_copy(update={"device": device})).gpu
    assert gpu
    assert gpu.bandwidth == 4_800_000_000_000
    assert timing(run.model_copy(update={"device": device.model_copy(update={"kind": "cpu"})})).gpu is None


def test_sweep_is_fitted_per_kernel() -> None:
    """A sweep of one kernel gives its t0 and bandwidth; other backends are other sweeps; two sizes are none."""
    sizes = [MIB << n for n in range(5)]
    eager = [point("layernorm.forward", [[5000 + size // 1000] * 6] * 5, n_bytes=size) for size in sizes]
    compiled = [
        point("layernorm.forward", [[9000 + size // 2000] * 6] * 5, n_bytes=size, backend="compile")
        for size in sizes[:2]
    ]
    (fit,) = timing(profile(*eager, *compiled)).fits
    assert fit.backend == "eager"
    assert fit.start_ns == pytest.approx(5000, rel=1e-3)
    assert fit.bandwidth == pytest.approx(1e12, rel=1e-3)
    assert max(map(abs, fit.line.residuals)) < 1e-3


def test_backends_meet_on_the_same_work() -> None:
    """Eager and compiled are held against each other at each shape, and where the interval holds 1 nobody wins."""
    points = [
        point("layernorm.forward", steady(time), n_bytes=size, backend=backend)
        for size, times in {1000: (200_000, 100_000), 2000: (100_000, 100_000), 3000: (100_000, 200_000)}.items()
        for backend, time in zip(("eager", "compile"), times, strict=True)
    ]
    duels = timing(profile(*points, point("rmsnorm.forward", steady(5000)))).duels
    assert [duel.winner for duel in duels] == ["compile", "neither", "eager"]
    assert duels[0].speedup.estimate == pytest.approx(2, rel=0.01)


def test_changes_are_judged_by_their_interval() -> None:
    """Slower, faster or the same: by whether the interval holds 1; a regression is slower and beyond the threshold."""
    cases = ("layernorm.forward", "rmsnorm.forward", "embedding.forward")
    before = profile(*(point(case, steady(100_000)) for case in cases), point("empty", steady(2000)))
    after = profile(*(point(case, steady(time)) for case, time in zip(cases, (108_000, 100_000, 80_000), strict=True)))
    found = compare(before, after)
    assert [change.verdict for change in found.changes] == ["slower", "same", "faster"]
    assert [change.regressed(0.05) for change in found.changes] == [True, False, False]
    assert not found.changes[0].regressed(0.10)
    assert (found.only_before, found.only_after) == (1, 0)


def test_noise_is_no_regression() -> None:
    """A change as large as the restarts differ is not called one: two runs of one noisy kernel, a hundred times."""
    runs = [profile(point("layernorm.forward", steady(100_000, between=0.05))) for _ in range(101)]
    wrong = sum(compare(a, b).changes[0].verdict != "same" for a, b in pairwise(runs))
    assert wrong <= 11


def test_runs_without_anything_in_common_cannot_be_compared() -> None:
    """Two runs of different kernels are an error, not an empty table."""
    with pytest.raises(InvalidValueError, match="in common"):
        compare(profile(point("copy", steady(5000))), profile(point("empty", steady(5000))))
