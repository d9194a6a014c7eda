"""What each optimizer keeps of real models, in bytes by hand, and which pairs of optimizer and implementation exist."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import LLAMA, MIXTRAL, OPTIMIZERS, of_tape, of_trace, tape_training, toy_plans
from support import examples

import gptcalc
from gptcalc.catalog import resolve
from gptcalc.errors import GptcalcError
from gptcalc.ledger.memory import memory
from gptcalc.optimizers import OPTIMIZERS as KNOWN
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.tape.replay import replay
from gptcalc.witness.trace import trace_training

pytestmark = pytest.mark.usefixtures("frozen")

GPT2_XL = ("gpt2-xl", 48, 1600)


def states(model: str, **asked: Any) -> int:
    """The bytes of the optimizer's states at the peak of a training step."""
    spec = resolve(model, {}).spec
    (mode,) = memory(spec, Plan.model_validate({"seq": 8, "precision": "bf16", **asked}), ("training",)).modes
    return sum(line.amount for line in mode.lines if line.kind == "optimizer")


def gpt2_shapes(n_layers: int, d: int) -> tuple[list[tuple[int, int]], list[int]]:
    """The matrices and the vectors of a GPT-2, its tables first, its last norm last."""
    matrices = [(50257, d), (1024, d), *[(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)] * n_layers]
    return matrices, [*[d, d, 3 * d, d, d, d, 4 * d, d] * n_layers, d, d]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_amsgrad_keeps_a_third_moment(precision: str) -> None:
    """12 bytes for each parameter in fp32, 6 in bf16, where AdamW keeps 8 and 4."""
    size = {"fp32": 4, "bf16": 2}[precision]
    matrices, vectors = gpt2_shapes(12, 768)
    n_parameters = sum(map(prod, matrices)) + sum(vectors)

    assert states("gpt2", precision=precision) == 2 * size * n_parameters
    assert states("gpt2", precision=precision, amsgrad=True) == 3 * size * n_parameters


@pytest.mark.parametrize(("model", "n_layers", "d"), [("gpt2", 12, 768), GPT2_XL])
def test_adafactor_keeps_rows_and_columns(model: str, n_layers: int, d: int) -> None:
    """R + C numbers of an R × C matrix, n of a vector of n."""
    matrices, vectors = gpt2_shapes(n_layers, d)

    assert states(model, optimizer="adafactor") == 2 * (sum(r + c for r, c in matrices) + sum(vectors))


@pytest.mark.parametrize(("model", "n_layers", "d"), [("gpt2", 12, 768), GPT2_XL])
def test_muon_keeps_one_moment_of_the_layers_matrices(model: str, n_layers: int, d: int) -> None:
    """One number for each element of a matrix in a layer; AdamW two of tables, norms and biases."""
    matrices, vectors = gpt2_shapes(n_layers, d)
    tables, hidden = matrices[:2], matrices[2:]

    assert states(model, optimizer="muon") == 2 * (sum(map(prod, hidden)) + 2 * (sum(map(prod, tables)) + sum(vectors)))


