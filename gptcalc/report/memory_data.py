"""`gptcalc memory` as plain data: what JSON and csv print, at every depth."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NotRequired

from typing_extensions import TypedDict

from gptcalc.allocator import Figures
from gptcalc.catalog import Resolved
from gptcalc.formula import Formula
from gptcalc.ledger.alive import Held
from gptcalc.ledger.memory import Memory, Mode, Phase, every_phase
from gptcalc.plan import Plan
from gptcalc.report.changes import ChangesJSON, changes_json
from gptcalc.report.claims import JudgementJSON
from gptcalc.report.count_data import heading_notes, model_json
from gptcalc.report.document import Column, Table, Value
from gptcalc.report.fits import FitJSON, MaxJSON, RangeJSON, fit_cells, fit_json, max_json, max_notes, mode_notes
from gptcalc.units import format_count

if TYPE_CHECKING:
    from gptcalc.ledger.answer import Answer
    from gptcalc.ledger.changes import Suggestions

#: Micro-batches that do the same and are listed all the same.
MOST_LISTED = 64
#: Figures beside `requested`, which may be greatest at another moment.
OTHERS = ("rounded", "allocated", "reserved")
NOT_IN_IT = (
    "Not in these numbers: the CUDA context and loaded kernels (0.45 to 0.6 GiB on the one device measured; they are in"
    " the range of nvidia-smi), buffers of NCCL (about 1.5 GiB where it was measured) and of CUDA graphs, fragmentation"
    " by other streams, other processes, tensors that your own code keeps (logits kept across steps: --keep-outputs)."
)


class MemoryLine(TypedDict):
    """What is alive at the peak; `amount` is the bytes requested, which add up to `totals.requested`."""

    key: str
    label: str
    kind: str
    component: str
    amount: int
    unit: str
    formula: str
    numbers: str
    tensors: int
    share: float
    why: str
    source: str
    op: NotRequired[str]
    dtype: NotRequired[str]


class FiguresJSON(TypedDict):
    """Bytes in torch's words."""

    requested: int
    rounded: int
    allocated: int
    reserved: int


class TotalsJSON(FiguresJSON):
    """Each figure's own maximum; `phase` is that of `requested`."""

    phase: str


class PhaseJSON(FiguresJSON):
    """Each figure's own maximum over a phase; `moment` is that of `requested`."""

    moment: str


class PointJSON(TypedDict):
    """A stretch of the step, and what is alive by kind where most is."""

    phase: str
    label: str
    requested: int
    alive: dict[str, int]


class AttentionJSON(TypedDict):
    """The backend that runs, and why."""

    backend: str
    reason: str


class ModeJSON(TypedDict):
    """Training or inference; `lines` are those of the instant of the requested peak.

    `phases` has every micro-batch of a step (`forward#1`, `backward#1`, …), `timeline` the first two: the others do
    what the second does. Of more than 65, `phases` too has the first two alone, and a note says so. `device_range` is
    what nvidia-smi may show; `fit` and `budget` are there where a device or a budget was named, `max` where the largest
    that fits was asked for.
    """

    totals: TotalsJSON
    moment: str
    phases: dict[str, PhaseJSON]
    persistent: FiguresJSON
    lines: list[MemoryLine]
    timeline: list[PointJSON]
    tokens: int
    device_range: RangeJSON
    attention: AttentionJSON
    fit: NotRequired[FitJSON]
    budget: NotRequired[FitJSON]
    max: NotRequired[MaxJSON]
    notes: list[str]


class PlanJSON(TypedDict):
    """What was asked for beside the model, defaults put in."""

    batch: int
    seq: int
    precision: str
    optimizer: str
    optimizer_impl: str
    momentum: float
    amsgrad: bool
    optimizer_in_backward: bool
    grad_accum: int
    grad_clip: float
    zero_grads: bool
    keep_outputs: bool
    master_weights: str
    grad_dtype: str
    attention: str
    checkpointing: str
    chunked_loss: int
    kv_dtype: str
    logits: str
    target: str
    torch: str
    expandable_segments: bool
    compile: bool
    implementation: str


