"""Accelerators by name: what is published about a part, what the driver reports, and under which names.

The rows stand in `presets/gpus/VENDOR.toml`, where keys above the first table hold for the whole file; what their
source keys stand for is in `sources.toml`. Nothing is opened before somebody asks.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from gptcalc import installed
from gptcalc.errors import UnknownNameError, plain
from gptcalc.spec import Record
from gptcalc.units import MIB

GB = 10**9
TERA = 10**12
#: The one file of the folder that holds no accelerators.
SOURCES = "sources.toml"
#: How far a device's amount may lie from a row's. Makers' GB are 10^9 or 2^30 bytes, 7 % apart, and ECC takes its part.
TOLERANCE = Fraction(1, 10)


class Gpu(Record):
    """An accelerator as published, in the units of its data sheet; `None` where no source was found.

    `memory_gb` is the number on the box, `memory_driver_mib` nvidia-smi's total, `memory_torch_mib` that of torch, of
    which `memory_torch_least_mib` and `memory_torch_most_mib` were seen where drivers and systems differ.
    `memory_is_most` marks a part that is sold with less too; `memory_share` is what a process may have where a system
    keeps the rest for others. `dense_tflops` maps dtypes to peaks without sparsity, of tensor cores where they know the
    dtype. `link_gb_s` is to other accelerators, both directions together. `units` are streaming multiprocessors,
    compute units or GPU cores; `reported_units` is torch's count where it counts something else, as pairs of them on
    RDNA. `device_names` are the exact names that nvidia-smi and torch print. `common` marks the few that most people
    have.
    """

    slug: str
    name: str
    vendor: str
    arch: str
    compute_capability: str | None = None
    memory_gb: int
    memory_is_most: bool = False
    memory_driver_mib: int | None = None
    memory_torch_mib: int | None = None
    memory_torch_least_mib: int | None = None
    memory_torch_most_mib: int | None = None
    memory_share: Decimal = Decimal(1)
    bandwidth_gb_s: Decimal
    dense_tflops: Annotated[Mapping[str, Decimal], AfterValidator(MappingProxyType)] = {}
    l2_mib: Decimal | None = None
    link_gb_s: Decimal | None = None
    tdp_w: int | None = None
    units: int | None = None
    reported_units: int | None = None
    source_keys: tuple[str, ...]
    confidence: Literal["high", "medium", "low"]
    note: str = ""
    aliases: tuple[str, ...] = ()
    device_names: tuple[str, ...] = ()
    common: bool = False

    @property
    def memory_marketing_bytes(self) -> int:
        """The number on the box at 10^9 bytes a GB; most makers mean 2^30, of which ECC and the driver take a part."""
        return self.memory_gb * GB

    @property
    def memory_driver_bytes(self) -> int | None:
        """What nvidia-smi reports as the total."""
        return _scaled(self.memory_driver_mib, MIB)

    @property
    def memory_torch_bytes(self) -> int | None:
        """What torch reports as the total: the driver's less what the driver keeps."""
        return _scaled(self.memory_torch_mib, MIB)

    @property
    def memory_torch_least_bytes(self) -> int | None:
        """The least that torch reports as the total, under whichever driver."""
        return _scaled(self.memory_torch_least_mib or self.memory_torch_mib, MIB)

    @property
    def memory_torch_most_bytes(self) -> int | None:
        """The most that torch reports as the total, under whichever driver."""
        return _scaled(self.memory_torch_most_mib or self.memory_torch_mib, MIB)

    @property
    def bandwidth(self) -> int:
        """Bytes per second between the memory and the chip, reads and writes together."""
        return int(self.bandwidth_gb_s * GB)

    @property
    def l2_bytes(self) -> int | None:
        """The last cache that all units share."""
        return _scaled(self.l2_mib, MIB)

    @property
    def link(self) -> int | None:
        """Bytes per second to other accelerators, both directions together."""
        return _scaled(self.link_gb_s, GB)

    @property
    def sources(self) -> tuple[str, ...]:
        """Where the numbers come from, in words."""
        return tuple(_sources()[key] for key in self.source_keys)

    def peak(self, dtype: str) -> int | None:
        """Dense FLOP per second in `dtype`: fp32, tf32, fp16, bf16 or fp8."""
        return _scaled(self.dense_tflops.get(dtype), TERA)


def _scaled(amount: Decimal | int | None, unit: int) -> int | None:
    return None if amount is None else int(amount * unit)


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)


@cache
def _sources() -> dict[str, str]:
    sources: dict[str, str] = _read(installed.presets("gpus") / SOURCES)["sources"]
    return sources


@cache
def gpus() -> tuple[Gpu, ...]:
    """Every accelerator, vendor by vendor."""
    found: list[Gpu] = []
    for file in (_read(path) for path in sorted(installed.presets("gpus").glob("*.toml")) if path.name != SOURCES):
        shared = {key: value for key, value in file.items() if not isinstance(value, dict)}
        found += [Gpu(slug=slug, **(shared | row)) for slug, row in file.items() if isinstance(row, dict)]
    return tuple(found)


@cache
def _by_name() -> dict[str, Gpu]:
    return {name: gpu for gpu in gpus() for name in (gpu.slug, *gpu.aliases)}