@pytest.mark.parametrize(("model", "n_layers", "d"), [("gpt2", 12, 768), GPT2_XL])
def test_8_bits_keep_two_bytes_and_two_scales_a_block(model: str, n_layers: int, d: int) -> None:
    """Two bytes an element, two fp32 a block of 256; tensors below 4,096 elements 8 bytes each; two maps of 1 KiB."""
    matrices, vectors = gpt2_shapes(n_layers, d)
    sizes = [*map(prod, matrices), *vectors]
    by_hand = sum(2 * n + 8 * -(-n // 256) if n >= 4096 else 8 * n for n in sizes) + 2 * 1024

    assert states(model, optimizer="adamw8bit", optimizer_impl="fused") == by_hand


def test_stacked_experts_are_adamws() -> None:
    """Of Mixtral's layer Muon takes query, key, value, output and the router; three-axis experts keep two moments."""
    spec = resolve(MIXTRAL, {}).spec
    plan = Plan(batch=1, seq=4, attention="flash", optimizer="muon")
    d, heads, kv, f, experts = 42, 6 * 16, 2 * 16, 47, 5
    attention, router = 2 * d * heads + 2 * d * kv, experts * d
    rest = 2 * 71 * d + d + 2 * (2 * d + experts * 3 * f * d)
    (mode,) = memory(spec, plan, ("training",)).modes

    kept = sum(line.amount for line in mode.lines if line.kind == "optimizer")
    assert kept == 2 * (2 * (attention + router) + 2 * rest)


def test_muon_on_a_real_matrix_takes_what_its_iteration_names() -> None:
    """Llama 3 8B's up-projection in fp32: the update, two iterates in bf16, and two Gram matrices of its short side."""
    spec = resolve("llama-3-8b", {}).spec
    plan = Plan(seq=8, precision="fp32", attention="eager", optimizer="muon", optimizer_impl="fused")
    figures = replay(tape_training(spec, plan, recorded=3), expandable=False)
    (_, before), (peak, after) = figures[6:8]
    rows, columns = 14336, 4096

    assert peak.requested - before.requested == (4 + 2 * 2) * rows * columns + 2 * 2 * columns * columns
    assert after.requested == before.requested


@settings(max_examples=examples(30), deadline=None)
@given(drawn=toy_plans(), update=st.sampled_from(OPTIMIZERS))
def test_two_steps_are_torchs_event_by_event(drawn: tuple[Spec, Plan], update: dict[str, Any]) -> None:
    """Every allocation and free of two steps with each optimizer, in order; the states are made in the first."""
    spec, plan = drawn[0], drawn[1].model_copy(update=update)
    assert of_tape(tape_training(spec, plan)) == of_trace(trace_training(spec, plan, 2))


@pytest.mark.parametrize("update", [one for one in OPTIMIZERS if one["optimizer"] == "adamw8bit"])
def test_large_tensors_in_8_bits_are_event_by_event_too(update: dict[str, Any]) -> None:
    """Tensors on both sides of 4,096 elements, and the maps at the first of 8 bits."""
    for wide in ({"hidden_size": 64, "intermediate_size": 100}, {"vocab_size": 150}):
        spec = resolve(LLAMA | wide, {}).spec
        plan = Plan(batch=1, seq=5, attention="flash").model_copy(update=update)
        recording = tape_training(spec, plan)
        labels = [e.slot.tensor.label for s in recording.record.stages[3].segments for e in s.events]
        assert {"qmap1", "absmax1", "state1"} <= {label.partition(" of ")[0] for label in labels}
        assert of_tape(recording) == of_trace(trace_training(spec, plan, 2))


# --- In backward -----------------------------------------------------------------------------------------------------


@settings(max_examples=examples(15), deadline=None)
@given(drawn=toy_plans(), update=st.sampled_from(OPTIMIZERS))
def test_in_backward_each_weight_is_updated_as_soon_as_its_gradient_is_whole(
    drawn: tuple[Spec, Plan], update: dict[str, Any]
) -> None:
    """Every allocation and free of two steps with torch's hooks, whichever optimizer each weight has."""
    spec, plan = drawn[0], drawn[1].model_copy(update=update | {"optimizer_in_backward": True})
    assert of_tape(tape_training(spec, plan)) == of_trace(trace_training(spec, plan, 2))


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL], ids=lambda config: config["model_type"])
@pytest.mark.parametrize("also", [{"checkpointing": "full"}, {"checkpointing": "selective"}, {"chunked_loss": 2}])
def test_in_backward_what_runs_again_runs_between(config: dict[str, Any], also: dict[str, Any]) -> None:
    """With checkpoints, and with the loss in chunks, every event is torch's too."""
    plan = Plan(batch=2, seq=6, precision="fp32", attention="eager", optimizer_in_backward=True)
    spec, plan = resolve(config, {}).spec, plan.model_copy(update=also)
    assert of_tape(tape_training(spec, plan)) == of_trace(trace_training(spec, plan, 2))