class StageLineJSON(TypedDict):
    """A table of the embedding stage, or its activations: `amount` in bytes of the plan's precision."""

    key: str
    label: str
    kind: str
    component: str
    elements: int
    amount: int
    unit: str
    formula: str
    numbers: str
    bytes: dict[str, int]
    share: float
    why: str
    source: str


class StageTotalsJSON(TypedDict):
    """`requested` is the sum of the lines, `bytes` the same in every dtype."""

    requested: int
    bytes: dict[str, int]


class EmbeddingJSON(TypedDict):
    """The embedding stage by itself; `share` is that of its tables in the model's stored parameters."""

    positions: str
    parameters: int
    share: float
    totals: StageTotalsJSON
    lines: list[StageLineJSON]
    claims: list[JudgementJSON]


class MemoryJSON(TypedDict):
    """What `gptcalc memory --format json` prints: a key for each mode asked for, or for the embedding stage.

    `changes` is there where a run does not fit what was named.
    """

    schema: str
    command: str
    model: dict[str, object]
    plan: PlanJSON
    training: NotRequired[ModeJSON]
    inference: NotRequired[ModeJSON]
    embedding: NotRequired[EmbeddingJSON]
    changes: NotRequired[ChangesJSON]
    notes: list[str]


def rows(mode: Mode, depth: int) -> Sequence[Held]:
    """What is alive at the peak: by kind and component (1), by what each op made (2), or by tensor (3)."""
    if depth == 1:
        return mode.lines
    if depth == 3:
        return mode.held
    groups: dict[tuple[str, str, str, str], list[Held]] = {}
    for held in mode.held:
        groups.setdefault((held.kind, held.component, held.op, held.label), []).append(held)
    return [_together(group) for group in groups.values()]


def _together(group: list[Held]) -> Held:
    """Tensors that one op makes for one purpose, whatever their places."""
    return group[0]._replace(
        dtype=", ".join(dict.fromkeys(held.dtype for held in group)),
        formula=Formula.sum(held.formula for held in group),
        tensors=sum(held.tensors for held in group),
        why="; ".join(dict.fromkeys(held.why for held in group)),
        source="; ".join(dict.fromkeys(held.source for held in group)),
    )


def memory_json(  # noqa: PLR0913  what is printed
    model: Resolved,
    memory: Memory,
    depth: int,
    command: str = "",
    answers: "Sequence[Answer]" = (),
    *,
    changes: "Suggestions | None" = None,
) -> MemoryJSON:
    """The ledger as a dictionary of plain values; integers stay integers."""
    answer = plan_json(model, memory.plan, command)
    for mode in memory.modes:
        answer[mode.name] = _mode_json(mode, depth)
    for asked in answers:
        own = answer[asked.mode]
        if asked.gpu is not None:
            own["fit"] = fit_json(asked.gpu, memory.plan)
        if asked.budget is not None:
            own["budget"] = fit_json(asked.budget, memory.plan)
        if asked.largest is not None:
            own["max"] = max_json(asked.largest)
            own["notes"] += mode_notes(asked.largest)
    if changes is not None:
        answer["changes"] = changes_json(changes)
    answer["notes"] += [*max_notes(answers, memory.plan), *beyond_context(model, memory.plan), NOT_IN_IT]
    return answer


def plan_json(model: Resolved, plan: Plan, command: str) -> MemoryJSON:
    """What every answer of the command begins with."""
    return {
        "schema": "gptcalc.memory/1",
        "command": command,
        "model": model_json(model),
        "plan": {
            "batch": plan.batch,
            "seq": plan.seq,
            "precision": plan.precision,
            "optimizer": plan.optimizer,
            "optimizer_impl": plan.optimizer_impl,
            "momentum": plan.momentum,
            "amsgrad": plan.amsgrad,
            "optimizer_in_backward": plan.optimizer_in_backward,
            "grad_accum": plan.grad_accum,
            "grad_clip": plan.grad_clip,
            "zero_grads": plan.zero_grads,
            "keep_outputs": plan.keep_outputs,
            "master_weights": plan.master_weights,
            "grad_dtype": plan.grad_dtype,
            "attention": plan.attention,
            "checkpointing": plan.checkpointing,
            "chunked_loss": plan.chunked_loss,
            "kv_dtype": plan.kv_dtype,
            "logits": plan.logits,
            "target": plan.target,
            "torch": plan.torch,
            "expandable_segments": plan.expandable_segments,
            "compile": plan.compile,
            "implementation": plan.implementation,
        },
        "notes": [*heading_notes(model), *model.notes],
    }