def gpu_names() -> list[str]:
    """Every slug and alias that an accelerator answers to."""
    return list(_by_name())


def vendors() -> list[str]:
    """Who makes accelerators, in the order of the list."""
    return list(dict.fromkeys(gpu.vendor for gpu in gpus()))


def need_gpu(name: str) -> Gpu:
    """The accelerator of that name, or an error with the nearest names."""
    gpu = find_gpu(name)
    if gpu is None:
        raise UnknownNameError.near("GPU", name, gpu_names(), listed=[gpu.slug for gpu in gpus()])
    return gpu


def find_gpu(name: str) -> Gpu | None:
    """The one accelerator that is meant by a slug, an alias, or a name as people and devices write it.

    Case, spaces and the maker's words do not count, nor does the memory behind a name that has none: `RTX 4090`,
    `A100 80GB`, `NVIDIA GeForce RTX 4090`, `T4 16GB`. What may mean two parts means none.
    """
    return _by_name().get(name.lower()) or gpu_of_device(name) or _spelled().get(_key(name))


#: Words that makers put before the name of a part.
MAKERS = re.compile(r"(nvidia|amd|intel|apple|google|aws)?(geforce|tesla|instinct|radeon)?")


def _key(name: str) -> str:
    """The letters and digits of a name, with a `g` for a `GB`, without what makers put before it."""
    bare = re.sub(r"[\s_-]+", "", re.sub(r"([0-9]) ?gi?b(?![a-z])", r"\1g", name.lower()))
    found = MAKERS.match(bare)
    return bare[found.end() :] if found else bare


@cache
def _spelled() -> dict[str, Gpu]:
    """Accelerators by the keys of their names; those that two share are no names."""
    chosen = {_key(name): gpu for name, gpu in _by_name().items()}
    own = {(_key(name), gpu.slug) for gpu in gpus() for name in (gpu.name, *gpu.device_names)}
    sized = {(f"{key}{gpu.memory_gb}g", gpu.slug) for key, gpu in chosen.items()}
    for keys in (own, sized):
        times = Counter(key for key, _ in keys)
        chosen = {key: need_gpu(slug) for key, slug in keys if times[key] == 1} | chosen
    return chosen


def search_gpus(vendor: str | None = None, text: str | None = None) -> list[Gpu]:
    """The accelerators of a vendor, and of these the ones that have every word of `text`.

    Slugs, aliases, names, what devices report, architectures and notes are searched, in any case of letters.
    """
    found = list(gpus())
    if vendor is not None:
        found = [gpu for gpu in found if gpu.vendor.lower() == vendor.strip().lower()]
        if not found:
            raise UnknownNameError.near("vendor of GPUs", vendor, vendors())
    if text is not None:
        allowed = [name for gpu in found for name in (gpu.slug, *gpu.aliases)]
        found = [gpu for gpu in found if all(word in _said(gpu) for word in text.lower().split())]
        if not found:
            what = "GPU with these words" if vendor is None else f"GPU of {plain(vendor)} with these words"
            raise UnknownNameError.near(what, text, allowed, "'gptcalc gpus' lists all")
    return found


def _said(gpu: Gpu) -> str:
    words = (gpu.slug, *gpu.aliases, gpu.name, *gpu.device_names, gpu.arch, gpu.compute_capability or "", gpu.note)
    return "\n".join(words).lower()


def gpu_of_device(device_name: str, memory_bytes: int | None = None, units: int | None = None) -> Gpu | None:
    """The accelerator that reports itself by that name; `None` where there is none, or more than one.

    Makers sell different parts under one name: `units` and then `memory_bytes`, which is all that the device has (on
    Apple silicon the machine's, not Metal's limit), tell them apart, and rule out a part more than 10 % off in either.
    """
    key = _folded(device_name)
    found = [gpu for gpu in gpus() if key in map(_folded, gpu.device_names)]
    if units is not None:
        found = _nearest(found, lambda gpu: _distance(units, (gpu.units, gpu.reported_units)))
    if memory_bytes is not None:
        found = _nearest(found, lambda gpu: _memory_distance(memory_bytes, gpu))
    return found[0] if len(found) == 1 else None


def _folded(device_name: str) -> str:
    return " ".join(device_name.lower().split())


def _nearest(found: list[Gpu], distance: Callable[[Gpu], Fraction]) -> list[Gpu]:
    """Those at the least distance, if it is tolerable."""
    least = min(map(distance, found), default=TOLERANCE)
    return [gpu for gpu in found if distance(gpu) == least <= TOLERANCE]


def _distance(read: int, known: Iterable[int | None]) -> Fraction:
    """From `read` to the nearest known amount, as a fraction of it; just tolerable where nothing is known."""
    return min((Fraction(abs(read - amount), amount) for amount in known if amount), default=TOLERANCE)


def _memory_distance(read: int, gpu: Gpu) -> Fraction:
    distance = _distance(read, (gpu.memory_driver_bytes, gpu.memory_torch_bytes, gpu.memory_marketing_bytes))
    smaller = gpu.memory_is_most and read < gpu.memory_marketing_bytes
    return min(distance, TOLERANCE) if smaller else distance
