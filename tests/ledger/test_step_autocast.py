"""Autocast: a step's tape is what the reference does on fake CUDA, allocation by allocation.

The meta device has no autocast. All cases run in one process of their own.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from steps import FAMILIES, kept, of_tape, of_trace, tape_inference, tape_training, toy_plans

from gptcalc.catalog import resolve
from gptcalc.errors import InvalidValueError
from gptcalc.ledger.memory import memory
from gptcalc.plan import Plan
from gptcalc.tape import autocast
from gptcalc.witness.fake_cuda import Call

torch = pytest.importorskip("torch")

from gptcalc.witness.saved_tensors import saved  # noqa: E402  it opens torch
from gptcalc.witness.trace import trace_inference, trace_training  # noqa: E402  as above

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gptcalc.spec import Spec

    Run = Callable[[Sequence[Call]], list[Any]]

DROPOUT = {"embedding_dropout": 0.1, "attention_dropout": 0.1, "residual_dropout": 0.1}


class Seen(NamedTuple):
    """What torch does: what a step keeps, the step, a prompt and a token."""

    saved: Any
    training: Any
    inference: Any


def _seen(run: Run, asked: Sequence[tuple[Spec, Plan]]) -> list[Seen]:
    calls = [Call(saved, (*one, "cuda")) for one in asked]
    calls += [Call(trace_training, (*one, 2, "cuda")) for one in asked]
    calls += [Call(trace_inference, (*one, "cuda")) for one in asked]
    found, n = run(calls), len(asked)
    return [Seen(*one) for one in zip(found[:n], found[n : 2 * n], found[2 * n :], strict=True)]


def _compare(spec: Spec, plan: Plan, seen: Seen) -> None:
    trained = tape_training(spec, plan)
    assert of_tape(trained) == of_trace(seen.training)
    assert of_tape(tape_inference(spec, plan)) == of_trace(seen.inference)
    if plan.checkpointing == "none":
        seeds = {"uint64": "int64"}
        of_one = Counter(f"{seeds.get(row.dtype, row.dtype)} {row.bytes}" for row in seen.saved)
        scale = Counter({"float32 4": 1} if plan.autocast == "fp16" else {})  # kept for the scaled loss, made once
        assert kept(trained) == of_one + of_one + scale  # of two steps


#: Every family with every kernel of attention, in both dtypes; and what runs again in the backward pass.
CASES = [
    (name, dropout, {"attention": backend, "precision": f"autocast-{lower}", "kv_dtype": lower} | more)
    for name in FAMILIES
    for backend, lower, dropout, more in (
        ("eager", "bf16", DROPOUT, {}),
        ("math", "fp16", DROPOUT, {"optimizer_impl": "for-loop"}),
        ("flash", "bf16", DROPOUT, {}),
        ("flash", "bf16", {}, {"checkpointing": "full"}),
        ("eager", "bf16", DROPOUT, {"checkpointing": "selective"}),
        ("efficient", "bf16", DROPOUT, {}),
    )
    if backend != "efficient" or name in ("gpt2", "gpt1")
]


def _asked(name: str, dropout: dict[str, float], fields: dict[str, Any]) -> tuple[Spec, Plan]:
    plan = {"batch": 3, "seq": 13, "optimizer": "adamw"} | fields
    return resolve(FAMILIES[name], dropout).spec, Plan.model_validate(plan)


@pytest.fixture(scope="module")
def found(fake_cuda: Run) -> list[Seen]:
    """What torch does in each case."""
    return _seen(fake_cuda, [_asked(*case) for case in CASES])


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_step_under_autocast_is_torchs(found: list[Seen], number: int) -> None:
    """Training and inference: what is allocated and freed, in order, and what autograd keeps, copies of weights too."""
    _compare(*_asked(*CASES[number]), found[number])


#: Every way in which a gradient scaler meets an optimizer and the loop.
SCALED = [
    _asked("llama", {}, {"precision": "autocast-fp16", "attention": "eager"} | more)
    for more in (
        {},
        {"grad_clip": 1.0},
        {"optimizer_impl": "fused"},
        {"optimizer_impl": "fused", "grad_clip": 0.5},
        {"optimizer": "sgd", "optimizer_impl": "fused", "grad_accum": 2},
        {"optimizer": "adafactor", "keep_outputs": True},
        {"optimizer": "adamw8bit", "optimizer_impl": "fused", "checkpointing": "full"},
        {"optimizer": "adam", "optimizer_impl": "for-loop", "zero_grads": True, "grad_accum": 2},
    )
]


def _headed(config: dict[str, Any], head: dict[str, Any]) -> Spec:
    """The model with another unembedding."""
    spec = resolve(config, {}).spec
    return spec.model_copy(update={"unembedding": spec.unembedding.model_copy(update=head)})


#: A loss in chunks, equal and with a shorter last one; a head by itself, tied, and whatever else runs again.
CHUNKED = [
    _asked(name, {}, {"attention": attention, "precision": precision} | more)
    for name, attention, precision, more in (
        ("gpt2", "eager", "autocast-bf16", {"chunked_loss": 3}),
        ("gpt1", "flash", "autocast-bf16", {"chunked_loss": 2, "checkpointing": "full"}),
        ("llama", "flash", "autocast-bf16", {"chunked_loss": 7, "grad_accum": 2}),
        ("llama", "eager", "autocast-fp16", {"chunked_loss": 39, "checkpointing": "selective"}),
        ("mixtral", "math", "autocast-fp16", {"chunked_loss": 4, "grad_clip": 1.0, "grad_accum": 2}),
    )
] + [
    (_headed(FAMILIES[name], head), Plan(batch=3, seq=13, attention="eager", precision=precision, chunked_loss=5))
    for name, precision, head in (
        ("gpt2", "autocast-bf16", {"tied": False, "bias": True}),
        ("llama", "autocast-fp16", {"tied": True, "softcap": 30.0, "multiplier": 2.0}),
    )
]


#: Weights that are updated in the backward pass, by every kind of optimizer.
IN_BACKWARD = [
    _asked(name, DROPOUT, {"attention": "eager", "precision": "autocast-bf16", "optimizer_in_backward": True} | more)
    for name, more in (
        ("gpt2", {}),
        ("llama", {"optimizer_impl": "fused"}),
        ("gpt1", {"optimizer": "sgd", "optimizer_impl": "for-loop", "checkpointing": "full"}),
        ("mixtral", {"optimizer": "adafactor", "checkpointing": "selective", "keep_outputs": True}),
        ("gpt2", {"optimizer": "adamw8bit", "optimizer_impl": "fused", "chunked_loss": 3}),
        ("multi-query", {"optimizer": "muon", "attention": "flash"}),
    )
]


@pytest.fixture(scope="module")
def trained(fake_cuda: Run) -> dict[str, list[Any]]:
    """Two training steps of each of them."""
    groups = {"scaled": SCALED, "chunked": CHUNKED, "in backward": IN_BACKWARD}
    told = iter(fake_cuda([Call(trace_training, (*one, 2, "cuda")) for group in groups.values() for one in group]))
    return {name: [of_trace(next(told)) for _ in group] for name, group in groups.items()}


@pytest.mark.parametrize("number", range(len(SCALED)))
def test_a_gradient_scaler_is_its_list_of_ops(trained: dict[str, list[Any]], number: int) -> None:
    """`torch.amp.GradScaler` itself ran: the scaled loss, unscaling with or without the optimizer's kernel, its end."""
    assert of_tape(tape_training(*SCALED[number])) == trained["scaled"][number]


