"""Whether a run fits a device or a budget, as words, as a table and as JSON."""

from collections.abc import Iterator, Sequence

from typing_extensions import TypedDict

from gptcalc.ledger.answer import Answer
from gptcalc.ledger.fit import Fit, Range, Room
from gptcalc.ledger.memory import CONTEXT
from gptcalc.plan import Plan
from gptcalc.report.document import Column, Table, Value
from gptcalc.units import format_bytes, format_signed

#: Who says how much there is, after the amount.
SOURCES = {
    "torch": "as torch reports it",
    "driver": "as the driver reports it",
    "given": "as it was given",
    "now free": "free at this moment",
    "marketing": "estimated from the number on the box",
}
_COLUMNS = (
    Column("what", ""),
    Column("low", "from", "count"),
    Column("high", "to", "count"),
    Column("size", "", "amount", drop=1),
    Column("note", "", wraps=True, least=20, drop=2),
)


class RangeJSON(TypedDict):
    """Bytes: at least, and at most."""

    low: int
    high: int


class FitJSON(TypedDict):
    """A run on a device, or under a budget, whose `gpu` is null.

    `source` says whose figure the capacity is, `usable` what a process may have of it. `margin` is what is left over,
    below zero what lacks. `fits` is whether it does for all that is known.
    """

    gpu: str | None
    title: str
    capacity: int
    source: str
    estimated: bool
    usable: RangeJSON
    needed: RangeJSON
    margin: RangeJSON
    verdict: str
    fits: bool
    notes: list[str]
    changes: list[dict[str, object]]


def fit_json(fit: Fit, plan: Plan) -> FitJSON:
    """A fit as plain values; integers stay integers."""
    room = fit.room
    return {
        "gpu": None if room.budgeted else room.name,
        "title": room.title,
        "capacity": room.capacity,
        "source": room.source,
        "estimated": room.estimated,
        "usable": range_json(room.usable),
        "needed": range_json(fit.needed),
        "margin": range_json(fit.margin),
        "verdict": fit.verdict,
        "fits": fit.fits,
        "notes": [*room_notes(room, plan)],
        "changes": [],
    }


def range_json(found: Range) -> RangeJSON:
    """A range by name."""
    return {"low": found.low, "high": found.high}


def rooms(answers: Sequence[Answer]) -> dict[Room, list[tuple[str, Fit]]]:
    """Each device and budget, with the modes that were held against it."""
    found: dict[Room, list[tuple[str, Fit]]] = {}
    for answer in answers:
        for fit in answer.fits:
            found.setdefault(fit.room, []).append((answer.mode, fit))
    return found


def where(room: Room) -> str:
    """A device or budget behind a preposition."""
    if room.budgeted:
        return f"in {room.title}"
    return f"on {room.title}" if room.source == "given" else f"on the {room.title}"


def headline(name: str, answers: Sequence[Answer]) -> str:
    """The answer in one line: each mode in each room, with the margin."""
    found = [
        f"{where(room)}: {'; '.join(f'{mode} {fit.verdict}, {margin_words(fit.margin)}' for mode, fit in own)}"
        for room, own in rooms(answers).items()
    ]
    return f"{name} {'; '.join(found)}"


def margin_words(margin: Range) -> str:
    """What is left over, or what lacks: `1.20 GiB to 1.50 GiB left`."""
    if margin.low >= 0:
        return f"{_span(margin.low, margin.high)} left"
    if margin.high < 0:
        return f"lacks {_span(-margin.high, -margin.low)}"
    return f"between {format_bytes(-margin.low)} too little and {format_bytes(margin.high)} left"


def _span(low: int, high: int) -> str:
    """Two sizes, or one where they read the same; a unit that both have is said once."""
    small, large = format_bytes(low), format_bytes(high)
    if small == large:
        return small
    (number, unit), other = small.split(" "), large.split(" ")[1]
    return f"{number if unit == other else small} to {large}"


