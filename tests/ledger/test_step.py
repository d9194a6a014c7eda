"""A step as the tape has it is, event for event, the step that torch runs on the meta device."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import (
    FAMILIES,
    GPT2,
    LLAMA,
    OPTIMIZERS,
    happens,
    kept,
    of_tape,
    of_trace,
    tape_inference,
    tape_training,
    toy_plans,
)
from support import examples

from gptcalc.catalog import resolve
from gptcalc.plan import Plan
from gptcalc.spec import LayerGroup
from gptcalc.tape.replay import replay

torch = pytest.importorskip("torch")

from gptcalc.witness import trace as tracing  # noqa: E402  it opens torch
from gptcalc.witness.saved_tensors import saved  # noqa: E402

if TYPE_CHECKING:
    from gptcalc.spec import Spec
    from gptcalc.tape.replay import Recording

#: A step of it allocates nothing in the optimizer, which has a test of its own.
PLAN = Plan(batch=3, seq=13, attention="flash", optimizer="sgd", optimizer_impl="fused")


pytestmark = pytest.mark.usefixtures("frozen")


def check(recording: Recording, trace: tracing.Trace) -> None:
    """The same events, phase by phase, and the same figures from either through the allocator."""
    taped, traced = of_tape(recording), of_trace(trace)
    assert [name for name, _ in taped] == [name for name, _ in traced]
    for (name, ours), (_, theirs) in zip(taped, traced, strict=True):
        assert ours == theirs, name
    for expandable in (False, True):
        peaks = [peak for peak, _ in replay(recording, expandable=expandable)]
        assert peaks == [peak.figures for peak in tracing.replay(trace, expandable=expandable)]


def check_training(spec: Spec, plan: Plan, n_steps: int = 1) -> None:
    """So many steps, of all layers; folded or not, they are replayed to the same figures."""
    trace = tracing.trace_training(spec, plan, n_steps)
    check(tape_training(spec, plan, n_steps=n_steps), trace)
    folded = [peak for peak, _ in replay(tape_training(spec, plan, n_steps=n_steps, recorded=3), expandable=False)]
    assert folded == [peak.figures for peak in tracing.replay(trace)]


def check_inference(spec: Spec, plan: Plan) -> None:
    """A prompt and a token."""
    check(tape_inference(spec, plan), tracing.trace_inference(spec, plan))


def witnessed(spec: Spec, plan: Plan) -> Counter[str]:
    """What the hooks of autograd say; the state of flash's dropout is unsigned there."""
    return Counter(f"{row.dtype.removeprefix('u')} {row.bytes}" for row in saved(spec, plan) if row.bytes)


# --- Drawn -----------------------------------------------------------------------------------------------------------


@settings(max_examples=examples(15), deadline=None)
@given(drawn=toy_plans(), update=st.sampled_from(OPTIMIZERS))
def test_a_training_step_is_what_torch_runs(drawn: tuple[Spec, Plan], update: dict[str, object]) -> None:
    """Two steps of a drawn model allocate and free what torch does, in its order, and keep what autograd keeps."""
    spec, plan = drawn
    plan = plan.model_copy(update=update)
    check_training(spec, plan, 2)
    assert kept(tape_training(spec, plan, n_steps=1)) == witnessed(spec, plan)


@settings(max_examples=examples(15), deadline=None)
@given(
    drawn=toy_plans(
        kv_dtype=st.sampled_from(["fp32", "bf16", "fp16"]),
        logits=st.sampled_from(["last", "all"]),
    )
)
def test_inference_is_what_torch_runs(drawn: tuple[Spec, Plan]) -> None:
    """Prefill and decode of a drawn model allocate and free what torch does, in its order.

    The bias of the last position's logits is added in place, but on meta out of place (`linear` of a cut in torch).
    """
    spec, plan = drawn
    biased = spec.unembedding.model_dump()["bias"]
    check_inference(spec, plan.model_copy(update={"logits": "all"}) if biased else plan)


# --- Each on its own -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", OPTIMIZERS, ids=lambda update: "-".join(map(str, update.values())))
def test_every_optimizer_is_what_torch_runs(update: dict[str, object]) -> None:
    """States are made in the first step, and each implementation takes in each step what torch's takes."""
    spec = resolve(GPT2, {}).spec
    check_training(spec, PLAN.model_copy(update=update | {"precision": "fp32", "attention": "efficient"}), 2)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 13), (3, 1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_sequence_and_one_token_are_no_special_cases(family: str, sizes: tuple[int, int]) -> None:
    """With B = 1 or T = 1 axes join that else do not, in training and in inference."""
    spec = resolve(FAMILIES[family], {}).spec
    plan = PLAN.model_copy(update={"batch": sizes[0], "seq": sizes[1]})
    check_training(spec, plan)
    check_inference(spec, plan)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "none"])
