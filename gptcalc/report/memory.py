"""`gptcalc memory` as a document: for each mode what is alive at the peak, the peaks by phase, what follows."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from gptcalc.catalog import Resolved
from gptcalc.formula import Formula
from gptcalc.ledger.alive import Held, Kind
from gptcalc.ledger.components import COMPONENTS, component_label
from gptcalc.ledger.memory import Memory, Mode, ModeName, Phase
from gptcalc.ledger.parameters import parameters
from gptcalc.ledger.published import words
from gptcalc.ledger.reasons import op_words
from gptcalc.optimizers import OPTIMIZERS
from gptcalc.plan import Plan
from gptcalc.report.changes import changes_notes, changes_tables
from gptcalc.report.count import heading as model_heading
from gptcalc.report.document import Column, Document, Drawing, Table, Value
from gptcalc.report.fits import (
    bindings,
    fit_tables,
    headline,
    max_headline,
    max_notes,
    max_tables,
    room_notes,
    solved,
    uncertainty,
)
from gptcalc.report.fits import rooms as rooms_of
from gptcalc.report.memory_data import (
    NOT_IN_IT,
    beyond_context,
    elsewhere,
    memory_table,
    rows,
)
from gptcalc.report.timeline import KINDS, draw
from gptcalc.units import format_bytes, format_count

if TYPE_CHECKING:
    from gptcalc.ledger.answer import Answer
    from gptcalc.ledger.changes import Suggestions

WORDS = (
    "requested: the bytes asked for; rounded: each request up to a multiple of 512; allocated: the blocks handed out;"
    " reserved: the segments that hold them."
)
PEAK = "what the op makes is there, and what it reads is not let go yet: at no other moment is so much alive"
#: What runs again in the backward pass, as the heading has it.
RECOMPUTED = {
    "none": "",
    "full": " · checkpointing full: each block runs again in the backward pass",
    "selective": " · checkpointing selective: the core of attention runs again in the backward pass",
}
#: Kinds that the table groups as `count` does.
SIZED_AS_WEIGHTS = ("weights", "weight_copies", "gradients", "optimizer")

_WHAT = Column("what", "alive at the peak", wraps=True, least=24)
_NUMBERS = Column("numbers", "in numbers", wraps=True, drop=11)
_FORMULA = Column("formula", "formula", wraps=True, drop=3)
_TENSORS = Column("tensors", "tensors", "count", drop=6)
_BYTES = Column("bytes", "bytes", "count")
_SIZE = Column("size", "", "amount", drop=4)
_SHARE = Column("share", "share", "share", drop=8)
_BAR = Column("bar", "", "bar", drop=12)
_OP = (Column("component", "component", wraps=True, drop=9), Column("op", "op", wraps=True, least=10, drop=2))
_TENSOR = (Column("key", "tensor", drop=10), *_OP, Column("dtype", "dtype", drop=5))
#: The formula goes first where kinds and components are meant, last where tensors are.
_BY_DEPTH = {
    1: (
        _WHAT,
        _FORMULA._replace(drop=9),
        _NUMBERS,
        _BYTES,
        _SIZE._replace(drop=1),
        _SHARE._replace(drop=2),
        _BAR._replace(drop=10),
    ),
    2: (_WHAT, *_OP, _FORMULA, _NUMBERS, _TENSORS, _BYTES, _SIZE, _SHARE, _BAR),
    3: (_WHAT, *_TENSOR, _FORMULA, _NUMBERS, _TENSORS, _BYTES, _SIZE, _SHARE, _BAR),
}
_PHASES = (
    Column("phase", "peaks by phase"),
    Column("requested", "requested", "count"),
    Column("rounded", "rounded", "count", drop=4),
    Column("allocated", "allocated", "count", drop=1),
    Column("reserved", "reserved", "count", drop=2),
    Column("when", "requested peak at", wraps=True, least=14, drop=3),
)


class View(NamedTuple):
    """How much is shown: `explain` adds why each line is there, `timeline` draws the steps.

    `defaulted` are the settings that nobody gave; `checks` are commands that ask for what was solved for.
    """

    depth: int = 1
    defaulted: tuple[str, ...] = ()
    explain: bool = False
    timeline: bool = False
    checks: tuple[str, ...] = ()


def memory_document(
    model: Resolved,
    memory: Memory,
    view: View,
    answers: "Sequence[Answer]" = (),
    changes: "Suggestions | None" = None,
) -> Document:
    """The answer, where something was asked, what would change it, and a section for each mode."""
    return Document(
        title=_answer(_name(model), answers) if answers else _title(model, memory),
        heading=(
            *_heading(model, memory, view.defaulted, answers),
            *bindings(answers),
            *max_notes(answers, memory.plan),
            *uncertainty(answers),
        ),
        tables=(
            *max_tables(answers),
            *fit_tables(answers),
            *(changes_tables(changes) if changes else ()),
            *(table for mode in memory.modes for table in _section(mode, memory, view, titled=bool(answers))),
        ),
        notes=(
            *(changes_notes(changes, list(rooms_of(answers))) if changes else ()),
            *_notes(model, memory, view, answers),
        ),
        data=lambda: memory_table(memory, view.depth, answers),
        drawings=tuple(_drawing(mode) for mode in memory.modes if view.timeline and mode.timeline),
    )


def _name(model: Resolved) -> str:
    return f"{model.title}, changed" if model.changed else model.title


def _answer(name: str, answers: "Sequence[Answer]") -> str:
    return max_headline(name, answers) if solved(answers) else headline(name, answers)


def _title(model: Resolved, memory: Memory) -> str:
    if len(memory.modes) == 1:
        return f"{_name(model)}, {_peak(memory.modes[0])}"
    sizes = (f"{format_bytes(mode.totals.requested)} in {mode.name}" for mode in memory.modes)
    return f"{_name(model)} at the peak: {', '.join(sizes)}"


def _peak(mode: Mode) -> str:
    """How much, and when."""
    total = mode.totals.requested
    size = format_bytes(total)
    return f"{mode.name}: {size} at the peak ({format_count(total)} bytes requested), in {mode.phase}, at {mode.moment}"


def _heading(model: Resolved, memory: Memory, defaulted: Sequence[str], answers: "Sequence[Answer]") -> Iterator[str]:
    """The dims, where they come from, what was changed; then what the figures speak of."""
    plan, modes = memory.plan, {mode.name for mode in memory.modes}
    dims, *rest = model_heading(model, parameters(model.spec))
    yield f"{dims} · B={format_count(plan.batch)} · T={format_count(plan.seq)}"
    yield from rest
    yield "; ".join(_precision(plan, modes))
    if "training" in modes:
        chunks = f" · loss in {plan.chunked_loss:,} chunks" if plan.chunked_loss > 1 else ""
        yield f"{_optimizer(plan)} · {_dropout(model)}{RECOMPUTED[plan.checkpointing]}{chunks}"
        if loop := "; ".join(_loop(plan)):
            yield loop
    yield from _attention(memory)
    segments = " · expandable segments" if plan.expandable_segments else ""
    segments += " · torch.compile: not modelled, these are eager's numbers" if plan.compile else ""
    device = next((f" of the {room.title}" for room in rooms_of(answers) if room.target == plan.target), "")
    yield f"{words(plan, memory.spec.family)} · {plan.target}{device} · torch {plan.torch}{segments}"
    if defaulted:
        yield by_default(defaulted)


def _optimizer(plan: Plan) -> str:
    """What it is called, how it runs, and what else it was asked for."""
    momentum = f", momentum {plan.momentum:g}" if plan.momentum else ""
    amsgrad = " with AMSGrad" if plan.amsgrad else ""
    where = ", in backward" if plan.optimizer_in_backward else ""
    return f"{OPTIMIZERS[plan.optimizer].title}{amsgrad} ({plan.optimizer_impl}){momentum}{where}"


def _loop(plan: Plan) -> Iterator[str]:
    """What the loop does that is not the plain one."""
    if plan.grad_accum > 1:
        yield f"{format_count(plan.grad_accum)} micro-batches a step"
    if plan.grad_dtype != "none":
        yield f"gradients are added to {plan.grad_dtype} buffers"
    if plan.grad_clip:
        yield f"gradients are clipped to a norm of {plan.grad_clip:g}"
    if plan.zero_grads:
        yield "gradients are zeroed, not set to None"
    if plan.master_weights != "none":
        yield f"the optimizer updates {plan.master_weights} master weights"
    if plan.keep_outputs:
        yield "logits and loss are kept until the next ones are there"


def by_default(fields: Sequence[str]) -> str:
    """The settings that nobody gave, as they are typed."""
    return f"by default: {', '.join(field.replace('_', '-') for field in fields)}"


def _precision(plan: Plan, modes: set[ModeName]) -> Iterator[str]:
    masters = f"; {plan.master_weights} optimizer states" if plan.master_weights != "none" else ""
    states = "and gradients" if masters else "gradients and optimizer states"
    if plan.autocast:
        also = f"{'' if masters else ','} {states}{masters}" if "training" in modes else ""
        yield f"autocast: {plan.dtype} weights{also}, {plan.autocast} copies of weights and products of matrices"
    elif "training" in modes:
        activations = "activations" if masters else "activations,"
        yield f"{plan.precision} weights, {activations} {states}{masters}"
    else:
        yield f"{plan.precision} weights and activations"
    if "inference" in modes:
        yield f"KV cache in {plan.kv_dtype}, logits of {'the last token' if plan.logits == 'last' else 'all tokens'}"


def _dropout(model: Resolved) -> str:
    """One rate where there is one, else each."""
    fields = model.family.resolved()
    rates = {name: fields[f"{name}_dropout"] for name in ("embedding", "attention", "residual")}
    if len(set(rates.values())) == 1:
        return f"dropout {rates['embedding']:g}"
    return f"dropout {', '.join(f'{name} {rate:g}' for name, rate in rates.items())}"


def _attention(memory: Memory) -> Iterator[str]:
    """The backend and why; once where all modes have the same."""
    found: dict[tuple[str, str], list[str]] = {}
    for mode in memory.modes:
        found.setdefault(mode.attention, []).append(mode.name)
    for (backend, reason), names in found.items():
        where = "" if len(found) == 1 else f" in {' and '.join(names)}"
        yield f"attention{where}: {backend}, {reason}"


def _section(mode: Mode, memory: Memory, view: View, *, titled: bool) -> Iterator[Table]:
    """The tables of one mode, above the first what the title says where there is only one and it says nothing else."""
    peak = _peak(mode)
    titled = titled or len(memory.modes) > 1
    yield _alive_table(f"{peak[0].upper()}{peak[1:]}" if titled else "", mode, view.depth)
    yield _phase_table(mode)
    yield _facts_table(mode, memory.plan)
    if view.explain:
        yield _why_table(mode, view.depth)


def _alive_table(title: str, mode: Mode, depth: int) -> Table:
    """Kinds, and beneath each what it is made of."""
    columns, total = _BY_DEPTH[depth], mode.totals.requested
    order = list(KINDS)
    found = list(rows(mode, depth)) if depth > 1 else by_group(rows(mode, depth))
    found.sort(key=lambda row: order.index(row.kind))
    lines: list[tuple[Value, ...]] = []
    for kind, group in groupby(found, key=lambda row: row.kind):
        own = list(group)
        lines.append(_cells(columns, _kind(kind, mode), sum(row.amount for row in own), total))
        lines += [_cells(columns, f"  {row.label}", row.amount, total, row) for row in own]
    footer: dict[str, Value] = {"what": "requested", "bytes": total, "size": format_bytes(total), "share": Fraction(1)}
    return Table(title, columns, tuple(lines), (tuple(footer.get(column.key) for column in columns),))


def _kind(kind: Kind, mode: Mode) -> str:
    """What a kind is called: in training autograd saves activations."""
    return f"{'saved ' if kind == 'activations' and mode.name == 'training' else ''}{KINDS[kind][1]}"


def by_group(lines: Sequence[Held]) -> list[Held]:
    """The lines with those of weights, and of what has their sizes, as `count` groups them: all biases in one."""
    groups: dict[tuple[str, str], list[Held]] = {}
    for line in lines:
        grouped = line.kind in SIZED_AS_WEIGHTS and line.component in COMPONENTS
        name = COMPONENTS[line.component].group if grouped else line.key
        groups.setdefault((line.kind, name), []).append(line)
    return [
        own[0] if len(own) == 1 else own[0]._replace(label=name, formula=Formula.sum(line.formula for line in own))
        for (_, name), own in groups.items()
    ]


def _cells(
    columns: Sequence[Column], label: str, amount: int, total: int, row: Held | None = None
) -> tuple[Value, ...]:
    share = Fraction(amount, total or 1)
    cells: dict[str, Value] = {"what": label, "bytes": amount, "size": format_bytes(amount), "share": share}
    cells["bar"] = share
    if row:
        cells |= {"formula": row.formula.letters, "numbers": row.formula.numbers, "tensors": row.tensors}
        cells |= {"key": row.key, "component": component_label(row.component)}
        cells |= {"op": op_words(row.op), "dtype": row.dtype}
    return tuple(cells.get(column.key, "") for column in columns)


def _phase_table(mode: Mode) -> Table:
    """Each figure's own maximum over each phase, and over all of them."""
    own = tuple((_phase(phase), *phase.figures, _read(phase.moment)) for phase in mode.phases)
    return Table("", _PHASES, own, (("the greatest", *mode.totals, f"{mode.phase}: {_read(mode.moment)}"),))


