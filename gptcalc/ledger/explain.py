"""What a memory record has alive at its peak or at its out-of-memory error, and which lines of a prediction that is.

A record's events go back only so far: what was there before follows from how it ends. An address whose first event is
its end, or that is in use at the end and has no event, was in use from the start.

Blocks are known by their bytes. Where a prediction has tensors of one size under several names, the oldest block is the
oldest tensor. The moment of a run that a record shows is the one whose tensors it has: that with the fewest bytes on
one side alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from gptcalc.allocator import round_size
from gptcalc.errors import InvalidValueError, UnreadableFileError, shown
from gptcalc.ledger.alive import BY_OP, KINDS, Alive, Held, Kind
from gptcalc.ledger.components import component_label
from gptcalc.ledger.memory import Mode, ModeName, record
from gptcalc.ledger.reasons import op_words
from gptcalc.plan import Plan
from gptcalc.reading.records import Block, Entry, Frames, Record, Segment, user_frame
from gptcalc.spec import Spec
from gptcalc.tape.kernels import CudaKernels, target, torch_version
from gptcalc.tape.record import Slot
from gptcalc.tape.replay import Place, Recording, unrolled

#: The moments that can be asked for; an out-of-memory error is the default where there is one, else the peak.
MomentName = Literal["peak", "oom", "end"]
MOMENTS: tuple[MomentName, ...] = ("peak", "oom", "end")

_RESERVES = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}
_FREES = ("free_completed", "free")


class Requested(NamedTuple):
    """A block in use. `born` is the event that asked for it, −1 before the first; `block` its size where known."""

    address: int
    bytes: int
    born: int
    block: int | None
    frames: Frames


class Pieces(NamedTuple):
    """The segments as they are at the end of the record: what is free in them, and how much of it nobody could use."""

    small: int
    large: int
    size: int
    active: int
    largest_free: int
    unused: int

    @property
    def between(self) -> int:
        """Free bytes in segments that are partly in use: `empty_cache` cannot give them back."""
        return self.size - self.active - self.unused


class Snapshot(NamedTuple):
    """A device at a moment of its record: after `event` of `n_events`.

    `requested` are the bytes asked for, `rounded` each up to 512, `allocated` the blocks handed out as far as the
    record shows them (`exact` where it shows all), `reserved` the segments. `failed` is what an out-of-memory error
    asked for, `device_free` what the device then had. `missed` counts events that do not fit together.
    """

    device: int
    moment: MomentName
    event: int
    n_events: int
    alive: tuple[Requested, ...]
    reserved: int
    failed: int
    device_free: int
    missed: int
    pieces: Pieces | None

    @property
    def requested(self) -> int:
        """Bytes asked for."""
        return sum(one.bytes for one in self.alive)

    @property
    def rounded(self) -> int:
        """Each request up to a multiple of 512."""
        return sum(round_size(one.bytes) for one in self.alive if one.bytes)

    @property
    def allocated(self) -> int:
        """The blocks handed out; of a block that is gone at the end, what its request is rounded to."""
        return sum(round_size(one.bytes) if one.block is None else one.block for one in self.alive)

    @property
    def exact(self) -> bool:
        """Whether every block's size is known."""
        return all(one.block is not None for one in self.alive)

    @property
    def before(self) -> tuple[Requested, ...]:
        """What was there before the first event."""
        return tuple(one for one in self.alive if one.born < 0)


def snapshot(record: Record, device: int | None = None, moment: str | None = None, spelled: str = "at") -> Snapshot:
    """The moment of a record that is asked for. Raises `GptcalcError` for a device or moment that it does not have."""
    device = _device(record, device)
    trace = record.traces[device] if device < len(record.traces) else ()
    segments = [segment for segment in record.segments if segment.device == device]
    final = {block.address: block for segment in segments for block in segment.blocks if block.is_active}
    errors = [place for place, entry in enumerate(trace) if entry.action == "oom"]
    name = _moment(moment, bool(errors), spelled)
    start, missed = _start(trace, final)
    event = {"peak": _peak(trace, start), "oom": errors[-1] if errors else 0, "end": len(trace)}[name]
    alive, _ = _run(start, trace[:event])
    later = trace[event:]
    touched = {entry.address for entry in later if entry.action in (*_FREES, "alloc")}
    known = {address: block.size for address, block in final.items() if address not in touched}
    error = trace[event] if name == "oom" else None
    return Snapshot(
        device=device,
        moment=name,
        event=event,
        n_events=len(trace),
        alive=tuple(
            one._replace(block=known.get(one.address)) for one in sorted(alive.values(), key=lambda one: one.born)
        ),
        reserved=_reserved(trace, segments, later),
        failed=error.size if error else 0,
        device_free=error.address if error else 0,
        missed=missed,
        pieces=_pieces(segments) if segments else None,
    )


