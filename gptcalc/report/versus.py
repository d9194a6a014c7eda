"""`gptcalc memory --versus` as a document and as JSON: two plans, figure by figure and line by line."""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import groupby
from typing import NamedTuple, NotRequired

from typing_extensions import TypedDict

from gptcalc.catalog import Resolved
from gptcalc.ledger import compare
from gptcalc.ledger.memory import Memory
from gptcalc.ledger.parameters import parameters
from gptcalc.ledger.versus import Both, Line, Pair, versus
from gptcalc.report.compare import plain
from gptcalc.report.document import Column, Document, Table, Value
from gptcalc.report.memory import by_group
from gptcalc.report.memory_data import NOT_IN_IT, plan_json, rows
from gptcalc.report.timeline import KINDS
from gptcalc.units import format_bytes, format_count, format_fixed, format_signed

SCHEMA = "gptcalc.memory-versus/1"
NONE = "—"
#: Figures that a phase's rows have.
IN_PHASES = ("requested", "allocated", "reserved")


class Side(NamedTuple):
    """One of the two plans."""

    model: Resolved
    memory: Memory


class PairJSON(TypedDict):
    """An amount in bytes in both, null where one has no such thing."""

    first: int | None
    second: int | None
    difference: int


class VersusLineJSON(PairJSON):
    """A line of either; `state` is added, gone, changed or same. Each side's amounts add up to its requested total."""

    key: str
    label: str
    kind: str
    component: str
    op: str
    state: str


class BothJSON(TypedDict):
    """One mode; `moments` say when each one's requested peak is."""

    totals: dict[str, PairJSON]
    persistent: dict[str, PairJSON]
    phases: dict[str, dict[str, PairJSON]]
    moments: list[str | None]
    lines: list[VersusLineJSON]


class DiffersJSON(TypedDict):
    """A setting, or a hyperparameter of the model, that is not the same in both."""

    key: str
    first: object
    second: object


class SideJSON(TypedDict):
    """One of the plans: the model by name, what is changed of it, and all settings."""

    model: str
    changed: dict[str, object]
    plan: dict[str, object]
    notes: list[str]


class VersusJSON(TypedDict):
    """What `gptcalc memory --versus --format json` prints; `versus` is what was in the quotes."""

    schema: str
    command: str
    versus: str
    first: SideJSON
    second: SideJSON
    differs: list[DiffersJSON]
    training: NotRequired[BothJSON]
    inference: NotRequired[BothJSON]
    notes: list[str]


def both(first: Side, second: Side, depth: int, *, grouped: bool = False) -> tuple[Both, ...]:
    """Every mode of either plan, its lines at that depth; those of depth 1 `grouped` as the table of `memory` has them.

    What stands for a group is its first line, in the group's name.
    """
    sides = (first.memory.modes, second.memory.modes)
    found = [[rows(mode, depth) for mode in modes] for modes in sides]
    if grouped and depth == 1:
        found = [[by_group(lines) for lines in side] for side in found]
    return versus(*sides, (found[0], found[1]))


def differs(first: Side, second: Side) -> Iterator[tuple[str, object, object]]:
    """The model, its hyperparameters and the settings that are not the same, with both values."""
    if first.model.title != second.model.title:
        yield "model", first.model.title, second.model.title
    if first.model.family != second.model.family:
        models = [compare.Compared("", side.model, parameters(side.model.spec)) for side in (first, second)]
        for row in compare.hyperparameters(models):
            if compare.differ(row):
                one, other = (None if value is compare.MISSING else value for value in row.values)
                yield row.key, one, other
    plans = [_plan(side) for side in (first, second)]
    for key, value in plans[0].items():
        if plans[1][key] != value:
            yield key, value, plans[1][key]
    modes = [" and ".join(mode.name for mode in side.memory.modes) for side in (first, second)]
    if modes[0] != modes[1]:
        yield "mode", modes[0], modes[1]


def _plan(side: Side) -> dict[str, object]:
    return {**plan_json(side.model, side.memory.plan, "")["plan"]}


# --- As JSON ---------------------------------------------------------------------------------------------------------


