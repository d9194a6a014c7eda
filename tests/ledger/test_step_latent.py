"""Latent attention: the tape's allocations and frees are those of the traced reference, one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import of_tape, of_trace, tape_inference, tape_training
from support import examples

from gptcalc.catalog import resolve
from gptcalc.plan import Plan

torch = pytest.importorskip("torch")

from gptcalc.witness.trace import trace_inference, trace_training  # noqa: E402  it opens torch

if TYPE_CHECKING:
    from gptcalc.spec import Spec

#: Dense throughout: no layer is a mixture.
DENSE = {"model_type": "deepseek_v3", "first_k_dense_replace": 9}


pytestmark = pytest.mark.usefixtures("frozen")


@st.composite
def toys(draw: st.DrawFn) -> tuple[Spec, Plan]:
    """A toy of odd sizes, with and without a latent query, rotated by halves or by neighbours, on any kernel."""
    backend = draw(st.sampled_from(["efficient", "cudnn", "math", "eager"]))
    step = 8 if backend == "cudnn" else 1
    config: dict[str, Any] = DENSE | {
        "vocab_size": draw(st.integers(2, 40)),
        "hidden_size": draw(st.integers(1, 30)),
        "num_hidden_layers": draw(st.integers(2, 3)),
        "num_attention_heads": draw(st.integers(1, 5)),
        "intermediate_size": draw(st.integers(1, 30)),
        "kv_lora_rank": draw(st.integers(1, 12)),
        "q_lora_rank": draw(st.sampled_from([None, 1, 7])),
        "qk_nope_head_dim": step * draw(st.integers(1, 4)),
        "qk_rope_head_dim": max(step, 2) * draw(st.integers(1, 3)),
        "v_head_dim": max(step, 2) * draw(st.integers(1, 6)),
        "rope_interleave": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "attention_dropout": draw(st.sampled_from([0.0, 0.1])),
        "tie_word_embeddings": draw(st.booleans()),
    }
    precision = "bf16" if backend == "cudnn" else draw(st.sampled_from(["fp32", "bf16", "fp16"]))
    plan = Plan(
        batch=draw(st.integers(1, 4)),
        seq=draw(st.integers(1, 9)),
        precision=precision,
        attention=backend,
        kv_dtype=draw(st.sampled_from([precision, "fp16"])),
        optimizer="sgd",
        optimizer_impl="fused",
    )
    return resolve(config, {}).spec, plan


@settings(max_examples=examples(25), deadline=None)
@given(drawn=toys())
def test_training_of_latent_attention_is_torchs(drawn: tuple[Spec, Plan]) -> None:
    """Projections, norms of latent vectors, rotations, keys of every head, and their gradients."""
    assert of_tape(tape_training(*drawn, n_steps=1)) == of_trace(trace_training(*drawn, 1))


@settings(max_examples=examples(25), deadline=None)
@given(drawn=toys())
def test_inference_keeps_latent_vectors_and_rotated_keys(drawn: tuple[Spec, Plan]) -> None:
    """The cache is filled by a prompt, and widened to keys and values of every head for a token."""
    assert of_tape(tape_inference(*drawn)) == of_trace(trace_inference(*drawn))
