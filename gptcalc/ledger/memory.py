"""Memory: what is alive on one device at the peak of a training step and of inference, and at which moment.

The parts' tapes are recorded as a user's loop runs them (`ledger.step`), folded over the layers and replayed through
torch's allocator (`tape.replay`). The second step is the answer: then the optimizer's states exist.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from gptcalc.allocator import Figures
from gptcalc.errors import InvalidValueError
from gptcalc.hf import common
from gptcalc.ledger.alive import Alive, Held, Kind, kind_in
from gptcalc.ledger.reasons import COMPILED, has_rms_norm, mode_notes, optimizer_notes
from gptcalc.ledger.step import RECORDED_BATCHES, inference, training
from gptcalc.optimizers import OPTIMIZERS, optimizer
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.block import Block
from gptcalc.parts.delta import GatedDeltaNet
from gptcalc.parts.latent import LatentAttention
from gptcalc.parts.mlp import MixtureMLP
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.tape.kernels import (
    FUSED_RMS_NORM_SINCE,
    GROUPED_SINCE,
    Choice,
    CudaKernels,
    Heads,
    Version,
    choose_attention,
    target,
    torch_version,
)
from gptcalc.tape.replay import Fold, Folded, Recording, fold, replay
from gptcalc.units import GIB, format_bytes, format_count

ModeName = Literal["training", "inference"]


class Phase(NamedTuple):
    """`forward`, `backward`, `optimizer`, or `prefill`, `decode`: each figure its own maximum over the phase.

    `moment` says when the requested peak is: an op, and the layer that it is in (`layer 11: softmax`). Of several
    micro-batches each has its own, `forward#1` and so on; that of `batches`, from its own number on, is the same.
    """

    name: str
    figures: Figures
    moment: str
    batches: int = 1


class Point(NamedTuple):
    """A stretch of the step (`layer 3`, `loss`), and what is alive where most is, by kind: in the order of time."""

    phase: str
    label: str
    alive: dict[Kind, int]

    @property
    def requested(self) -> int:
        """Bytes requested at the stretch's own peak."""
        return sum(self.alive.values())


class Mode(NamedTuple):
    """One mode's answer. `phase`, `moment`, `lines` and `held` are those of the instant of the requested peak.

    `persistent` is what stays between steps (weights, optimizer states, inputs, workspaces; the KV cache).
    `device` is the range that nvidia-smi may show. `attention` is the backend and the reason for it.
    """

    name: ModeName
    totals: Figures
    phase: str
    moment: str
    phases: tuple[Phase, ...]
    persistent: Figures
    lines: tuple[Held, ...]
    held: tuple[Held, ...]
    timeline: tuple[Point, ...]
    tokens: int
    device: tuple[int, int]
    attention: tuple[str, str]
    notes: tuple[str, ...]


def every_phase(phases: Sequence[Phase]) -> Iterator[Phase]:
    """Each phase of each micro-batch, in the order of time; what was reserved before is still reserved later."""
    repeated = [phase for phase in phases if phase.batches > 1]
    yield from (phase for phase in phases if phase.batches == 1 and phase.name != "optimizer")
    for number in range(repeated[0].batches if repeated else 0):
        for phase in repeated:
            kind, _, first = phase.name.partition("#")
            figures = phase.figures
            if number:
                figures = figures._replace(reserved=max(other.figures.reserved for other in repeated))
            yield phase._replace(name=f"{kind}#{int(first) + number}", figures=figures, batches=1)
    yield from (phase for phase in phases if phase.name == "optimizer")


class Memory(NamedTuple):
    """The modes that were asked for."""

    spec: Spec
    plan: Plan
    modes: tuple[Mode, ...]


# --- The answer ------------------------------------------------------------------------------------------------------

#: Every layer is replayed; more take minutes.
MOST_LAYERS = 10_000
#: Context and kernels outside the allocator, on one device, in bytes: lazily loaded, and what grows from there.
CONTEXT = (int(0.45 * GIB), int(0.6 * GIB))
#: What the stages of the last step are called; `end` only frees.
PHASES: dict[ModeName, tuple[str, ...]] = {
    "training": ("forward", "backward", "optimizer"),
    "inference": ("prefill", "decode"),
}


def is_phase(mode: ModeName, stage: str) -> bool:
    """Whether a stage is a phase of the mode, of whichever micro-batch."""
    return stage.partition("#")[0] in PHASES[mode]


def is_reported(mode: ModeName, stage: str, plan: Plan) -> bool:
    """Whether a stage is a phase in which anything happens: the optimizer has none where it runs in backward."""
    return is_phase(mode, stage) and not (stage == "optimizer" and plan.optimizer_in_backward)


def last_step(recording: Recording) -> range:
    """The stages of the last step of training, or of the one pass of inference."""
    names = [stage.name for stage in recording.record.stages]
    ends = [number for number, name in enumerate(names[:-1]) if name in ("build", "end")]
    return range(ends[-1] + 1, len(names))


