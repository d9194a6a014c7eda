"""Linear attention: the tape's allocations and frees are those of the traced reference, one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import LLAMA, kept, of_tape, of_trace, tape_inference, tape_training
from support import examples

from gptcalc.catalog import resolve
from gptcalc.ledger.memory import memory
from gptcalc.parts.delta import GatedDeltaNet
from gptcalc.plan import Plan
from gptcalc.spec import LayerGroup
from gptcalc.tape.replay import replay

torch = pytest.importorskip("torch")

from gptcalc.modules import build  # noqa: E402  it opens torch
from gptcalc.witness import trace as tracing  # noqa: E402
from gptcalc.witness.saved_tensors import saved  # noqa: E402
from gptcalc.witness.trace import trace_inference, trace_training  # noqa: E402

if TYPE_CHECKING:
    from gptcalc.spec import Spec

#: An update of it allocates nothing.
PLAN = Plan(batch=2, seq=130, attention="eager", optimizer="sgd", optimizer_impl="fused")
SIZES = {"n_key_heads": 2, "n_value_heads": 6, "d_key": 8, "d_value": 5, "kernel": 4}


pytestmark = pytest.mark.usefixtures("frozen")


def linear(n_layers: int, width: int = 20, **sizes: int) -> Spec:
    """Llama with linear attention in every layer."""
    spec = resolve(LLAMA | {"hidden_size": width}, {}).spec
    part = GatedDeltaNet(name="linear_attn", **(SIZES | sizes))
    block = spec.layers[0].block.model_copy(update={"attention": part})
    return spec.model_copy(update={"layers": (LayerGroup(n_layers=n_layers, block=block),)})


@st.composite
def toys(draw: st.DrawFn) -> tuple[Spec, Plan]:
    """Any number of states for a key, sizes down to one, lengths below and above a chunk and whole ones."""
    groups, length = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    spec = linear(
        draw(st.integers(1, 2)),
        draw(st.sampled_from([1, 20])),
        n_key_heads=groups,
        n_value_heads=groups * draw(st.integers(1, 3)),
        d_key=draw(st.integers(1, 9)),
        d_value=draw(st.integers(1, 9)),
        kernel=draw(st.integers(1, 5)),
    )
    precision = draw(st.sampled_from(["fp32", "bf16", "fp16"]))
    plan = {
        "batch": draw(st.integers(1, 3)),
        "seq": draw(st.one_of(st.integers(1, 5), st.sampled_from([63, 64 * length, 64 * length + 1]))),
        "precision": precision,
        "kv_dtype": draw(st.sampled_from([precision, "fp16"])),
    }
    return spec, PLAN.model_copy(update=plan)


@settings(max_examples=examples(12), deadline=None)
@given(drawn=toys())
def test_training_of_linear_attention_is_torchs(drawn: tuple[Spec, Plan]) -> None:
    """Projections, convolution, chunks, gated norm, and their gradients; and what autograd keeps of them."""
    assert of_tape(tape_training(*drawn, n_steps=1)) == of_trace(trace_training(*drawn, 1))
    hooks = sorted(f"{row.dtype.removeprefix('u')} {row.bytes}" for row in saved(*drawn) if row.bytes)
    assert sorted(kept(tape_training(*drawn, n_steps=1)).elements()) == hooks


@settings(max_examples=examples(12), deadline=None)
@given(drawn=toys())
def test_inference_keeps_states_and_the_last_inputs(drawn: tuple[Spec, Plan]) -> None:
    """A prompt goes in chunks and leaves the state; a token changes it in place."""
    assert of_tape(tape_inference(*drawn)) == of_trace(trace_inference(*drawn))


def test_folded_layers_of_linear_attention_are_all_of_them() -> None:
    """Of seven layers three are recorded, and all figures are those of the seven in torch."""
    spec = linear(7)
    folded = [peak for peak, _ in replay(tape_training(spec, PLAN, n_steps=2, recorded=3), expandable=False)]
    assert folded == [peak.figures for peak in tracing.replay(trace_training(spec, PLAN, 2))]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_cache_is_as_large_as_the_modules(dtype: str) -> None:
    """States are fp32 whatever the dtype; nothing depends on how many tokens there are."""
    spec = linear(3)
    with torch.device("meta"):
        made: Any = build(spec).make_cache(2, 77, {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    theirs = sum(tensor.nbytes for layer in made.layers for tensor in layer)
    assert theirs == 3 * 2 * (4 * 6 * 8 * 5 + {"fp32": 4, "bf16": 2}[dtype] * 4 * (2 * 2 * 8 + 6 * 5))
    for seq in (1, 4096):
        (mode,) = memory(spec, PLAN.model_copy(update={"seq": seq, "kv_dtype": dtype}), ("inference",)).modes
        assert sum(line.amount for line in mode.lines if line.kind == "kv_cache") == theirs


def test_a_long_sequence_is_recorded_in_as_many_rows_as_a_short_one() -> None:
    """The scan over the chunks is one row: its results lie in room that is made before."""
    spec = linear(1)
    counts = {
        seq: [len(segment.events) for stage in recording.record.stages for segment in stage.segments]
        for seq in (129, 262_143)
        if (recording := tape_training(spec, PLAN.model_copy(update={"seq": seq})))
    }
    assert counts[129] == counts[262_143]
