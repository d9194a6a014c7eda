"""`gptcalc fit` as a document and as JSON: what fits where, in which way, how far."""

import shlex
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple, NotRequired

from typing_extensions import TypedDict

from gptcalc.catalog import Resolved
from gptcalc.gpus import vendors
from gptcalc.ledger.asked import DROPOUTS, SETTINGS, Asked
from gptcalc.ledger.fit import Range, Room
from gptcalc.ledger.grid import Cell, Grid, Row, Way, size
from gptcalc.ledger.memory import CONTEXT
from gptcalc.ledger.parameters import parameters
from gptcalc.optimizers import OPTIMIZERS
from gptcalc.plan import Plan
from gptcalc.report.count import heading as model_heading
from gptcalc.report.document import Column, Document, Table, Value
from gptcalc.units import GIB, format_bytes, format_count, format_fixed, short_count

#: In the place of a number: not even one fits, and nobody knows.
NONE, UNKNOWN = "–", "?"
#: Before a number that is but probable.
PROBABLY = "~"
#: Of more names than this, a note says how many there are.
LISTED = 8
#: How many grids a title names.
NAMED = 3
#: The precisions of training in the order of a legend, and what runs again.
ORDER = ("fp32", "autocast-bf16", "autocast-fp16", "bf16", "fp16")
RECOMPUTED = {
    "full": "each block runs again in the backward pass",
    "selective": "the core of attention runs again there",
}
#: What the two letters of a step stand for.
LETTERS = {"batch": "B", "seq": "T"}
NOT_IN_IT = (
    "Not in it: buffers of NCCL and of CUDA graphs, fragmentation by other streams, other processes, tensors that your"
    " own code keeps."
)


class Asking(NamedTuple):
    """What the grids are the answer to, as far as they do not say it: settings, and how many GPUs were left out."""

    asked: Asked
    left_out: int = 0


# --- JSON ------------------------------------------------------------------------------------------------------------


class BytesJSON(TypedDict):
    """Bytes: at least, and at most."""

    low: int
    high: int


class WayJSON(TypedDict):
    """A way to run a model, and the settings that make it."""

    key: str
    mode: str
    settings: dict[str, str]


class FitModelJSON(TypedDict):
    """A model of the grid, and what it stores."""

    name: str
    title: str
    source: str
    changed: dict[str, object]
    stored: int


class FitGpuJSON(TypedDict):
    """A device of the grid: `capacity` as `source` says it, and why an answer is but probable."""

    name: str
    title: str
    capacity: int
    source: str
    usable: BytesJSON
    target: str | None
    guess: str


class CellJSON(TypedDict):
    """A model in a way on a device: the largest `value` that fits, null where not even the least does.

    `at` is the value of which `verdict`, `needed` and `margin` speak: the largest, or the least; where nothing is known
    they are null, and `refused` says why. With `weights_alone` it is what they need, in training with
    their gradients: less than all.
    """

    model: str
    gpu: str
    way: str
    value: int | None
    at: int | None
    verdict: str | None
    needed: BytesJSON | None
    usable: BytesJSON
    margin: BytesJSON | None
    weights_alone: bool
    settings: NotRequired[dict[str, object]]
    refused: NotRequired[str]


class ClosestJSON(TypedDict):
    """Where nothing of a grid fits: the cell that lacks least, and how much."""

    of: str
    model: str
    gpu: str
    way: str
    needed: int
    lacks: int


class GridJSON(TypedDict):
    """What `gptcalc fit --format json` prints: each cell is the largest `max`, in the order of the rows."""

    schema: str
    command: str
    max: str
    asked: dict[str, object]
    ways: list[WayJSON]
    models: list[FitModelJSON]
    gpus: list[FitGpuJSON]
    cells: list[CellJSON]
    closest: list[ClosestJSON]
    notes: list[str]


def grid_json(grids: Sequence[Grid], asking: Asking, command: str) -> GridJSON:
    """The grids as a dictionary of plain values; integers stay integers."""
    rows = [row for grid in grids for row in grid.rows]
    models = {_name(row.model): row.model for row in rows}
    rooms = {row.room.name: row.room for row in rows}
    return {
        "schema": "gptcalc.fit/1",
        "command": command,
        "max": grids[0].what,
        "asked": dict(asking.asked),
        "ways": [{"key": way.key, "mode": way.mode, "settings": dict(way.settings)} for way in grids[0].ways],
        "models": [_model_json(model) for model in models.values()],
        "gpus": [_gpu_json(room) for room in rooms.values()],
        "cells": [_cell_json(grid, row, cell) for grid in grids for row, cell in grid.cells],
        "closest": [_closest_json(grid, *closest) for grid in grids if not grid.fits and (closest := grid.closest)],
        "notes": [*_left_out(asking)],
    }


