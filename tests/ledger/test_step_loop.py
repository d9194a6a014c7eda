"""A training loop with options is, event for event, the loop that torch runs on the meta device."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import ALL, FAMILIES, GPT2, LLAMA, OPTIMIZERS, events_of, of_tape, of_trace, tape_training, toy_plans
from support import examples

from gptcalc import api
from gptcalc.catalog import resolve
from gptcalc.ledger.memory import memory
from gptcalc.plan import Plan
from gptcalc.tape.kernels import CudaKernels, target
from gptcalc.tape.replay import replay

torch = pytest.importorskip("torch")

from gptcalc.witness import trace as tracing  # noqa: E402  it opens torch

if TYPE_CHECKING:
    from gptcalc.spec import Spec

pytestmark = pytest.mark.usefixtures("frozen")

#: A step of it allocates nothing in the optimizer.
PLAN = Plan(batch=3, seq=13, attention="flash", optimizer="sgd", optimizer_impl="fused")
#: What a loop does beside the plain one.
OPTIONS: list[dict[str, object]] = [
    {"grad_accum": 2},
    {"grad_accum": 3, "keep_outputs": True},
    {"grad_clip": 1.0},
    {"zero_grads": True},
    {"zero_grads": True, "grad_accum": 2, "grad_clip": 0.5},
    {"keep_outputs": True},
    {"grad_dtype": "fp32"},
    {"grad_dtype": "bf16", "grad_accum": 2},
    {"master_weights": "fp32", "grad_clip": 1.0},
    {"master_weights": "fp32", "zero_grads": True},
    {"master_weights": "fp32", "grad_dtype": "fp32", "grad_accum": 2},
    {"master_weights": "fp32", "grad_dtype": "fp16", "keep_outputs": True},
]
LOOPS = st.fixed_dictionaries(
    {
        "grad_accum": st.integers(1, 3),
        "grad_clip": st.sampled_from([0.0, 1.0]),
        "keep_outputs": st.booleans(),
        "master_weights": st.sampled_from(["none", "fp32"]),
    }
)
GRADIENTS = st.sampled_from(
    [{}, {"zero_grads": True}, {"grad_dtype": "fp32"}, {"grad_dtype": "bf16"}, {"grad_dtype": "fp16"}]
)


def check(spec: Spec, plan: Plan) -> None:
    """Two steps: the same events phase by phase."""
    taped, traced = (
        of_tape(tape_training(spec, plan, recorded_batches=ALL)),
        of_trace(tracing.trace_training(spec, plan)),
    )
    assert [name for name, _ in taped] == [name for name, _ in traced]
    for (name, ours), (_, theirs) in zip(taped, traced, strict=True):
        assert ours == theirs, name


@settings(max_examples=examples(15), deadline=None)
@given(drawn=toy_plans(), update=st.sampled_from(OPTIMIZERS), loop=LOOPS, gradients=GRADIENTS)
def test_a_loop_is_what_torch_runs(
    drawn: tuple[Spec, Plan], update: dict[str, object], loop: dict[str, object], gradients: dict[str, object]
) -> None:
    """Any options, any optimizer, any toy: every allocation and every free, in torch's order."""
    spec, plan = drawn
    if plan.precision == "fp32":
        loop = loop | {"master_weights": "none"}
    check(spec, plan.model_copy(update=update | loop | gradients))


@pytest.mark.parametrize(
    ("family", "options"), [*product(FAMILIES, OPTIONS[:5]), *product([*FAMILIES][:1], OPTIONS[5:])]
)
def test_every_option_is_what_torch_runs(family: str, options: dict[str, object]) -> None:
    """Micro-batches, clipping, kept gradients and outputs, main gradients, master weights, in each family."""
    check(resolve(FAMILIES[family], {}).spec, PLAN.model_copy(update=options))


