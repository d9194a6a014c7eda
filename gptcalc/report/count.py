"""`gptcalc count` as a document: lines, the bridge between the totals, what the number means, and why."""

from collections.abc import Iterable, Iterator
from fractions import Fraction

from gptcalc.catalog import Resolved
from gptcalc.formula import Formula
from gptcalc.ledger.cache import Cache
from gptcalc.ledger.components import GROUPS, UNSTORED_POSITIONS
from gptcalc.ledger.evidence import Check
from gptcalc.ledger.parameters import Line, Parameters
from gptcalc.report.check import check_reasons, evidence_tables
from gptcalc.report.count_data import NOT_COUNTED, CacheLineJSON, cache_json, count_lines, heading_notes, sections
from gptcalc.report.document import Column, Document, Table, Value
from gptcalc.units import format_bytes, format_count, format_fixed, short_count

NEXT = "Next: --explain says why each row has its size, --depth 3 lists every tensor, --check asks PyTorch."

#: Groups that the printed table shows only where a model has them.
OPTIONAL_GROUPS = ("embedding projection", "latent projections", "linear attention", "router", "gate", "sinks")


def count_document(  # noqa: PLR0913  what a report shows
    model: Resolved, count: Parameters, kept: Cache, depth: int, *, explain: bool = False, check: Check | None = None
) -> Document:
    """The ledger as tables: lines, the bridge between the totals, what the number means, why, and who checked it."""
    stored = count.totals.stored
    title = f"{model.title}, changed" if model.changed else model.title
    tables = [_component_table(count, model) if depth == 1 else (_section_table, _tensor_table)[depth - 2](count)]
    tables += [_bridge_table(count), _meaning_table(count, model), _cache_table(kept)]
    if explain:
        tables.append(_why_table(count, model.family.positions))
    if check:
        tables += evidence_tables(check)
    return Document(
        title=f"{title}: {format_count(stored)} parameters ({short_count(stored)})",
        heading=tuple(heading(model, count)),
        tables=tuple(tables),
        notes=(
            *(check_reasons([check]) if check else ()),
            *(f"Note: {note}" for note in model.notes),
            NOT_COUNTED,
            NEXT,
        ),
        data=lambda: _data_table(count, depth),
    )


def heading(model: Resolved, count: Parameters) -> Iterator[str]:
    """The dims by letter, where they come from, and what was changed."""
    yield " · ".join(f"{dim.letter}={format_count(dim.size)}" for dim in count.dims)
    if model.preset:
        yield f"{model.preset.name}, model type {model.family.model_type}; {model.preset.source}"
    else:
        yield f"{model.name}, model type {model.family.model_type}"
    yield from heading_notes(model)


def _grouped(count: Parameters, model: Resolved) -> list[tuple[str, Formula, int]]:
    """The rows of the printed table: (label, formula, stored), one a group."""
    rows = []
    for group in GROUPS:
        lines = [line for line in count.lines if line.group == group]
        if lines or group not in OPTIONAL_GROUPS:
            label = f"{group} (tied)" if any(line.tied for line in lines) else group
            if group == "positions" and not lines:
                label = f"{group} ({model.family.positions})"
            formula = Formula.of(product for line in lines for product in line.products)
            rows.append((label, formula, sum(line.stored for line in lines)))
    return rows


_COMPONENT = Column("component", "component")
_FORMULA = Column("formula", "formula", wraps=True, drop=3)
_NUMBERS = Column("numbers", "in numbers", wraps=True, drop=4)
_STORED = Column("stored", "parameters", "count")
_SHARE = Column("share", "share", "share", drop=1)
_BAR = Column("bar", "", "bar", drop=2)
_LINE_COLUMNS = (_COMPONENT, _FORMULA, _NUMBERS, _STORED, _SHARE, _BAR)
_TENSOR_COLUMNS = (
    Column("tensor", "tensor", folded=True),
    Column("shape", "shape", drop=2),
    Column("component", "component", wraps=True, drop=3),
    _STORED,
    _SHARE,
)


def _line_rows(lines: Iterable[tuple[str, Formula, int]], stored: int) -> list[tuple[Value, ...]]:
    rows: list[tuple[Value, ...]] = []
    for label, formula, amount in lines:
        letters, numbers = (formula.letters, formula.numbers) if formula.terms else ("–", "")
        share = Fraction(amount, stored)
        rows.append((label, letters, numbers, amount, share, share))
    return rows


def _component_table(count: Parameters, model: Resolved) -> Table:
    return _line_table(_line_rows(_grouped(count, model), count.totals.stored), count)


def _section_table(count: Parameters) -> Table:
    stored = count.totals.stored
    rows: list[tuple[Value, ...]] = []
    for section in sections(count):
        total = sum(line.stored for line in section.lines)
        rows.append((section.label, "", "", total, Fraction(total, stored), Fraction(total, stored)))
        rows += _line_rows(((f"  {_tied(line)}", line.formula, line.stored) for line in section.lines), stored)
    return _line_table(rows, count)


def _line_table(rows: list[tuple[Value, ...]], count: Parameters) -> Table:
    return Table("", _LINE_COLUMNS, tuple(rows), (("stored", "", "", count.totals.stored, Fraction(1), None),))