def _phase(phase: Phase) -> str:
    """The name of a phase, and up to which micro-batch others are like it."""
    if phase.batches == 1:
        return phase.name
    first = int(phase.name.partition("#")[2])
    return f"{phase.name} to #{format_count(first + phase.batches - 1)}"


def _read(moment: str) -> str:
    """A moment as it is read: `head: log softmax backward data`."""
    where, _, op = moment.partition(": ")
    return f"{where}: {op_words(op)}"


def _facts_table(mode: Mode, plan: Plan) -> Table:
    """What the figures mean for a device and for a run."""
    low, high = mode.device
    found: tuple[tuple[Value, ...], ...] = (
        _fact("allocated, at most", mode.totals.allocated, "torch's max_memory_allocated"),
        _fact("reserved, at most", mode.totals.reserved, "torch's max_memory_reserved"),
        _fact("nvidia-smi, from", low, "what is reserved, and a small CUDA context"),
        _fact("nvidia-smi, to", high, "the same with a large one"),
        _fact("persistent, requested", mode.persistent.requested, _kept(mode)),
        _fact("persistent, allocated", mode.persistent.allocated, "the same in blocks"),
        ("tokens", mode.tokens, None, _tokens(mode, plan)),
    )
    columns = (
        Column("what", "what to expect"),
        Column("amount", "", "count"),
        Column("size", "", "amount", drop=1),
        Column("note", "", wraps=True, least=16, drop=2),
    )
    return Table("", columns, found)