def _model_json(model: Resolved) -> FitModelJSON:
    return {
        "name": _name(model),
        "title": model.title,
        "source": model.preset.source if model.preset else model.name,
        "changed": {key: change._asdict() for key, change in model.changed.items()},
        "stored": size(model),
    }


def _gpu_json(room: Room) -> FitGpuJSON:
    return {
        "name": room.name,
        "title": room.title,
        "capacity": room.capacity,
        "source": room.source,
        "usable": _bytes_json(room.usable),
        "target": room.target,
        "guess": room.guess,
    }


def _bytes_json(found: Range) -> BytesJSON:
    return {"low": found.low, "high": found.high}


def _cell_json(grid: Grid, row: Row, cell: Cell) -> CellJSON:
    fit = cell.fit
    answer: CellJSON = {
        "model": _name(row.model),
        "gpu": row.room.name,
        "way": cell.way.key,
        "value": cell.value,
        "at": None if cell.plan is None else getattr(cell.plan, grid.what),
        "verdict": None if fit is None else fit.verdict,
        "needed": None if fit is None else _bytes_json(fit.needed),
        "usable": _bytes_json(row.room.usable),
        "margin": None if fit is None else _bytes_json(fit.margin),
        "weights_alone": cell.weights_alone,
    }
    if cell.plan is not None:
        answer["settings"] = cell.plan.model_dump()
    if cell.refused:
        answer["refused"] = cell.refused
    return answer


def _closest_json(grid: Grid, row: Row, cell: Cell) -> ClosestJSON:
    needed, lacks = (cell.fit.needed.high, -cell.fit.margin.low) if cell.fit else (0, 0)
    return {
        "of": _name(row.model) if grid.of == "model" else row.room.name,
        "model": _name(row.model),
        "gpu": row.room.name,
        "way": cell.way.key,
        "needed": needed,
        "lacks": lacks,
    }


def _data(grids: Sequence[Grid]) -> Table:
    """One record a cell."""
    keys = ("model", "gpu", "way", "mode", "precision", "checkpointing", "max", "value", "at", "verdict")
    ranges = ("needed_low", "needed_high", "usable_low", "usable_high", "margin_low", "margin_high", "weights_alone")
    found: list[tuple[Value, ...]] = []
    for grid in grids:
        for row, cell in grid.cells:
            way, fit = cell.way, cell.fit
            made = (way.key, way.mode, way.settings["precision"], way.settings.get("checkpointing"))
            at = None if cell.plan is None else getattr(cell.plan, grid.what)
            needed, margin = (fit.needed, fit.margin) if fit else ((None, None), (None, None))
            said = (grid.what, cell.value, at, fit.verdict if fit else None)
            found.append((_name(row.model), row.room.name, *made, *said, *needed, *row.room.usable, *margin))
            found[-1] += (int(cell.weights_alone), cell.refused)
    return Table("", tuple(Column(key, key) for key in (*keys, *ranges, "refused")), tuple(found))


# --- The report ------------------------------------------------------------------------------------------------------


def grid_document(grids: Sequence[Grid], asking: Asking) -> Document:
    """A table for each grid in which anything fits, a line for each other."""
    return Document(
        title=_title(grids),
        heading=tuple(_heading(grids, asking)),
        tables=tuple(_table(grid, titled=len(grids) > 1) for grid in grids if grid.fits),
        notes=tuple(_notes(grids, asking)),
        data=lambda: _data(grids),
    )


def _name(model: Resolved) -> str:
    """What a model is called where it is named: a preset by its name, with what is changed of it."""
    changes = ",".join(f"{key}={change.now}" for key, change in model.changed.items())
    name = model.preset.name if model.preset else model.name
    return f"{name}:{changes}" if changes else name


def _called(grid: Grid) -> str:
    """What a grid is of."""
    model, room = grid.rows[0].model, grid.rows[0].room
    if grid.of == "gpu":
        return room.title
    return f"{model.title}, changed" if model.changed else model.title


