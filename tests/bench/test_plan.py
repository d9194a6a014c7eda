"""What is asked for, in words."""

import pytest

from gptcalc.bench.plan import CASES, MOST_POINTS, ONE, Job, chosen_cases, parse_axis, plan, sequence
from gptcalc.errors import InvalidValueError, UnknownNameError
from gptcalc.ledger.profile import Shape


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("768", (768,)),
        ("1k,8k,64k", (1024, 8192, 65536)),
        ("256:16384:x2", (256, 512, 1024, 2048, 4096, 8192, 16384)),
        ("256:1000:x2", (256, 512)),
        ("100:400:+100", (100, 200, 300, 400)),
        ("1:8:x2, 5 ,8", (1, 2, 4, 8, 5)),
        ("1K:1m:x32", (1024, 32768, 1048576)),
        ("7:7:x2", (7,)),
    ],
)
def test_axis(text: str, sizes: tuple[int, ...]) -> None:
    """Lists, k for 1,024, ranges by factors and by steps; each size once."""
    assert parse_axis(text, "--rows") == sizes


@pytest.mark.parametrize(
    "text",
    ["", ",", "0", "-5", "1.5", "8kk", "1e3", "1:2", "1:2:2", "1:2:x1", "1:2:+0", "1:2:x2:3", "9:1:x2", "3000000000",
     "1:2147483647:+1", "a:b:x2", "²", "٣"],
)  # fmt: skip
def test_wrong_axis(text: str) -> None:
    """Everything else is an error that says what was read and what is allowed."""
    with pytest.raises(InvalidValueError, match="--rows: read"):
        parse_axis(text, "--rows")


def test_cases_by_name_and_glob() -> None:
    """Names and globs, in the order of reports whatever the order asked for; nothing is everything."""
    assert chosen_cases(["rmsnorm.*", "embedding.forward"]) == (
        "embedding.forward", "rmsnorm.forward", "rmsnorm.backward",
    )  # fmt: skip
    assert chosen_cases(["*.BACKWARD"]) == tuple(name for name in CASES if name.endswith("backward"))
    assert chosen_cases([]) == tuple(CASES)


def test_unknown_case_names_the_nearest() -> None:
    """A case that is not there, and a glob that matches none, name what is near or allowed."""
    with pytest.raises(UnknownNameError, match=r"nearest: layernorm\.forward"):
        chosen_cases(["layernorm.foward"])
    with pytest.raises(UnknownNameError, match="allowed"):
        chosen_cases(["copy", "zzz*"])


def test_plan_measures_the_device_first_and_once() -> None:
    """Copy and empty come first, whatever is asked for, in one shape; the rest is the product of all that is asked."""
    shapes = [Shape(rows=rows, d_model=8, n_vocab=50, n_ctx=4, seq=2) for rows in (2, 4)]
    jobs = plan(["empty", "layernorm.forward"], shapes, ["fp32", "bf16"], ["eager", "compile"])
    assert jobs[:2] == (Job("copy", "fp32", "eager", ONE), Job("empty", "fp32", "eager", ONE))
    assert len(jobs) == 2 + 8
    assert len(set(jobs)) == len(jobs)
    assert {job.case for job in jobs[2:]} == {"layernorm.forward"}


def test_endless_plan_is_refused() -> None:
    """A sweep that would take days is an error with its number of points."""
    shapes = [Shape(rows=rows, d_model=8, n_vocab=50, n_ctx=4, seq=1) for rows in range(1, MOST_POINTS + 2)]
    with pytest.raises(InvalidValueError, match=f"{MOST_POINTS + 1:,} points"):
        plan(["layernorm.forward"], shapes, ["fp32"], ["eager"])


@pytest.mark.parametrize(
    ("rows", "n_ctx", "seq"), [(8192, 1024, 1024), (1000, 1024, 1000), (1000, 300, 250), (7, 4, 1)]
)
def test_sequence(rows: int, n_ctx: int, seq: int) -> None:
    """Rows without a batch are sequences as long as the context allows, all of one length."""
    assert sequence(rows, n_ctx) == seq
