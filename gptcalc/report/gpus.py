"""`gptcalc gpus` as a document and as JSON: the list, and one GPU whole."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import groupby
from typing import Literal, NamedTuple

from typing_extensions import TypedDict

from gptcalc.gpus import Gpu, gpu_of_device
from gptcalc.ledger.fit import Room, Source, kept_by_driver
from gptcalc.ledger.local import UNNAMED, Local, named
from gptcalc.report.document import Column, Document, Table, Value
from gptcalc.units import GIB, MIB, format_bytes, format_count, format_fixed

#: What the list can be sorted by.
SORTS = ("name", "memory", "bandwidth", "bf16")
#: The dtypes that a data sheet has peaks of.
DTYPES = ("fp32", "tf32", "fp16", "bf16", "fp8")
NOT_KNOWN = "not known"


class Entry(NamedTuple):
    """A GPU, and what there is for torch on it."""

    gpu: Gpu
    room: Room

    @property
    def says(self) -> str:
        """Whose figure of the memory it is."""
        return "estimated" if self.room.estimated else self.room.source


class UsableJSON(TypedDict):
    """Bytes that torch may have: surely `low`, at most `high`."""

    low: int
    high: int


class EntryJSON(TypedDict):
    """One GPU in the list; bytes, bytes per second, dense FLOP per second.

    `memory` is what `source` says, `usable` what torch has of it.
    """

    name: str
    title: str
    vendor: str
    aliases: list[str]
    memory: int
    source: Source
    estimated: bool
    usable: UsableJSON
    bandwidth: int
    bf16: int | None
    compute_capability: str | None
    target: str | None
    confidence: Literal["high", "medium", "low"]
    common: bool


class GpusJSON(TypedDict):
    """What `gptcalc gpus --format json` prints."""

    schema: str
    gpus: list[EntryJSON]


class GpuJSON(EntryJSON):
    """What `gptcalc gpus show NAME --format json` prints.

    `guess` says why an answer for it is but probable. `peaks` are dense FLOP per second by dtype, `link` bytes per
    second to other accelerators, both directions together.
    """

    schema: str
    arch: str
    device_names: list[str]
    memory_on_the_box_gb: int
    memory_driver: int | None
    memory_torch: int | None
    guess: str
    peaks: dict[str, int]
    l2: int | None
    link: int | None
    tdp_w: int | None
    units: int | None
    sources: list[str]
    note: str


class HolderJSON(TypedDict):
    """A process that holds memory; `bytes` is null where the driver does not tell."""

    pid: int
    name: str
    bytes: int | None


class LocalJSON(TypedDict):
    """What `gptcalc gpus show local --format json` prints, in bytes.

    `kept` is the driver's own, where it says so; `unnamed` is held by whom it does not name. `preset` is the GPU of the
    list that it is.
    """

    schema: str
    name: str
    title: str
    place: str
    preset: str | None
    driver: str
    compute_capability: str
    target: str
    memory: int
    free: int
    kept: int | None
    holders: list[HolderJSON]
    unnamed: int
    others: list[str]
    notes: list[str]


def in_order(entries: Sequence[Entry], key: str | None) -> list[Entry]:
    """The entries by one of `SORTS`: names from A, numbers from the most down, what is not known at the end."""
    if key is None:
        return list(entries)
    if key == "name":
        return sorted(entries, key=lambda entry: entry.gpu.slug)
    amounts = {
        "memory": lambda entry: entry.room.usable.low,
        "bandwidth": lambda entry: entry.gpu.bandwidth,
        "bf16": lambda entry: entry.gpu.peak("bf16") or 0,
    }
    return sorted(entries, key=amounts[key], reverse=True)


def gpus_json(entries: Iterable[Entry]) -> GpusJSON:
    """The list as a dictionary of plain values."""
    return {"schema": "gptcalc.gpus/1", "gpus": [_entry_json(entry) for entry in entries]}


def _entry_json(entry: Entry) -> EntryJSON:
    gpu, room = entry
    return {
        "name": gpu.slug,
        "title": gpu.name,
        "vendor": gpu.vendor,
        "aliases": list(gpu.aliases),
        "memory": room.capacity,
        "source": room.source,
        "estimated": room.estimated,
        "usable": {"low": room.usable.low, "high": room.usable.high},
        "bandwidth": gpu.bandwidth,
        "bf16": gpu.peak("bf16"),
        "compute_capability": gpu.compute_capability,
        "target": room.target,
        "confidence": gpu.confidence,
        "common": gpu.common,
    }


def gpus_document(entries: Sequence[Entry], *, flat: bool = False) -> Document:
    """A row for each GPU, under the name of its maker unless it is a `flat` list."""
    columns = (
        Column("vendor", "vendor", drop=8),
        Column("name", "name", folded=True),
        Column("aliases", "aliases", wraps=True, least=30, drop=9),
        Column("memory", "for torch", "amount"),
        Column("source", "says", drop=1),
        Column("bandwidth", "GB/s", "amount", drop=3),
        Column("bf16", "bf16 TFLOP/s", "amount", drop=4),
        Column("compute_capability", "capability", drop=7),
        Column("target", "kernels", drop=2),
        Column("confidence", "confidence", drop=5),
    )
    rows = [_row(entry) for entry in entries]
    grouped: list[tuple[Value, ...]] = []
    for vendor, group in groupby(rows, lambda row: row[0]):
        grouped.append((vendor, *(None for _ in columns[2:])))
        grouped += [(f"  {row[1]}", *row[2:]) for row in group]
    table = Table("", columns, tuple(rows)) if flat else Table("", columns[1:], tuple(grouped))
    return Document(
        "1 GPU" if len(rows) == 1 else f"{len(rows)} GPUs", (), (table,), _list_notes(entries), lambda: _data(entries)
    )


def _row(entry: Entry) -> tuple[Value, ...]:
    gpu, room = entry
    peak = gpu.dense_tflops.get("bf16")
    return (
        gpu.vendor,
        gpu.slug,
        ", ".join(gpu.aliases),
        format_bytes(room.usable.low),
        entry.says,
        f"{gpu.bandwidth_gb_s:,}",
        None if peak is None else f"{peak:,}",
        gpu.compute_capability,
        room.target,
        gpu.confidence,
    )


def _list_notes(entries: Sequence[Entry]) -> tuple[str, ...]:
    says = {
        "torch": "torch: its own total, the least where drivers differ.",
        "driver": f"driver: nvidia-smi's total, less the {_percent(kept_by_driver())} that a driver keeps at most.",
        "estimated": "estimated: from the number on the box; an answer is then but probable.",
    }
    found = {entry.says for entry in entries}
    return (
        "for torch: what it surely has, by whom it says so:",
        *(f"- {text}" for key, text in says.items() if key in found),
        "Next: gptcalc gpus show NAME, gptcalc memory MODEL --gpu NAME, gptcalc fit MODEL --gpu NAME.",
    )


def _data(entries: Sequence[Entry]) -> Table:
    """A record for each GPU, in bytes, bytes per second and FLOP per second."""
    columns = (
        Column("vendor", "vendor"),
        Column("name", "name"),
        Column("aliases", "aliases"),
        Column("memory", "memory", "count"),
        Column("source", "source"),
        Column("usable_low", "usable_low", "count"),
        Column("usable_high", "usable_high", "count"),
        Column("bandwidth", "bandwidth", "count"),
        Column("bf16", "bf16", "count"),
        Column("compute_capability", "compute_capability"),
        Column("target", "target"),
        Column("confidence", "confidence"),
    )
    rows = (
        (
            entry.gpu.vendor,
            entry.gpu.slug,
            ", ".join(entry.gpu.aliases),
            entry.room.capacity,
            entry.says,
            *entry.room.usable,
            entry.gpu.bandwidth,
            entry.gpu.peak("bf16"),
            entry.gpu.compute_capability,
            entry.room.target,
            entry.gpu.confidence,
        )
        for entry in entries
    )
    return Table("", columns, tuple(rows))


def gpu_json(entry: Entry) -> GpuJSON:
    """One GPU as a dictionary of plain values."""
    gpu = entry.gpu
    return {
        **_entry_json(entry),
        "schema": "gptcalc.gpus-show/1",
        "arch": gpu.arch,
        "device_names": list(gpu.device_names),
        "memory_on_the_box_gb": gpu.memory_gb,
        "memory_driver": gpu.memory_driver_bytes,
        "memory_torch": gpu.memory_torch_bytes,
        "guess": entry.room.guess,
        "peaks": {dtype: peak for dtype in DTYPES if (peak := gpu.peak(dtype)) is not None},
        "l2": gpu.l2_bytes,
        "link": gpu.link,
        "tdp_w": gpu.tdp_w,
        "units": gpu.units,
        "sources": list(gpu.sources),
        "note": gpu.note,
    }


def gpu_document(entry: Entry) -> Document:
    """All that is known of one GPU: its memory and whose figure that is, its peaks, its names, its sources."""
    gpu, room = entry
    heading = [f"also: {', '.join(gpu.aliases)}"] if gpu.aliases else []
    heading += [f"reports itself as: {', '.join(gpu.device_names)}"] if gpu.device_names else []
    heading.append(f"{gpu.vendor}, {gpu.arch}, compute capability {gpu.compute_capability or NOT_KNOWN}")
    heading.append(f"kernels: {_kernels(entry)}")
    tables = (_memory_table(entry), _speed_table(gpu))
    notes = (
        *([f"An answer for it is but probable: {room.guess}."] if room.guess else []),
        f"confidence: {gpu.confidence}",
        *(f"source: {source}" for source in gpu.sources),
        *([f"note: {gpu.note}"] if gpu.note else []),
        f"Next: gptcalc memory MODEL --gpu {gpu.slug}, gptcalc fit --gpu {gpu.slug}.",
    )
    title = f"{gpu.slug}: {gpu.name}, {_span(entry)} for torch"
    return Document(title, tuple(heading), tables, notes, lambda: _data([entry]))


def _kernels(entry: Entry) -> str:
    gpu, target = entry.gpu, entry.room.target
    if target is None:
        return f"those of {gpu.vendor} are not known; a target of CUDA stands for them"
    exact = target == f"sm{(gpu.compute_capability or '').replace('.', '')}"
    return target if exact else f"those of {target}, the nearest that is known"


def _span(entry: Entry) -> str:
    """What torch may have, as one size or from the least to the most."""
    low, high = entry.room.usable
    if low == high:
        return format_bytes(low)
    return f"{format_fixed(Fraction(low, GIB), 2)} to {format_fixed(Fraction(high, GIB), 2)} GiB"


def _memory_table(entry: Entry) -> Table:
    gpu, room = entry
    columns = (
        Column("memory", "memory"),
        Column("amount", "amount", "amount"),
        Column("bytes", "bytes", "count", drop=1),
        Column("why", "what it is", wraps=True, least=30, drop=2),
    )
    why = {
        "torch": "the least that torch reports of it, whichever the driver"
        if room.usable.low < room.usable.high
        else "torch's total",
        "driver": f"the driver's total: it may keep up to {_percent(kept_by_driver())} of it from torch",
        "estimated": "estimated: the number on the box, less what ECC, the driver or the system may take",
    }[entry.says]
    low, high = room.usable
    rows: tuple[tuple[Value, ...], ...] = (
        ("on the box", f"{gpu.memory_gb:,} GB", gpu.memory_marketing_bytes, _box(gpu)),
        _reported("driver's total", gpu.memory_driver_bytes, "nvidia-smi"),
        _reported("torch's total", gpu.memory_torch_bytes, "torch.cuda.mem_get_info()[1]"),
        ("surely for torch", format_bytes(low), low, why),
        ("at most for torch", format_bytes(high), high, ""),
    )
    return Table("", columns, rows)


def _box(gpu: Gpu) -> str:
    return "10^9 bytes a GB; the most that is sold" if gpu.memory_is_most else "10^9 bytes a GB"


def _reported(label: str, amount: int | None, by: str) -> tuple[Value, ...]:
    if amount is None:
        return (label, NOT_KNOWN, None, "nobody was seen to report it")
    return (label, f"{format_count(amount // MIB)} MiB", amount, by)


def _speed_table(gpu: Gpu) -> Table:
    rows = [("memory bandwidth", _with_unit(gpu.bandwidth_gb_s, "GB/s"))]
    rows += [(f"peak {dtype}, dense", _with_unit(gpu.dense_tflops.get(dtype), "TFLOP/s")) for dtype in DTYPES]
    rows += [
        ("L2 cache", _with_unit(gpu.l2_mib, "MiB")),
        ("link to others, both directions", _with_unit(gpu.link_gb_s, "GB/s")),
        ("power", _with_unit(gpu.tdp_w, "W")),
        ("multiprocessors, compute units or cores", _with_unit(gpu.units, "")),
    ]
    return Table("Data sheet", (Column("what", "what"), Column("value", "value", "amount")), tuple(rows))


def _with_unit(amount: Decimal | int | None, unit: str) -> str:
    return NOT_KNOWN if amount is None else f"{amount:,} {unit}".strip()


def _percent(share: Fraction) -> str:
    return f"{format_fixed(share * 100, 1)}%"


# --- The GPU of this machine -----------------------------------------------------------------------------------------


def local_json(found: Local) -> LocalJSON:
    """The GPU of this machine as a dictionary of plain values."""
    gpu = gpu_of_device(found.title, found.capacity)
    return {
        "schema": "gptcalc.gpus-local/1",
        "name": found.name,
        "title": found.title,
        "place": found.place,
        "preset": gpu.slug if gpu else None,
        "driver": found.driver,
        "compute_capability": _capability(found),
        "target": found.target,
        "memory": found.capacity,
        "free": found.free,
        "kept": found.kept,
        "holders": [{"pid": holder.pid, "name": holder.name, "bytes": holder.bytes} for holder in found.holders],
        "unnamed": found.unnamed,
        "others": list(found.others),
        "notes": list(found.notes),
    }


def local_document(found: Local) -> Document:
    """What the GPU of this machine has, and who holds it: the rows add up to the total."""
    gpu = gpu_of_device(found.title, found.capacity)
    heading = (
        f"{found.place}, NVIDIA driver {found.driver}, compute capability {_capability(found)}, kernels {found.target}",
        *found.notes,
        *found.others,
    )
    columns = (
        Column("who", "memory", wraps=True, least=20),
        Column("amount", "amount", "amount"),
        Column("bytes", "bytes", "count", drop=1),
    )
    rows: list[tuple[str, int | None]] = [("free", found.free), *([("the driver", found.kept)] if found.kept else [])]
    rows += [(named(holder), holder.bytes) for holder in found.holders]
    rows += [(UNNAMED, found.unnamed)] if found.unnamed else []
    printed = tuple((who, NOT_KNOWN if amount is None else format_bytes(amount), amount) for who, amount in rows)
    total = (("total", format_bytes(found.capacity), found.capacity),)
    table = Table("", columns, printed, total)
    known = [f"gptcalc gpus show {gpu.slug} (its data sheet)"] if gpu else []
    following = ", ".join([f"gptcalc memory MODEL --gpu {found.name}", *known])
    title = f"{found.name}: {found.title}, {format_bytes(found.free)} free of {format_bytes(found.capacity)}"
    return Document(title, heading, (table,), (f"Next: {following}.",), lambda: table._replace(footer=()))


def _capability(found: Local) -> str:
    return ".".join(map(str, found.capability))
