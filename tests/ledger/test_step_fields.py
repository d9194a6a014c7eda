"""What attention can do beside attending: the tape's step is the traced reference's, event for event."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import GPT2, LLAMA, kept, of_tape, of_trace, tape_inference, tape_training, with_attention
from support import examples

from gptcalc.catalog import resolve
from gptcalc.ledger.memory import attention_choices
from gptcalc.plan import Plan
from gptcalc.witness.memory import saved_tensors, trace

torch = pytest.importorskip("torch")

from gptcalc.witness.saved_tensors import saved  # noqa: E402  it opens torch
from gptcalc.witness.trace import trace_inference, trace_training  # noqa: E402

if TYPE_CHECKING:
    from gptcalc.spec import Spec


pytestmark = pytest.mark.usefixtures("frozen")


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
    quarters = draw(st.booleans()) if config is GPT2 and "window" in fields else False
    n_kv_heads = 4 * draw(st.integers(1, 2)) if quarters else n_kv_heads
    step = 8 if plan.attention == "cudnn" else 2
    d_head = step * draw(st.integers(1, 3 if step == 8 else 8))
    own = {
        "n_kv_heads": n_kv_heads,
        "n_heads": n_kv_heads if plan.attention == "efficient" or quarters else n_kv_heads * per_group,
        "d_head": d_head,
        "positions": "none",
        "attention_dropout": draw(st.sampled_from([0.0, 0.1])),
    }
    if config is GPT2:
        fused = ["quarters"] if quarters else ["parts", "groups"]
        fields = {key: values for key, values in fields.items() if key != "gated"}
        fields |= {"fused_by": st.sampled_from(fused)}
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


@settings(max_examples=examples(25), deadline=None)
@given(drawn=toys(NORMS, ALL))
def test_norms_rotations_and_fused_groups_are_what_torch_runs(drawn: tuple[Spec, Plan]) -> None:
    """Query and key may be normalised before or after a rotation, of all features or some, of halves or neighbours."""
    assert is_torchs_step(*drawn)


#: What a kernel is given, or nothing knows of.
AROUND: dict[str, st.SearchStrategy[Any]] = {
    "window": st.sampled_from([None, 1, 3, 7]),
    "chunked": st.booleans(),
    "clip": st.sampled_from([None, 1.0]),
    "gated": st.booleans(),
    "tempered": st.sampled_from([None, 0.1]),
    "tempered_from": st.sampled_from([None, 4]),
    "norm_over": st.sampled_from(["head", "heads", "list", "all"]),
}


@settings(max_examples=examples(25), deadline=None)
@given(drawn=toys(NORMS | AROUND, ["cudnn", "efficient", "math", "eager"]))
def test_windows_gates_clips_and_norms_of_any_kind_are_what_torch_runs(drawn: tuple[Spec, Plan]) -> None:
    """A mask is made once for all layers that see alike; what limits, gates and warms is there when torch has it."""
    assert is_torchs_step(*drawn)


@settings(max_examples=examples(12), deadline=None)
@given(drawn=toys({"alibi": st.just(value=True), "q_norm": norms("q_norm")}, ["cudnn", "efficient", "math", "eager"]))
def test_a_mask_of_distances_is_what_torch_runs(drawn: tuple[Spec, Plan]) -> None:
    """ALiBi's mask has a row for each head, in the decode step too."""
    assert is_torchs_step(*drawn)


@settings(max_examples=examples(12), deadline=None)
@given(
    drawn=toys(
        {
            "softcap": st.sampled_from([None, 5.0]),
            "sinks": st.booleans(),
            "window": st.sampled_from([None, 3]),
            "chunked": st.booleans(),
        },
        ["eager"],
    )
)
def test_soft_caps_and_sinks_are_what_torch_runs(drawn: tuple[Spec, Plan]) -> None:
    """Scores that no kernel knows are written out, one op after the other."""
    assert is_torchs_step(*drawn)


@pytest.mark.parametrize("n_heads", [1, 3])
def test_the_gradient_of_what_is_clipped_is_dense(n_heads: int) -> None:
    """In torch's math the key's gradient comes transposed: the clip's own backward sets it right, with no copy."""
    sizes = {"num_attention_heads": n_heads, "num_key_value_heads": n_heads, "head_dim": 2}
    spec = with_attention(resolve(LLAMA | sizes, {}).spec, clip=1.0, rotary=None)
    plan = Plan(batch=2, seq=2, precision="fp32", kv_dtype="fp32", attention="math", optimizer="sgd")
    assert is_torchs_step(spec, plan)


def test_each_group_of_layers_has_its_kernel_its_angles_and_its_mask() -> None:
    """Layers that see a window, rotate slower or have sinks among others that do not: torch's step."""
    spec = resolve(LLAMA, {"n_heads": 4, "n_kv_heads": 4, "d_head": 8}).spec
    rotary = spec.layers[0].block.model_dump()["attention"]["rotary"]
    forms: list[dict[str, Any]] = [
        {},
        {"window": 4, "rotary": rotary | {"theta": 77.0}},
        {"sinks": True},
        {"window": 4},
        {"window": 3, "sinks": True},
    ]
    layers = tuple(
        with_attention(spec, **form).layers[0].model_copy(update={"n_layers": n}) for n, form in enumerate(forms, 1)
    )
    mixed = spec.model_copy(update={"layers": layers})
    plan = Plan(batch=2, seq=13, precision="bf16", target="sm80", optimizer="sgd", optimizer_impl="fused")
    backends = [choice.backend for choice in attention_choices(mixed, plan, training=True)]
    assert backends == ["flash", "efficient", "eager", "efficient", "eager"]

    model = resolve(LLAMA, {})._replace(spec=mixed)
    for evidence in (*saved_tensors(model, plan, ["training"]), *trace(model, plan, ["training", "inference"])):
        assert evidence.findings == ()
        assert evidence.tensors > 0