def _title(grids: Sequence[Grid]) -> str:
    of, what = grids[0].of, "largest batch" if grids[0].what == "batch" else "longest sequence"
    if len(grids) == 1 and not grids[0].fits:
        return _nowhere(grids[0])
    if len(grids) <= NAMED:
        names = " and ".join(map(_called, grids))
    else:
        names = f"{len(grids)} {'models' if of == 'model' else 'GPUs'}"
    return f"{names}: the {what} {'that fits each GPU' if of == 'model' else 'of each model that fits'}"


def _nowhere(grid: Grid) -> str:
    """That nothing fits."""
    count = len(grid.rows)
    if grid.of == "gpu":
        return f"{_called(grid)}: {f'none of {count:,} models fits' if count > 1 else 'the model does not fit'}"
    where = f"on none of {count:,} GPUs" if count > 1 else f"in no way on {grid.rows[0].room.title}"
    return f"{_called(grid)} fits {where}"


def _heading(grids: Sequence[Grid], asking: Asking) -> Iterator[str]:
    """What fits nowhere, which model it is, what is fixed."""
    yield from (_closest(grid, titled=len(grids) == 1) for grid in grids if not grid.fits)
    if len(grids) == 1 and grids[0].of == "model":
        yield from model_heading(model := grids[0].rows[0].model, parameters(model.spec))
    plans = [cell.plan for grid in grids for row in grid.rows for cell in row.cells if cell.plan]
    if not plans:
        return
    yield _letters(grids, plans)
    yield " · ".join(_fixed(plans, {way.mode for way in grids[0].ways}))
    if asking.asked:
        given = (f"{key.replace('_', '-')} {value}" for key, value in asking.asked.items())
        yield f"asked for: {', '.join(given)}"
    if defaulted := _defaulted(grids[0], asking):
        yield f"by default: {', '.join(field.replace('_', '-') for field in defaulted)}"


def _letters(grids: Sequence[Grid], plans: Sequence[Plan]) -> str:
    """What the cells are, and what they are not."""
    if grids[0].what == "seq":
        return f"each cell is the largest T, for B={format_count(plans[0].batch)} sequences of T tokens each"
    usual, others = _lengths(grids)
    but = f" ({', '.join(f'{name}: {format_count(length)}' for name, length in others.items())})" if others else ""
    return f"each cell is the largest B, for B sequences of T={format_count(usual)} tokens each{but}"


def _lengths(grids: Sequence[Grid]) -> tuple[int, dict[str, int]]:
    """The length of most models' sequences, and those of the others that are shown."""
    found = {
        _name(row.model): cell.plan.seq
        for grid in grids
        for row, cell in grid.cells
        if cell.plan and (row.fits or not grid.fits)
    }
    usual = max(found.values(), key=[*found.values()].count)
    return usual, {name: length for name, length in found.items() if length != usual}


def _fixed(plans: Sequence[Plan], modes: set[str]) -> Iterator[str]:
    """What all ways have in common."""
    plan = plans[-1]
    if "training" in modes:
        yield f"{OPTIMIZERS[plan.optimizer].title} ({plan.optimizer_impl})"
    yield f"attention {plan.attention}"
    targets = {plan.target for plan in plans}
    yield f"kernels of {plan.target}" if len(targets) == 1 else "each GPU's own kernels"
    yield f"torch {plan.torch}"


def _defaulted(grid: Grid, asking: Asking) -> list[str]:
    """The settings that nobody gave, but for what is solved for, and what the columns and the rows are."""
    modes = {"", *(way.mode for way in grid.ways)}
    made = {grid.what, "mode", "target", *(key for way in grid.ways for key in way.settings)}
    return [
        field
        for field, setting in SETTINGS.items()
        if setting.told and setting.used_in in modes and field not in made and field not in asking.asked
    ]


def _closest(grid: Grid, *, titled: bool) -> str:
    """Of a grid in which nothing fits, what lacks least."""
    own = "" if titled else f"{_nowhere(grid)}; "
    if grid.closest is None or (fit := grid.closest[1].fit) is None:
        return f"{own}nothing is known of it: {grid.rows[0].cells[0].refused}"
    row, cell = grid.closest
    which = f"{_name(row.model)}, where " if grid.of == "gpu" else ""
    where = f"{'probably ' if row.room.guess else ''}{row.room.name}, where " if grid.of == "model" else ""
    letter = LETTERS[grid.what]
    return (
        f"{own}the closest is {which}{where}{_words(cell.way)} of {letter}={cell.asked[grid.what]:,} needs"
        f" {format_bytes(fit.needed.high)} and lacks {format_bytes(-fit.margin.low)}"
    )