def _tensor_table(count: Parameters) -> Table:
    stored = count.totals.stored
    rows: list[tuple[Value, ...]] = []
    for line in count_lines(count, depth=3):
        label = f"{line['label']} (tied to {line['tied_to']})" if line["tied_to"] else line["label"]
        rows.append((line["key"], str(tuple(line["shape"])), label, line["stored"], Fraction(line["stored"], stored)))
    return Table("", _TENSOR_COLUMNS, tuple(rows), (("stored", "", "", stored, Fraction(1)),))


def _tied(line: Line) -> str:
    return f"{line.label} (tied)" if line.tied else line.label


def _bridge_table(count: Parameters) -> Table:
    steps: list[tuple[Value, ...]] = [("matrices (the popular breakdown)", count.totals.matrices)]
    steps += [(f"{'−' if step.amount < 0 else '+'} {step.label}", abs(step.amount)) for step in count.bridge]
    columns = (Column("step", "", wraps=True), Column("amount", "parameters", "count"))
    return Table(
        "From the popular breakdown to what is stored", columns, tuple(steps), (("= stored", count.totals.stored),)
    )


def _meaning_table(count: Parameters, model: Resolved) -> Table:
    totals, rule = count.totals, count.rule_of_thumb
    rows: list[tuple[Value, ...]] = [
        (f"checkpoint, {dtype} bytes", size, format_bytes(size)) for dtype, size in count.checkpoint_bytes.items()
    ]
    routed, (n_heads, _, d_head) = count.routed, model.family.heads
    active = "what one token uses" if routed else "all of them: no experts"
    if routed:
        share = format_fixed(Fraction(100 * routed, totals.stored), 2)
        rows.append(("routed experts", routed, f"{share}% of what is stored"))
    declared = "D/N"
    if n_heads * d_head != count.spec.d_model:
        heads, width = format_count(n_heads * d_head), format_count(count.spec.d_model)
        declared = f"declared: all heads together have {heads}, D is {width}"
    rows += [
        ("active", totals.active, active),
        ("non_embedding", totals.non_embedding, "without token table, positions and untied unembedding"),
        ("head size H", d_head, declared),
        ("rule of thumb 12·L·D²", rule.value, _errors(rule.error_stored, rule.error_non_embedding)),
    ]
    columns = (Column("what", ""), Column("amount", "amount", "count"), Column("note", "", wraps=True))
    return Table("What the number means", columns, tuple(rows))


def _cache_table(kept: Cache) -> Table:
    """A row for each kind of layer."""
    columns = (
        Column("kind", "layers", wraps=True, least=18),
        Column("formula", "formula", wraps=True, drop=1),
        Column("token", "bytes a token", "count"),
        Column("seq", f"at {format_count(kept.seq)} tokens", "count"),
        Column("size", "", drop=2),
    )
    rows = []
    for line in cache_json(kept)["lines"]:
        size, per_token = line["bytes_at_seq"], line["bytes_per_token"]
        rows.append((_kind(line), line["formula"] if per_token else "–", per_token, size, format_bytes(size)))
    total = ("KV cache", "", kept.bytes_per_token, kept.bytes_at_seq, format_bytes(kept.bytes_at_seq))
    title = f"What one sequence leaves behind for the next token, in {kept.dtype}"
    return Table(title, columns, tuple(rows), (total,))


def _kind(line: CacheLineJSON) -> str:
    """`22 sliding (512 tokens)`; layers without a cache keep a state of fixed size."""
    text = f"{format_count(line['layers'])} {line['kind']}"
    if line["window"] is not None:
        text += f" ({format_count(line['window'])} tokens)"
    return text if not line["bytes_per_sequence"] else f"{text}: a state of fixed size"


def _errors(stored: Fraction, non_embedding: Fraction) -> str:
    texts = [f"{'+' if error > 0 else ''}{format_fixed(error * 100, 3)}%" for error in (stored, non_embedding)]
    return f"{texts[0]} off stored, {texts[1]} off non_embedding"


def _why_table(count: Parameters, positions: str) -> Table:
    columns = (
        Column("component", "component"),
        Column("formula", "formula", wraps=True),
        Column("why", "why", wraps=True),
        Column("source", "source", wraps=True, least=14),
    )
    rows: list[tuple[Value, ...]] = [(_tied(line), line.formula.letters, line.why, line.source) for line in count.lines]
    if positions in UNSTORED_POSITIONS:
        rows.insert(1, (f"positions ({positions})", "–", *UNSTORED_POSITIONS[positions]))
    return Table("Why", columns, tuple(rows))


def _data_table(count: Parameters, depth: int) -> Table:
    keys = ("key", "label", "formula", "numbers", "stored", "matrices", "share", "why", "source")
    rows = tuple(tuple(_flat(line.get(key)) for key in keys) for line in count_lines(count, depth))
    return Table("", tuple(Column(key, key) for key in keys), rows)


def _flat(value: object) -> Value:
    if isinstance(value, float):
        return f"{value:.10g}"
    return value if isinstance(value, str | int) else str(value)
