"""`gptcalc presets` as a document and as JSON: the list, and one preset whole."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from typing_extensions import TypedDict

from gptcalc.catalog import Preset, Resolved
from gptcalc.ledger.claims import Judgement
from gptcalc.ledger.parameters import Totals
from gptcalc.report.claims import JudgementJSON, claim_notes, claims_table, judgement_json
from gptcalc.report.count_data import estimate
from gptcalc.report.document import Column, Document, Table, Value
from gptcalc.units import format_count, short_count


class Entry(NamedTuple):
    """A preset with what the list shows of it."""

    preset: Preset
    model: Resolved
    totals: Totals


class EntryJSON(TypedDict):
    """One preset in the list."""

    family: str
    name: str
    title: str
    aliases: list[str]
    model_type: str
    d_model: int
    n_layers: int
    n_heads: int
    n_ctx: int
    stored: int
    estimated: bool


class PresetsJSON(TypedDict):
    """What `gptcalc presets --format json` prints."""

    schema: str
    presets: list[EntryJSON]


class PresetJSON(TypedDict):
    """What `gptcalc presets show NAME --format json` prints."""

    schema: str
    name: str
    title: str
    family: str
    aliases: list[str]
    source: str
    estimated: str
    see: list[str]
    notes: list[str]
    hyperparameters: dict[str, object]
    totals: dict[str, int]
    claims: list[JudgementJSON]


def presets_json(entries: Sequence[Entry]) -> PresetsJSON:
    """The list as a dictionary of plain values."""
    return {"schema": "gptcalc.presets/1", "presets": [_entry_json(entry) for entry in entries]}


def _entry_json(entry: Entry) -> EntryJSON:
    family = entry.model.family
    return {
        "family": entry.preset.family,
        "name": entry.preset.name,
        "title": entry.preset.title,
        "aliases": list(entry.preset.aliases),
        "model_type": entry.preset.model_type,
        "d_model": family.d_model,
        "n_layers": family.n_layers,
        "n_heads": family.n_heads,
        "n_ctx": family.n_ctx,
        "stored": entry.totals.stored,
        "estimated": bool(entry.preset.estimated),
    }


def presets_document(entries: Sequence[Entry]) -> Document:
    """A row for each preset, under the name of its family."""
    columns = (
        Column("family", "family"),
        Column("name", "name", folded=True),
        Column("aliases", "aliases", wraps=True, least=48, drop=9),
        Column("model_type", "model_type", drop=8),
        Column("d_model", "d_model", "count", drop=4),
        Column("n_layers", "layers", "count", drop=6),
        Column("n_heads", "heads", "count", drop=7),
        Column("n_ctx", "context", "count", drop=5),
        Column("stored", "stored", "count"),
    )
    rows = [_row(entry) for entry in entries]
    grouped: list[tuple[Value, ...]] = []
    for family, group in groupby(rows, lambda row: row[0]):
        grouped.append((family, *(None for _ in columns[2:])))
        grouped += [(f"  {row[1]}", *row[2:]) for row in group]
    notes = (
        *(["est.: an estimate, the size was never published."] if any(e.preset.estimated for e in entries) else []),
        "Next: gptcalc presets show NAME, gptcalc count NAME, gptcalc check NAME.",
    )
    return Document(
        "1 preset" if len(rows) == 1 else f"{len(rows)} presets",
        (),
        (Table("", columns[1:], tuple(grouped)),),
        notes,
        lambda: Table("", columns, tuple(rows)),
    )


def _row(entry: Entry) -> tuple[Value, ...]:
    found: Mapping[str, object] = _entry_json(entry)
    name = f"{entry.preset.name} (est.)" if entry.preset.estimated else entry.preset.name
    dims = tuple(int(str(found[key])) for key in ("d_model", "n_layers", "n_heads", "n_ctx", "stored"))
    return (entry.preset.family, name, ", ".join(entry.preset.aliases), entry.preset.model_type, *dims)


def preset_json(entry: Entry, judged: Sequence[Judgement]) -> PresetJSON:
    """One preset as a dictionary of plain values."""
    preset = entry.preset
    return {
        "schema": "gptcalc.presets-show/1",
        "name": preset.name,
        "title": preset.title,
        "family": preset.family,
        "aliases": list(preset.aliases),
        "source": preset.source,
        "estimated": preset.estimated,
        "see": list(preset.see),
        "notes": list(preset.notes),
        "hyperparameters": dict(preset.hyperparameters),
        "totals": entry.totals._asdict(),
        "claims": [judgement_json(found) for found in judged],
    }


def preset_document(entry: Entry, judged: Sequence[Judgement]) -> Document:
    """Hyperparameters as published, the source, and every claim with its verdict."""
    preset, stored = entry.preset, entry.totals.stored
    heading = [f"also: {', '.join(preset.aliases)}"] if preset.aliases else []
    heading.append(f"source: {preset.source}")
    if preset.estimated:
        heading.append(estimate(preset))
    columns = (Column("field", "hyperparameter"), Column("value", "value"))
    fields = Table("", columns, tuple((key, _plain(value)) for key, value in preset.hyperparameters.items()))
    tables = [fields, claims_table(judged, "Claims")] if judged else [fields]
    notes = (*claim_notes(judged), *(f"Note: {note}" for note in preset.notes))
    title = f"{preset.title}: {format_count(stored)} parameters ({short_count(stored)})"
    return Document(title, tuple(heading), tuple(tables), notes, lambda: fields)


def _plain(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
