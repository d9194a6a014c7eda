"""The memory witnesses: what a plan takes, held against real PyTorch.

`saved-tensors` and `trace` run the reference module on the meta device, without kernels' own buffers, which no op
shows; `cuda` runs it on the local GPU. What they see is compared with the tape's recording of the same plan.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from gptcalc.allocator import Figures
from gptcalc.catalog import Resolved
from gptcalc.errors import InvalidValueError
from gptcalc.ledger.evidence import Evidence, Finding
from gptcalc.ledger.memory import LINEAR, ModeName, attention_choices, is_phase, record, refuse
from gptcalc.ledger.step import RECORDED_BATCHES
from gptcalc.plan import Plan
from gptcalc.tape.replay import Recording, replay
from gptcalc.units import format_count

#: What torch's dtypes are called here, where that differs.
TORCH_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "uint64": "int64"}
#: A witness of what a model takes under a plan, in the modes asked for.
MemoryWitness = Callable[[Resolved, Plan, Sequence[ModeName]], tuple[Evidence, ...]]


def saved_tensors(model: Resolved, plan: Plan, modes: Sequence[ModeName]) -> tuple[Evidence, ...]:
    """Every tensor that autograd keeps in a training step's forward pass, by size and dtype."""
    from gptcalc.witness import fake_cuda, hub_steps, saved_tensors

    if "training" not in modes:
        return (Evidence("saved-tensors", "inference", skipped="it keeps nothing for a backward pass"),)
    settled = _settled(model, plan, "training")
    refuse(settled, ("training",))
    published = plan.implementation == "transformers"
    if plan.autocast:
        if reason := fake_cuda.missing():
            return (Evidence("saved-tensors", "training", skipped=f"the meta device has no autocast, and {reason}"),)
        asked = (hub_steps.saved, _sent(model)) if published else (saved_tensors.saved, model.spec)
        (seen,) = fake_cuda.run([fake_cuda.Call(asked[0], (asked[1], settled, "cuda"))])
    else:
        seen = hub_steps.saved(model, settled) if published else saved_tensors.saved(model.spec, settled)
    found = Counter((one.bytes, TORCH_DTYPES.get(one.dtype, one.dtype)) for one in seen)
    expected = _kept(record("training", model.spec, plan, None))
    findings = tuple(
        Finding("saved tensors", f"{format_count(size)} bytes, {dtype}", str(ours), str(theirs))
        for size, dtype in sorted(expected.keys() | found.keys(), reverse=True)
        if (ours := expected[size, dtype]) != (theirs := found[size, dtype])
    )
    n_bytes = sum(size * n for (size, _), n in found.items())
    subject = f"{'transformers' if published else 'gptcalc.modules'} on {_device(plan)}, {_words(settled)}"
    return (Evidence("saved-tensors", subject, found.total(), findings=findings, bytes=n_bytes),)


def _kept(recording: Recording) -> Counter[tuple[int, str]]:
    """Sizes and dtypes of what the last forward pass leaves for the backward pass, over all layers."""
    stage = [stage for stage in recording.record.stages if stage.name.startswith("forward")][-1]
    kept: Counter[tuple[int, str]] = Counter()
    for run in recording.runs(stage):
        for event in run.events:
            slot = event.slot
            if event.alloc and slot.keepers:
                kept[slot.bytes, slot.tensor.dtype] += run.times * event.times
    return kept


