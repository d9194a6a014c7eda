"""`gptcalc count` as plain data: what JSON and csv print, at every depth."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple, NotRequired

from typing_extensions import TypedDict

from gptcalc.catalog import Preset, Resolved
from gptcalc.errors import InvalidValueError
from gptcalc.formula import Formula
from gptcalc.inventory import Slice, Weight, expand
from gptcalc.ledger.cache import Cache
from gptcalc.ledger.components import COMPONENTS
from gptcalc.ledger.evidence import Check
from gptcalc.ledger.parameters import Line, Parameters, fold
from gptcalc.report.check import ModelCheckJSON, model_check_json
from gptcalc.units import bytes_of, format_count

#: Above this, a list of every tensor is refused rather than printed for minutes.
MOST_TENSORS = 200_000

#: Of more stretches of equal layers, a label names the first ones and the last.
MOST_SPANS = 4
#: Of a list with an entry for each layer, the runs of equal ones that a heading shows.
LISTED = 6

NOT_COUNTED = (
    "Not in these numbers: buffers (causal masks, rotary tables), gradients (one for each parameter), AdamW's states"
    " (two for each), activations (by batch and length)."
)


class CountLine(TypedDict):
    """One line; `amount` is the stored parameters, which add up to `totals.stored`."""

    key: str
    label: str
    amount: int
    unit: str
    formula: str
    numbers: str
    stored: int
    matrices: int
    share: float
    why: str
    source: str
    layers: NotRequired[str]
    shape: NotRequired[list[int]]
    role: NotRequired[str]
    components: NotRequired[list[str]]
    tied_to: NotRequired[str | None]


class CacheLineJSON(TypedDict):
    """The KV cache of all layers of one kind; `formula` is that of `bytes_per_token`."""

    kind: str
    layers: int
    window: int | None
    bytes_per_token: int
    bytes_per_sequence: int
    bytes_at_seq: int
    formula: str


class CacheJSON(TypedDict):
    """What one sequence of `seq` tokens leaves behind for the next token."""

    dtype: str
    bytes_per_token: int
    seq: int
    bytes_at_seq: int
    lines: list[CacheLineJSON]


class ExpertsJSON(TypedDict):
    """Parameters of routed experts, and their share of what is stored."""

    routed: int
    share: float


class CountJSON(TypedDict):
    """What `gptcalc count --format json` prints."""

    schema: str
    model: dict[str, object]
    totals: dict[str, int]
    lines: list[CountLine]
    bridge: list[dict[str, str | int]]
    checkpoint_bytes: dict[str, int]
    rule_of_thumb: dict[str, int | float]
    experts: ExpertsJSON
    kv_cache: CacheJSON
    notes: list[str]
    check: NotRequired[ModelCheckJSON]


def model_json(model: Resolved) -> dict[str, object]:
    """The resolved model: its fields under gptcalc's names, and its parts."""
    return {
        "name": model.preset.name if model.preset else model.name,
        "title": model.title,
        "source": model.preset.source if model.preset else model.name,
        "estimated": model.preset.estimated if model.preset else model.estimated,
        "family": model.preset.family if model.preset else model.family.model_type,
        "model_type": model.family.model_type,
        **model.family.resolved(),
        "changed": {key: change._asdict() for key, change in model.changed.items()},
        "followed": {key: change._asdict() for key, change in model.followed.items()},
        "defaults": dict(model.defaults),
        "parts": model.spec.model_dump(mode="json"),
    }


def count_json(model: Resolved, count: Parameters, kept: Cache, depth: int, check: Check | None = None) -> CountJSON:
    """The ledger as a dictionary of plain values; integers stay integers."""
    answer: CountJSON = {
        "schema": "gptcalc.count/1",
        "model": model_json(model),
        "totals": count.totals._asdict(),
        "lines": list(count_lines(count, depth)),
        "bridge": [step._asdict() for step in count.bridge],
        "checkpoint_bytes": count.checkpoint_bytes,
        "rule_of_thumb": {
            "value": count.rule_of_thumb.value,
            "error_stored": float(count.rule_of_thumb.error_stored),
            "error_non_embedding": float(count.rule_of_thumb.error_non_embedding),
        },
        "experts": {"routed": count.routed, "share": count.routed / count.totals.stored},
        "kv_cache": cache_json(kept),
        "notes": [*heading_notes(model), *model.notes, NOT_COUNTED],
    }
    if check:
        answer["check"] = model_check_json(check)
    return answer


def cache_json(kept: Cache) -> CacheJSON:
    """The KV cache as plain values."""
    return {
        "dtype": kept.dtype,
        "bytes_per_token": kept.bytes_per_token,
        "seq": kept.seq,
        "bytes_at_seq": kept.bytes_at_seq,
        "lines": [
            {
                "kind": line.kind,
                "layers": line.n_layers,
                "window": line.window,
                "bytes_per_token": bytes_of(line.per_token.value, kept.dtype),
                "bytes_per_sequence": line.bytes_of_state(kept.dtype),
                "bytes_at_seq": line.bytes_at(kept.seq, kept.dtype),
                "formula": line.per_token.times(bytes_of(1, kept.dtype)).letters,
            }
            for line in kept.lines
        ],
    }