def _mode_json(mode: Mode, depth: int) -> ModeJSON:
    return {
        "totals": {**figures_json(mode.totals), "phase": mode.phase},
        "moment": mode.moment,
        "phases": {phase.name: {**figures_json(phase.figures), "moment": phase.moment} for phase in _listed(mode)},
        "persistent": figures_json(mode.persistent),
        "lines": [_line_json(row, mode) for row in rows(mode, depth)],
        "timeline": [
            {
                "phase": p.phase,
                "label": p.label,
                "requested": p.requested,
                "alive": dict(p.alive.items()),
            }
            for p in mode.timeline
        ],
        "tokens": mode.tokens,
        "device_range": {"low": mode.device[0], "high": mode.device[1]},
        "attention": {"backend": mode.attention[0], "reason": mode.attention[1]},
        "notes": [*mode.notes, *elsewhere(mode)],
    }


def _listed(mode: Mode) -> Sequence[Phase]:
    """Every phase of every micro-batch, or of very many those that differ, as a note says."""
    return mode.phases if any(p.batches > MOST_LISTED for p in mode.phases) else list(every_phase(mode.phases))


def figures_json(figures: Figures) -> FiguresJSON:
    """The four figures by name."""
    return {
        "requested": figures.requested,
        "rounded": figures.rounded,
        "allocated": figures.allocated,
        "reserved": figures.reserved,
    }


def _line_json(row: Held, mode: Mode) -> MemoryLine:
    line: MemoryLine = {
        "key": row.key,
        "label": row.label,
        "kind": row.kind,
        "component": row.component,
        "amount": row.amount,
        "unit": "bytes",
        "formula": row.formula.letters,
        "numbers": row.formula.numbers,
        "tensors": row.tensors,
        "share": row.amount / mode.totals.requested,
        "why": row.why,
        "source": row.source,
    }
    if row.op:
        line["op"] = row.op
    if row.dtype:
        line["dtype"] = row.dtype
    return line


def elsewhere(mode: Mode) -> Iterator[str]:
    """Where another figure is greatest in another phase than `requested` is."""
    for name in OTHERS:
        most: int = getattr(mode.totals, name)
        phases = [phase.name for phase in mode.phases if getattr(phase.figures, name) == most]
        if phases and mode.phase not in phases:
            where = " and ".join(phases)
            yield f"{name} is greatest in {where} ({format_count(most)} bytes), requested in {mode.phase}."


def beyond_context(model: Resolved, plan: Plan) -> Iterator[str]:
    """A sequence longer than the model was made for, where nothing stops it."""
    if plan.seq > model.spec.n_ctx:
        how = {"none": "without positions"}.get(model.family.positions, f"with {model.family.positions} positions")
        yield (
            f"T = {format_count(plan.seq)} is beyond the context that the model was made for,"
            f" {format_count(model.spec.n_ctx)}: {how} it runs all the same, how well is another question."
        )


def memory_table(memory: Memory, depth: int, answers: "Sequence[Answer]" = ()) -> Table:
    """One record a line, with the mode that it belongs to, and that mode's answer."""
    first = ("mode", "key", "label", "kind", "component", "op", "dtype")
    keys = (*first, "formula", "numbers", "tensors", "amount", "share", "why", "source")
    found: list[tuple[Value, ...]] = []
    said = {answer.mode: fit_cells(answer) for answer in answers}
    for mode in memory.modes:
        for line in (_line_json(row, mode) for row in rows(mode, depth)):
            cells: dict[str, object] = {"mode": mode.name, "op": "", "dtype": "", **line}
            found.append((*(_flat(cells[key]) for key in keys), *said.get(mode.name, {}).values()))
    columns = (*keys, *next(iter(said.values()), {}))
    return Table("", tuple(Column(key, key) for key in columns), tuple(found))


def _flat(value: object) -> Value:
    if isinstance(value, float):
        return f"{value:.10g}"
    return value if isinstance(value, str | int) else str(value)