def _device(record: Record, wanted: int | None) -> int:
    """The device that is asked for, else the one with most events, of equals the one with most memory."""
    devices = record.devices
    if not devices:
        raise UnreadableFileError(f"{record.file}: nothing is recorded; allowed: a record of a device that was used")
    if wanted is not None:
        if wanted not in devices:
            listed = ", ".join(map(str, devices[:16]))
            raise InvalidValueError(f"device: read {shown(wanted)}; allowed: {listed}, which {record.file} has")
        return wanted
    held = Counter[int]()
    for segment in record.segments:
        held[segment.device] += segment.size
    events = dict(enumerate(map(len, record.traces)))
    return max(devices, key=lambda device: (events.get(device, 0), held[device], -device))


def _moment(wanted: str | None, has_error: bool, spelled: str) -> MomentName:  # noqa: FBT001  a fact of the record
    if wanted is None:
        return "oom" if has_error else "peak"
    name = next((one for one in MOMENTS if one == wanted), None)
    if name is None:
        raise InvalidValueError(f"{spelled}: read {shown(wanted)}; allowed: {', '.join(MOMENTS)}")
    if name == "oom" and not has_error:
        raise InvalidValueError(f"{spelled}: read 'oom'; allowed: peak or end, since the record has no such error")
    return name


def _start(trace: Sequence[Entry], final: Mapping[int, Block]) -> tuple[dict[int, Requested], int]:
    """What was in use before the first event, by address; and how many events do not fit together."""
    start: dict[int, Requested] = {}
    in_use: dict[int, bool] = {}
    missed = 0
    for entry in trace:
        if entry.action == "alloc":
            missed += in_use.get(entry.address, False)
            in_use[entry.address] = True
        elif entry.action in _FREES:
            if entry.address not in in_use:
                start[entry.address] = Requested(entry.address, entry.size, -1, None, ())
            else:
                missed += not in_use[entry.address]
            in_use[entry.address] = False
    for address, block in final.items():
        if address not in in_use:
            start[address] = Requested(address, block.requested, -1, block.size, block.frames)
    if final:
        missed += sum(used != (address in final) for address, used in in_use.items())
    return start, missed


def _run(start: Mapping[int, Requested], events: Sequence[Entry]) -> tuple[dict[int, Requested], int]:
    """What is in use after `events`, and after how many of them most was requested, the earliest of equals."""
    alive = dict(start)
    now = most = sum(one.bytes for one in alive.values())
    place = 0
    for number, entry in enumerate(events):
        if entry.action == "alloc":
            if (before := alive.get(entry.address)) is not None:
                now -= before.bytes
            alive[entry.address] = Requested(entry.address, entry.size, number, None, entry.frames)
            now += entry.size
            if now > most:
                most, place = now, number + 1
        elif entry.action in _FREES and (gone := alive.pop(entry.address, None)) is not None:
            now -= gone.bytes
    return alive, place


def _peak(trace: Sequence[Entry], start: Mapping[int, Requested]) -> int:
    return _run(start, trace)[1]


def _reserved(trace: Sequence[Entry], segments: Sequence[Segment], later: Sequence[Entry]) -> int:
    """What CUDA had given: that of the end less what changed since; without segments what the events took."""
    if segments:
        return sum(segment.size for segment in segments) - sum(
            _RESERVES.get(entry.action, 0) * entry.size for entry in later
        )
    until = trace[: len(trace) - len(later)]
    return max(sum(_RESERVES.get(entry.action, 0) * entry.size for entry in until), 0)


