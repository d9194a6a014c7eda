"""Rooms: what `--gpu` and `--budget` mean, whose figure it is, and how sure it is."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gptcalc.allocator import Figures
from gptcalc.errors import GptcalcError, InvalidValueError, UnknownNameError
from gptcalc.gpus import gpus, need_gpu
from gptcalc.ledger.fit import Range, budget, fit, kept_by_driver, least_of_the_box, needed, room, room_of, rooms
from gptcalc.ledger.memory import CONTEXT
from gptcalc.tape.kernels import TARGETS

MIB, GIB = 2**20, 2**30
each_gpu = pytest.mark.parametrize("gpu", gpus(), ids=[gpu.slug for gpu in gpus()])


def test_what_torch_reports_is_what_there_is() -> None:
    """An H100 has the 81,089 MiB that torch prints, to the byte, and runs the kernels of its generation."""
    found = room("h100-80g")

    assert (found.name, found.title, found.source) == ("h100-sxm", "H100 SXM5 80GB", "torch")
    assert found.capacity == 81_089 * MIB
    assert found.usable == (81_089 * MIB, 81_089 * MIB)
    assert (found.target, found.guess, found.estimated, found.budgeted) == ("sm90", "", False, False)


@pytest.mark.parametrize(
    ("name", "least", "usual", "most"),
    [("rtx-4090", 24_081, 24_563, 24_564), ("t4", 14_912, 15_095, 15_110), ("rtx-3070", 7_753, 7_842, 8_192)],
)
def test_torch_reports_less_under_some_drivers(name: str, least: int, usual: int, most: int) -> None:
    """Where drivers differ, only the least is sure; on Windows torch has all that the driver has."""
    assert room(name).usable == (least * MIB, most * MIB)
    assert room(name).capacity == usual * MIB


def test_of_what_the_driver_reports_a_part_is_kept() -> None:
    """Of an A10 nvidia-smi's total is known: torch may have all of it, and surely the total less the driver's share."""
    found = room("a10")

    assert (found.source, found.capacity, found.usable.high) == ("driver", 23_028 * MIB, 23_028 * MIB)
    assert found.usable.low == 23_028 * MIB - int(23_028 * MIB * kept_by_driver())
    assert found.guess == ""


def test_no_driver_keeps_more_than_the_share() -> None:
    """Each GPU of which both totals are known keeps at most the share, and one (the T4) keeps all of it."""
    kept = {
        gpu.slug: Fraction(driver - torch, driver)
        for gpu in gpus()
        if (driver := gpu.memory_driver_mib) and (torch := gpu.memory_torch_least_mib or gpu.memory_torch_mib)
    }

    assert len(kept) >= 15
    assert max(kept.values()) == kept["t4"] == kept_by_driver() == Fraction(15_360 - 14_912, 15_360)


def test_a_number_on_the_box_is_an_estimate() -> None:
    """Of an RTX 4060 Ti nobody has reported the total: at the least what the worst of the others has of its box."""
    found = room("rtx-4060-ti-16g")

    assert (found.source, found.estimated, found.capacity) == ("marketing", True, 16 * 10**9)
    assert found.usable == (int(16 * 10**9 * least_of_the_box()), 16 * GIB)
    assert found.guess == "its memory is estimated from the number on the box"
    assert least_of_the_box() == Fraction(14_912 * MIB, 16 * 10**9)
    assert fit(Figures(1, 1, 1, 1), found).verdict == "probably fits"


def test_metal_lets_a_process_have_three_quarters() -> None:
    """Of a Mac's memory that is Metal's limit; kernels and allocator are another's too."""
    found = room("m4-max-40c")

    assert found.usable == (96 * 10**9, 128 * GIB)
    assert found.target is None
    assert found.guess.startswith("its memory is estimated")
    assert found.guess.endswith("not of Apple")


@each_gpu
def test_no_room_is_more_than_the_box_says(gpu: object) -> None:
    """What is sure is at most what may be, which is at most the gibibytes on the box and what the driver has."""
    found = room_of(need_gpu(gpu.slug))

    assert 0 < found.usable.low <= found.usable.high
    assert found.usable.high <= 1.1 * gpu.memory_gb * GIB
    assert found.usable.low >= Fraction(gpu.memory_share) * Fraction(9, 10) * gpu.memory_gb * 10**9
    assert (found.guess == "") == (gpu.vendor == "NVIDIA" and not found.estimated)


