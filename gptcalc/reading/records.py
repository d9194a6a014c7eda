"""A memory record of torch: `torch.cuda.memory._dump_snapshot`'s pickle, the same as JSON, or a list of its events.

The form is that of `torch/cuda/memory.py`, `_snapshot`: `segments` with their blocks as they are when the record is
taken, and `device_traces`, what the allocator did before, oldest first, of which the oldest may be lost. Only what is
used is read, and what is read is checked.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptcalc.errors import UnreadableFileError, plain, shown
from gptcalc.reading.files import start_of
from gptcalc.reading.pickles import MOST_CONTAINERS, MOST_STEPS, is_pickle, read_plain

FORMS = "a record of torch.cuda.memory._dump_snapshot, or the same as JSON"
MOST_BYTES = 1 << 30
#: Addresses and sizes have 64 bits.
MOST = 1 << 64
#: First bytes of other files, and what they are.
OTHER = {
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"PK\x03\x04": "a zip archive (or PyTorch's weights)",
    b"<!": "a web page, as _memory_viz.py writes: the pickle that it was made from can be read",
    b"<h": "a web page",
    b"GGUF": "a GGUF file",
}
Frames = Sequence[Mapping[str, Any]]


class Block(NamedTuple):
    """A stretch of a segment. `requested` are the bytes asked for, where it is in use."""

    address: int
    size: int
    requested: int
    state: str
    frames: Frames

    @property
    def is_active(self) -> bool:
        """Whether a tensor has it (`active_allocated`), or another stream may still use it (`active_pending_free`)."""
        return self.state.startswith("active")


class Segment(NamedTuple):
    """What CUDA gave."""

    device: int
    size: int
    stream: int
    blocks: tuple[Block, ...]


class Entry(NamedTuple):
    """What the allocator did: `alloc`, `free_completed`, `segment_alloc`, `oom`; others are of no account.

    `size` are the bytes asked for, in an `oom` rounded up to 512; there `address` is what was free on the device.
    """

    action: str
    address: int
    size: int
    stream: int
    frames: Frames


class Record(NamedTuple):
    """A record as it stands in its file: segments of all devices, and the events of each."""

    file: str
    segments: tuple[Segment, ...]
    traces: tuple[tuple[Entry, ...], ...]

    @property
    def devices(self) -> tuple[int, ...]:
        """The devices of which it says anything."""
        traced = (device for device, trace in enumerate(self.traces) if trace)
        return tuple(sorted({*traced, *(segment.device for segment in self.segments)}))


def read_record(path: Path) -> Record:
    """The record that a file holds. Raises `UnreadableFileError` for whatever else the file is, in bounded time."""
    where = plain(str(path))
    data = _bytes(path, where)
    if is_pickle(data[:2]):
        return from_plain(read_plain(data, where), where)
    try:
        text = data.decode("utf-8-sig")
        if data.count(b"{") + data.count(b"[") > MOST_CONTAINERS or data.count(b",") > MOST_STEPS:
            raise UnreadableFileError(f"{where}: more than {MOST_CONTAINERS:,} containers; allowed: fewer events")
        return from_plain(json.loads(text), where)
    except UnicodeDecodeError:
        raise UnreadableFileError(f"{where}: neither a pickle of protocol 2 to 5 nor text; allowed: {FORMS}") from None
    except (ValueError, RecursionError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnreadableFileError(f"{where}: not JSON: {said[:200]}; allowed: {FORMS}") from None


def _bytes(path: Path, where: str) -> bytes:
    data = start_of(path, where, MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise UnreadableFileError(f"{where}: more than 1 GiB; allowed: a record of fewer events (max_entries)")
    if not data.strip():
        raise UnreadableFileError(f"{where}: the file is empty; allowed: {FORMS}")
    kind = next((what for start, what in OTHER.items() if data.lstrip().startswith(start)), None)
    if kind:
        raise UnreadableFileError(f"{where}: {kind}; allowed: {FORMS}")
    return data


# --- What a record holds ---------------------------------------------------------------------------------------------


def from_plain(value: object, where: str) -> Record:
    """The record in plain values: a snapshot, the segments alone, or events alone."""
    if isinstance(value, list):
        first = value[0] if value else None
        is_segments = isinstance(first, Mapping) and "blocks" in first
        is_nested = isinstance(first, list)
        value = {"segments": value} if is_segments else {"device_traces": value if is_nested else [value]}
    if not isinstance(value, Mapping):
        raise UnreadableFileError(f"{where}: read {shown(value)}; allowed: {FORMS}")
    if not {"segments", "device_traces"} & value.keys():
        keys = ", ".join(plain(str(key)) for key in list(value)[:4]) or "nothing"
        raise UnreadableFileError(f"{where}: read {keys}; allowed: segments and device_traces, as torch writes them")
    segments = _sequence(value.get("segments", ()), f"{where}: segments")
    traces = _sequence(value.get("device_traces", ()), f"{where}: device_traces")
    return Record(
        where,
        tuple(_segment(segment, f"{where}: segment {place}") for place, segment in enumerate(segments)),
        tuple(
            tuple(_entry(one, f"{where}: device {device}: event {place}") for place, one in enumerate(trace))
            for device, trace in enumerate(_sequence(one, f"{where}: device_traces") for one in traces)
        ),
    )


def _segment(value: object, where: str) -> Segment:
    fields = _mapping(value, where)
    blocks, address = [], _number(fields, "address", where, 0)
    for place, one in enumerate(_sequence(fields.get("blocks", ()), f"{where}: blocks")):
        inside = f"{where}: block {place}"
        own = _mapping(one, inside)
        size, state = _number(own, "size", inside), str(own.get("state", ""))[:40]
        history = _sequence(own.get("history", ()), inside)
        before: Mapping[str, Any] = _mapping(history[0], inside) if history else {}
        at = _number(own, "address", inside, address)  # releases before 2.1 have no addresses, and sizes in `history`
        requested = _number(own, "requested_size", inside, _number(before, "real_size", inside, size))
        blocks.append(Block(at, size, requested, state, _frames(own.get("frames", before.get("frames", ())))))
        address = at + size
    size = _number(fields, "total_size", where)
    device, stream = _number(fields, "device", where, 0), _number(fields, "stream", where, 0)
    return Segment(device, size, stream, tuple(blocks))


def _entry(value: object, where: str) -> Entry:
    fields = _mapping(value, where)
    action = fields.get("action")
    if not isinstance(action, str):
        raise UnreadableFileError(f"{where}: action: read {_kind(action)}; allowed: what the allocator did, as 'alloc'")
    address = _number(fields, "device_free" if action == "oom" else "addr", where, 0)
    size, stream = _number(fields, "size", where, 0), _number(fields, "stream", where, 0)
    return Entry(action, address, size, stream, _frames(fields.get("frames", ())))


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UnreadableFileError(f"{where}: read {_kind(value)}; allowed: a dictionary")
    return value


def _sequence(value: object, where: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise UnreadableFileError(f"{where}: read {_kind(value)}; allowed: a list")
    return value


def _number(fields: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = fields.get(key, default)
    if type(value) is not int or not 0 <= value < MOST:
        read = f"{value.bit_length():,} bits" if isinstance(value, int) and value >= MOST else _kind(value)
        raise UnreadableFileError(f"{where}: {key}: read {read}; allowed: a whole number from 0")
    return value


def _kind(value: object) -> str:
    """A value as an error quotes it: containers may be huge, or hold themselves."""
    return f"a {type(value).__name__}" if isinstance(value, Mapping | list | tuple | bytes) else shown(value)


def _frames(value: object) -> Frames:
    """Stack frames as they stand, if they are any; they are looked at where they are printed."""
    return value if isinstance(value, list | tuple) else ()


#: Folders of code that nobody who reads a record has written.
LIBRARIES = ("-packages/torch/", "/torch/nn/modules/")


def user_frame(frames: Frames) -> str:
    """The innermost frame of a user's own Python code, else of any, as `train.py:42 step`; empty where none is."""
    found = [
        (str(name), frame.get("line"), str(frame.get("name", "")))
        for frame in frames[:200]
        if isinstance(frame, Mapping) and isinstance(name := frame.get("filename"), str)
    ]
    scripts = [one for one in found if one[0].endswith(".py")]
    own = [one for one in scripts if not any(part in one[0] for part in LIBRARIES)]
    for filename, line, name in own[:1] or scripts[:1]:
        short = filename.replace("\\", "/").rpartition("/")[2]
        return plain(f"{short[-60:]}:{line if isinstance(line, int) else '?'} {name[:60]}".rstrip())
    return ""
