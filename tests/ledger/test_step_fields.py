"""What attention can do beside attending: the tape's step is the traced reference's, event for event."""

from __future__ import annotations

import gc
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import GPT2, LLAMA, kept, of_tape, of_trace, tape_inference, tape_training, with_attention

from gptcalc.catalog import resolve
from gptcalc.plan import Plan

torch = pytest.importorskip("torch")

from gptcalc.witness.saved_tensors import saved  # noqa: E402  it opens torch
from gptcalc.witness.trace import trace_inference, trace_training  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gptcalc.spec import Spec


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """Every trace collects garbage: torch's own objects need not be looked through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


def is_torchs_step(spec: Spec, plan: Plan) -> bool:
    """Whether a training step, a prompt and a token allocate, free and keep what torch does, in its order."""
    trained = tape_training(spec, plan, n_steps=1)
    pairs = (
        (trained, trace_training(spec, plan, 1)),
        (tape_inference(spec, plan), trace_inference(spec, plan)),
    )
    keeps = Counter(f"{row.dtype.removeprefix('u')} {row.bytes}" for row in saved(spec, plan) if row.bytes)
    return all(of_tape(recording) == of_trace(trace) for recording, trace in pairs) and kept(trained) == keeps


@st.composite
def norms(draw: st.DrawFn, name: str) -> dict[str, Any] | None:
    """A norm of query or key, or none."""
    kind = draw(st.sampled_from(["rms_norm", "layer_norm", None]))
    if kind is None:
        return None
    norm = {"kind": kind, "name": name, "learned": draw(st.booleans()), "unit_offset": draw(st.booleans())}
    return norm | ({"bias": draw(st.booleans())} if kind == "layer_norm" else {})


@st.composite
def plans(draw: st.DrawFn, backends: list[str]) -> Plan:
    """A plan with one of the kernels, in a precision that it has."""
    backend = draw(st.sampled_from(backends))
    precision = draw(st.sampled_from(["bf16", "fp16"] if backend in ("flash", "cudnn") else ["fp32", "bf16"]))
    return Plan(
        batch=draw(st.integers(1, 3)),
        seq=draw(st.sampled_from([1, 2, 5, 13])),
        precision=precision,
        attention=backend,
        kv_dtype=draw(st.sampled_from([precision, "fp16"])),
        logits="all",
        optimizer="sgd",
        optimizer_impl="fused",
    )


@st.composite
def toys(draw: st.DrawFn, fields: dict[str, st.SearchStrategy[Any]], backends: list[str]) -> tuple[Spec, Plan]:
    """A toy of either form of layers, with `fields` of its attention, and a plan for it."""
    plan, config = draw(plans(backends)), draw(st.sampled_from([GPT2, LLAMA]))
    n_kv_heads, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    step = 8 if plan.attention == "cudnn" else 2
    d_head = step * draw(st.integers(1, 3 if step == 8 else 8))
    own = {
        "n_kv_heads": n_kv_heads,
        "n_heads": n_kv_heads if plan.attention == "efficient" else n_kv_heads * per_group,
        "d_head": d_head,
        "positions": "none",
        "attention_dropout": draw(st.sampled_from([0.0, 0.1])),
    }
    if config is GPT2:
        fields = {"fused_by": st.sampled_from(["parts", "groups"])} | fields
    if draw(st.booleans()):
        n_rotated = 2 * draw(st.integers(1, d_head // 2))
        rotary = {"theta": 100.0, "fraction": n_rotated / d_head, "interleaved": draw(st.booleans())}
        fields = {"rotary": st.just(rotary)} | fields
    drawn = {key: draw(values) for key, values in fields.items()}
    return with_attention(resolve(config, own).spec, **drawn), plan


ALL = ["flash", "cudnn", "efficient", "math", "eager"]
NORMS: dict[str, st.SearchStrategy[Any]] = {
    "q_norm": norms("q_norm"),
    "k_norm": norms("k_norm"),
    "norm_after_rotary": st.booleans(),
    "scale": st.sampled_from([None, 0.3]),
}


@settings(max_examples=25, deadline=None)
@given(drawn=toys(NORMS, ALL))
def test_norms_rotations_and_fused_groups_are_what_torch_runs(drawn: tuple[Spec, Plan]) -> None:
    """Query and key may be normalised before or after a rotation, of all features or some, of halves or neighbours."""
    assert is_torchs_step(*drawn)
