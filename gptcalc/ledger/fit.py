"""Whether a run fits a device: what it needs there, what there is, and how sure both are.

A process needs what torch's allocator holds and what CUDA holds beside it. At the least that is the blocks handed out
(`allocated`: segments that nothing uses are given back before torch runs out of memory) and a small context, at most
the segments held (`reserved`) and a large one. What there is for it is what torch reports as the device's total; the
driver's total is up to a few percent more, and the number on the box says still less.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Literal, NamedTuple

from gptcalc.allocator import Figures
from gptcalc.errors import InvalidValueError, UnknownNameError, shown
from gptcalc.gpus import Gpu, find_gpu, gpu_names, gpus, vendors
from gptcalc.ledger.memory import CONTEXT
from gptcalc.tape.kernels import TARGETS
from gptcalc.units import GIB, format_bytes, parse_bytes

#: Who says how much memory there is, the best first.
Source = Literal["torch", "driver", "given", "now free", "marketing"]
Verdict = Literal["fits", "probably fits", "may not fit", "probably does not fit", "does not fit"]


class Range(NamedTuple):
    """Bytes: at least, and at most."""

    low: int
    high: int


class Room(NamedTuple):
    """What there is for one process on a device.

    `capacity` is the bytes that `source` says, `usable` what torch may have of them. `target` is the generation whose
    kernels run, where it is known. `guess` says why an answer is but probable. A budget (`budgeted`) is for what
    torch's allocator holds, and for nothing else.
    """

    name: str
    title: str
    capacity: int
    source: Source
    usable: Range
    target: str | None = None
    guess: str = ""
    notes: tuple[str, ...] = ()
    budgeted: bool = False

    @property
    def estimated(self) -> bool:
        """Whether nobody has reported how much there is."""
        return self.source == "marketing"


class Fit(NamedTuple):
    """A run on a device, or under a budget: what is needed against what there is."""

    room: Room
    needed: Range

    @property
    def margin(self) -> Range:
        """What is left over; below zero what lacks."""
        return Range(self.room.usable.low - self.needed.high, self.room.usable.high - self.needed.low)

    @property
    def verdict(self) -> Verdict:
        """The answer in words; between the two margins nobody knows."""
        if self.margin.low >= 0:
            return "probably fits" if self.room.guess else "fits"
        if self.margin.high < 0:
            return "probably does not fit" if self.room.guess else "does not fit"
        return "may not fit"

    @property
    def fits(self) -> bool:
        """Whether it does for all that is known."""
        return self.margin.low >= 0


def needed(totals: Figures, room: Room) -> Range:
    """What a run with these figures takes of a device, or of a budget."""
    if room.budgeted:
        return Range(totals.reserved, totals.reserved)
    return Range(totals.allocated + CONTEXT[0], totals.reserved + CONTEXT[1])


def most_reserved(room: Room) -> int:
    """What torch's allocator may hold at most of a run that fits."""
    return room.usable.low - (0 if room.budgeted else CONTEXT[1])


def fit(totals: Figures, room: Room) -> Fit:
    """A run with these figures in that room."""
    return Fit(room, needed(totals, room))


# --- Rooms -----------------------------------------------------------------------------------------------------------


def room(text: object, what: str = "gpu") -> Room:
    """The device of that name, alias or size (`24GiB`); an error names what is near."""
    name = text.strip() if isinstance(text, str) else ""
    if name.lower().partition(":")[0] == "local":
        from gptcalc.ledger.local import local_room

        return local_room(name, what)
    if (size := parse_bytes(name)) is not None:
        return sized(size, name, what)
    gpu = find_gpu(name)
    if gpu is None:
        advice = "a size with its unit (24GiB) and local are allowed too; 'gptcalc gpus' lists all"
        raise UnknownNameError.near(what, str(text), gpu_names(), advice, [gpu.slug for gpu in gpus()])
    return room_of(gpu)