def memory(spec: Spec, plan: Plan, modes: Sequence[ModeName]) -> Memory:
    """What each of `modes` takes at its peak. Raises `InvalidValueError` for what torch does not have."""
    need(spec, plan, modes)
    kernels = CudaKernels(target(plan.target), torch_version(plan.torch))
    return Memory(spec, plan, tuple(_mode(name, spec, plan, kernels) for name in modes))


def need(spec: Spec, plan: Plan, modes: Sequence[ModeName]) -> None:
    """Raise `InvalidValueError` for what torch does not have, or what is not known of it."""
    torch = torch_version(plan.torch)
    if spec.n_layers > MOST_LAYERS:
        raise InvalidValueError(
            f"n_layers: read {spec.n_layers:,}; allowed for memory, which replays every layer: at most {MOST_LAYERS:,}"
        )
    refuse(plan, modes)
    for what, since in _needs(spec, plan):
        if torch < since:
            raise InvalidValueError(
                f"torch: read {plan.torch}, where {what} takes other ops, which are not known; allowed for this model:"
                f" {since[0]}.{since[1]} and later"
            )


def refuse(plan: Plan, modes: Sequence[ModeName]) -> None:
    """What autocast does is not known of everything."""
    what = {
        "muon, whose two optimizers share a gradient scaler": plan.autocast == "fp16"
        and plan.optimizer == "muon"
        and "training" in modes,
    }
    for name, refused in what.items():
        if plan.autocast and refused:
            raise InvalidValueError(
                f"precision: read {plan.precision} with {name} is not modelled; allowed: fp32, bf16, fp16"
            )


def _needs(spec: Spec, plan: Plan) -> Iterator[tuple[str, Version]]:
    """What a model does that older releases of torch do in other ops, with the first release that does it so."""
    if spec.unknown_ops:
        return
    if has_rms_norm(spec):
        yield "RMSNorm", FUSED_RMS_NORM_SINCE
    parts = [group.block.attention for group in spec.layers if isinstance(group.block, Block)]
    grouped = any(isinstance(part, MultiHeadAttention) and part.n_kv_heads < part.n_heads for part in parts)
    if grouped and plan.attention != "eager":
        yield "attention of grouped heads", GROUPED_SINCE


def record(  # noqa: PLR0913  what a run depends on
    name: ModeName, spec: Spec, plan: Plan, kernels: CudaKernels | None, *, n_steps: int = 2, worst: bool = False
) -> Recording:
    """The run of a mode; without `kernels` only what the callers of the ops see."""
    backends = [choice.backend for choice in attention_choices(spec, plan, training=name == "training")]
    if name == "inference":
        return inference(spec, plan, backends, kernels, worst=worst)
    update = optimizer(plan, torch_version(plan.torch))
    return training(spec, plan, backends, update, kernels, n_steps=n_steps, worst=worst)


#: Linear attention is plain products: there is no kernel to choose.
LINEAR = Choice("linear", "linear attention has no kernel of its own")


def attention_choices(spec: Spec, plan: Plan, *, training: bool) -> tuple[Choice, ...]:
    """The attention kernel of each group of layers."""
    if spec.unknown_ops:
        return (Choice("none", "no op is modelled"),)
    chip, torch = target(plan.target), torch_version(plan.torch)
    found = []
    for group in spec.layers:
        part = group.block.attention if isinstance(group.block, Block) else None
        if isinstance(part, GatedDeltaNet):
            found.append(LINEAR)
            continue
        if isinstance(part, LatentAttention):
            sizes = (part.n_heads, part.n_heads, part.d_nope + part.d_rope, part.d_value)
        elif isinstance(part, MultiHeadAttention):
            sizes = (part.n_heads, part.n_kv_heads, part.d_head, part.d_head)
        else:
            raise InvalidValueError(f"memory: read a block of kind {group.block.kind!r}, whose ops are not known")
        masked = part.scores.masks(plan.seq)
        if plan.implementation == "transformers" and isinstance(part, MultiHeadAttention):
            masked = common.is_masked(part, plan.seq)
            sizes = (part.n_heads, part.n_heads if common.repeats(part, plan.seq) else part.n_kv_heads, *sizes[2:])
        dropout = part.dropout if training else 0.0
        heads = Heads(
            plan.batch,
            plan.seq,
            *sizes,
            dropout,
            plan.compute_dtype,
            training,
            masked=masked,
            written_out=part.scores.written_out,
        )
        found.append(choose_attention(plan.attention, heads, chip, torch))
    return tuple(found)


def kernel_choices(spec: Spec, plan: Plan, *, training: bool) -> tuple[Choice, ...]:
    """The attention kernels of a model, each once; of one whose attention is all linear, that there are none."""
    choices = tuple(dict.fromkeys(attention_choices(spec, plan, training=training)))
    return tuple(choice for choice in choices if choice is not LINEAR) or choices