@pytest.mark.parametrize("sizes", [(1, 1), (1, 13), (3, 1)])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_added_where_axes_join(sizes: tuple[int, int], tied: bool) -> None:  # noqa: FBT001  drawn
    """With B = 1 or T = 1 a gradient may be a view, and of a tied table two meet before they are added to `.grad`."""
    spec = resolve(GPT2, {"tied": tied}).spec
    for options in ({"grad_accum": 2}, {"grad_dtype": "fp32"}):
        check(spec, PLAN.model_copy(update=options | {"batch": sizes[0], "seq": sizes[1]}))


@pytest.mark.parametrize("options", [{}, {"keep_outputs": True}, {"zero_grads": True}, {"grad_dtype": "fp32"}])
def test_later_micro_batches_do_what_the_second_does(options: dict[str, object]) -> None:
    """Of five, the third, fourth and fifth allocate and free in torch what the second does."""
    spec = resolve(LLAMA, {}).spec
    plan = PLAN.model_copy(update={"grad_accum": 5} | options)
    last = {phase.name: of_trace(tracing.Trace((phase,))) for phase in tracing.trace_training(spec, plan).phases}
    for number, phase in product((3, 4, 5), ("forward", "backward")):
        assert last[f"{phase}#{number}"][0][1] == last[f"{phase}#2"][0][1]
    recording = tape_training(spec, plan)
    ours = {stage.name: events_of(recording, stage) for stage in recording.record.stages}
    assert [*ours] == ["build", "forward#1", "backward#1", "forward#2", "backward#2", "optimizer", "end"]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_folded_loop_is_replayed_to_the_same_figures(options: dict[str, object]) -> None:
    """Of six layers three are recorded: every phase has the figures of all six, in the order of the allocator."""
    spec = resolve(GPT2 | {"n_layer": 6}, {}).spec
    plan = PLAN.model_copy(update=options | {"optimizer": "adamw", "optimizer_impl": "foreach"})
    for expandable in (False, True):
        folded, whole = (replay(tape_training(spec, plan, recorded=n), expandable=expandable) for n in (3, ALL))
        assert folded == whole


@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast-fp16"])
def test_partial_norms_are_counted_over_all_layers(precision: str) -> None:
    """GPT-2 (148 tensors, the largest of 589 chunks): 4·148·589 bytes before the first norm, gone after the last."""
    plan = PLAN.model_copy(update={"grad_clip": 1.0, "precision": precision})
    kernels = CudaKernels(target("sm90"), (2, 13))
    for n in (3, ALL):
        recording = tape_training(resolve("gpt2", {}).spec, plan, kernels=kernels, n_steps=1, recorded=n)
        stage = next(stage for stage in recording.record.stages if stage.name == "optimizer")
        events = [event for run in recording.runs(stage) for event in run.events]
        ops = [(event.alloc, event.slot.op) for event in events]
        taken = [place for place, event in enumerate(events) if event.slot.kind == "workspace"]
        norms = [place for place, op in enumerate(ops) if op == (True, "aten::_foreach_norm")][1:]
        assert [events[place].slot.bytes for place in taken] == [4 * 148 * 589] * 2
        assert (taken[0], taken[1]) == (norms[0] - 1, norms[-1] + 1)


def test_a_tied_table_is_added_once_both_its_gradients_are_there() -> None:
    """In the second micro-batch the gradient of the unembedding waits through the whole backward pass."""
    spec = resolve(GPT2, {"tied": True}).spec
    recording = tape_training(spec, PLAN.model_copy(update={"grad_accum": 2}), n_steps=1)
    second = {stage.name: stage for stage in recording.record.stages}["backward#2"]
    events = [(event, run.segment.label) for run in recording.runs(second) for event in run.events]
    fresh = [(e, where) for e, where in events if e.slot.tensor.name == "transformer.wte.weight"]
    assert next((event.alloc, where) for event, where in fresh if event.slot.kind == "temporary") == (True, "head")
    assert all(where == "input" for event, where in fresh if not event.alloc)