@pytest.mark.parametrize("number", range(len(CHUNKED)))
def test_each_chunk_of_the_loss_casts_again_backwards(trained: dict[str, list[Any]], number: int) -> None:
    """Forward the unembedding's copy is made once for all chunks; each recomputation makes its own and lets it go."""
    assert of_tape(tape_training(*CHUNKED[number])) == trained["chunked"][number]


@pytest.mark.parametrize("number", range(len(IN_BACKWARD)))
def test_an_optimizer_in_backward_runs_when_the_cast_gradient_is_whole(
    trained: dict[str, list[Any]], number: int
) -> None:
    """Hooks see a weight's own gradient, in fp32, once that of its copy has been cast."""
    assert of_tape(tape_training(*IN_BACKWARD[number])) == trained["in backward"][number]


#: The first is the simplest that there is.
N_DRAWN = 12


@cache
def _drawn() -> list[tuple[Spec, Plan]]:
    """Toys and plans of every kind, drawn one by one, to be run in one process."""
    fields = {
        "precision": st.sampled_from(["autocast-bf16", "autocast-fp16"]),
        "kv_dtype": st.sampled_from(["fp32", "bf16", "fp16"]),
        "checkpointing": st.sampled_from(["none", "none", "full"]),
        "logits": st.sampled_from(["last", "all"]),
    }
    found: list[tuple[Spec, Plan]] = []

    @settings(max_examples=N_DRAWN, deadline=None, phases=[Phase.generate], derandomize=True, database=None)
    @given(toy_plans(**fields))
    def draw(one: tuple[Spec, Plan]) -> None:
        found.append(one)

    draw()
    return found