@each_gpu
def test_the_target_is_the_generation_or_the_one_before(gpu: object) -> None:
    """An NVIDIA GPU runs the kernels of the last generation that is not newer than itself; Pascal the first known."""
    found = room_of(need_gpu(gpu.slug))

    if gpu.vendor != "NVIDIA":
        assert found.target is None
    else:
        own = tuple(map(int, gpu.compute_capability.split(".")))
        known = [name for name, chip in TARGETS.items() if chip.capability <= own]
        assert found.target == (known[-1] if known else "sm70")


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("24GiB", 24 * GIB), (" 80 GB ", 80 * 10**9), ("1.5tib", 1536 * GIB), ("16,384 MiB", 16 * GIB), ("1b", 1)],
)
def test_a_size_is_a_device_of_that_many_bytes(text: str, n_bytes: int) -> None:
    """All of it is for the process, as somebody said; its kernels nobody knows."""
    found = room(text)

    assert (found.capacity, found.usable, found.source) == (n_bytes, (n_bytes, n_bytes), "given")
    assert (found.target, found.guess, found.budgeted) == (None, "", False)


def test_a_budget_is_for_the_allocator_alone() -> None:
    """A device needs the context too, a budget what torch reserves and no more."""
    totals = Figures(1, 2, 30, 40)

    assert needed(totals, budget("40 B")) == (40, 40)
    assert needed(totals, room("40GiB")) == (30 + CONTEXT[0], 40 + CONTEXT[1])
    assert fit(totals, budget("40B")).verdict == "fits"
    assert fit(totals, budget("39B")).verdict == "does not fit"


def test_between_the_margins_nobody_knows() -> None:
    """A run fits if the most that it needs is surely there, and does not if the least is not there in any case."""
    totals = Figures(0, 0, 10 * MIB, 20 * MIB)
    most, least = 20 * MIB + CONTEXT[1], 10 * MIB + CONTEXT[0]
    verdicts = [fit(totals, room(f"{size} B")).verdict for size in (most, most - 1, least, least - 1)]

    assert verdicts == ["fits", "may not fit", "may not fit", "does not fit"]
    assert fit(totals, room(f"{most} B")).margin == Range(0, most - least)
    assert [fit(totals, room(f"{size} B")).fits for size in (most, most - 1)] == [True, False]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("h1000", ["gpu: read 'h1000'", "nearest: h100", "24GiB", "local", "'gptcalc gpus' lists all"]),
        ("rtx 4091", ["'rtx 4091'", "rtx-4090"]),
        ("", ["read ''"]),
        ("24", ["read '24'", "24GiB"]),
        ("-24GiB", ["read '-24GiB'"]),
        ("24XiB", ["read '24XiB'"]),
        (None, ["read 'None'"]),
        (24, ["read '24'"]),
    ],
)
def test_an_unknown_device_is_a_wrong_request(text: object, said: list[str]) -> None:
    """The error says what was read, what is near, and which other forms there are."""
    with pytest.raises(UnknownNameError) as raised:
        room(text)

    assert [part for part in said if part not in str(raised.value)] == []


@pytest.mark.parametrize("text", ["0GiB", "0 B", "0.0000000001 B"])
def test_a_device_has_more_than_nothing(text: str) -> None:
    """A device without memory is none."""
    with pytest.raises(InvalidValueError, match=r"--gpu: read '.*'; allowed: more than nothing, as in 24GiB"):
        room(text, "--gpu")


@pytest.mark.parametrize("text", ["", "40", "0GiB", "-1GiB", "40 GXB", None, 40, True, "h100"])
def test_a_budget_is_a_size_above_zero(text: object) -> None:
    """Whatever else is given is answered with the form of a size."""
    with pytest.raises(InvalidValueError, match=r"budget: read .*; allowed: a size above zero with its unit, as in"):
        budget(text)


def test_names_of_several_devices() -> None:
    """`all`, `common` and a vendor mean all of theirs, in the order of the list; each device is there once."""
    every = [gpu.slug for gpu in gpus()]

    assert [one.name for one in rooms(["all"])] == every
    assert [one.name for one in rooms(["h200", "Common", "24GiB", "NVIDIA H200"])] == [
        "h200-sxm",
        *(gpu.slug for gpu in gpus() if gpu.common and gpu.slug != "h200-sxm"),
        "24GiB",
    ]
    assert [one.name for one in rooms([" AMD "])] == [gpu.slug for gpu in gpus() if gpu.vendor == "AMD"]
    assert rooms([]) == []
    with pytest.raises(GptcalcError, match="what: read 'nvidea'"):
        rooms(["nvidea"], "what")
