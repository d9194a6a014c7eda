"""Accelerators by name: what is published about a part, what the driver reports, and under which names.

The rows stand in `presets/gpus/VENDOR.toml`, where keys above the first table hold for the whole file; what their
source keys stand for is in `sources.toml`. Nothing is opened before somebody asks.
"""

import tomllib
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from gptcalc import installed
from gptcalc.errors import UnknownNameError
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

    `memory_gb` is the number on the box, `memory_driver_mib` nvidia-smi's total, `memory_torch_mib` that of torch;
    `memory_is_most` marks a part that is sold with less too. `dense_tflops` maps dtypes to peaks without sparsity, of
    tensor cores where they know the dtype. `link_gb_s` is to other accelerators, both directions together. `units` are
    streaming multiprocessors, compute units or GPU cores; `reported_units` is torch's count where it counts something
    else, as pairs of them on RDNA. `device_names` are the exact names that nvidia-smi and torch print. `common` marks
    the few that most people have.
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
        """The number on the box at 10^9 bytes a GB; most makers mean 2^30, so it says less than there is."""
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


def need_gpu(name: str) -> Gpu:
    """The accelerator of that slug or alias, in any case of letters, or an error with the nearest names."""
    gpu = _by_name().get(name.lower())
    if gpu is None:
        raise UnknownNameError.near("GPU", name, gpu_names(), listed=[gpu.slug for gpu in gpus()])
    return gpu


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