def trace(model: Resolved, plan: Plan, modes: Sequence[ModeName]) -> tuple[Evidence, ...]:
    """Every allocation and free of the steps, through the allocator: the figures of each phase."""
    from gptcalc.witness import fake_cuda, hub_steps
    from gptcalc.witness.trace import replay as figures_of
    from gptcalc.witness.trace import trace_inference, trace_training

    published = plan.implementation == "transformers"
    seen = []
    for mode in modes:
        settled = _settled(model, plan, mode)
        refuse(settled, (mode,))
        if plan.autocast:
            if reason := fake_cuda.missing():
                seen.append(Evidence("trace", mode, skipped=f"the meta device has no autocast, and {reason}"))
                continue
            if mode == "inference":
                call = fake_cuda.Call(trace_inference, (model.spec, settled, "cuda"))
            elif published:
                call = fake_cuda.Call(hub_steps.trace_training, (_sent(model), settled, 2, "cuda"))
            else:
                call = fake_cuda.Call(trace_training, (model.spec, settled, 2, "cuda"))
            (traced,) = fake_cuda.run([call])
        elif mode == "inference":
            traced = trace_inference(model.spec, settled)
        else:
            traced = hub_steps.trace_training(model, settled) if published else trace_training(model.spec, settled)
        peaks = figures_of(traced, expandable=plan.expandable_segments)
        last = max(peak.step for peak in peaks)
        found = {peak.phase: peak.figures for peak in peaks if peak.step == last}
        recording = record(mode, model.spec, plan, None)
        n_events = sum(len(phase.events) for phase in traced.phases)
        seen.append(
            Evidence(
                "trace",
                f"{mode} {'of transformers ' if published else ''}on {_device(plan)}, {_words(settled)}",
                n_events,
                findings=tuple(_differences(mode, _phases(recording, plan), found)),
                bytes=max(figures.requested for figures in found.values()),
            )
        )
    return tuple(seen)


def _phases(recording: Recording, plan: Plan) -> dict[str, Figures]:
    """The last figures of each phase."""
    names = [stage.name for stage in recording.record.stages]
    blocks = replay(recording, expandable=plan.expandable_segments)
    return dict(zip(names, (peak for peak, _ in blocks), strict=True))


def _differences(mode: ModeName, expected: dict[str, Figures], found: dict[str, Figures]) -> Iterator[Finding]:
    for phase in (phase for phase in found if is_phase(mode, phase)):
        kind, _, number = phase.partition("#")
        like = expected[f"{kind}#{min(int(number), RECORDED_BATCHES)}" if number else phase]
        if number and int(number) > RECORDED_BATCHES:  # what is reserved is not given back
            like = like._replace(reserved=expected[f"backward#{RECORDED_BATCHES}"].reserved)
        for figure, ours, theirs in zip(Figures._fields, like, found[phase], strict=True):
            if ours != theirs:
                yield Finding(f"{phase}, {figure}", f"{mode} step", format_count(ours), format_count(theirs))


def _settled(model: Resolved, plan: Plan, mode: ModeName) -> Plan:
    """The plan with the attention kernels that torch would pick for the groups of layers: on meta there are none."""
    choices = attention_choices(model.spec, plan, training=mode == "training")
    backends = ["eager" if choice is LINEAR else choice.backend for choice in choices]
    return plan.model_copy(update={"attention": ",".join(backends if len(set(backends)) > 1 else backends[:1])})


def _sent(model: Resolved) -> Resolved:
    """What of a model another process needs: views of mappings do not travel."""
    return model._replace(preset=None, huggingface=dict(model.huggingface), changed={}, followed={}, defaults={})


def _device(plan: Plan) -> str:
    """Where a witness without a GPU runs: the meta device has no autocast."""
    return "fake CUDA" if plan.autocast else "meta"


def _words(plan: Plan) -> str:
    update = f"{plan.optimizer} {plan.optimizer_impl}"
    attention = " and ".join(dict.fromkeys(plan.attention.split(",")))
    return f"{plan.batch} × {plan.seq} tokens, {plan.precision}, {attention} attention, {update}"


def cuda(model: Resolved, plan: Plan, modes: Sequence[ModeName]) -> tuple[Evidence, ...]:
    """The steps on the local GPU, each phase against the prediction for that device and release."""
    if plan.implementation != "reference":
        raise InvalidValueError(
            f"check: read witness 'cuda' with implementation {plan.implementation}; allowed: reference, whose module it"
            " runs"
        )
    from gptcalc.witness.cuda import cuda as run

    return run(model, plan, modes)


def transformers(model: Resolved, plan: Plan, modes: Sequence[ModeName]) -> tuple[Evidence, ...]:
    """Both witnesses, of the class that transformers has."""
    return (*saved_tensors(model, plan, modes), *trace(model, plan, modes))


#: Every memory witness by name.
MEMORY_WITNESSES: dict[str, MemoryWitness] = {
    "saved-tensors": saved_tensors,
    "trace": trace,
    "transformers": transformers,
    "cuda": cuda,
}