@pytest.fixture(scope="module")
def drawn(fake_cuda: Run) -> list[Seen]:
    """What torch does with each."""
    return _seen(fake_cuda, _drawn())


@pytest.mark.parametrize("number", range(N_DRAWN))
def test_whatever_is_drawn(drawn: list[Seen], number: int) -> None:
    """Toys of any sizes, kernels, caches and dropouts, tied or not."""
    _compare(*_drawn()[number], drawn[number])


def test_copies_of_weights_have_a_line() -> None:
    """A bf16 copy of each linear layer's weight lives with the activations: two bytes each, of a tied table too."""
    spec = resolve({"model_type": "gpt2"}, {}).spec
    plan = Plan(batch=8, seq=1024, precision="autocast-bf16")
    (mode,) = memory(spec, plan, ("training",)).modes
    copies = {line.component: line.amount for line in mode.lines if line.kind == "weight_copies"}
    matrices = {"attn_q": 1, "attn_k": 1, "attn_v": 1, "attn_o": 1, "mlp_up": 4, "mlp_down": 4}
    assert copies == {name: 2 * 12 * n * 768 * 768 for name, n in matrices.items()} | {"embedding": 2 * 50257 * 768}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"precision": "autocast-fp16", "optimizer": "muon"}, "two optimizers"),
    ],
)
def test_what_is_not_known_is_refused(fields: dict[str, Any], said: str) -> None:
    """One line says what autocast is not modelled with."""
    spec = resolve({"model_type": "qwen3"}, {}).spec
    with pytest.raises(InvalidValueError, match=said):
        memory(spec, Plan.model_validate({"seq": 8} | fields), ("training",))


def test_the_copies_of_weights_of_transformers_classes_are_told() -> None:
    """A bf16 copy of every linear layer's weight is told."""
    plan = Plan(batch=8, seq=512, precision="autocast-bf16", implementation="transformers")
    spec = resolve({"model_type": "gpt2"}, {"n_layers": 2}).spec
    (mode,) = memory(spec, plan, ("training",)).modes
    copies = sum(line.amount for line in mode.lines if line.kind == "weight_copies")
    assert copies == 2 * (2 * 12 * 768 * 768 + 50257 * 768)


def test_an_op_in_no_list_is_refused() -> None:
    """What autocast does is looked up, never guessed."""
    with pytest.raises(InvalidValueError, match="autocast-bf16, of which it is not known what it does with aten::fft"):
        autocast.reads("aten::fft", "bf16", "bf16")


def _names(*lists: Iterable[str]) -> Counter[str]:
    return Counter(name for names in lists for name in names)


def test_an_op_is_in_one_list() -> None:
    """No op is told twice how it runs."""
    lists = (autocast.LOWER, autocast.FP32, autocast.WIDEST, autocast.AS_READ, autocast.AS_SAID)
    assert set(_names(*lists).values()) == {1}
