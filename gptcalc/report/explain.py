"""`gptcalc explain` as a document and as JSON: what a record has alive, and which lines of a prediction that is."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import groupby
from typing import NamedTuple, NotRequired

from typing_extensions import TypedDict

from gptcalc.catalog import Resolved
from gptcalc.ledger.explain import Match, Sized, Snapshot, by_size
from gptcalc.plan import Plan
from gptcalc.report.count_data import heading_notes
from gptcalc.report.document import Column, Document, Table, Value
from gptcalc.report.memory_data import plan_json
from gptcalc.report.timeline import KINDS
from gptcalc.units import format_bytes, format_count, format_signed

SCHEMA = "gptcalc.explain/1"
NONE = "—"
#: Sizes that a table lists; the others stand in one row.
LISTED = 20
#: What a moment is called.
MOMENTS = {"peak": "at its peak", "oom": "at its out-of-memory error", "end": "at its end"}
WORDS = (
    "requested: the bytes asked for; rounded: each request up to a multiple of 512; allocated: the blocks handed out;"
    " reserved: the segments that hold them."
)


class Predicted(NamedTuple):
    """What the record is held against."""

    model: Resolved
    plan: Plan
    match: Match


class SegmentsJSON(TypedDict):
    """The segments at the end of the record, in bytes; `between` is free in segments that are partly in use."""

    small: int
    large: int
    size: int
    active: int
    unused: int
    between: int
    largest_free: int


class RecordJSON(TypedDict):
    """The record and its moment. `allocated` is at least that where `exact` is false."""

    file: str
    device: int
    devices: list[int]
    moment: str
    event: int
    events: int
    requested: int
    rounded: int
    allocated: int
    exact: bool
    reserved: int
    blocks: int
    before: int
    before_bytes: int
    missed: int
    segments: SegmentsJSON | None
    failed: NotRequired[int]
    device_free: NotRequired[int]


class SizedJSON(TypedDict):
    """Blocks of one size that one line of code asked for; `elsewhere` names tensors predicted at other moments."""

    bytes: int
    count: int
    amount: int
    where: str
    elsewhere: NotRequired[list[str]]


class LineJSON(TypedDict):
    """Tensors of one line: predicted, and found in the record."""

    key: str
    label: str
    kind: str
    component: str
    op: str
    tensors_predicted: int
    tensors_found: int
    predicted: int
    found: int
    missing: int


class PredictionJSON(TypedDict):
    """The run, the moment of it that fits best, and its lines.

    `found` and the amounts of `others` add up to the record's requested bytes, `found` and `missing` to `predicted`.
    `peak` is what the mode is predicted to take at most.
    """

    model: str
    plan: dict[str, object]
    mode: str
    step: int
    phase: str
    moment: str
    peak: int
    predicted: int
    found: int
    missing: int
    others_bytes: int
    lines: list[LineJSON]
    others: list[SizedJSON]
    failed: list[str]


class ExplainJSON(TypedDict):
    """What `gptcalc explain --format json` prints; `blocks` add up to the record's requested bytes."""

    schema: str
    command: str
    record: RecordJSON
    blocks: list[SizedJSON]
    prediction: NotRequired[PredictionJSON]
    notes: list[str]


def explain_json(
    file: str, devices: Sequence[int], taken: Snapshot, predicted: Predicted | None, command: str
) -> ExplainJSON:
    """The answer as a dictionary of plain values; integers stay integers."""
    answer: ExplainJSON = {
        "schema": SCHEMA,
        "command": command,
        "record": _record_json(file, devices, taken),
        "blocks": [_sized_json(row) for row in by_size(taken.alive)],
        "notes": [*_notes(taken, predicted)],
    }
    if predicted:
        answer["prediction"] = _prediction_json(predicted)
    return answer


