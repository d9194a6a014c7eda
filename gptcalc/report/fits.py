"""Whether a run fits a device or a budget, as words, as a table and as JSON."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from typing_extensions import TypedDict

from gptcalc.ledger.memory import CONTEXT
from gptcalc.plan import Plan
from gptcalc.report.document import Column, Table, Value
from gptcalc.report.timeline import KINDS
from gptcalc.units import format_bytes, format_count, format_signed

if TYPE_CHECKING:
    from gptcalc.ledger.answer import Answer
    from gptcalc.ledger.fit import Fit, Range, Room
    from gptcalc.ledger.largest import Largest, Step

#: Who says how much there is, after the amount.
SOURCES = {
    "torch": "as torch reports it",
    "driver": "as the driver reports it",
    "given": "as it was given",
    "now free": "as the driver reports it now",
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


class MaxJSON(TypedDict):
    """The largest of `what` that fits; `value` is null where not even the smallest does.

    `binding` are the kinds that the next one has more of, the fastest growing first; empty where memory is no limit.
    """

    what: str
    value: int | None
    binding: list[str]


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


def fit_json(fit: "Fit", plan: Plan) -> FitJSON:
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
    }


def range_json(found: "Range") -> RangeJSON:
    """A range by name."""
    return {"low": found.low, "high": found.high}


def rooms(answers: "Sequence[Answer]") -> "dict[Room, list[tuple[str, Fit]]]":
    """Each device and budget, with the modes that were held against it."""
    found: dict[Room, list[tuple[str, Fit]]] = {}
    for answer in answers:
        for fit in answer.fits:
            found.setdefault(fit.room, []).append((answer.mode, fit))
    return found


def where(room: "Room") -> str:
    """A device or budget behind a preposition."""
    if room.budgeted:
        return f"in {room.title}"
    return f"on {room.title}" if room.source == "given" else f"on the {room.title}"


def headline(name: str, answers: "Sequence[Answer]") -> str:
    """The answer in one line: each mode in each room, with the margin."""
    found = [
        f"{where(room)}: {'; '.join(f'{mode} {fit.verdict}, {margin_words(fit.margin)}' for mode, fit in own)}"
        for room, own in rooms(answers).items()
    ]
    return f"{_clause(name)} {'; '.join(found)}"


def _clause(name: str) -> str:
    """A name before what is said of it."""
    return f"{name}," if ", " in name else name


def margin_words(margin: "Range") -> str:
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


def uncertainty(answers: "Sequence[Answer]") -> Iterator[str]:
    """What the distance between both margins is made of, where there is one."""
    for room, own in rooms(answers).items():
        if room.budgeted:
            yield f"{room.title} is for what is reserved, and for nothing else: nothing is uncertain"
            continue
        parts = [f"{mode} by {format_bytes(fit.margin.high - fit.margin.low)}: {_made_of(fit)}" for mode, fit in own]
        yield f"uncertain {where(room)}: {'; '.join(parts)}"


def _made_of(fit: "Fit") -> str:
    """The parts of the distance between both margins."""
    room, context = fit.room, CONTEXT[1] - CONTEXT[0]
    kept = room.usable.high - room.usable.low
    parts = {
        "reserved but not allocated": fit.needed.high - fit.needed.low - context,
        "the CUDA context": context,
        "how much of the number on the box there is" if room.estimated else "what the driver may keep": kept,
    }
    return ", ".join(f"{format_bytes(amount)} {what}" for what, amount in parts.items() if amount)


def fit_tables(answers: "Sequence[Answer]") -> Iterator[Table]:
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


def _row(what: str, found: "Range", note: str) -> tuple[Value, ...]:
    return what, found.low, found.high, _span(found.low, found.high), note


def _signed_size(margin: "Range") -> str:
    if margin.low >= 0:
        return _span(margin.low, margin.high)
    return (
        f"{_negative(margin.low)} to {_negative(margin.high)}" if margin.low != margin.high else _negative(margin.low)
    )


def _negative(amount: int) -> str:
    return f"{'−' if amount < 0 else ''}{format_bytes(abs(amount))}"


def _usable(room: "Room") -> str:
    if room.source == "now free":
        return "free at this moment"
    if room.usable.low == room.usable.high:
        return "all of it, for one process"
    if room.estimated:
        return "what parts like it report, at least; all of it in GB of 2^30 bytes"
    return "less what a driver keeps, at most"


def _needed(room: "Room") -> str:
    if room.budgeted:
        return "what is reserved"
    low, high = map(format_bytes, CONTEXT)
    return f"allocated, context {low}; reserved, context {high}"


def room_notes(room: "Room", plan: Plan) -> Iterator[str]:
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


# --- The largest -----------------------------------------------------------------------------------------------------

#: What is solved for, behind "the largest", and with a number.
WORDS = {"batch": "batch", "seq": "sequence", "layers": "number of layers", "d-model": "d_model"}
COLUMNS = {"seq": "tokens", "d-model": "d_model"}
NUMBERED = {"batch": "batch {}", "seq": "{} tokens", "layers": "{} layers", "d-model": "d_model {}"}


def numbered(what: str, value: int) -> str:
    """A size in words: `batch 37`, `1,024 tokens`."""
    words = NUMBERED[what].format(format_count(value))
    return words.replace("layers", "layer").replace("tokens", "token") if value == 1 else words


def solved(answers: "Sequence[Answer]") -> "list[Largest]":
    """What was solved for, mode by mode."""
    return [answer.largest for answer in answers if answer.largest is not None]


def max_headline(name: str, answers: "Sequence[Answer]") -> str:
    """The largest of each mode, or what even the smallest lacks."""
    found, own = solved(answers), rooms(answers)
    what = WORDS[found[0].what]
    sizes = ", ".join(f"{format_count(each.value)} in {each.mode}" for each in found if each.value is not None)
    fits = "probably fits" if any(room.guess for room in own) else "fits"
    parts = [f"the largest {what} that {fits} is {sizes}"] if sizes else []
    parts += [
        f"no {what} fits in {each.mode}: {_lacking(each, each.beyond)}"
        for each in found
        if each.here is None and each.beyond is not None
    ]
    return f"{_clause(name)} {' and '.join(map(where, own))}: {'; '.join(parts)}"


def _lacking(largest: "Largest", step: "Step") -> str:
    """What the smallest lacks."""
    return f"even {numbered(largest.what, step.value)} lacks {format_bytes(step.excess)}"


def bindings(answers: "Sequence[Answer]") -> Iterator[str]:
    """What grows with the next step, or why there is none."""
    for each in solved(answers):
        if each.limit:
            yield f"in {each.mode} the limit is not memory: {each.limit}"
            continue
        kinds = ", ".join(f"{KINDS[kind][1]} {format_bytes(amount)}" for kind, amount in each.binding)
        if each.here is not None and each.beyond is not None:
            yield f"what binds in {each.mode}: {numbered(each.what, each.beyond.value)} would add {kinds}"
        elif each.beyond is not None:
            yield f"what binds in {each.mode}: {numbered(each.what, each.beyond.value)} has {kinds}"


def max_tables(answers: "Sequence[Answer]") -> Iterator[Table]:
    """For each mode the largest and the next one: what each may need, and what that leaves of what there surely is."""
    for each in solved(answers):
        what = WORDS[each.what]
        columns = (
            Column("value", COLUMNS.get(each.what, each.what), "count"),
            *((Column("room", "in"),) if len(rooms(answers)) > 1 else ()),
            Column("needs", "needs, at most", "count"),
            Column("leaves", "leaves, at least", "count"),
            Column("size", "", "amount", drop=1),
            Column("verdict", "", drop=2),
        )
        found: list[tuple[Value, ...]] = []
        for step in filter(None, (each.here, each.beyond)):
            for fit in step.fits:
                left = fit.margin.low
                cells: dict[str, Value] = {
                    "value": step.value,
                    "room": fit.room.name,
                    "needs": fit.needed.high,
                    "verdict": fit.verdict,
                }
                cells |= {"leaves": format_signed(left), "size": _negative(left)}
                found.append(tuple(cells[column.key] for column in columns))
        rest = ", and the next" if each.here and each.beyond else ""
        title = f"The largest {what} in {each.mode}{rest}" if each.here else f"The smallest {what} in {each.mode}"
        yield Table(title, columns, tuple(found))


def max_notes(answers: "Sequence[Answer]", plan: Plan) -> Iterator[str]:
    """Whether what is shown below is the run of that size."""
    found = solved(answers)
    if len({each.value for each in found}) > 1:
        yield (
            f"below is the run as it was asked for (B = {format_count(plan.batch)}, T = {format_count(plan.seq)}):"
            " training and inference have different answers"
        )


def max_json(largest: "Largest") -> MaxJSON:
    """What was solved for as plain values."""
    return {"what": largest.what, "value": largest.value, "binding": [kind for kind, _ in largest.binding]}


def mode_notes(largest: "Largest | None") -> Iterator[str]:
    """What the answer of a mode does not say in numbers."""
    if largest is None:
        return
    if largest.limit:
        yield f"the limit of --max {largest.what} is not memory: {largest.limit}"
    if largest.here is None and largest.beyond is not None:
        yield _lacking(largest, largest.beyond)


def fit_cells(answer: "Answer | None") -> dict[str, Value]:
    """The answer as cells of a record."""
    found: dict[str, Value] = {}
    for name, fit in (("gpu", answer.gpu), ("budget", answer.budget)) if answer else ():
        if fit is not None:
            found[name] = fit.room.name if name == "gpu" else fit.room.capacity
            found |= {f"{name}_verdict": fit.verdict, f"{name}_margin_low": fit.margin.low}
            found[f"{name}_margin_high"] = fit.margin.high
    if answer is not None and answer.largest is not None:
        own = answer.largest
        found |= {"max": own.what, "max_value": own.value, "max_binding": " ".join(kind for kind, _ in own.binding)}
    return found
