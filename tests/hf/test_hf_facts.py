"""Steps of transformers' classes as they were measured without gptcalc, on fake CUDA tensors."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, get_args

import pytest
from steps import kept, tape_training
from support import DATA

from gptcalc import hf
from gptcalc.catalog import resolve
from gptcalc.ledger.memory import PHASES, record
from gptcalc.plan import Plan, Precision
from gptcalc.tape.replay import fold

if TYPE_CHECKING:
    from gptcalc.spec import Spec

FACTS = json.loads((DATA / "facts_steps.json").read_text())
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2"},
    "gpt2-medium": {"model_type": "gpt2", "n_layer": 24, "n_embd": 1024, "n_head": 16},
    "gpt2-xl": {"model_type": "gpt2", "n_layer": 48, "n_embd": 1600, "n_head": 25},
    "llama-3.2-1b": {
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}
#: The loss, which the measured loop lets go before the update and gptcalc's after it.
LOSS = 512


def modelled(kind: str, precision: str) -> bool:
    """Whether the family's code was read, and the precision is known."""
    return CONFIGS[kind]["model_type"] in hf.MODULES and precision in get_args(Precision)


def model(kind: str, **fields: object) -> Spec:
    """The model of a measurement."""
    return resolve(CONFIGS[kind] | fields, {}).spec


def kernel(kind: str, precision: str, attention: str) -> str:
    """What the measurements route sdpa to: fp32 of grouped heads has no fused kernel."""
    if attention == "eager" or precision != "fp32":
        return "eager" if attention == "eager" else "flash"
    return "math" if kind.startswith("llama") else "efficient"


SAVED = [name for name in FACTS["saved"] if modelled(name.split("|")[0], name.split("|")[2])]
PEAKS = [case for case in FACTS["peaks"] if modelled(case["kind"].removesuffix("-eager"), case["prec"])]


@pytest.mark.parametrize("name", SAVED)
def test_what_autograd_keeps_is_what_was_measured(name: str) -> None:
    """Storage for storage, in a model of two layers; byte for byte a layer more, and what is outside the layers."""
    kind, attention, precision, drop, activation = name.split("|")
    measured, p = FACTS["saved"][name], float(drop.removeprefix("drop"))
    if kind == "gpt2":
        fields = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), p) | {"activation_function": activation}
    else:
        fields = {"attention_dropout": p}
    plan = Plan.model_validate(
        {
            "batch": 8,
            "seq": 1024,
            "precision": precision,
            "attention": kernel(kind, precision, attention),
            "implementation": "transformers",
        }
    )
    n_layers = "n_layer" if kind == "gpt2" else "num_hidden_layers"
    two, three = (kept(tape_training(model(kind, **fields, **{n_layers: n}), plan, n_steps=1)) for n in (2, 3))
    two["int64 65536"] += 1  # the token IDs, which live anyhow
    expected = {storage.replace("uint64", "int64"): n for storage, n in measured["two_layers"].items()}
    assert two == Counter(expected)
    assert measured["per_layer"] == measured["block"] - _angles(kind, precision)
    per_layer = measured["per_layer"] + measured["weight_copies_per_layer"]
    assert _total(three) + 65536 - _total(two) == per_layer
    assert _total(two) - 2 * per_layer == measured["outside_layers"] + measured["weight_copies_outside"]


def _angles(kind: str, precision: str) -> int:
    """Cosines and sines, which a block of Llama by itself keeps, and layers share: (T, H) each."""
    return 2 * 1024 * 64 * (2 if precision == "bf16" else 4) if kind.startswith("llama") else 0


def _total(found: Counter[str]) -> int:
    return sum(n * int(storage.split()[1]) for storage, n in found.items())


def _words(case: dict[str, Any]) -> str:
    again = " again" if case["ckpt"] else ""
    return f"{case['kind']} {case['prec']} {case['opt']} {case['b']}x{case['s']}{again}"


@pytest.mark.parametrize("case", PEAKS, ids=_words)
def test_a_step_takes_at_its_peak_what_was_measured(case: dict[str, Any]) -> None:
    """Every phase of the second step, in bytes rounded up to 512: exactly, but for the loss in the update."""
    kind = case["kind"].removesuffix("-eager")
    plan = Plan.model_validate(
        {
            "batch": case["b"],
            "seq": case["s"],
            "precision": case["prec"],
            "attention": kernel(kind, case["prec"], "eager" if kind != case["kind"] else "sdpa"),
            "optimizer_impl": {"loop": "for-loop"}.get(case["opt"], case["opt"]),
            "checkpointing": "full" if case["ckpt"] else "none",
            "implementation": "transformers",
        }
    )
    assert_measured(model(kind), plan, case)


def assert_measured(spec: Spec, plan: Plan, case: dict[str, Any]) -> None:
    """Every phase is that of the case; one whose peak is an add that autograd does in place unwatched, at most a table.

    It adds up what a tied table and its unembedding give: a copy under autocast, else a view, to which nothing is added
    in place.
    """
    found, measured = rounded_phases(spec, plan), dict(case["phases"])
    found["optimizer"] -= LOSS
    if plan.precision.startswith("autocast") and case["peak_ops"]["backward"] == "aten.add.Tensor":
        assert 0 <= measured["backward"] - found["backward"] <= 4 * spec.n_vocab * spec.d_model
        measured["backward"] = found["backward"]
    assert found == measured


def rounded_phases(spec: Spec, plan: Plan) -> dict[str, int]:
    """The peak of each phase of the second step, without what kernels take for themselves."""
    recording = record("training", spec, plan, None)
    stages = recording.record.stages
    last = range(len(stages) - len(PHASES["training"]) - 1, len(stages))
    rounded = fold(recording, last).rounded
    return {stages[n].name: rounded[n] for n in last if stages[n].name in PHASES["training"]}
