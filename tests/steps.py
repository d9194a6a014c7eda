"""Steps as the tape has them and as torch runs them, in terms that can be compared."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from support import toy_configs

from gptcalc.allocator import round_size
from gptcalc.catalog import resolve
from gptcalc.ledger.step import inference, training
from gptcalc.optimizers import optimizer
from gptcalc.plan import Plan
from gptcalc.tape.kernels import torch_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gptcalc.spec import Spec
    from gptcalc.tape.record import Kernels, Stage
    from gptcalc.tape.replay import Recording

#: More layers than any model here has: none is folded.
ALL = 1_000_000
#: torch's names of the dtypes that the tape has.
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
#: A toy of each family, of odd sizes.
SIZES = {"vocab_size": 67, "n_positions": 19, "n_embd": 40, "n_layer": 2, "n_head": 5}
GPT2 = {"model_type": "gpt2"} | SIZES
GPT1 = {"model_type": "openai-gpt"} | SIZES
LLAMA = {
    "model_type": "llama",
    "vocab_size": 71,
    "max_position_embeddings": 23,
    "hidden_size": 42,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 47,
}
MULTI_QUERY = LLAMA | {"num_key_value_heads": 1}
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2}
FAMILIES = {"gpt2": GPT2, "gpt1": GPT1, "llama": LLAMA, "multi-query": MULTI_QUERY, "mixtral": MIXTRAL}
#: Adam and SGD in every implementation, SGD with a memory too; and every pair of optimizer and implementation.
MOMENTS = [
    {"optimizer": name, "optimizer_impl": impl, "momentum": momentum}
    for name, momentum in (("adamw", 0.0), ("adam", 0.0), ("sgd", 0.0), ("sgd", 0.9))
    for impl in ("foreach", "fused", "for-loop")
]
OPTIMIZERS = [
    *MOMENTS,
    *({"optimizer": "adamw", "optimizer_impl": impl, "amsgrad": True} for impl in ("foreach", "fused", "for-loop")),
    *({"optimizer": "adafactor", "optimizer_impl": impl} for impl in ("foreach", "for-loop")),
    *({"optimizer": "muon", "optimizer_impl": impl} for impl in ("foreach", "fused", "for-loop")),
    {"optimizer": "adamw8bit", "optimizer_impl": "fused"},
]
#: What happens in a phase: allocations in order, each after the frees since the one before, whose order is left open.
Happens = list[tuple[int, Counter[int]]]


def with_attention(spec: Spec, **fields: Any) -> Spec:
    """The model, with `fields` of its attention changed in every layer."""
    groups = []
    for group in spec.layers:
        attention = group.block.model_dump()["attention"] | fields
        block = type(group.block).model_validate(group.block.model_dump() | {"attention": attention})
        groups.append(group.model_copy(update={"block": block}))
    return spec.model_copy(update={"layers": tuple(groups)})


def tape_training(  # noqa: PLR0913  what a run depends on
    spec: Spec,
    plan: Plan,
    *,
    kernels: Kernels | None = None,
    n_steps: int = 2,
    recorded: int = ALL,
    recorded_batches: int = 2,
) -> Recording:
    """Training with the attention and the optimizer of the plan."""
    update = optimizer(plan, torch_version(plan.torch))
    backends = [plan.attention] * len(spec.layers)
    how = {"n_steps": n_steps, "recorded": recorded, "recorded_batches": recorded_batches}
    return training(spec, plan, backends, update, kernels, **how)


def tape_inference(spec: Spec, plan: Plan, *, recorded: int = ALL) -> Recording:
    """Inference with the attention of the plan, without what kernels take for themselves."""
    return inference(spec, plan, [plan.attention] * len(spec.layers), None, recorded=recorded)


def happens(events: Iterable[tuple[bool, int]]) -> Happens:
    """Of events (whether it is an allocation, bytes): the bytes of each allocation, with the frees before it."""
    found: Happens = []
    freed: Counter[int] = Counter()
    for is_alloc, size in events:
        if is_alloc:
            found.append((size, freed))
            freed = Counter()
        else:
            freed[size] += 1
    return [*found, (0, freed)]


def kept(recording: Recording) -> Counter[str]:
    """What autograd keeps, beside weights and inputs: dtype and bytes of each storage."""
    slots = {
        id(event.slot): event.slot
        for stage in recording.record.stages
        for segment in stage.segments
        for event in segment.events
    }
    return Counter(
        f"{DTYPES.get(slot.tensor.dtype, slot.tensor.dtype)} {slot.bytes}"
        for slot in slots.values()
        for _ in (slot.turn.numbers if slot.turn else [0])
        if slot.keepers and slot.kind not in ("weights", "inputs")
    )


def instants(recording: Recording) -> Iterator[tuple[int, str, int, int]]:
    """At each stage's start and after each event, layer by layer: stage, stretch, requested and rounded bytes."""
    requested = rounded = 0
    for number, stage in enumerate(recording.record.stages):
        yield number, "", requested, rounded
        for run in recording.runs(stage):
            for _ in range(run.times):
                for event in run.events:
                    times = event.times if event.alloc else -event.times
                    requested += times * event.slot.bytes
                    rounded += times * round_size(event.slot.bytes)
                    yield number, run.segment.label, requested, rounded


def events_of(recording: Recording, stage: Stage) -> list[tuple[bool, int]]:
    """Whether it is an allocation, and bytes, of every event of a recording of all layers."""
    return [
        (event.alloc, event.slot.bytes)
        for run in recording.runs(stage)
        for event in run.events * run.times
        for _ in range(event.times)
    ]


def of_tape(recording: Recording) -> list[tuple[str, Happens]]:
    """Every phase of a recording of all layers."""
    return [(stage.name, happens(events_of(recording, stage))) for stage in recording.record.stages]


def of_trace(trace: Any) -> list[tuple[str, Happens]]:
    """Every phase of a trace."""
    return [
        (phase.name, happens((event.kind == "alloc", event.bytes) for event in phase.events)) for phase in trace.phases
    ]


@st.composite
def toy_specs(draw: st.DrawFn) -> tuple[Spec, str]:
    """A toy model with any of torch's attention kernels that run with it, in a precision of its own."""
    config, own = draw(toy_configs())
    own["activation"] = draw(st.sampled_from(["gelu", "gelu_new", "relu", "silu"]))
    for field in ("embedding_dropout", "attention_dropout", "residual_dropout"):
        own[field] = draw(st.sampled_from([0.0, 0.1]))
    backends = ["flash", "cudnn", "math", "eager"]
    if own["n_kv_heads"] == own["n_heads"]:
        backends += ["efficient", "efficient"]
    backend = draw(st.sampled_from(backends))
    if backend == "cudnn":
        own["d_head"] = draw(st.sampled_from([8, 16, 24]))
    return resolve(config, own).spec, backend


@st.composite
def toy_plans(draw: st.DrawFn, **fields: st.SearchStrategy[Any]) -> tuple[Spec, Plan]:
    """A toy model and a plan for it, with `fields` of its own."""
    spec, backend = draw(toy_specs())
    longest = spec.n_ctx if spec.positions is not None and spec.positions.kind == "learned" else 20
    half_only = backend in ("flash", "cudnn")
    plan = {
        "batch": draw(st.integers(1, 4)),
        "seq": draw(st.integers(1, longest)),
        "precision": draw(st.sampled_from(["bf16", "fp16"] if half_only else ["fp32", "bf16", "fp16"])),
        "attention": backend,
    }
    return spec, Plan(**plan | {name: draw(values) for name, values in fields.items()})