def versus_json(first: Side, second: Side, depth: int, words: str, command: str) -> VersusJSON:
    """The difference as a dictionary of plain values; integers stay integers."""
    answer: VersusJSON = {
        "schema": SCHEMA,
        "command": command,
        "versus": words,
        "first": _side_json(first),
        "second": _side_json(second),
        "differs": [{"key": key, "first": one, "second": other} for key, one, other in differs(first, second)],
        "notes": [NOT_IN_IT],
    }
    for mode in both(first, second, depth):
        answer[mode.name] = {
            "totals": _pairs_json(mode.totals),
            "persistent": _pairs_json(mode.persistent),
            "phases": {name: _pairs_json(pairs) for name, pairs in mode.phases.items()},
            "moments": [None if one is None else f"{one.phase}: {one.moment}" for one in mode.moments],
            "lines": [_line_json(line) for line in mode.lines],
        }
    return answer


def _side_json(side: Side) -> SideJSON:
    model = side.model
    return {
        "model": model.preset.name if model.preset else model.name,
        "changed": {key: change._asdict() for key, change in model.changed.items()},
        "plan": _plan(side),
        "notes": [*model.notes, *dict.fromkeys(note for mode in side.memory.modes for note in mode.notes)],
    }


def _pair_json(pair: Pair) -> PairJSON:
    return {"first": pair.first, "second": pair.second, "difference": pair.difference}


def _pairs_json(pairs: Iterable[Pair]) -> dict[str, PairJSON]:
    return {pair.key: _pair_json(pair) for pair in pairs}


def _line_json(line: Line) -> VersusLineJSON:
    held, pair = line.held, line.pair
    return {
        "key": pair.key,
        "label": held.label,
        "kind": held.kind,
        "component": held.component,
        "op": held.op,
        "state": pair.state,
        **_pair_json(pair),
    }


# --- As a document ---------------------------------------------------------------------------------------------------


def versus_document(first: Side, second: Side, depth: int, words: str) -> Document:
    """For each mode the totals, the phases and the lines of both."""
    modes = both(first, second, depth, grouped=True)
    return Document(
        title=f"{_name(first)}: {'; '.join(map(_change, modes))}",
        heading=tuple(_heading(first, second, words)),
        tables=tuple(table for mode in modes for table in _section(mode, many=len(modes) > 1)),
        notes=tuple(_notes(first, second, depth)),
        data=lambda: _data(both(first, second, depth)),
    )


def _name(side: Side) -> str:
    return f"{side.model.title}, changed" if side.model.changed else side.model.title


def _change(mode: Both) -> str:
    """What becomes of the peak: `training 7.78 GiB → 5.10 GiB at the peak (−2,877,412,864 bytes requested, −34.4%)`."""
    total = mode.total()
    if total.first is None or total.second is None:
        own, which = (total.second, "second") if total.first is None else (total.first, "first")
        return f"{mode.name} {format_bytes(own or 0)} at the peak, in the {which} alone"
    if not total.difference:
        return f"{mode.name} {format_bytes(total.first)} at the peak of both"
    change = f"{format_bytes(total.first)} → {format_bytes(total.second)}"
    return f"{mode.name} {change} at the peak ({format_signed(total.difference)} bytes requested{_percent(total)})"


def _percent(pair: Pair) -> str:
    if not pair.first:
        return ""
    share = format_fixed(Fraction(pair.difference * 100, pair.first), 1)
    return f", {share if share.startswith('−') else f'+{share}'}%"


def _heading(first: Side, second: Side, words: str) -> Iterator[str]:
    if words:
        yield f"second: the same with {words}"
    found = [f"{key} {plain(one)} → {plain(other)}" for key, one, other in differs(first, second)]
    yield f"differs: {', '.join(found)}" if found else "nothing that was asked for differs"


def _columns(what: str, *, state: bool = False) -> tuple[Column, ...]:
    columns = (
        Column("what", what, wraps=True, least=14),
        Column("first", "first", "amount", block=1),
        Column("second", "second", "amount", block=2),
        Column("difference", "difference", "amount", block=3),
    )
    ends = (Column("size", "", "amount", drop=2, block=3), *((Column("state", "", drop=1, block=3),) if state else ()))
    return (*columns, *ends)


