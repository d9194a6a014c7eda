"""`gptcalc compare` as a document and as JSON: models side by side."""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import groupby
from typing import NotRequired

from typing_extensions import TypedDict

from gptcalc.ledger import compare
from gptcalc.ledger.compare import MISSING, Amounts, Compared, Fields
from gptcalc.ledger.reasons import COMPILED
from gptcalc.plan import Plan
from gptcalc.report.count_data import heading_notes
from gptcalc.report.document import Column, Document, Table, Value
from gptcalc.units import format_bytes, format_count, format_fixed, format_significant

NONE = "—"
#: Ratios below it get three digits that are not zeros.
FINE = Fraction(1, 10)


class ComparedJSON(TypedDict):
    """One of the models; `refused` says why it has no memory where that was asked for."""

    name: str
    title: str
    source: str
    model_type: str
    changed: dict[str, object]
    hyperparameters: dict[str, object]
    totals: dict[str, int]
    notes: list[str]
    refused: NotRequired[str]


class FieldsJSON(TypedDict):
    """A hyperparameter that differs: a value for each model, null where its family has no such field."""

    key: str
    values: list[object]


class AmountsJSON(TypedDict):
    """An amount of each model, null where it has none; `ratios` are over the first."""

    key: str
    label: str
    unit: str
    amounts: list[int | None]
    ratios: list[float | None]


class CompareJSON(TypedDict):
    """What `gptcalc compare --format json` prints; every list of values is in the order of `models`."""

    schema: str
    command: str
    models: list[ComparedJSON]
    hyperparameters: list[FieldsJSON]
    components: list[AmountsJSON]
    totals: list[AmountsJSON]
    memory: NotRequired[list[AmountsJSON]]
    settings: NotRequired[dict[str, object]]
    notes: list[str]


def compare_json(models: Sequence[Compared], command: str) -> CompareJSON:
    """The comparison as a dictionary of plain values; integers stay integers."""
    answer: CompareJSON = {
        "schema": "gptcalc.compare/1",
        "command": command,
        "models": [_model_json(each) for each in models],
        "hyperparameters": [
            {"key": row.key, "values": [None if value is MISSING else value for value in row.values]}
            for row in compare.hyperparameters(models)
            if compare.differ(row)
        ],
        "components": [_amounts_json(row) for row in compare.by_component(models)],
        "totals": [_amounts_json(row) for row in compare.totals(models)],
        "notes": [*_refusals(models)],
    }
    if plan := _plan(models):
        answer["memory"] = [_amounts_json(row) for row in compare.memory(models)]
        answer["settings"] = plan.model_dump(exclude={"seq"})
    return answer


def _model_json(each: Compared) -> ComparedJSON:
    model = each.model
    answer: ComparedJSON = {
        "name": each.name,
        "title": model.title,
        "source": model.preset.source if model.preset else model.name,
        "model_type": model.family.model_type,
        "changed": {key: change._asdict() for key, change in model.changed.items()},
        "hyperparameters": model.family.resolved(),
        "totals": each.parameters.totals._asdict(),
        "notes": [*heading_notes(model), *model.notes],
    }
    if each.refused:
        answer["refused"] = each.refused
    return answer


def _amounts_json(row: Amounts) -> AmountsJSON:
    return {
        "key": row.key,
        "label": row.label,
        "unit": row.unit,
        "amounts": list(row.amounts),
        "ratios": [None if ratio is None else float(ratio) for ratio in row.ratios],
    }


def compare_document(models: Sequence[Compared]) -> Document:
    """What differs first, then what each stores, with ratios to the first, the totals, and memory where asked for."""
    fields = compare.hyperparameters(models)
    different = [row for row in fields if compare.differ(row)]
    tables = [_fields_table(models, different)] if different else []
    tables += [_component_table(models), _amounts_table("Totals", "total", models, compare.totals(models))]
    plan = _plan(models)
    if plan:
        tables.append(_memory_table(models, plan))
    notes = [_same(row for row in fields if not compare.differ(row)), *_refusals(models)]
    notes += [f"Note on {each.name}: {note}" for each in models for note in each.model.notes]
    if plan:
        notes.append("Bytes are those requested at the peak; --format json and csv have every digit.")
    notes.append(f"Ratios are to {models[0].name}. Next: gptcalc count MODEL, gptcalc memory MODEL.")
    if not plan:
        notes[-1] += " --memory compares what a step takes."
    return Document(
        title=" against ".join(each.name for each in models),
        heading=(*_heading(models), *(() if different else ("no hyperparameter differs",))),
        tables=tuple(tables),
        notes=tuple(filter(None, notes)),
        data=lambda: _data_table(models, different, with_memory=plan is not None),
    )


def _plan(models: Sequence[Compared]) -> Plan | None:
    """The run that memory speaks of: the same for all but for the sequence."""
    return next((each.memory.plan for each in models if each.memory), None)


def _heading(models: Sequence[Compared]) -> Iterable[str]:
    for each in models:
        model = each.model
        source = f"; {model.preset.source}" if model.preset else ""
        yield f"{each.name}: {model.title}, model type {model.family.model_type}{source}"
        yield from (f"  {note}" for note in heading_notes(model))


def _refusals(models: Sequence[Compared]) -> list[str]:
    """Why a model has no memory, or not all of it."""
    found = [f"No memory of {each.name}: {each.refused}" for each in models if each.refused]
    if (plan := _plan(models)) is not None and plan.compile:
        found.append(COMPILED)
    partly = [each for each in models if each.memory and each.model.spec.unknown_ops]
    return found + [
        f"Of {each.name} weights, gradients, optimizer states and KV cache alone: the ops of"
        f" {', '.join(each.model.spec.unknown_ops)} are not modelled"
        for each in partly
    ]