def _record_json(file: str, devices: Sequence[int], taken: Snapshot) -> RecordJSON:
    pieces = taken.pieces
    found: RecordJSON = {
        "file": file,
        "device": taken.device,
        "devices": list(devices),
        "moment": taken.moment,
        "event": taken.event,
        "events": taken.n_events,
        "requested": taken.requested,
        "rounded": taken.rounded,
        "allocated": taken.allocated,
        "exact": taken.exact,
        "reserved": taken.reserved,
        "blocks": len(taken.alive),
        "before": len(taken.before),
        "before_bytes": sum(one.bytes for one in taken.before),
        "missed": taken.missed,
        "segments": None,
    }
    if pieces:
        found["segments"] = {
            "small": pieces.small,
            "large": pieces.large,
            "size": pieces.size,
            "active": pieces.active,
            "unused": pieces.unused,
            "between": pieces.between,
            "largest_free": pieces.largest_free,
        }
    if taken.moment == "oom":
        found["failed"], found["device_free"] = taken.failed, taken.device_free
    return found


def _sized_json(row: Sized) -> SizedJSON:
    found: SizedJSON = {"bytes": row.bytes, "count": row.blocks, "amount": row.amount, "where": row.where}
    if row.elsewhere:
        found["elsewhere"] = list(row.elsewhere)
    return found


def _prediction_json(predicted: Predicted) -> PredictionJSON:
    model, match = predicted.model, predicted.match
    return {
        "model": model.preset.name if model.preset else model.name,
        "plan": {**plan_json(model, predicted.plan, "")["plan"]},
        "mode": match.mode,
        "step": match.step,
        "phase": match.phase,
        "moment": match.moment,
        "peak": match.peak,
        "predicted": match.predicted,
        "found": match.found,
        "missing": match.missing,
        "others_bytes": match.more,
        "lines": [
            {
                "key": line.key,
                "label": line.label,
                "kind": line.kind,
                "component": line.component,
                "op": line.op,
                "tensors_predicted": line.predicted,
                "tensors_found": line.found,
                "predicted": line.bytes_predicted,
                "found": line.bytes_found,
                "missing": line.missing,
            }
            for line in match.lines
        ],
        "others": [_sized_json(row) for row in match.others],
        "failed": list(match.failed),
    }


# --- As a document ---------------------------------------------------------------------------------------------------


def explain_document(file: str, devices: Sequence[int], taken: Snapshot, predicted: Predicted | None) -> Document:
    """The record in figures; then its blocks by size, or by the lines of the prediction."""
    tables = [_figures_table(taken)]
    if predicted:
        tables += _match_tables(taken, predicted.match)
    else:
        tables.append(_blocks_table("alive", by_size(taken.alive), taken.requested, "requested"))
    size = taken.requested
    return Document(
        title=f"{file}: {format_bytes(size)} alive {MOMENTS[taken.moment]} ({format_count(size)} bytes requested)",
        heading=tuple(_heading(devices, taken, predicted)),
        tables=tuple(tables),
        notes=(*_notes(taken, predicted), WORDS, *_next(predicted)),
        data=lambda: _data(taken, predicted),
    )


def _heading(devices: Sequence[int], taken: Snapshot, predicted: Predicted | None) -> Iterator[str]:
    others = f" of {', '.join(map(str, devices))}, the one with most events" if len(devices) > 1 else ""
    yield f"device {taken.device}{others} · after event {format_count(taken.event)} of {format_count(taken.n_events)}"
    if taken.moment == "oom":
        yield (
            f"the error asked for {format_count(taken.failed)} bytes, rounded ({format_bytes(taken.failed)}),"
            f" {format_count(taken.device_free)} ({format_bytes(taken.device_free)}) were free on the device"
        )
    if taken.before:
        amount = sum(one.bytes for one in taken.before)
        yield (
            f"{format_count(len(taken.before))} blocks ({format_bytes(amount)}) are older than the record's first event"
        )
    if predicted:
        model, plan, match = predicted
        name = f"{model.title}, changed" if model.changed else model.title
        update = f", {plan.optimizer} ({plan.optimizer_impl})" if match.mode == "training" else ""
        settings = f"batch {plan.batch:,}, {plan.seq:,} tokens, {plan.precision}{update}, attention {plan.attention}"
        yield f"against {name}: {match.mode}, {settings}, {plan.target}, torch {plan.torch}"
        yield from (f"  {note}" for note in heading_notes(model))
        step = f" of step {match.step}" if match.mode == "training" and match.phase != "build" else ""
        yield f"it fits best in {match.phase}{step}, at {match.moment}"