def _row(what: str, pair: Pair, state: str | None = None) -> tuple[Value, ...]:
    amounts = [NONE if amount is None else format_count(amount) for amount in (pair.first, pair.second)]
    row = (what, *amounts, _signed(pair), _size(pair.difference))
    return row if state is None else (*row, state)


def _signed(pair: Pair) -> str:
    return format_signed(pair.difference) if pair.difference else "0"


def _size(difference: int) -> str:
    sign = "−" if difference < 0 else "+"
    return f"{sign}{format_bytes(abs(difference))}" if difference else ""


def _section(mode: Both, *, many: bool) -> Iterator[Table]:
    title = f"{mode.name[0].upper()}{mode.name[1:]}" if many else ""
    found = [_row(f"{pair.key}, at most", pair) for pair in mode.totals]
    found += [_row(f"persistent, {pair.key}", pair) for pair in mode.persistent if pair.key in IN_PHASES[:2]]
    yield Table(title, _columns("bytes"), tuple(found))
    phases: list[tuple[Value, ...]] = []
    for name, pairs in mode.phases.items():
        phases += [_row(f"{name}, {pair.key}", pair) for pair in pairs if pair.key in IN_PHASES]
    yield Table("", _columns("peaks by phase"), tuple(phases))
    yield _lines_table(mode)


def _lines_table(mode: Both) -> Table:
    """Kinds, beneath each the lines that differ, and all that do not in one."""
    found: list[tuple[Value, ...]] = []
    for kind, group in groupby(mode.lines, key=lambda line: line.kind):
        lines = list(group)
        label = f"{'saved ' if kind == 'activations' and mode.name == 'training' else ''}{KINDS[kind][1]}"
        found.append(_row(label, _sum(lines), ""))
        same = [line for line in lines if line.pair.state == "same"]
        others = [line for line in lines if line.pair.state != "same"]
        found += [_row(f"  {line.held.label}", line.pair, line.pair.state) for line in others]
        if len(same) == 1:
            found.append(_row(f"  {same[0].held.label}", same[0].pair, "same"))
        elif same:
            found.append(_row(f"  {format_count(len(same))} others", _sum(same), "same"))
    return Table("", _columns("alive at the peak", state=True), tuple(found), (_row("requested", mode.total(), ""),))


def _sum(lines: Sequence[Line]) -> Pair:
    """The lines of one kind together; none on a side that has none of them."""
    sides: list[int | None] = []
    for amounts in ([line.pair.first for line in lines], [line.pair.second for line in lines]):
        own = [amount for amount in amounts if amount is not None]
        sides.append(sum(own) if own else None)
    return Pair("", *sides)


def _notes(first: Side, second: Side, depth: int) -> Iterator[str]:
    notes = [dict.fromkeys(note for mode in side.memory.modes for note in mode.notes) for side in (first, second)]
    for note in dict.fromkeys([*notes[0], *notes[1]]):
        where = [name for name, own in zip(("first", "second"), notes, strict=True) if note in own]
        yield f"Note: {note}" if len(where) == 2 else f"Note on the {where[0]}: {note}"
    yield "Each side has its lines at its own requested peak, which may be at another moment than the other's."
    yield NOT_IN_IT
    deeper = "" if depth == 3 else "--depth 3 lists every tensor of both, "
    yield f"Next: {deeper}--format json or csv has every line."


def _data(modes: Sequence[Both]) -> Table:
    """One record a figure or line of either."""
    columns = ("mode", "section", "key", "label", "kind", "component", "op", "first", "second", "difference", "state")
    found: list[tuple[Value, ...]] = []

    def add(mode: Both, section: str, pair: Pair, words: tuple[str, str, str, str] = ("", "", "", "")) -> None:
        found.append((mode.name, section, pair.key, *words, pair.first, pair.second, pair.difference, pair.state))

    for mode in modes:
        for pair in mode.totals:
            add(mode, "totals", pair)
        for pair in mode.persistent:
            add(mode, "persistent", pair)
        for name, pairs in mode.phases.items():
            for pair in pairs:
                add(mode, "phases", pair._replace(key=f"{name}.{pair.key}"))
        for line in mode.lines:
            held = line.held
            add(mode, "lines", line.pair, (held.label, held.kind, held.component, held.op))
    return Table("", tuple(Column(key, key) for key in columns), tuple(found))