def _columns(title: str, models: Sequence[Compared], *, ratios: bool) -> tuple[Column, ...]:
    """A column for each model, and behind all but the first its ratio, which stays beside it."""
    columns = [Column("what", title, wraps=True)]
    for place, each in enumerate(models):
        columns.append(Column(each.name, _title(each.name), "amount", wraps=True, block=place + 1))
        if ratios and place:
            columns.append(Column(f"{each.name} ratio", "ratio", "amount", block=place + 1))
    return tuple(columns)


def _title(name: str) -> str:
    """A name that breaks between its changes."""
    own, colon, changes = name.partition(":")
    return f"{own}{colon} {changes.replace(',', ', ')}" if changes else name


def _row(label: str, texts: Sequence[str], ratios: Sequence[Fraction | None] | None) -> tuple[Value, ...]:
    cells: list[Value] = [label]
    for place, text in enumerate(texts):
        cells.append(text)
        if ratios is not None and place:
            cells.append(_ratio(ratios[place]))
    return tuple(cells)


def _ratio(value: Fraction | None) -> str:
    if not value:
        return NONE
    if value < FINE:
        return f"×{format_significant(float(value), 3)}"
    return f"×{format_fixed(value, 2)}"


def _fields_table(models: Sequence[Compared], rows: Sequence[Fields]) -> Table:
    columns = _columns("differs", models, ratios=False)
    return Table(
        "Hyperparameters", columns, tuple(_row(row.key, [plain(value) for value in row.values], None) for row in rows)
    )


def _component_table(models: Sequence[Compared]) -> Table:
    rows = []
    for row in compare.by_group(models):
        texts = [
            "tied" if amount == 0 and compare.tied(each, row.key) else _count(amount)
            for each, amount in zip(models, row.amounts, strict=True)
        ]
        rows.append(_row(row.label, texts, row.ratios))
    stored = compare.totals(models)[0]
    footer = _row("stored", [_count(amount) for amount in stored.amounts], stored.ratios)
    return _side_by_side("Parameters", "component", models, rows, (footer,))


def _amounts_table(title: str, what: str, models: Sequence[Compared], rows: Iterable[Amounts]) -> Table:
    lines = [_row(row.label, [_count(amount) for amount in row.amounts], row.ratios) for row in rows]
    return _side_by_side(title, what, models, lines)


def _memory_table(models: Sequence[Compared], plan: Plan) -> Table:
    rows = []
    for row in compare.memory(models):
        label = row.label if row.key.endswith((".peak", "seq")) else f"  {row.label}"
        text = format_bytes if row.unit == "bytes" else format_count
        rows.append(_row(label, [NONE if one is None else text(one) for one in row.amounts], row.ratios))
    title = (
        f"Memory on one device: batch {plan.batch:,}, {plan.precision}, {plan.optimizer} {plan.optimizer_impl},"
        f" attention {plan.attention}, {plan.target}, torch {plan.torch}"
    )
    return _side_by_side(title, "at the peak", models, rows)


def _side_by_side(
    title: str,
    what: str,
    models: Sequence[Compared],
    rows: Sequence[tuple[Value, ...]],
    footer: tuple[tuple[Value, ...], ...] = (),
) -> Table:
    """A table of amounts, which stay whole where the models' names break."""
    columns = _columns(what, models, ratios=True)
    widths = [max(len(str(row[place])) for row in (*rows, *footer)) for place in range(len(columns))]
    columns = columns[:1] + tuple(
        column._replace(least=width) for column, width in zip(columns[1:], widths[1:], strict=True)
    )
    return Table(title, columns, tuple(rows), footer)


def _count(amount: int | None) -> str:
    return NONE if amount is None else format_count(amount)


def _same(rows: Iterable[Fields]) -> str:
    texts = [f"{row.key} {plain(row.values[0])}" for row in rows if row.values[0] not in (None, MISSING)]
    return f"The same in all: {', '.join(texts)}." if texts else ""


def plain(value: object) -> str:
    """A hyperparameter's value in words; equal neighbours in a list are counted."""
    if value is None or value is MISSING:
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return format_count(int(value))
    if isinstance(value, list | tuple):
        runs = [(plain(one), len(list(same))) for one, same in groupby(value)]
        return ", ".join(f"{count}×{one}" if count > 1 else one for one, count in runs) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(one)}" for key, one in value.items())
    return str(value)


def _data_table(models: Sequence[Compared], different: Sequence[Fields], *, with_memory: bool) -> Table:
    """One record a row of the comparison: which part, which row, its unit, a value for each model."""
    columns = ("section", "key", "unit", *(each.name for each in models))
    rows: list[tuple[Value, ...]] = [
        ("hyperparameters", row.key, "", *("" if value in (None, MISSING) else _bare(value) for value in row.values))
        for row in different
    ]
    sections = [("components", compare.by_component(models)), ("totals", compare.totals(models))]
    if with_memory:
        sections.append(("memory", compare.memory(models)))
    rows += [(section, row.key, row.unit, *row.amounts) for section, amounts in sections for row in amounts]
    return Table("", tuple(Column(key, key) for key in columns), tuple(rows))


def _bare(value: object) -> Value:
    if isinstance(value, float):
        return repr(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else plain(value)