def _fact(what: str, amount: int, note: str) -> tuple[Value, ...]:
    return what, amount, format_bytes(amount), note


def _kept(mode: Mode) -> str:
    return "stays between steps" if mode.name == "training" else "stays while it serves"


def _tokens(mode: Mode, plan: Plan) -> str:
    n = plan.grad_accum if mode.name == "training" else 1
    step = "a step" if mode.name == "training" else "prompt and answer together"
    each = (*((n,) if n > 1 else ()), plan.batch, plan.seq)
    return f"{step}: {' × '.join(map(format_count, each))}"


def _why_table(mode: Mode, depth: int) -> Table:
    """Why each row of that depth is there, and who says so."""
    columns = (
        Column("what", "what", wraps=True, least=12),
        Column("formula", "formula", wraps=True, drop=2),
        Column("why", "why", wraps=True, least=20),
        Column("source", "source", wraps=True, least=14, drop=1),
    )
    found: list[tuple[Value, ...]] = [("the peak", "", f"in {mode.phase}, at {_read(mode.moment)}; {PEAK}", "")]
    found += [
        (f"{_kind(row.kind, mode)}: {row.label}", row.formula.letters, row.why, row.source) for row in rows(mode, depth)
    ]
    return Table(f"Why, in {mode.name}", columns, tuple(found))