def test_the_answer_lists_every_micro_batch() -> None:
    """Of five micro-batches JSON has ten phases, of a hundred those of two and a note; tokens are those of all."""
    for n, listed in ((5, 11), (100, 5)):
        mode = api.memory("gpt2", seq=32, mode="training", grad_accum=n).to_dict()["training"]
        assert len(mode["phases"]) == listed
        assert mode["tokens"] == n * 32
        assert any(f"micro-batches 3 to {n} do what micro-batch 2 does" in note for note in mode["notes"])
    phases = api.memory("gpt2", seq=32, mode="training", grad_accum=5).to_dict()["training"]["phases"]
    assert [*phases][-2:] == ["backward#5", "optimizer"]
    assert phases["backward#2"] == phases["backward#5"] != phases["backward#1"]
    reserved = {"reserved": phases["backward#2"]["reserved"]}
    assert {**phases["forward#2"], **reserved} == phases["forward#5"]


def test_persistent_bytes_are_those_of_zero_and_megatron() -> None:
    """16 bytes a parameter with bf16 gradients, 18 with fp32 ones, beside what a loop has anyhow."""
    spec = resolve("gpt2", {}).spec
    stored = 124_439_808
    plan = Plan(seq=64, master_weights="fp32")
    inputs, workspaces = 2 * 64 * 8, 2 * 32 * 2**20
    for grad_dtype, each in (("bf16", 16), ("fp32", 18)):
        mode = memory(spec, plan.model_copy(update={"grad_dtype": grad_dtype}), ("training",)).modes[0]
        assert mode.persistent.requested == each * stored + inputs + workspaces


@pytest.mark.parametrize(("d_model", "n_heads", "n_layers"), [(6144, 64, 48), (12288, 96, 96)])
def test_megatron_takes_18_bytes_for_each_number_of_a_matrix(d_model: int, n_heads: int, n_layers: int) -> None:
    """Korthikanti et al. 2022, 22B and 175B: weights, gradients and optimizer of 12·L·h² parameters."""
    sizes = {"n_embd": d_model, "n_head": n_heads, "n_layer": n_layers, "vocab_size": 51_200, "n_positions": 2048}
    report = api.memory(
        GPT2 | sizes, seq=64, mode="training", master_weights="fp32", grad_dtype="fp32", grad_accum=2, dropout=0.0
    )
    for kind, each in {"weights": 2, "gradients": 4, "optimizer": 12}.items():
        found = {line.component: line.amount for line in report.training.lines if line.kind == kind}
        matrices = [name for name in found if name.startswith(("attn_", "mlp_")) and not name.endswith("_bias")]
        assert len(matrices) == 6
        assert sum(found[name] for name in matrices) == each * 12 * n_layers * d_model**2


def test_what_is_made_at_build_says_why() -> None:
    """Master weights and main gradients are lines of their own at depth 3, each with its reason."""
    report = api.memory("gpt2", seq=32, mode="training", master_weights="fp32", grad_dtype="fp32", depth=3)
    found = {line["key"]: line for line in report.to_dict()["training"]["lines"]}
    master = found["optimizer.transformer.wte.weight.master weights"]
    assert (master["amount"], master["dtype"]) == (4 * 50257 * 768, "fp32")
    assert "a copy of each weight" in master["why"]
    assert "every fresh gradient is added" in found["gradients.transformer.wte.weight"]["why"]


def test_zero_takes_120_gb_for_7_5_billion_parameters() -> None:
    """Rajbhandari et al. 2020, table 1: 16 bytes a parameter, in decimal GB, before anything is sharded."""
    sizes = {"n_embd": 4096, "n_head": 32, "n_layer": 36, "vocab_size": 50_257, "n_positions": 1024}
    report = api.memory(GPT2 | sizes, seq=64, mode="training", master_weights="fp32", grad_dtype="bf16")
    stored = api.count(GPT2 | sizes).totals.stored
    inputs, workspaces = 2 * 64 * 8, 2 * 32 * 2**20
    assert report.training.persistent.requested == 16 * stored + inputs + workspaces
    assert round(16 * stored / 10**9) in (119, 120)
