"""`gptcalc design` as a document and as JSON: shapes near a number of parameters, and the command for each."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from typing_extensions import TypedDict

from gptcalc.ledger.design import AWKWARD, Designs, Shape
from gptcalc.report.document import Column, Document, Table, Value
from gptcalc.units import format_count, format_fixed, short_count

#: Options of `gptcalc count` that are not simply the field's.
OPTIONS = {"n_vocab": "--vocab", "n_ctx": "--context"}
#: Fields that have an option of their own, with a value or as a switch; all others go through --set.
VALUED = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_ff", "n_vocab", "n_ctx", "positions")
SWITCHES = {"tied": ("--tied", "--untied"), "bias": ("--bias", "--no-bias")}
#: How near to the usual D/L is called usual.
NEAR = 1.15


class DesignLine(TypedDict):
    """One shape; `off` is the signed share by which it misses, `usual_ratio` its D/L over the usual one."""

    command: str
    overrides: dict[str, object]
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_ff: int
    totals: dict[str, int]
    off: float
    aspect: float
    usual_ratio: float
    embedding_share: float
    kv_bytes_per_token: int
    rank: float


class DesignJSON(TypedDict):
    """What `gptcalc design --format json` prints: the shapes in order."""

    schema: str
    command: str
    params: int
    tolerance: float
    base: str
    model_type: str
    usual_aspect: float
    found: int
    designs: list[DesignLine]
    notes: list[str]


def design_json(designs: Designs, command: str) -> DesignJSON:
    """The shapes as plain values; integers stay integers."""
    return {
        "schema": "gptcalc.design/1",
        "command": command,
        "params": designs.target,
        "tolerance": float(designs.tolerance),
        "base": _base(designs),
        "model_type": designs.base.family.model_type,
        "usual_aspect": designs.usual,
        "found": designs.found,
        "designs": [_line_json(designs, shape) for shape in designs.shapes],
        "notes": [*_notes()],
    }


def _line_json(designs: Designs, shape: Shape) -> DesignLine:
    sizes = shape.sizes
    return {
        "command": count_command(designs, shape),
        "overrides": dict(shape.overrides),
        "n_layers": sizes["n_layers"],
        "d_model": sizes["d_model"],
        "n_heads": sizes["n_heads"],
        "n_kv_heads": sizes["n_kv_heads"],
        "d_head": sizes["d_head"],
        "d_ff": sizes["d_ff"],
        "totals": shape.parameters.totals._asdict(),
        "off": float(shape.off),
        "aspect": float(shape.aspect),
        "usual_ratio": float(shape.aspect) / designs.usual,
        "embedding_share": float(shape.embedding_share),
        "kv_bytes_per_token": shape.kv_bytes_per_token,
        "rank": shape.rank,
    }


def count_command(designs: Designs, shape: Shape) -> str:
    """The command that counts a shape."""
    return shlex.join(["gptcalc", "count", _base(designs), *_options(shape.overrides)])


def _base(designs: Designs) -> str:
    return designs.base.preset.name if designs.base.preset else designs.base.name


def _options(overrides: Mapping[str, object]) -> Iterator[str]:
    for key, value in overrides.items():
        if key in SWITCHES and isinstance(value, bool):
            yield SWITCHES[key][not value]
        elif key in VALUED:
            yield from (OPTIONS.get(key, f"--{key.replace('_', '-')}"), str(value))
        else:
            yield from ("--set", f"{key}={_typed(value)}")


def _typed(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def design_document(designs: Designs) -> Document:
    """The shapes as a table, the best first, and what deeper and wider ones trade."""
    few = f"{format_count(designs.found)} shape{'s' if designs.found > 1 else ''}"
    if len(designs.shapes) < designs.found:
        few = f"{len(designs.shapes)} of {few}"
    return Document(
        title=f"{few} within {float(designs.tolerance * 100):g}% of {format_count(designs.target)} parameters"
        f" ({short_count(designs.target)})",
        heading=tuple(_heading(designs)),
        tables=(_table(designs),),
        notes=(*_notes(), *_next(designs)),
        data=lambda: _data_table(designs),
    )


def _heading(designs: Designs) -> Iterator[str]:
    base, sizes = designs.base, designs.base.family.resolved()
    yield f"built as {_base(designs)} ({base.title}), model type {base.family.model_type}; {_ratios(designs)}"
    kept = [f"V={format_count(base.spec.n_vocab)}", f"C={format_count(base.spec.n_ctx)}"]
    kept += [f"{key} {str(sizes[key]).lower()}" for key in ("tied", "bias", "positions") if key in sizes]
    yield f"kept: {' · '.join(kept)}"
    yield f"usual d/L at this size: {designs.usual:.0f} (GPT-3's sizes, Brown et al. 2020, Table 2.1, and between them)"


def _ratios(designs: Designs) -> str:
    """How the first shape's heads and MLP stand to its width."""
    sizes = designs.shapes[0].sizes
    among = Fraction(sizes["n_heads"], sizes["n_kv_heads"])
    heads = "K = N" if among == 1 else f"N/K = {format_fixed(among, 1 if among.denominator > 1 else 0)}"
    inner = Fraction(sizes["d_ff"], sizes["d_model"])
    return f"F/D = {format_fixed(inner, 2 if inner.denominator > 1 else 0)} · {heads}"


