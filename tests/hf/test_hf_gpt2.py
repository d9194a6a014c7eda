"""transformers' GPT-2: the tape is, event for event, the step that its class runs."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import GPT2, LLAMA, OPTIMIZERS
from support import examples

from gptcalc import hf
from gptcalc.errors import InvalidValueError
from gptcalc.plan import Plan
from gptcalc.spec import Activation

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hf_steps import PLAN, agree  # noqa: E402  it opens torch


def test_the_release_that_was_read_is_the_one_that_is_the_witness() -> None:
    """The rows were written while reading the release that the tests run."""
    assert transformers.__version__.split(".")[:2] == hf.READ.split(".")


@st.composite
def toys(draw: st.DrawFn) -> tuple[dict[str, Any], Plan]:
    """A small GPT-2 of odd sizes with a plan."""
    n_heads = draw(st.integers(1, 5))
    backend = draw(st.sampled_from(["eager", "eager", "flash", "efficient", "math"]))
    config = {
        "model_type": "gpt2",
        "vocab_size": draw(st.integers(1, 50)),
        "n_positions": 21,
        "n_embd": n_heads * draw(st.integers(1, 12)),
        "n_head": n_heads,
        "n_layer": draw(st.integers(2, 4)),
        "n_inner": draw(st.one_of(st.none(), st.integers(1, 60))),
        "tie_word_embeddings": draw(st.booleans()),
        "activation_function": draw(st.sampled_from(["gelu_new", "gelu_new", "gelu_pytorch_tanh", "gelu", "relu"])),
    }
    config |= {f"{name}_pdrop": draw(st.sampled_from([0.0, 0.1])) for name in ("embd", "attn", "resid")}
    half = backend == "flash"
    changes = {
        "batch": draw(st.integers(1, 4)),
        "seq": draw(st.integers(1, 21)),
        "attention": backend,
        "precision": draw(st.sampled_from(["bf16", "fp16"] if half else ["fp32", "bf16", "fp16"])),
    }
    return config, PLAN.model_copy(update=changes)


@settings(max_examples=examples(25), deadline=None)
@given(drawn=toys())
def test_a_step_is_what_the_class_runs(drawn: tuple[dict[str, Any], Plan]) -> None:
    """Whatever its sizes, activation, dropouts, ties, attention and precision."""
    agree(*drawn)


@pytest.mark.parametrize("update", OPTIMIZERS, ids=str)
def test_every_optimizer_updates_it(update: dict[str, Any]) -> None:
    """Two steps with each optimizer and implementation."""
    agree(GPT2, PLAN.model_copy(update={**update, "attention": "eager", "precision": "fp32"}), n_steps=2)


@pytest.mark.parametrize("activation", sorted(set(get_args(Activation)) - {"gelu_new"}))
def test_every_activation_is_what_the_class_runs(activation: str) -> None:
    """Some are one kernel, others are Python, and keep what they need of every step."""
    agree(GPT2 | {"activation_function": activation}, PLAN)


@pytest.mark.parametrize(
    ("attention", "precision", "batch"),
    [("flash", "bf16", 3), ("eager", "fp32", 3), ("eager", "bf16", 1), ("math", "bf16", 2), ("efficient", "fp32", 1)],
)
@pytest.mark.parametrize("family", [GPT2, LLAMA | {"num_key_value_heads": 6}], ids=["gpt2", "llama"])
def test_blocks_under_checkpoints_are_what_the_class_runs(
    family: dict[str, Any], attention: str, precision: str, batch: int
) -> None:
    """Not reentrant: GPT-2's mask is an argument, which a block keeps; Llama's comes by keyword, as position IDs do."""
    fields = {"attention": attention, "precision": precision, "batch": batch, "checkpointing": "full"}
    agree(family, PLAN.model_copy(update=fields), n_steps=2)


def test_a_family_that_was_not_read_is_refused_in_one_line() -> None:
    """The error says that only the reference is modelled, and which families have code of their own."""
    with pytest.raises(InvalidValueError, match=r"'falcon'.*only the reference is modelled.*gpt2") as refused:
        hf.code_of("falcon")
    assert "\n" not in str(refused.value)