def uncertainty(answers: Sequence[Answer]) -> Iterator[str]:
    """What the distance between both margins is made of, where there is one."""
    for room, own in rooms(answers).items():
        if room.budgeted:
            yield f"{room.title} is for what is reserved, and for nothing else: nothing is uncertain"
            continue
        parts = [f"{mode} by {format_bytes(fit.margin.high - fit.margin.low)}: {_made_of(fit)}" for mode, fit in own]
        yield f"uncertain {where(room)}: {'; '.join(parts)}"


def _made_of(fit: Fit) -> str:
    """The parts of the distance between both margins."""
    room, context = fit.room, CONTEXT[1] - CONTEXT[0]
    kept = room.usable.high - room.usable.low
    parts = {
        "reserved but not allocated": fit.needed.high - fit.needed.low - context,
        "the CUDA context": context,
        "what the GB on the box are" if room.estimated else "what the driver may keep": kept,
    }
    return ", ".join(f"{format_bytes(amount)} {what}" for what, amount in parts.items() if amount)


def fit_tables(answers: Sequence[Answer]) -> Iterator[Table]:
    """For each device and budget what there is, what each mode needs of it and what that leaves."""
    for room, own in rooms(answers).items():
        found: list[tuple[Value, ...]] = [
            ("capacity", "", room.capacity, format_bytes(room.capacity), SOURCES[room.source]),
        ]
        if not room.budgeted:
            found.append(_row("usable", room.usable, _usable(room)))
        for mode, fit in own:
            found.append(_row(f"{mode} needs", fit.needed, _needed(room)))
            margin = fit.margin
            signed = tuple(format_signed(amount) for amount in margin)
            found.append((f"{mode} leaves", *signed, _signed_size(margin), fit.verdict))
        title = room.title[0].upper() + room.title[1:]
        yield Table(f"Does it fit {where(room)}?" if not room.budgeted else title, _COLUMNS, tuple(found))


def _row(what: str, found: Range, note: str) -> tuple[Value, ...]:
    return what, found.low, found.high, _span(found.low, found.high), note


def _signed_size(margin: Range) -> str:
    if margin.low >= 0:
        return _span(margin.low, margin.high)
    return (
        f"{_negative(margin.low)} to {_negative(margin.high)}" if margin.low != margin.high else _negative(margin.low)
    )


def _negative(amount: int) -> str:
    return f"{'−' if amount < 0 else ''}{format_bytes(abs(amount))}"


def _usable(room: Room) -> str:
    if room.usable.low == room.usable.high:
        return "all of it, for one process"
    if room.estimated:
        return "GB of 10^9 bytes, or of 2^30"
    return "less what a driver keeps, at most"


def _needed(room: Room) -> str:
    if room.budgeted:
        return "what is reserved"
    low, high = map(format_bytes, CONTEXT)
    return f"allocated, context {low}; reserved, context {high}"


def room_notes(room: Room, plan: Plan) -> Iterator[str]:
    """What is particular to a device."""
    if room.guess:
        yield f"only probably: {room.guess}"
    yield from room.notes
    if room.budgeted:
        return
    if room.target is None and room.source != "given":
        yield f"kernels are those of {plan.target}: which ones {room.title} would run is not known"
    elif room.target not in (None, plan.target):
        yield f"kernels are those of {plan.target}, as --target says, not those of {room.title} ({room.target})"


def fit_cells(answer: Answer | None) -> dict[str, Value]:
    """The answer as cells of a record."""
    found: dict[str, Value] = {}
    for name, fit in (("gpu", answer.gpu), ("budget", answer.budget)) if answer else ():
        if fit is not None:
            found[name] = fit.room.name if name == "gpu" else fit.room.capacity
            found |= {f"{name}_verdict": fit.verdict, f"{name}_margin_low": fit.margin.low}
            found[f"{name}_margin_high"] = fit.margin.high
    return found
