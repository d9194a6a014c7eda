"""The traced step: torch's own engine agrees with it add by add, and its sums are those that can be worked out."""

from __future__ import annotations

import gc
from collections import Counter
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import pytest
import steps
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples, toy_configs

from gptcalc.catalog import resolve
from gptcalc.errors import InvalidValueError
from gptcalc.plan import Plan

torch = pytest.importorskip("torch")

from gptcalc.modules import build  # noqa: E402  it opens torch
from gptcalc.modules.checks import trusted  # noqa: E402
from gptcalc.witness import trace as tracing  # noqa: E402
from gptcalc.witness.trace import Event, Trace, replay, trace_inference, trace_training  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

pytestmark = pytest.mark.usefixtures("frozen")

GPT2, LLAMA = steps.GPT2 | {"n_embd": 30}, steps.LLAMA | {"head_dim": 10}
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2}
MODELS = {
    "gpt2-tied": (GPT2, {}),
    "gpt2-untied": (GPT2, {"tied": False}),
    "gpt1": ({"model_type": "openai-gpt", "vocab_size": 61, "n_positions": 17, "n_embd": 21, "n_head": 3}, {}),
    "llama": (LLAMA, {}),
    "llama-tied": (LLAMA, {"tied": True, "qkv_bias": True}),
    "mixtral": (MIXTRAL, {}),
}
PLAN = Plan(batch=3, seq=13, attention="math")


def _events(trace: Trace, name: str, step: int | None = None) -> tuple[Event, ...]:
    """The events of one phase, of the last step where none is named."""
    step = trace.phases[-1].step if step is None else step
    (events,) = [phase.events for phase in trace.phases if (phase.name, phase.step) == (name, step)]
    return events


def _alive(phases: Iterable[Any]) -> Counter[int]:
    """Storages that are alive after these phases, with their bytes."""
    alive: Counter[int] = Counter()
    for event in (event for phase in phases for event in phase.events):
        if event.kind == "alloc":
            assert event.storage not in alive
            alive[event.storage] = event.bytes
        else:
            assert alive.pop(event.storage) == event.bytes
    return alive


def _real_adds(backward: Callable[[], None]) -> list[tuple[int, ...]]:
    """The shapes of what torch's engine adds out of place on a CPU, watched by nobody but its profiler."""
    with torch.autograd.profiler.profile(use_kineto=False, record_shapes=True) as profile:
        backward()
    return [tuple(event.input_shapes[0]) for event in profile.function_events if event.name == "aten::add"]


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_added_as_torchs_engine_adds_them(name: str) -> None:
    """Of the gradients that meet in a step, the same ones are added out of place as by torch's engine on a CPU."""
    spec = resolve(*MODELS[name]).spec
    torch.manual_seed(0)
    decoder, tokens = build(spec, attention="math").train().bfloat16(), torch.randint(0, 61, (3, 13))
    with trusted():
        loss = decoder(tokens, tokens).loss
    real = _real_adds(loss.backward)
    trace = trace_training(spec, PLAN, 1)
    assert [event.shape for event in _allocs(_events(trace, "backward"), "aten.add.Tensor")] == real


def _allocs(events: Iterable[Event], op: str) -> list[Event]:
    return [event for event in events if event.kind == "alloc" and event.op == op]


def _fresh(x: Any) -> Any:
    """Both gradients are made for the occasion."""
    return x.cos() * x.exp()


def _residual(x: Any) -> Any:
    """As in a block: the first to arrive went to the other branch too, which is done with it when the second comes."""
    return x + x.sin().exp()


def _view(x: Any) -> Any:
    """As for a tied table: the first to arrive is a view, and what it is a view of lives as long."""
    return x.sin() + x.t().exp().t()


def _expanded(x: Any) -> Any:
    """The first to arrive is one number, expanded."""
    return x.sin().sum() + x.sum()


def _held(x: Any) -> Any:
    """The first to arrive still waits for another branch's turn."""
    other, x = x * 3, x * 5
    return x.sin() + (x + other)


class _Gaps(torch.autograd.Function):
    """The identity, whose gradient has gaps between its rows."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:  # noqa: ARG004
        return torch.empty_strided(grad.shape, (2 * grad.shape[1], 1), device=grad.device)


def _gaps(x: Any) -> Any:
    """The first to arrive is nobody else's, and not dense."""
    return x.sin() + _Gaps.apply(x)


#: Functions, and how many gradients a real run adds out of place.
FAN_INS = {_fresh: 0, _residual: 0, _view: 1, _expanded: 1, _held: 1, _gaps: 1}