def _pieces(segments: Sequence[Segment]) -> Pieces:
    blocks = [block for segment in segments for block in segment.blocks]
    small = sum(segment.size <= 2 << 20 for segment in segments)
    used = [any(block.is_active for block in segment.blocks) for segment in segments]
    return Pieces(
        small=small,
        large=len(segments) - small,
        size=sum(segment.size for segment in segments),
        active=sum(block.size for block in blocks if block.is_active),
        largest_free=max((block.size for block in blocks if not block.is_active), default=0),
        unused=sum(segment.size for segment, active in zip(segments, used, strict=True) if not active),
    )


# --- By size ---------------------------------------------------------------------------------------------------------


class Sized(NamedTuple):
    """Blocks of one size that were asked for at one place; `elsewhere` names tensors of that size at other moments."""

    bytes: int
    blocks: int
    where: str
    elsewhere: tuple[str, ...] = ()

    @property
    def amount(self) -> int:
        """Bytes of all."""
        return self.bytes * self.blocks


def by_size(blocks: Sequence[Requested]) -> tuple[Sized, ...]:
    """Blocks by size and by the user's line of code that asked for them, the most bytes first."""
    frames: dict[int, str] = {}
    found: Counter[tuple[int, str]] = Counter()
    for block in blocks:
        key = id(block.frames)
        if key not in frames:
            frames[key] = user_frame(block.frames)
        found[block.bytes, frames[key]] += 1
    rows = (Sized(size, count, where) for (size, where), count in found.items())
    return tuple(sorted(rows, key=lambda row: (-row.amount, -row.bytes, row.where)))


# --- Against a prediction --------------------------------------------------------------------------------------------

#: Names of one size that are listed.
LISTED = 3


class Line(NamedTuple):
    """Tensors that are predicted in one line: how many of them the record has, and their bytes."""

    key: str
    label: str
    kind: Kind
    component: str
    op: str
    predicted: int
    found: int
    bytes_predicted: int
    bytes_found: int

    @property
    def missing(self) -> int:
        """Bytes that the record has not."""
        return self.bytes_predicted - self.bytes_found


class Match(NamedTuple):
    """A record against the moment of a run that it fits best.

    `lines` are what is predicted then, `others` the blocks that are not: those found and the others add up to the
    record's requested bytes, those found and missing to the predicted ones. `failed` names what an error asked for.
    """

    mode: ModeName
    step: int
    phase: str
    moment: str
    lines: tuple[Line, ...]
    others: tuple[Sized, ...]
    failed: tuple[str, ...]
    peak: int

    @property
    def found(self) -> int:
        """Bytes that both have."""
        return sum(line.bytes_found for line in self.lines)

    @property
    def predicted(self) -> int:
        """Bytes predicted at that moment."""
        return sum(line.bytes_predicted for line in self.lines)

    @property
    def missing(self) -> int:
        """Bytes predicted alone."""
        return self.predicted - self.found

    @property
    def more(self) -> int:
        """Bytes of the record alone."""
        return sum(row.amount for row in self.others)


def match(spec: Spec, plan: Plan, modes: Sequence[Mode], taken: Snapshot, *, depth: int = 1) -> Match:
    """The record against the mode of which it has most, at the moment that it fits best.

    `depth` 1: by component, and op where that makes a line; else by tensor.
    """
    kernels = CudaKernels(target(plan.target), torch_version(plan.torch))
    sizes = Counter(one.bytes for one in taken.alive if one.bytes)
    fits = [(mode, run := record(mode.name, spec, plan, kernels), _nearest(run, sizes)) for mode in modes]
    mode, recording, (_, _, place) = max(fits, key=lambda one: (one[2].found, -one[2].cost))
    held = Alive(spec, recording, place, keeps=mode.name == "training").by_slot()
    instances = [slot for slot in _instances(recording, place) if slot.bytes]
    left: dict[int, list[Requested]] = {}
    for block in taken.alive:
        left.setdefault(block.bytes, []).append(block)
    for oldest_first in left.values():
        oldest_first.reverse()  # to be taken from the end
    lines: dict[tuple[str, ...], list[tuple[Held, Slot, bool]]] = {}
    for slot in instances:
        row, blocks = held[slot.index, slot.tensor.label], left.get(slot.bytes)
        has = bool(blocks)
        if blocks:
            blocks.pop()
        key = (row.kind, row.component, row.op if row.kind in BY_OP else "", *((row.key,) if depth > 1 else ()))
        lines.setdefault(key, []).append((row, slot, has))
    labels = _labels(recording)
    others = by_size([block for blocks in left.values() for block in reversed(blocks)])
    stages = recording.record.stages
    phase = stages[place.stage].name
    return Match(
        mode=mode.name,
        step=sum(stage.name == phase for stage in stages[: place.stage + 1]),
        phase=phase,
        moment=_where(recording, place),
        lines=tuple(
            _line(rows, depth) for _, rows in sorted(lines.items(), key=lambda item: KINDS.index(item[1][0][0].kind))
        ),
        others=tuple(row._replace(elsewhere=labels.get(row.bytes, ())[:LISTED]) for row in others),
        failed=_failed(labels, taken.failed),
        peak=mode.totals.requested,
    )