@pytest.mark.parametrize(("tied", "dropout"), [(True, 0.1), (False, 0.0)])
def test_positions_ties_and_dropout(positions: str, tied: bool, dropout: float) -> None:  # noqa: FBT001  drawn
    """A tied table gets two gradients, positions one where they are learned, each dropout a mask."""
    fields = ("embedding_dropout", "attention_dropout", "residual_dropout")
    overrides = {"positions": positions, "tied": tied, "bias": tied} | dict.fromkeys(fields, dropout)
    spec = resolve(GPT2, overrides).spec
    check_training(spec, PLAN)
    check_inference(spec, PLAN)
    assert kept(tape_training(spec, PLAN, n_steps=1)) == witnessed(spec, PLAN)


@pytest.mark.parametrize(
    ("attention", "precision"),
    [*((name, half) for name in ("flash", "cudnn") for half in ("bf16", "fp16")), ("efficient", "fp32")],
)
@pytest.mark.parametrize("family", ["gpt2", "gpt1"])
def test_fused_kernels_are_what_torch_runs(family: str, attention: str, precision: str) -> None:
    """Each keeps query, key, value, output, its sums in fp32, padded or not, and the state of its dropout."""
    spec = resolve(FAMILIES[family], {}).spec
    plan = PLAN.model_copy(update={"attention": attention, "precision": precision, "kv_dtype": precision})
    check_training(spec, plan)
    check_inference(spec, plan)
    assert kept(tape_training(spec, plan, n_steps=1)) == witnessed(spec, plan)


@pytest.mark.parametrize("kv_dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("logits", ["last", "all"])
def test_caches_of_any_dtype(kv_dtype: str, logits: str) -> None:
    """A cache of another dtype is cast on reading, layer by layer; logits are of one position or of all."""
    plan = PLAN.model_copy(update={"kv_dtype": kv_dtype, "logits": logits})
    check_inference(resolve(LLAMA, {}).spec, plan)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_blocks_of_the_large_pool(name: str) -> None:
    """With tensors of megabytes whole blocks are handed out, and all four figures are still those of torch's step."""
    sizes = {
        "gpt2": {"n_vocab": 50257, "n_ctx": 1024, "d_model": 768, "n_heads": 12},
        "llama": {"n_vocab": 32003, "d_model": 1000, "n_heads": 10, "n_kv_heads": 2, "d_head": 104, "d_ff": 2731},
    }
    spec = resolve(FAMILIES[name], sizes[name]).spec
    plan = PLAN.model_copy(update={"batch": 2, "seq": 1023 if name == "gpt2" else 777})
    check_training(spec, plan)
    check_inference(spec, plan)
    peak = replay(tape_training(spec, plan), expandable=False)[-3][0]
    assert peak.requested < peak.rounded < peak.allocated < peak.reserved


def test_groups_of_different_layers_are_what_torch_runs() -> None:
    """Three layers of one kind, then two of another: recorded whole and folded they are torch's step."""
    spec = two_groups(3, 2)
    check_training(spec, PLAN)
    check_inference(spec, PLAN)
    assert kept(tape_training(spec, PLAN, n_steps=1)) == witnessed(spec, PLAN)


def two_groups(first: int, second: int) -> Spec:
    """A model whose later layers have a wider MLP and no dropout."""
    narrow, wide = (
        resolve(GPT2, {"d_ff": d_ff, "residual_dropout": p}).spec.layers[0].block for d_ff, p in ((96, 0.1), (131, 0.0))
    )
    groups = (LayerGroup(n_layers=first, block=narrow), LayerGroup(n_layers=second, block=wide))
    return resolve(GPT2, {}).spec.model_copy(update={"layers": groups})


def test_a_layer_more_keeps_what_a_layer_keeps() -> None:
    """Of three layers autograd keeps as much more than of two as of four than of three, in tape and in torch."""
    spec = resolve(LLAMA, {}).spec
    block = spec.layers[0].block
    deeper = [spec.model_copy(update={"layers": (LayerGroup(n_layers=n, block=block),)}) for n in (2, 3, 4)]
    ours = [kept(tape_training(one, PLAN, n_steps=1)) for one in deeper]
    theirs = [witnessed(one, PLAN) for one in deeper]
    assert ours == theirs
    assert ours[1] - ours[0] == ours[2] - ours[1] == theirs[1] - theirs[0]


def test_the_comparison_sees_order_and_size() -> None:
    """Allocations are compared in order; frees between two of them in any."""
    one = happens([(True, 8), (True, 4), (False, 8), (False, 4), (True, 2)])
    assert one == happens([(True, 8), (True, 4), (False, 4), (False, 8), (True, 2)])
    assert one != happens([(True, 4), (True, 8), (False, 8), (False, 4), (True, 2)])
    assert one != happens([(True, 8), (True, 4), (False, 8), (True, 2), (False, 4)])
    assert one != happens([(True, 8), (True, 4), (False, 8), (False, 4), (True, 3)])