def count_lines(count: Parameters, depth: int) -> Iterator[CountLine]:
    """Lines by component (1), by layer group and component (2), or one for every tensor (3)."""
    if depth == 1:
        return (_line_json(line, count) for line in count.lines)
    if depth == 2:
        return (
            {**_line_json(line, count), "key": f"{section.key}.{line.key}", "layers": section.label}
            for section in sections(count)
            for line in section.lines
        )
    return _tensor_lines(count)


def _line_json(line: Line, count: Parameters) -> CountLine:
    formula = line.formula
    return {
        "key": line.key,
        "label": line.label,
        "amount": line.stored,
        "unit": "parameters",
        "formula": formula.letters,
        "numbers": formula.numbers,
        "stored": line.stored,
        "matrices": line.matrices,
        "share": line.stored / count.totals.stored,
        "why": line.why,
        "source": line.source,
    }


class Section(NamedTuple):
    """The lines outside the layers, or of all layers that have the same tensors, for which a line stands."""

    key: str
    label: str
    lines: list[Line]


def sections(count: Parameters) -> Iterator[Section]:
    """The rows outside the layers, then each kind of layer: groups with the same tensors are one."""
    groups: dict[range | None, list[Weight]] = {}
    for row in count.rows:
        groups.setdefault(row.layers, []).append(row)
    kinds: dict[tuple[Weight, ...], list[range | None]] = {}
    for layers, rows in groups.items():
        kinds.setdefault(tuple(row._replace(layers=None) for row in rows), []).append(layers)
    for same in kinds.values():
        components: dict[str, list[tuple[Weight, Slice]]] = {}
        for row in (row for layers in same for row in groups[layers]):
            for part in row.slices:
                components.setdefault(part.component, []).append((row, part))
        key, label = _named([layers for layers in same if layers is not None])
        yield Section(key, label, [fold(key, COMPONENTS[key].label, parts) for key, parts in components.items()])


def _named(groups: list[range]) -> tuple[str, str]:
    """The key and the label of layers that are equal: `layers 0–2, 4–6 (6×)`."""
    if not groups:
        return "outside", "outside the layers"
    runs = [(group.start, group.stop - 1) for group in groups]
    spans = [str(first) if first == last else f"{first}–{last}" for first, last in runs]
    shown = spans if len(spans) <= MOST_SPANS else [*spans[: MOST_SPANS - 1], "…", spans[-1]]
    word = "layer" if sum(map(len, groups)) == 1 else "layers"
    key = ",".join(f"{first}-{last}" for first, last in runs)
    return f"layers.{key}", f"{word} {', '.join(shown)} ({format_count(sum(map(len, groups)))}×)"


def _tensor_lines(count: Parameters) -> Iterator[CountLine]:
    tensors = sum(1 if row.layers is None else len(row.layers) for row in count.rows)
    if tensors > MOST_TENSORS:
        raise InvalidValueError(
            f"depth: read 3 for {tensors:,} tensors; allowed: at most {MOST_TENSORS:,}; --depth 2 folds the layers"
        )
    bodies = {row.name: _row_json(row, count) for row in count.rows}
    return ({**bodies[row.name], "key": name} for name, row in expand(count.rows))


def _row_json(row: Weight, count: Parameters) -> CountLine:
    """A row as one of its tensors, all of which differ in name alone."""
    components = [COMPONENTS[part.component] for part in row.slices]
    formula = Formula.of(part.product for part in row.slices)
    stored = 0 if row.tied_to else row.elements
    return {
        "key": row.name,
        "label": ", ".join(dict.fromkeys(component.label for component in components)),
        "amount": stored,
        "unit": "parameters",
        "formula": formula.letters,
        "numbers": formula.numbers,
        "stored": stored,
        "matrices": row.elements if row.is_matrix else 0,
        "share": stored / count.totals.stored,
        "why": "; ".join(dict.fromkeys(component.why for component in components)),
        "source": row.source or "; ".join(dict.fromkeys(component.source for component in components)),
        "shape": list(row.shape),
        "role": row.role,
        "components": [part.component for part in row.slices],
        "tied_to": row.tied_to,
    }


def heading_notes(model: Resolved) -> Iterator[str]:
    """Estimates, changes, consequences and defaults, a line each."""
    if model.preset and model.preset.estimated:
        yield estimate(model.preset)
    if model.estimated:
        yield f"estimated: {model.estimated}"
    for word, changes in (("changed", model.changed), ("followed", model.followed)):
        if changes:
            texts = (f"{key} {_plain(change.was)} → {_plain(change.now)}" for key, change in changes.items())
            yield f"{word}: {', '.join(texts)}"
    defaults = [f"{key} {_plain(value)}" for key, value in model.defaults.items() if value is not None]
    if defaults:
        yield f"defaults used: {', '.join(defaults)}"


def estimate(preset: Preset) -> str:
    """Why a preset is an estimate, and the other one that there is."""
    see = f" See also {', '.join(preset.see)}." if preset.see else ""
    return f"estimated: {preset.estimated}{see}"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    if isinstance(value, tuple):
        runs = [(_plain(item), len(list(run))) for item, run in groupby(value)]
        words = [f"{count}× {text}" if count > 1 else text for text, count in runs]
        rest = f", … {format_count(len(value))} in all" if len(words) > LISTED else ""
        return f"[{', '.join(words[:LISTED])}{rest}]"
    return format_count(value) if isinstance(value, int) else str(value)