def _figures_table(taken: Snapshot) -> Table:
    rows: list[tuple[Value, ...]] = [
        _figure("requested", taken.requested, f"{format_count(len(taken.alive))} blocks"),
        _figure("rounded", taken.rounded, "each up to a multiple of 512"),
        _figure("allocated" if taken.exact else "allocated, at least", taken.allocated, "the blocks handed out"),
        _figure("reserved", taken.reserved, "the segments that hold them"),
        _figure("free in segments", max(taken.reserved - taken.allocated, 0), "reserved, and not allocated"),
    ]
    if taken.pieces:
        pieces = taken.pieces
        count = f"{format_count(pieces.small)} small and {format_count(pieces.large)} large segments"
        rows += [
            _figure("at the end: reserved", pieces.size, count),
            _figure("at the end: in use", pieces.active, "blocks of tensors"),
            _figure("at the end: between", pieces.between, "free in segments that are partly in use: fragmentation"),
            _figure("at the end: unused", pieces.unused, "segments that empty_cache would give back"),
            _figure("at the end: largest", pieces.largest_free, "the largest free block"),
        ]
    columns = (
        Column("what", "the allocator", wraps=True, least=12),
        Column("bytes", "bytes", "count"),
        Column("size", "", "amount", drop=1),
        Column("note", "", wraps=True, least=16, drop=2),
    )
    return Table("", columns, tuple(rows))


def _figure(what: str, amount: int, note: str) -> tuple[Value, ...]:
    return what, amount, format_bytes(amount), note


def _blocks_table(title: str, rows: Sequence[Sized], total: int, footer: str, *, elsewhere: bool = False) -> Table:
    """Blocks by size: where they were asked for, and what of that size is predicted at other moments."""
    columns = [
        Column("where", title, wraps=True, least=16),
        Column("count", "blocks", "count"),
        Column("each", "bytes each", "count", drop=2),
        Column("bytes", "bytes", "count"),
        Column("size", "", "amount", drop=4),
        Column("share", "share", "share", drop=5),
    ]
    if elsewhere:
        columns[-1:] = [Column("elsewhere", "predicted at other moments", wraps=True, least=16, drop=3)]
    found = [_sized(row, total, elsewhere=elsewhere) for row in rows[:LISTED]]
    if rest := rows[LISTED:]:
        amount, count = sum(row.amount for row in rest), sum(row.blocks for row in rest)
        last: Value = "" if elsewhere else Fraction(amount, total or 1)
        found.append((f"{format_count(len(rest))} other sizes", count, None, amount, format_bytes(amount), last))
    amount, count = sum(row.amount for row in rows), sum(row.blocks for row in rows)
    end: Value = "" if elsewhere else Fraction(amount, total or 1)
    return Table("", tuple(columns), tuple(found), ((footer, count, None, amount, format_bytes(amount), end),))


def _sized(row: Sized, total: int, *, elsewhere: bool) -> tuple[Value, ...]:
    last: Value = "; ".join(row.elsewhere) if elsewhere else Fraction(row.amount, total or 1)
    return row.where or "no stack frames", row.blocks, row.bytes, row.amount, format_bytes(row.amount), last