def _words(way: Way) -> str:
    """A way in a sentence."""
    if way.mode == "inference":
        return "inference"
    again = way.settings["checkpointing"]
    return f"training in {way.settings['precision']}{'' if again == 'none' else f' with checkpointing {again}'}"


# --- Tables ----------------------------------------------------------------------------------------------------------


def _table(grid: Grid, *, titled: bool) -> Table:
    """A row for each GPU or model that fits in any way; those of one precision stay together where there is no room."""
    columns = [Column("gpu", "GPU"), Column("memory", "GiB", "amount")]
    if grid.of == "gpu":
        columns = [Column("model", "model", folded=True), Column("stored", "params", "amount", drop=1)]
    rows: list[tuple[Value, ...]] = []
    for row in (row for row in grid.rows if row.fits):
        first = (row.room.name, _memory(row.room))
        if grid.of == "gpu":
            first = (_name(row.model), short_count(size(row.model)))
        rows.append((*first, *(_shown(row, cell) for cell in row.cells)))
    return Table(_called(grid) if titled else "", (*columns, *_way_columns(grid.ways)), tuple(rows))


def _memory(room: Room) -> str:
    """How much torch may surely have, in GiB."""
    guess = PROBABLY if room.estimated else ""
    return f"{guess}{format_fixed(Fraction(room.usable.low, GIB), 1)}"


def _shown(row: Row, cell: Cell) -> str:
    if cell.fit is None:
        return UNKNOWN
    if cell.value is None:
        return NONE
    return f"{PROBABLY if row.room.guess else ''}{format_count(cell.value)}"


def _way_columns(ways: Sequence[Way]) -> Iterator[Column]:
    """A column for each way; what runs again stands behind the same without."""
    block, before = 0, ""
    for way in ways:
        precision = "" if way.mode == "inference" else way.settings["precision"]
        again = way.settings.get("checkpointing", "none") != "none"
        if precision != before or not block:
            block += 1
            title = precision.replace("autocast-bf16", "autocast").replace("-", " ") or way.mode
            title += " +ckpt" if again else ""
        else:
            title = "+ckpt"
        before = precision
        yield Column(way.key, title, "amount", wraps=True, block=block)


# --- Notes -----------------------------------------------------------------------------------------------------------


def _notes(grids: Sequence[Grid], asking: Asking) -> Iterator[str]:
    """What the marks mean, what is left out, what to do next."""
    fitting = [grid for grid in grids if grid.fits]
    for grid in fitting:
        yield from _not_listed(grid, named=len(grids) > 1)
    yield from (f"Note: {note}" for note in _refusals(grids))
    if grids[0].what == "seq":
        yield from _beyond(fitting)
    if fitting:
        yield from _marks(fitting)
    yield from _left_out(asking)
    yield (
        "A cell fits for all that is known, and the next one does not; a still larger one may where the allocator"
        " happens to hold less of it. Needed is what torch's allocator reserves at the peak, and"
        f" {format_fixed(Fraction(CONTEXT[1], GIB), 2)} GiB of CUDA context. {NOT_IN_IT}"
    )
    if example := _example(grids):
        row, cell = example
        why = "says what it takes" if cell.value is not None else "says what there is too much of"
        yield f"Next: {command(row, cell, asking.asked)} {why}."


def _not_listed(grid: Grid, *, named: bool) -> Iterator[str]:
    """The rows in which nothing fits, in a line."""
    rows = [row for row in grid.rows if not row.fits and any(cell.fit for cell in row.cells)]
    if not rows:
        return
    of = f"{_called(grid)}: " if named else ""
    if grid.of == "model":
        yield f"{of}fits in no way on {_listed([row.room.name for row in rows])}."
        return
    least = min(rows, key=lambda row: size(row.model))
    smallest = f"{_name(least.model)} ({short_count(size(least.model))})"
    if len(rows) == 1:
        yield f"{of}1 model fits in no way: {smallest}."
    else:
        yield f"{of}{len(rows):,} models fit in no way, the smallest of them {smallest}."


