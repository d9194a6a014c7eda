"""`gptcalc memory --scope embedding`: the tables and vectors of the embedding stage, as a document and as JSON."""

from collections.abc import Iterator, Sequence
from fractions import Fraction

from gptcalc.catalog import Resolved
from gptcalc.ledger.claims import Judgement, judge
from gptcalc.ledger.components import UNSTORED_POSITIONS
from gptcalc.ledger.embedding import DTYPES, EmbeddingStage, StageLine
from gptcalc.ledger.parameters import parameters
from gptcalc.report.claims import judgement_json
from gptcalc.report.count import heading as model_heading
from gptcalc.report.document import Column, Document, Table, Value
from gptcalc.report.memory import by_default
from gptcalc.report.memory_data import EmbeddingJSON, MemoryJSON, StageLineJSON, beyond_context, plan_json
from gptcalc.units import bytes_of, format_bytes, format_count, format_fixed, short_count

#: What a claim must speak of to belong in this report.
CLAIMED = ("embedding", "positions", "embedding + positions")
NOT_IN_IT = (
    "Not in these numbers: gradients and optimizer states of the tables, and what is alive beside the vectors while"
    " the stage runs (token rows, position rows, a dropout mask)."
)
NEXT = "Next: gptcalc memory without --scope shows the whole model, --depth 3 with it every tensor of the stage."

_TABLE = (
    Column("what", "embedding stage", wraps=True, least=16),
    Column("formula", "formula", drop=5),
    Column("numbers", "in numbers", wraps=True, drop=6),
    Column("elements", "elements", "count", drop=2),
    *(Column(dtype, f"{dtype} bytes", "count", drop=drop) for dtype, drop in zip(DTYPES, (0, 1, 3), strict=True)),
)


def embedding_document(
    model: Resolved, stage: EmbeddingStage, defaulted: Sequence[str] = (), *, explain: bool = False
) -> Document:
    """Tables and vectors by dtype, their sizes, and what was claimed about them."""
    tables = [_stage_table(model, stage), _size_table(stage)]
    if explain:
        tables.append(_why_table(model, stage))
    return Document(
        title=_title(model, stage),
        heading=tuple(_heading(model, stage, defaulted)),
        tables=tuple(tables),
        notes=tuple(_notes(model, stage)),
        data=lambda: _data_table(stage),
    )


def _title(model: Resolved, stage: EmbeddingStage) -> str:
    name = f"{model.title}, changed" if model.changed else model.title
    count, share = stage.parameters, format_fixed(stage.share * 100, 2)
    words = f"{format_count(count)} parameters ({short_count(count)}), {share}% of the model"
    return f"{name}, embedding stage: {words}"


def _heading(model: Resolved, stage: EmbeddingStage, defaulted: Sequence[str]) -> Iterator[str]:
    dims, *rest = model_heading(model, parameters(model.spec))
    yield f"{dims} · B={format_count(stage.plan.batch)} · T={format_count(stage.plan.seq)}"
    yield from rest
    if defaulted:
        yield by_default(defaulted)


def _positions(model: Resolved) -> str:
    return model.family.positions


def _stage_table(model: Resolved, stage: EmbeddingStage) -> Table:
    tables: list[tuple[Value, ...]] = [_cells(line) for line in stage.lines if line.kind == "weights"]
    if _positions(model) in UNSTORED_POSITIONS:
        tables.append((f"position table ({_positions(model)})", "–", "", 0, *(0 for _ in DTYPES)))
    vectors = [_cells(line) for line in stage.lines if line.kind != "weights"]
    elements = sum(line.elements for line in stage.lines)
    footer: tuple[Value, ...] = ("together", "", "", elements, *(stage.bytes_in(dtype) for dtype in DTYPES))
    return Table("", _TABLE, (*tables, *vectors), (footer,))


def _cells(line: StageLine) -> tuple[Value, ...]:
    formula = line.formula
    return (line.label, formula.letters, formula.numbers, line.elements, *(line.bytes_in(dtype) for dtype in DTYPES))