def _drawing(mode: Mode) -> Drawing:
    what = "a training step" if mode.name == "training" else "inference"
    return Drawing(f"Bytes alive over {what}", lambda width: draw(mode.timeline, width))


def _notes(model: Resolved, memory: Memory, view: View, answers: "Sequence[Answer]") -> Iterator[str]:
    """What is particular to the answer, what the words mean, what is not in it, what to try."""
    devices = [note for room in rooms_of(answers) for note in room_notes(room, memory.plan)]
    for note in (*devices, *model.notes, *beyond_context(model, memory.plan), *_mode_notes(memory)):
        yield f"Note: {note}"
    yield WORDS
    yield NOT_IN_IT
    checks = [f"{command} checks it" for command in view.checks]
    ways = [] if view.timeline else ["--timeline draws the step"]
    ways += [] if view.depth == 3 else ["--depth 3 lists every tensor alive at the peak"]
    ways += [] if view.explain else ["--explain says why each line is there"]
    if found := [*checks, *_remedies(memory), *ways]:
        yield f"Next: {', '.join(found)}."


def _mode_notes(memory: Memory) -> Iterator[str]:
    """The notes of each mode with its name before them, one that all share once."""
    found: dict[str, list[str]] = {}
    for mode in memory.modes:
        for note in (*mode.notes, *elsewhere(mode)):
            found.setdefault(note, []).append(mode.name)
    for note, names in found.items():
        yield note if len(names) == len(memory.modes) else f"in {' and '.join(names)}, {note}"


def _remedies(memory: Memory) -> Iterator[str]:
    """What would lower this very peak."""
    plan = memory.plan
    if plan.optimizer_impl == "foreach" and any(mode.phase == "optimizer" for mode in memory.modes):
        if plan.optimizer in ("adamw", "adam"):
            yield "--optimizer-impl fused takes no copies of all weights"
        if plan.optimizer == "adafactor":
            yield "--optimizer-impl for-loop takes copies of two weights at a time"
    if plan.attention in ("math", "eager"):
        yield "--attention auto may keep no B×N×T×T"
    if plan.logits == "all" and "inference" in {mode.name for mode in memory.modes}:
        yield "--logits last keeps one row of logits a sequence"
