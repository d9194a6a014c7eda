"""`gptcalc bench --against`: what changed between two runs, as a document and as JSON."""

from collections import Counter
from collections.abc import Iterator

from typing_extensions import TypedDict

from gptcalc.ledger.profile import differences
from gptcalc.ledger.timing import MARKS, Change, Comparison
from gptcalc.report.bench_data import raw, result_key
from gptcalc.report.bench_points import layout, percent, point_table, when
from gptcalc.report.document import Column, Document, Table, Value
from gptcalc.units import format_duration

SAYS = {"fingerprint": "card", "units": "SMs or cores", "cache_bytes": "cache", "max_clock_mhz": "highest SM clock"}


class ChangeJSON(TypedDict):
    """One number in both runs; `ratio` is after over before, with its 95 % interval."""

    key: str
    case: str
    state: str
    dtype: str
    backend: str
    shape: dict[str, int]
    before_ns: int
    after_ns: int
    ratio: float
    low: float
    high: float
    verdict: str
    regressed: bool


class BenchAgainstJSON(TypedDict):
    """What `gptcalc bench --against FILE --format json` prints; `differs` says how the machines differ."""

    schema: str
    before: str
    after: str
    differs: list[str]
    threshold: float
    regressions: int
    only_before: int
    only_after: int
    changes: list[ChangeJSON]


def comparison_json(comparison: Comparison, threshold: float) -> BenchAgainstJSON:
    """The comparison as a dictionary of plain values; `threshold` 0.05 is five percent."""
    changes = [_change_json(change, threshold) for change in worst_first(comparison)]
    return {
        "schema": "gptcalc.bench-against/1",
        "before": comparison.before.started,
        "after": comparison.after.started,
        "differs": _differs(comparison),
        "threshold": threshold,
        "regressions": sum(change["regressed"] for change in changes),
        "only_before": comparison.only_before,
        "only_after": comparison.only_after,
        "changes": changes,
    }


def worst_first(comparison: Comparison) -> list[Change]:
    """The changes, what became slowest first."""
    return sorted(comparison.changes, key=lambda change: -change.ratio.estimate)


def _differs(comparison: Comparison) -> list[str]:
    """In words, all in which the machine or its software is another one."""
    return [
        f"{SAYS.get(field, field.replace('_', ' '))} {_said(then)} → {_said(now)}"
        for _, field, then, now in differences(comparison.before, comparison.after)
    ]


def _said(value: object) -> str:
    return "unknown" if value is None else str(value)


def _change_json(change: Change, threshold: float) -> ChangeJSON:
    point = change.after.point
    return {
        "key": result_key(change.after),
        "case": point.case,
        "state": change.after.state,
        "dtype": point.dtype,
        "backend": point.backend,
        "shape": point.shape.model_dump(),
        "before_ns": round(change.before.time.estimate),
        "after_ns": round(change.after.time.estimate),
        "ratio": change.ratio.estimate,
        "low": change.ratio.low,
        "high": change.ratio.high,
        "verdict": change.verdict,
        "regressed": change.regressed(threshold),
    }


def comparison_document(comparison: Comparison, threshold: float) -> Document:
    """A row for each number that both runs have, what became slowest first; `threshold` 0.05 is five percent."""
    counts = Counter(change.verdict for change in comparison.changes)
    regressions = sum(change.regressed(threshold) for change in comparison.changes)
    said = "no regression" if not regressions else f"{regressions} regression{'s' if regressions > 1 else ''}"
    title = f"{counts['slower']} slower, {counts['faster']} faster, {counts['same']} the same; {said} beyond"
    return Document(
        title=f"{title} {threshold * 100:g}%",
        heading=tuple(_heading(comparison)),
        tables=(_change_table(comparison, threshold),),
        notes=tuple(_notes(comparison, threshold)),
        data=lambda: _data_table(comparison, threshold),
    )


def _heading(comparison: Comparison) -> Iterator[str]:
    before, after = comparison.before, comparison.after
    differs = _differs(comparison)
    if differs:
        yield f"NOT THE SAME MACHINE OR SOFTWARE: {'; '.join(differs)}"
    else:
        yield f"{after.device.name}, the same software"
    yield f"before: {when(before)} · {before.command}"
    yield f"after: {when(after)} · {after.command}"
    constants = layout([change.after.point for change in comparison.changes]).constants
    if constants:
        yield f"everywhere: {' · '.join(constants)}"


_COLUMNS = (
    Column("state", "state"),
    Column("before", "before", "amount", drop=3),
    Column("after", "after", "amount", drop=2),
    Column("change", "change", "amount"),
    Column("interval", "±", "amount", drop=1),
    Column("verdict", "verdict"),
    Column("marks", ""),
)


def _change_table(comparison: Comparison, threshold: float) -> Table:
    rows = [(change.after.point, _cells(change, threshold)) for change in worst_first(comparison)]
    shape = layout([point for point, _ in rows])._replace(sections=False)
    return point_table("", shape, _COLUMNS, rows)


def _cells(change: Change, threshold: float) -> tuple[Value, ...]:
    estimate, _, high = change.ratio
    marks = [mark.sign for mark in MARKS if mark in (*change.before.marks, *change.after.marks)]
    return (
        change.after.state,
        format_duration(change.before.time.estimate),
        format_duration(change.after.time.estimate),
        percent(estimate - 1, 2, signed=True),
        percent(high - estimate, 2),
        "REGRESSED" if change.regressed(threshold) else change.verdict,
        "".join(marks),
    )


def _notes(comparison: Comparison, threshold: float) -> Iterator[str]:
    results = [result for change in comparison.changes for result in (change.before, change.after)]
    for mark in MARKS:
        if any(mark in result.marks for result in results):
            yield f"{mark.sign} {mark.name} (before or after): {mark.remedy}."
    yield (
        "±: of the change, in percent points, at 95%; it covers what differs between restarts. slower, faster: all of"
        f" that lies on one side of 0; REGRESSED: slower, and by more than {threshold * 100:g}%; same: the two runs"
        " cannot tell."
    )
    yield "By chance alone, about 1 number in 20 that did not change is called slower or faster."
    if comparison.only_before or comparison.only_after:
        yield f"Not compared: {comparison.only_before} numbers only before, {comparison.only_after} only after."


def _data_table(comparison: Comparison, threshold: float) -> Table:
    keys = tuple(key for key in ChangeJSON.__annotations__ if key != "shape")
    changes = [_change_json(change, threshold) for change in worst_first(comparison)]
    rows = tuple(tuple(raw(dict(change)[key]) for key in keys) for change in changes)
    return Table("", tuple(Column(key, key) for key in keys), rows)