def _size_table(stage: EmbeddingStage) -> Table:
    """The same in binary units, a row for each dtype."""
    found: list[tuple[Value, ...]] = [
        (dtype, *(format_bytes(stage.bytes_in(dtype, kind)) for kind in ("weights", "activations", None)))
        for dtype in DTYPES
    ]
    columns = (
        Column("dtype", "in"),
        Column("tables", "tables", "amount"),
        Column("activations", "activations", "amount"),
        Column("together", "together", "amount"),
    )
    return Table("", columns, tuple(found))


def _why_table(model: Resolved, stage: EmbeddingStage) -> Table:
    columns = (
        Column("what", "what"),
        Column("formula", "formula"),
        Column("why", "why", wraps=True),
        Column("source", "source", wraps=True, least=14),
    )
    found: list[tuple[Value, ...]] = [(line.label, line.formula.letters, line.why, line.source) for line in stage.lines]
    if _positions(model) in UNSTORED_POSITIONS:
        found.insert(1, (f"position table ({_positions(model)})", "–", *UNSTORED_POSITIONS[_positions(model)]))
    return Table("Why", columns, tuple(found))


def _notes(model: Resolved, stage: EmbeddingStage) -> Iterator[str]:
    for note in (*model.notes, *beyond_context(model, stage.plan)):
        yield f"Note: {note}"
    for judged in claims(model):
        yield f"Claimed: {_claimed(judged)}"
    yield NOT_IN_IT
    yield NEXT


def claims(model: Resolved) -> list[Judgement]:
    """What was published about the preset's tables, judged; nothing where the model is another by now."""
    if model.preset is None or {"d_model", "n_vocab", "n_ctx", "positions"} & {*model.changed, *model.followed}:
        return []
    return [judge(model.preset, claim) for claim in model.preset.claims if claim.of in CLAIMED]


def _claimed(judged: Judgement) -> str:
    """The number as printed, who printed it, and the verdict with its reason."""
    claim, computed = judged.claim, judged.computed
    truth = format_count(computed) if isinstance(computed, int) else format_fixed(computed, 2)
    reason = f" ({judged.reading})" if judged.reading else ""
    return f"{claim.text} {claim.what} ({claim.source}): {judged.verdict}{reason}; computed {truth}."


def embedding_json(model: Resolved, stage: EmbeddingStage, command: str = "") -> MemoryJSON:
    """The stage as a dictionary of plain values."""
    answer = plan_json(model, stage.plan, command)
    dtype = stage.plan.dtype
    found: EmbeddingJSON = {
        "positions": _positions(model),
        "parameters": stage.parameters,
        "share": float(stage.share),
        "totals": {
            "requested": stage.bytes_in(dtype),
            "bytes": {dtype: stage.bytes_in(dtype) for dtype in DTYPES},
        },
        "lines": [_line_json(line, stage) for line in stage.lines],
        "claims": [judgement_json(judged) for judged in claims(model)],
    }
    answer["embedding"] = found
    answer["notes"] += [*beyond_context(model, stage.plan), NOT_IN_IT]
    return answer


def _line_json(line: StageLine, stage: EmbeddingStage) -> StageLineJSON:
    dtype = stage.plan.dtype
    formula = line.formula.times(bytes_of(1, dtype))
    return {
        "key": line.key,
        "label": line.label,
        "kind": line.kind,
        "component": line.component,
        "elements": line.elements,
        "amount": formula.value,
        "unit": "bytes",
        "formula": formula.letters,
        "numbers": formula.numbers,
        "bytes": {dtype: line.bytes_in(dtype) for dtype in DTYPES},
        "share": float(Fraction(formula.value, stage.bytes_in(dtype))),
        "why": line.why,
        "source": line.source,
    }


def _data_table(stage: EmbeddingStage) -> Table:
    """One record a line, its bytes in every dtype."""
    keys = ("key", "label", "kind", "component", "formula", "numbers", "elements", "amount", "why", "source")
    columns = (Column("mode", "mode"), *(Column(key, key) for key in keys), *(Column(dtype, dtype) for dtype in DTYPES))
    found: list[tuple[Value, ...]] = []
    for line in (_line_json(line, stage) for line in stage.lines):
        own: dict[str, object] = {**line}
        cells = (value if isinstance(value := own[key], str | int) else str(value) for key in keys)
        found.append(("embedding", *cells, *(line["bytes"][dtype] for dtype in DTYPES)))
    return Table("", columns, tuple(found))