def _mode(name: ModeName, spec: Spec, plan: Plan, kernels: CudaKernels) -> Mode:
    recording = record(name, spec, plan, kernels)
    stages = recording.record.stages
    last = last_step(recording)
    folded, blocks = fold(recording, last), replay(recording, expandable=plan.expandable_segments)
    phases = tuple(
        Phase(
            stages[stage].name,
            _figures(folded, blocks[stage][0], stage),
            _moment(recording, folded.peak([stage])),
            _batches(stages[stage].name, plan),
        )
        for stage in last
        if is_reported(name, stages[stage].name, plan)
    )
    peak = folded.peak(last)
    alive = Alive(spec, recording, peak.place, keeps=name == "training", optimizer=OPTIMIZERS[plan.optimizer].source)
    choices = kernel_choices(spec, plan, training=name == "training")
    totals = Figures(*(max(figures) for figures in zip(*(phase.figures for phase in phases), strict=True)))
    again = (plan.checkpointing, plan.chunked_loss) if name == "training" else ()
    return Mode(
        name=name,
        totals=totals,
        phase=stages[peak.place.stage].name,
        moment=_moment(recording, peak),
        phases=phases,
        persistent=blocks[-1][1],
        lines=tuple(alive.lines()),
        held=tuple(alive.held()),
        timeline=tuple(_points(recording, folded, name, plan)),
        tokens=plan.batch * plan.seq * (plan.grad_accum if name == "training" else 1),
        device=(totals.reserved + CONTEXT[0], totals.reserved + CONTEXT[1]),
        attention=(", ".join(choice.backend for choice in choices), "; ".join(choice.reason for choice in choices)),
        notes=(
            *_same(phases),
            *_routing(name, spec, plan, kernels),
            *((COMPILED,) if plan.compile else ()),
            *mode_notes(spec, [choice.backend for choice in choices], *again),
            *(optimizer_notes(plan) if name == "training" else ()),
        ),
    )


def _same(phases: Sequence[Phase]) -> Iterator[str]:
    """What is recorded of many micro-batches."""
    repeated = [phase for phase in phases if phase.batches > 1]
    if repeated:
        first = int(repeated[0].name.partition("#")[2])
        last = first + repeated[0].batches - 1
        others = f"micro-batches {first + 1:,} to {last:,} do" if last > first + 1 else f"micro-batch {last} does"
        yield (
            f"{others} what micro-batch {first} does: the same gradients and the same loss are there when each begins,"
            f" so that {' and '.join(phase.name for phase in repeated)} stand for them all"
        )


def _routing(name: ModeName, spec: Spec, plan: Plan, kernels: CudaKernels) -> Iterator[str]:
    """What a mixture takes at most, where its tokens all go to the same experts."""
    if spec.unknown_ops or not any(
        isinstance(group.block, Block) and isinstance(group.block.mlp, MixtureMLP) for group in spec.layers
    ):
        return
    recording = record(name, spec, plan, kernels, worst=True)
    last = last_step(recording)
    most = fold(recording, last).peak(last).requested
    yield (
        f"experts see B·T·k rows in all, spread evenly here; where all tokens go to the same k experts,"
        f" {format_count(most)} bytes ({format_bytes(most)}) are requested at the peak"
    )


def _batches(stage: str, plan: Plan) -> int:
    """How many micro-batches a recorded one stands for: the last recorded one for all that follow."""
    number = stage.partition("#")[2]
    return plan.grad_accum - int(number) + 1 if number and int(number) == RECORDED_BATCHES else 1


def _figures(folded: Fold, blocks: Figures, stage: int) -> Figures:
    """Requested and rounded bytes by the fold, allocated and reserved by the replay."""
    return blocks._replace(requested=folded.peak([stage]).requested, rounded=folded.rounded[stage])


def _moment(recording: Recording, peak: Folded) -> str:
    place = peak.place
    run = list(recording.runs(recording.record.stages[place.stage]))[place.run]
    where = peak.label if peak.layer is None else f"layer {peak.layer}"
    op = run.events[place.event].op if place.event >= 0 else "its start"
    return f"{where}: {op.removeprefix('aten::')}"


def _points(recording: Recording, folded: Fold, name: ModeName, plan: Plan) -> Iterator[Point]:
    for point in folded.points:
        stage = recording.record.stages[point.place.stage].name
        if is_reported(name, stage, plan):
            label = point.label if point.layer is None else f"layer {point.layer}"
            alive: dict[Kind, int] = {}
            for kind, size in point.alive.items():
                reported = kind_in(kind, keeps=name == "training")
                alive[reported] = alive.get(reported, 0) + size
            yield Point(stage, label, alive)