class _Fit(NamedTuple):
    """Bytes on one side alone, bytes that both have, and when."""

    cost: int
    found: int
    place: Place


def _nearest(recording: Recording, sizes: Counter[int]) -> _Fit:
    """The moment with the fewest bytes on one side alone: of each stage the earliest, of equal stages the latest.

    Workspaces have no part in it: they are as large as the environment says, and there from the first kernel on.
    """
    short = dict(sizes)  # how many more the record has, by size
    total = cost = sum(size * count for size, count in sizes.items())
    predicted = 0
    best: dict[int, _Fit] = {}
    for place, _, event, _ in unrolled(recording):
        size, change = event.slot.bytes, 1 if event.alloc else -1
        if size and event.slot.kind != "workspace":
            was = short.get(size, 0)
            short[size] = now = was - change
            cost += size * (abs(now) - abs(was))
            predicted += size * change
        if place.stage not in best or cost < best[place.stage].cost:
            best[place.stage] = _Fit(cost, (total + predicted - cost) // 2, place)
    return min(reversed(best.values()), key=lambda fit: fit.cost)


def _instances(recording: Recording, until: Place) -> list[Slot]:
    """Every tensor that is alive after an event, layer by layer, the oldest first."""
    alive: dict[int, Slot] = {}
    numbers: dict[int, int] = {}
    for place, address, event, number in unrolled(recording):
        if place > until:
            break
        if event.alloc:
            alive[address], numbers[address] = event.slot, number
        else:
            alive.pop(address)
    return [
        slot if slot.turn is None or len(slot.turn.numbers) == 1 else slot.of(numbers[address])
        for address, slot in alive.items()
    ]


def _where(recording: Recording, place: Place) -> str:
    run = list(recording.runs(recording.record.stages[place.stage]))[place.run]
    where = (
        run.segment.label if run.segment.layer is None else f"layer {run.layers[place.repetition // len(run.numbers)]}"
    )
    return f"{where}: {op_words(run.events[place.event].op)}"


def _line(rows: Sequence[tuple[Held, Slot, bool]], depth: int) -> Line:
    row = rows[0][0]
    op = row.op if row.kind in BY_OP else ""
    label = component_label(row.component)
    name = f"{label}: {op_words(op)}" if op else label
    key = ".".join(filter(None, (row.kind, row.component, op.removeprefix("aten::"))))
    return Line(
        key=row.key if depth > 1 else key,
        label=row.label if depth > 1 else name,
        kind=row.kind,
        component=row.component,
        op=row.op if depth > 1 else op,
        predicted=len(rows),
        found=sum(has for *_, has in rows),
        bytes_predicted=sum(slot.bytes for _, slot, _ in rows),
        bytes_found=sum(slot.bytes for _, slot, has in rows if has),
    )


def _failed(labels: Mapping[int, tuple[str, ...]], size: int) -> tuple[str, ...]:
    """What is predicted of the size that an error asked for, which is rounded already."""
    found = (names for bytes_, names in labels.items() if size and round_size(bytes_) == size)
    return tuple(dict.fromkeys(name for names in found for name in names))[:LISTED]


def _labels(recording: Recording) -> dict[int, tuple[str, ...]]:
    """What the run ever allocates, by size."""
    found: dict[int, dict[str, None]] = {}
    for stage in recording.record.stages:
        for segment in stage.segments:
            for slot, alloc, op, _ in segment.events:
                if alloc and slot.bytes:
                    found.setdefault(slot.bytes, {})[f"{op_words(op)}: {slot.tensor.label}"] = None
    return {size: tuple(labels) for size, labels in found.items()}