def _table(designs: Designs) -> Table:
    shapes = designs.shapes
    grouped = any(shape.sizes["n_kv_heads"] != shape.sizes["n_heads"] for shape in shapes)
    mixture = any(shape.parameters.totals.active != shape.stored for shape in shapes)
    columns = {
        "n_layers": Column("n_layers", "layers", "count"),
        "d_model": Column("d_model", "d_model", "count"),
        "n_heads": Column("n_heads", "heads", "count", drop=4),
        **({"n_kv_heads": Column("n_kv_heads", "KV heads", "count", wraps=True, drop=2)} if grouped else {}),
        "d_head": Column("d_head", "head size", "count", wraps=True, drop=9),
        "d_ff": Column("d_ff", "d_ff", "count", drop=8),
        "stored": Column("stored", "parameters", "count"),
        "off": Column("off", "off", "amount"),
        **({"active": Column("active", "active", "count", drop=3)} if mixture else {}),
        "aspect": Column("aspect", "d/L", "amount", drop=1),
        "against": Column("against", "against the usual", wraps=True, least=12, drop=6),
        "embedding_share": Column("embedding_share", "embedding share", "share", wraps=True, drop=7),
        "kv": Column("kv", "KV bytes a token", "count", wraps=True, drop=5),
    }
    rows = []
    for shape in shapes:
        cells: dict[str, Value] = {
            **shape.sizes,
            "stored": shape.stored,
            "off": _off(shape.off),
            "active": shape.parameters.totals.active,
            "aspect": format_fixed(shape.aspect, 1),
            "against": _against(shape, designs.usual),
            "embedding_share": shape.embedding_share,
            "kv": shape.kv_bytes_per_token,
        }
        rows.append(tuple(cells[key] for key in columns))
    return Table("", tuple(columns.values()), tuple(rows))


def _off(off: Fraction) -> str:
    """A signed share; `exact` where there is nothing between."""
    if not off:
        return "exact"
    return f"{'+' if off > 0 else '−'}{format_fixed(abs(off) * 100, 2)}%"


def _against(shape: Shape, usual: float) -> str:
    """How much deeper or wider than usual."""
    ratio = float(shape.aspect) / usual
    if 1 / NEAR <= ratio <= NEAR:
        return "as usual"
    return f"{1 / ratio:.1f}× deeper" if ratio < 1 else f"{ratio:.1f}× wider"


def _notes() -> Iterator[str]:
    yield (
        f"In order of: the distance from the target in tolerances, plus the doublings between d/L and the usual, plus"
        f" {AWKWARD} for a d_model that is no multiple of 128 and for odd numbers of heads; an exact count comes first."
    )
    yield (
        "Deeper: more steps one after another, so more time for each token, and more KV bytes (they follow L·K·H)."
        " Wider: larger products, which fill a GPU better, and a larger share in the embeddings, outside"
        " the layers. Loss hardly depends on it: d/L may vary by a factor of 40 (Kaplan et al. 2020, §3.1); depth"
        " stops paying at a depth that grows with the logarithm of the width (Levine et al. 2020)."
    )
    yield "KV bytes a token: keys and values of all layers, in bf16."


def _next(designs: Designs) -> Iterator[str]:
    yield f"Next: {count_command(designs, designs.shapes[0])} (the first; --format json has each one's command)"


def _data_table(designs: Designs) -> Table:
    """One record a shape."""
    lines: Sequence[DesignLine] = [_line_json(designs, shape) for shape in designs.shapes]
    keys = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_ff")
    after = ("off", "aspect", "embedding_share", "kv_bytes_per_token", "rank", "command")
    rows = tuple(
        (
            *(shape.sizes[key] for key in keys),
            *shape.parameters.totals,
            *(_flat(dict(line)[key]) for key in after),
        )
        for line, shape in zip(lines, designs.shapes, strict=True)
    )
    columns = (*keys, *designs.shapes[0].parameters.totals._fields, *after)
    return Table("", tuple(Column(key, key) for key in columns), rows)


def _flat(value: object) -> Value:
    return f"{value:.10g}" if isinstance(value, float) else value if isinstance(value, int) else str(value)