def _refusals(grids: Sequence[Grid]) -> Iterator[str]:
    """Why cells are unknown, each reason once."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in (row for grid in grids for row in grid.rows):
        for cell in (cell for cell in row.cells if cell.refused):
            found.setdefault((_words(cell.way), cell.refused), []).append(_name(row.model))
    reasons: dict[tuple[str, ...], list[str]] = {}
    for (way, reason), names in found.items():
        listed = _listed([*dict.fromkeys(names)])
        reasons.setdefault((listed, reason), []).append(way)
    for (names_, reason), ways in reasons.items():
        yield f"not known of {names_}, {', '.join(ways)}: {reason}"


def _beyond(grids: Sequence[Grid]) -> Iterator[str]:
    """Lengths for which a model was not made."""
    found: dict[int, dict[str, None]] = {}
    for row, cell in (each for grid in grids for each in grid.cells):
        if (cell.value or 0) > row.model.spec.n_ctx:
            found.setdefault(row.model.spec.n_ctx, {})[_name(row.model)] = None
    for context, names in found.items():
        yield (
            f"Note: made for a context of {format_count(context)}: {_listed([*names])}; what is longer runs all the"
            " same, how well is another question."
        )


def _listed(names: Sequence[str]) -> str:
    """Names, and how many more there are."""
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _marks(grids: Sequence[Grid]) -> Iterator[str]:
    """The legend of the marks that are there."""
    cells = [(row, cell) for grid in grids for row in grid.rows if row.fits for cell in row.cells]
    ways = {cell.way.key: cell.way for _, cell in cells}.values()
    used = {way.settings["precision"] for way in ways if way.mode == "training"}
    found = [f"inference: in {way.settings['precision']}" for way in ways if way.mode == "inference"]
    if used:
        found.append(f"{', '.join(_short(name) for name in ORDER if name in used)}: a whole training step")
    again = {way.settings["checkpointing"] for way in ways if way.mode == "training"} - {"none"}
    found += [f"+ckpt: {RECOMPUTED[name]}" for name in sorted(again)]
    yield f"{'; '.join(found)}."
    marks = []
    if any(cell.fit and cell.value is None for _, cell in cells):
        marks.append(f"{NONE}: not even {LETTERS[grids[0].what]}={min(_least(grids)):,} fits")
    if any(cell.refused for _, cell in cells):
        marks.append(f"{UNKNOWN}: not known")
    guesses = [reason for row, _ in cells if row.room.guess for reason in row.room.guess.split("; ")]
    if guesses:
        marks.append(f"{PROBABLY}: probably, for {', or '.join(_together(guesses))}")
    if marks:
        yield f"{'; '.join(marks)}."


def _together(reasons: Sequence[str]) -> list[str]:
    """Each reason once, those that differ in their last word as one."""
    found: dict[str, list[str]] = {}
    for start, _, last in (reason.rpartition(" ") for reason in dict.fromkeys(reasons)):
        found.setdefault(start, []).append(last)
    return [f"{start} {' or '.join(last)}" for start, last in found.items()]


def _least(grids: Sequence[Grid]) -> Iterator[int]:
    """The numbers with which not even that fits."""
    for cell in (cell for grid in grids for _, cell in grid.cells if cell.value is None and cell.plan):
        yield getattr(cell.plan, grids[0].what)


def _short(precision: str) -> str:
    return "autocast (to bf16, weights in fp32)" if precision == "autocast-bf16" else precision


def _left_out(asking: Asking) -> Iterator[str]:
    if asking.left_out:
        vendors_ = ", ".join(name.lower() for name in vendors())
        yield f"These are the common GPUs; --gpu all shows {asking.left_out:,} more, or those of a vendor ({vendors_})."


def _example(grids: Sequence[Grid]) -> tuple[Row, Cell] | None:
    """A cell to look at: of the first row that fits the way that is furthest to the right, else the closest."""
    for row in (row for grid in grids for row in grid.rows):
        fitting = [cell for cell in row.cells if cell.value is not None]
        if fitting:
            return row, fitting[-1]
    return next((grid.closest for grid in grids if grid.closest), None)


def command(row: Row, cell: Cell, asked: Asked) -> str:
    """The command line of `gptcalc memory` whose answer a cell is."""
    model = row.model
    words = ["gptcalc", "memory", model.preset.name if model.preset else model.name]
    skipped = DROPOUTS if "dropout" in cell.asked else ()
    for key, change in model.changed.items():
        words += ["--set", f"{key}={change.now}"] if key not in skipped else []
    words += ["--gpu", row.room.name]
    order = (*asked, *cell.way.settings, "mode")
    for field in sorted(cell.asked, key=lambda name: order.index(name) if name in order else len(order)):
        value, option = cell.asked[field], f"--{field.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else f"--{(SETTINGS[field].other or f'no_{field}').replace('_', '-')}")
        elif value != "none":
            words += [option, str(value)]
    return shlex.join(words)