@pytest.mark.parametrize(("function", "known"), FAN_INS.items(), ids=[function.__name__ for function in FAN_INS])
def test_fan_ins_add_in_place_where_torch_does(function: Callable[[Any], Any], known: int) -> None:
    """A gradient takes up the next one if it is dense and nobody else holds it, else the sum is a tensor of its own."""
    real = _real_adds((function(torch.randn(4, 4, requires_grad=True) * 2) * 3).sum().backward)
    with tracing.recording() as recorder:
        with recorder.phase("forward"):
            result = (function(torch.empty(4, 4, device="meta", requires_grad=True) * 2) * 3).sum()
        with recorder.phase("backward"):
            result.backward()
    traced = _allocs(recorder.phases[1].events, "aten.add.Tensor")
    assert [event.shape for event in traced] == real
    assert len(real) == known


def test_zeros_are_written_in_place() -> None:
    """What indexing hands back is written into zeros, once: under a recorder torch would copy them first."""
    with tracing.recording() as recorder:
        with recorder.phase("forward"):
            x = torch.empty(5, 3, device="meta", requires_grad=True)
            rows = torch.empty(7, dtype=torch.int64, device="meta")
            chosen = x.exp()[rows].topk(2).values.sum()
        with recorder.phase("backward"):
            chosen.backward()
    made = [(event.op, event.shape) for event in recorder.phases[1].events if event.kind == "alloc"]
    assert made == [
        ("aten.ones_like.default", ()),
        ("aten.new_zeros.default", (7, 3)),
        ("aten.new_zeros.default", (5, 3)),
        ("aten.mul.Tensor", (5, 3)),
    ]


def test_build_is_the_weights_and_the_inputs() -> None:
    """Before the first step there are the weights, in construction order and in the precision, and two lots of IDs."""
    spec = resolve(GPT2, {}).spec
    with torch.device("meta"):
        weights = [(tuple(weight.shape), weight.numel() * 2) for weight in build(spec).parameters()]
    events = _events(trace_training(spec, PLAN, 1), "build", 0)
    assert [(event.shape, event.bytes) for event in events] == [*weights, ((3, 13), 312), ((3, 13), 312)]
    assert {event.dtype for event in events[:-2]} == {"bfloat16"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("optimizer", "states", "temporaries"),
    [
        ({"optimizer": "adamw", "optimizer_impl": "foreach"}, 2, "all"),
        ({"optimizer": "adamw", "optimizer_impl": "fused"}, 2, "none"),
        ({"optimizer": "adamw", "optimizer_impl": "for-loop"}, 2, "three"),
        ({"optimizer": "adam", "optimizer_impl": "foreach"}, 2, "all"),
        ({"optimizer": "adam", "optimizer_impl": "fused"}, 2, "none"),
        ({"optimizer": "sgd", "optimizer_impl": "foreach"}, 0, "none"),
        ({"optimizer": "sgd", "optimizer_impl": "foreach", "momentum": 0.9}, 1, "none"),
        ({"optimizer": "sgd", "optimizer_impl": "fused"}, 0, "none"),
        ({"optimizer": "sgd", "optimizer_impl": "fused", "momentum": 0.9}, 1, "none"),
        ({"optimizer": "sgd", "optimizer_impl": "for-loop", "momentum": 0.9}, 1, "none"),
    ],
)
def test_optimizers_keep_and_take_what_torch_says(
    optimizer: dict[str, Any], states: int, temporaries: str, precision: str
) -> None:
    """From the second step on an optimizer keeps its states, and takes for itself what its implementation is known for.

    Of AdamW that is one copy of all weights (foreach), nothing (fused), or two of one weight beside one of the weight
    before it, which a variable still holds (for-loop). Fused, it keeps a counter of 4 bytes on the device a weight.
    """
    plan = PLAN.model_copy(update=optimizer | {"precision": precision})
    trace = trace_training(resolve(GPT2, {}).spec, plan)
    given = sum(_alive(trace.phases[:1]).values())
    inputs, weights = 2 * 3 * 13 * 8, [event.bytes for event in _events(trace, "build", 0)[:-2]]
    counters = 4 * len(weights) if optimizer["optimizer_impl"] == "fused" and optimizer["optimizer"] != "sgd" else 0
    assert sum(_alive(trace.phases).values()) == given + states * sum(weights) + counters
    three = max(before + 2 * weight for before, weight in pairwise([0, *weights]))
    taken = {"all": sum(weights), "none": 0, "three": three}[temporaries]
    peaks = {peak.phase: peak.figures.requested for peak in replay(trace) if peak.step == 2}
    assert peaks["optimizer"] == inputs + (2 + states) * sum(weights) + counters + taken + 4  # gradients, and the loss