def rooms(names: Sequence[object], what: str = "gpu") -> list[Room]:
    """The devices of those names, each once; `all`, `common` and a vendor mean several."""
    found: dict[str, Room] = {}
    for name in names:
        for one in _named(name, what):
            found.setdefault(one.name, one)
    return list(found.values())


def _named(name: object, what: str) -> list[Room]:
    word = name.strip().lower() if isinstance(name, str) else ""
    if word in ("all", "common"):
        return [room_of(gpu) for gpu in gpus() if gpu.common or word == "all"]
    if word in map(str.lower, vendors()):
        return [room_of(gpu) for gpu in gpus() if gpu.vendor.lower() == word]
    return [room(name, what)]


def sized(size: int, name: str, what: str) -> Room:
    """A device of that many bytes, all of them for processes."""
    if size < 1:
        raise InvalidValueError(f"{what}: read {shown(name)}; allowed: more than nothing, as in 24GiB")
    return Room(name, format_bytes(size), size, "given", Range(size, size))


def budget(text: object, what: str = "budget") -> Room:
    """What torch's allocator may hold at most, without the CUDA context."""
    size = parse_bytes(text.strip()) if isinstance(text, str) else None
    if size is None or size < 1:
        raise InvalidValueError(
            f"{what}: read {shown(text)}; allowed: a size above zero with its unit, as in 40GiB or 512MiB"
        )
    return Room("budget", f"a budget of {format_bytes(size)}", size, "given", Range(size, size), budgeted=True)


def room_of(gpu: Gpu) -> Room:
    """What a GPU has, as the best source says."""
    target, guess = target_of(gpu), ""
    if gpu.vendor != "NVIDIA":
        guess = f"kernels and allocator are those of CUDA, not of {gpu.vendor}"
    if (torch := gpu.memory_torch_bytes) is not None:
        usable = Range(gpu.memory_torch_least_bytes or torch, gpu.memory_torch_most_bytes or torch)
        return Room(gpu.slug, gpu.name, torch, "torch", usable, target, guess)
    if gpu.memory_driver_bytes is not None:
        capacity = gpu.memory_driver_bytes
        low = capacity - int(capacity * kept_by_driver())
        return Room(gpu.slug, gpu.name, capacity, "driver", Range(low, capacity), target, guess)
    capacity = gpu.memory_marketing_bytes
    guess = "; ".join(filter(None, ("its memory is estimated from the number on the box", guess)))
    low = int(capacity * min(Fraction(gpu.memory_share), least_of_the_box()))
    return Room(gpu.slug, gpu.name, capacity, "marketing", Range(low, gpu.memory_gb * GIB), target, guess)


@cache
def kept_by_driver() -> Fraction:
    """The greatest share of its total that a driver keeps from torch, of all GPUs where both are known."""
    return max(
        Fraction(driver - torch, driver)
        for gpu in gpus()
        if (driver := gpu.memory_driver_bytes) and (torch := gpu.memory_torch_least_bytes)
    )


@cache
def least_of_the_box() -> Fraction:
    """The least share of the number on the box that torch has been seen to report: ECC in GDDR takes its part."""
    return min(Fraction(torch, gpu.memory_marketing_bytes) for gpu in gpus() if (torch := gpu.memory_torch_least_bytes))


def target_of(gpu: Gpu) -> str | None:
    """The kernel target of an NVIDIA GPU: its own generation, or the one before that is known, else the first."""
    found = re.fullmatch(r"([0-9]+)\.([0-9])", gpu.compute_capability or "")
    if gpu.vendor != "NVIDIA" or not found:
        return None
    return target_for((int(found[1]), int(found[2])))


def target_for(capability: tuple[int, int]) -> str:
    """The kernel target of a compute capability."""
    known = sorted((chip.capability, name) for name, chip in TARGETS.items())
    return next((name for has, name in reversed(known) if has <= capability), known[0][1])