def _match_tables(taken: Snapshot, match: Match) -> Iterator[Table]:
    """What both have by the lines of the prediction; what either has alone; how all of it adds up."""
    columns = (
        Column("what", "predicted, and in the record", wraps=True, least=16),
        Column("tensors", "tensors", "amount", drop=2),
        Column("bytes", "bytes", "count"),
        Column("size", "", "amount", drop=3),
        Column("missing", "missing", "count"),
    )
    found: list[tuple[Value, ...]] = []
    for kind, group in groupby(match.lines, key=lambda line: line.kind):
        lines = list(group)
        label = KINDS[kind][1]
        saved = "saved " if kind == "activations" and match.mode == "training" else ""
        amount, missing = sum(line.bytes_found for line in lines), sum(line.missing for line in lines)
        found.append((f"{saved}{label}", "", amount, format_bytes(amount), missing or None))
        found += [
            (
                f"  {line.label}",
                f"{format_count(line.found)} of {format_count(line.predicted)}",
                line.bytes_found,
                format_bytes(line.bytes_found),
                line.missing or None,
            )
            for line in lines
        ]
    yield Table(
        "", columns, tuple(found), (("found", "", match.found, format_bytes(match.found), match.missing or None),)
    )
    if match.others:
        yield _blocks_table("in the record alone", match.others, taken.requested, "in all", elsewhere=True)
    yield Table(
        "",
        (
            Column("what", "in all", wraps=True, least=16),
            Column("record", "record", "amount"),
            Column("predicted", "predicted", "amount"),
            Column("difference", "difference", "amount", drop=1),
        ),
        (
            ("found", format_count(match.found), format_count(match.found), ""),
            ("on one side alone", format_count(match.more), format_count(match.missing), ""),
        ),
        (
            (
                "requested",
                format_count(taken.requested),
                format_count(match.predicted),
                _difference(taken.requested - match.predicted),
            ),
            (
                f"predicted peak of {match.mode}",
                "",
                format_count(match.peak),
                _difference(taken.requested - match.peak),
            ),
        ),
    )


def _difference(amount: int) -> str:
    return format_signed(amount) if amount else "0"


def _notes(taken: Snapshot, predicted: Predicted | None) -> Iterator[str]:
    """What a reader must know of the record, and of the match."""
    if taken.missed:
        yield (
            f"Note: {format_count(taken.missed)} events do not fit the others: some are lost, or of another run; the"
            " blocks are as good as the record."
        )
    if not taken.n_events:
        yield "Note: the record has no events (_record_memory_history was not on): its peak is what it ends with."
    if taken.pieces is None:
        yield "Note: the record has no segments: what was there before its first event, and is still, cannot be known."
    if not predicted:
        return
    match = predicted.match
    if match.failed:
        yield f"The error asked for as much as is predicted for {'; '.join(match.failed)}."
    yield (
        "Blocks are matched by their bytes; of several tensors of one size the oldest block is the oldest tensor. What"
        " is in the record alone is not predicted at this moment: another setting, other code, or what a kernel takes."
    )


def _next(predicted: Predicted | None) -> Iterator[str]:
    if predicted is None:
        yield "Next: gptcalc explain RECORD MODEL --batch N --seq N says which lines of a prediction these are."


def _data(taken: Snapshot, predicted: Predicted | None) -> Table:
    """One record a line: blocks by size; or found and missing by line of the prediction, and blocks alone."""
    columns = ("section", "key", "label", "kind", "component", "op", "count", "bytes", "where")
    found: list[tuple[Value, ...]] = []
    if predicted is None:
        found += [
            ("blocks", str(row.bytes), "", "", "", "", row.blocks, row.amount, row.where)
            for row in by_size(taken.alive)
        ]
    else:
        for line in predicted.match.lines:
            words = (line.key, line.label, line.kind, line.component, line.op)
            if line.found:
                found.append(("found", *words, line.found, line.bytes_found, ""))
            if line.missing:
                found.append(("missing", *words, line.predicted - line.found, line.missing, ""))
        found += [
            ("record", str(row.bytes), "; ".join(row.elsewhere), "", "", "", row.blocks, row.amount, row.where)
            for row in predicted.match.others
        ]
    return Table("", tuple(Column(key, key) for key in columns), tuple(found))