@settings(max_examples=examples(15), deadline=None)
@given(
    drawn=toy_configs(),
    plan=st.builds(dict, batch=st.integers(1, 3), backend=st.sampled_from(["math", "eager", "flash"])),
)
def test_steps_repeat(drawn: tuple[dict[str, Any], dict[str, Any]], plan: dict[str, Any]) -> None:
    """From the second step on, every step makes the same storages and lets them go in the same order."""
    config, overrides = drawn
    spec = resolve(config, overrides).spec
    seq = min(spec.n_ctx, 7)
    trace = trace_training(spec, Plan(batch=plan["batch"], seq=seq, attention=plan["backend"]), 3)
    assert sorted(_alive(trace.phases[:9]).values()) == sorted(_alive(trace.phases).values())
    for name in ("forward", "backward", "optimizer", "end"):
        second, third = (_anonymous(_events(trace, name, step)) for step in (2, 3))
        assert second == third, name


def _anonymous(events: tuple[Event, ...]) -> list[Event]:
    return [event._replace(storage=0) for event in events]


@pytest.mark.parametrize("name", MODELS)
def test_backward_ends_with_gradients_alone(name: str) -> None:
    """After the backward pass there are the weights' gradients, the loss, and nothing of the forward pass."""
    trace = trace_training(resolve(*MODELS[name]).spec, PLAN, 1)
    weights = sorted(event.bytes for event in _events(trace, "build", 0)[:-2])
    before, after = (_alive(trace.phases[:n]) for n in (1, 3))
    assert sorted((after - before).values()) == [4, *weights]


@pytest.mark.parametrize(("logits", "rows"), [("last", 3), ("all", 3 * 13)])
def test_inference_keeps_the_cache_and_no_more(logits: str, rows: int) -> None:
    """Between phases there are weights, cache and IDs; logits are of all tokens, or of the last of each sequence."""
    spec = resolve(LLAMA, {}).spec
    trace = trace_inference(spec, PLAN.model_copy(update={"kv_dtype": "fp32", "logits": logits}))
    with torch.device("meta"):
        stored = sum(weight.numel() * 2 for weight in build(spec).parameters())
    n_layers, n_kv_heads, d_head, both = 2, 2, 10, 2
    cache = n_layers * both * 3 * n_kv_heads * 13 * d_head * 4
    assert [sum(_alive(trace.phases[:n]).values()) for n in (1, 2, 3)] == [stored + cache + 8 * (3 * 13 + 3)] * 3
    assert _allocs(_events(trace, "prefill"), "aten.mm.default")[-1].shape == (rows, 71)
    assert _allocs(_events(trace, "decode"), "aten.mm.default")[-1].shape == (3, 71)


@pytest.mark.parametrize(("kv_dtype", "casts"), [("bf16", 0), ("fp16", 4)])
def test_decode_casts_a_cache_of_another_dtype(kv_dtype: str, casts: int) -> None:
    """Decoding reads the cache where it lies; one of another dtype is copied, keys and values of each layer."""
    plan = PLAN.model_copy(update={"kv_dtype": kv_dtype, "attention": "flash"})
    decode = _events(trace_inference(resolve(LLAMA, {}).spec, plan), "decode")
    copies = [event for event in _allocs(decode, "aten._to_copy.default") if event.shape == (3, 2, 13, 10)]
    assert len(copies) == casts


def test_replay_adds_up() -> None:
    """The allocator's requested peak is the running sum's maximum; rounding and whole blocks only add to it."""
    trace = trace_training(resolve(GPT2, {}).spec, PLAN)
    peaks = replay(trace)
    live = 0
    for phase, peak in zip(trace.phases, peaks, strict=True):
        steps = [event.bytes if event.kind == "alloc" else -event.bytes for event in phase.events]
        running = list(accumulate(steps, initial=live))
        live = running[-1]
        assert peak.figures.requested == max(running)
        assert peak.figures.requested < peak.figures.rounded <= peak.figures.allocated <= peak.figures.reserved
    assert [(peak.phase, peak.step) for peak in peaks] == [(phase.name, phase.step) for phase in trace.phases]


def test_replay_knows_both_kinds_of_segments() -> None:
    """With large tensors whole blocks are handed out, more than is rounded; with expandable segments never."""
    trace = trace_training(resolve(GPT2 | {"vocab_size": 200_003}, {}).spec, PLAN)
    whole, expandable = (replay(trace, expandable=setting) for setting in (False, True))
    assert any(peak.figures.allocated > peak.figures.rounded for peak in whole)
    assert all(peak.figures.allocated == peak.figures.rounded for peak in expandable)
    assert [peak.figures.requested for peak in whole] == [peak.figures.requested for peak in expandable]


def test_tracing_leaves_everything_as_it_was() -> None:
    """The default dtype, the collector and torch's own functions are restored, after an error too."""
    from torch.optim import optimizer

    before = torch.float32, gc.isenabled(), optimizer._get_fused_kernels_supported_devices
    with pytest.raises(InvalidValueError, match="read 'auto' on the meta device"):
        trace_training(resolve(GPT2, {}).spec, Plan(seq=4))
    assert (torch.get_default_dtype(), gc.isenabled(), optimizer._get_fused_kernels_supported_devices) == before