def test_in_backward_gradients_are_never_all_there() -> None:
    """Of GPT-2 XL's gradients (3.1 GB in bf16) fewer than a tenth are alive at once; nothing is a phase of its own."""
    plan = {"mode": "training", "seq": 64, "optimizer": "sgd", "optimizer_impl": "fused"}
    plain, hooked = (
        gptcalc.memory("gpt2-xl", **plan, optimizer_in_backward=on).to_dict()["training"] for on in (False, True)
    )
    gradients = 2 * 1_557_611_200

    assert list(plain["phases"]) == ["forward", "backward", "optimizer"]
    assert list(hooked["phases"]) == ["forward", "backward"]
    assert plain["totals"]["requested"] > gradients
    assert plain["phases"]["forward"]["requested"] == hooked["phases"]["forward"]["requested"]
    assert plain["totals"]["requested"] - hooked["totals"]["requested"] > 0.9 * gradients
    assert any("gradients never exist all at once" in note for note in hooked["notes"])


# --- Which pairs there are -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"optimizer": "adafactor", "optimizer_impl": "fused"}, "has no fused adafactor; allowed: foreach, for-loop"),
        ({"optimizer": "adafactor", "torch": "2.4"}, "torch 2.4 has no adafactor; allowed: torch 2.5 and later"),
        ({"optimizer": "muon", "torch": "2.8"}, "torch 2.8 has no muon; allowed: torch 2.9 and later"),
        ({"optimizer": "adamw8bit", "optimizer_impl": "foreach"}, "has no foreach adamw8bit; allowed: fused"),
        ({"optimizer": "muon", "amsgrad": True}, "amsgrad with optimizer muon, which has no use for it; allowed:"),
        ({"optimizer": "adafactor", "momentum": 0.9}, "momentum with optimizer adafactor, which has no use for it"),
        ({"mode": "inference", "amsgrad": True}, "amsgrad with mode inference"),
        ({"optimizer": "adamw9bit"}, "adamw8bit"),
        ({"optimizer_in_backward": True, "grad_clip": 1.0}, "in_backward with grad_clip, whose norm is that of all"),
        ({"optimizer_in_backward": True, "grad_accum": 2}, "in_backward with grad_accum, which adds the gradients"),
        ({"optimizer_in_backward": True, "zero_grads": True}, "in_backward with zero_grads, which keeps gradients"),
        ({"optimizer_in_backward": True, "grad_dtype": "fp32"}, "in_backward with grad_dtype, whose buffers"),
        ({"optimizer_in_backward": True, "master_weights": "fp32"}, "in_backward with master_weights, which are"),
        ({"optimizer_in_backward": True, "precision": "autocast-fp16"}, "in_backward with precision, whose gradient"),
        ({"mode": "inference", "optimizer_in_backward": True}, "optimizer_in_backward with mode inference"),
        ({"amsgrad": "yes"}, "amsgrad: read 'yes'; allowed: true or false"),
    ],
)
def test_what_does_not_exist_is_an_error(asked: dict[str, Any], says: str) -> None:
    """It says what was read and what there is."""
    with pytest.raises(GptcalcError, match="(?s)" + says.replace("(", r"\(")):
        gptcalc.memory("gpt2", **asked)


def test_every_optimizer_runs_unasked() -> None:
    """A name alone is enough: the implementation is the first that there is, and the plan says which."""
    for name, known in KNOWN.items():
        plan = gptcalc.memory("gpt2", optimizer=name, mode="training", seq=4).to_dict()["plan"]
        assert plan["optimizer"] == name
        assert plan["optimizer_impl"] == next(iter(known.kind.since))
        assert plan["amsgrad"] is False
