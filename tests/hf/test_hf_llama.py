"""transformers' Llama, Qwen 3, Mistral and Gemma 2: the tape is, event for event, the step that their classes run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import LLAMA, kept, of_tape, of_trace, tape_training
from support import examples

from gptcalc.catalog import resolve
from gptcalc.errors import InvalidValueError
from gptcalc.ledger.memory import attention_choices
from gptcalc.plan import Plan

pytest.importorskip("torch")
pytest.importorskip("transformers")

from hf_steps import PLAN, agree

from gptcalc.witness import hub_steps

DATA = Path(__file__).parents[1] / "data"
#: What autograd keeps of transformers' own class on fake CUDA tensors.
ACTIVATIONS = json.loads((DATA / "facts_activations.json").read_text())["cases"]
MEASURED = [name for name in ACTIVATIONS if name.startswith("llama")]
#: Kernels that take grouped heads.
BACKENDS = ["eager", "math", "flash", "cudnn"]
LLAMA_1B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "hidden_size": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "tie_word_embeddings": True,
}


@st.composite
def toys(draw: st.DrawFn, family: str) -> tuple[dict[str, Any], Plan]:
    """A small model of odd sizes with a plan."""
    shared, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    window = draw(st.integers(2, 24)) if family in ("mistral", "gemma2") else None
    seq = draw(st.integers(1, 20))
    masked = window is not None and seq >= window
    backends = ["eager", "math", "flash", "cudnn", "efficient"]
    if family == "gemma2":
        backends = ["eager"]
    elif masked:
        backends.remove("flash")
    elif groups > 1:
        backends.remove("efficient")
    backend = draw(st.sampled_from(backends))
    config = {
        "model_type": family,
        "vocab_size": draw(st.integers(1, 50)),
        "max_position_embeddings": 32,
        "hidden_size": shared * groups * draw(st.integers(1, 12)),
        "num_hidden_layers": draw(st.integers(2, 4)),
        "num_attention_heads": shared * groups,
        "num_key_value_heads": shared,
        "head_dim": 2 * draw(st.integers(1, 12))
        if backend not in ("cudnn", "efficient")
        else 8 * draw(st.integers(1, 3)),
        "intermediate_size": draw(st.integers(1, 60)),
        "attention_dropout": draw(st.sampled_from([0.0, 0.1])),
        "tie_word_embeddings": draw(st.booleans()),
    }
    if family in ("llama", "qwen3"):
        config["attention_bias"] = draw(st.booleans())
    if family == "llama":
        config |= {"mlp_bias": draw(st.booleans()), "hidden_act": draw(st.sampled_from(["silu", "gelu", "relu"]))}
    if window is not None:
        config["sliding_window"] = window
    if family == "qwen3" and draw(st.booleans()):
        config |= {"use_sliding_window": True, "sliding_window": 21, "max_window_layers": 1}
    half = backend in ("flash", "cudnn")
    changes = {
        "batch": draw(st.integers(1, 4)),
        "seq": seq,
        "attention": backend,
        "precision": draw(st.sampled_from(["bf16", "fp16"] if half else ["fp32", "bf16", "fp16"])),
    }
    return config, PLAN.model_copy(update=changes)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2"])
@settings(max_examples=examples(12), deadline=None)
@given(data=st.data())
def test_a_step_is_what_the_class_runs(family: str, data: st.DataObject) -> None:
    """Whatever its sizes, biases, ties, window, dropout, attention and precision."""
    agree(*data.draw(toys(family)))


@pytest.mark.parametrize("backend", ["eager", "math", "efficient", "cudnn"])
@pytest.mark.parametrize("seq", [7, 8, 9, 16])
def test_a_window_is_a_mask_from_the_token_on_that_fills_it(seq: int, backend: str) -> None:
    """As many tokens as the window are masked too; `sdpa` then repeats keys, and aligns rows for mem-efficient."""
    if (backend, seq) == ("efficient", 7):
        pytest.skip("grouped heads without a mask do not run")
    config = LLAMA | {"model_type": "mistral", "sliding_window": 8}
    agree(config, PLAN.model_copy(update={"seq": seq, "attention": backend}))


def test_heads_that_share_one_key_see_it_and_do_not_copy_it() -> None:
    """A single key is spread over the heads: eager copies it for the product alone, and of one sequence not even so."""
    for batch in (1, 2):
        agree(LLAMA | {"num_key_value_heads": 1}, PLAN.model_copy(update={"attention": "eager", "batch": batch}))


@settings(max_examples=examples(12), deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5)),
    experts=st.integers(1, 5),
    data=st.data(),
)
def test_a_mixture_is_what_the_class_runs(sizes: tuple[int, int, int], experts: int, data: st.DataObject) -> None:
    """Experts by one grouped product, in bf16, whatever the sizes; also where a layer runs again."""
    batch, width, inner = sizes
    config = LLAMA | {
        "model_type": "mixtral",
        "hidden_size": 48 * width,
        "intermediate_size": 8 * inner,
        "num_local_experts": experts,
        "num_experts_per_tok": data.draw(st.integers(1, experts)),
    }
    changes = {"batch": batch, "seq": data.draw(st.integers(1, 20)), "attention": data.draw(st.sampled_from(BACKENDS))}
    agree(config, PLAN.model_copy(update=changes))


def test_a_mixture_in_fp32_is_refused() -> None:
    """The steps of torch's grouped product are known in bf16 alone."""
    spec = resolve(LLAMA | {"model_type": "mixtral", "hidden_size": 48}, {}).spec
    with pytest.raises(InvalidValueError, match=r"precision: read 'fp32'.*allowed: bf16"):
        tape_training(spec, PLAN.model_copy(update={"precision": "fp32", "attention": "eager"}))


@pytest.mark.parametrize(("seq", "backend"), [(7, "flash"), (8, "efficient"), (9, "efficient")])
def test_a_mask_decides_the_kernel(seq: int, backend: str) -> None:
    """From as many tokens on as there are in a window flash does not run, and grouped heads are repeated."""
    spec = resolve(LLAMA | {"model_type": "mistral", "sliding_window": 8}, {}).spec
    plan = Plan(batch=2, seq=seq, implementation="transformers", target="sm80")
    assert {choice.backend for choice in attention_choices(spec, plan, training=True)} == {backend}


@pytest.mark.parametrize("backend", ["eager", "math"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_a_layer_under_a_checkpoint_holds_what_it_was_given(family: str, backend: str) -> None:
    """Angles, positions and its mask, until it has run again."""
    if (family, backend) == ("gemma2", "math"):
        pytest.skip("no kernel runs with a softcap")
    windows = {} if family == "llama" else {"sliding_window": 5}
    config = LLAMA | {"model_type": family, "num_hidden_layers": 4} | windows
    changes = {"attention": backend, "checkpointing": "full"}
    plan = PLAN.model_copy(update=changes)
    model = resolve(config, {})
    assert of_tape(tape_training(model.spec, plan)) == of_trace(hub_steps.trace_training(model, plan))


@pytest.mark.parametrize("name", MEASURED)
def test_every_storage_of_a_measured_case_is_kept(name: str) -> None:
    """Storage for storage what Llama 3.2's class keeps at 8 · 1,024 tokens, as was measured on fake CUDA tensors."""
    _, attention, precision, drop, _ = name.split("|")
    sdpa = "flash" if precision == "bf16" else "math"
    plan = Plan(
        batch=8,
        seq=1024,
        precision=precision,
        attention="eager" if attention == "eager" else sdpa,
        implementation="transformers",
    )
    spec = resolve(LLAMA_1B | {"attention_dropout": float(drop.removeprefix("drop"))}, {}).spec
    measured = {what.removeprefix("u"): count for what, count in ACTIVATIONS[name]["two_layers"].items()}
    token_ids = Counter({"int64 65536": 1})
    assert kept(tape_training(spec, plan, n_steps=1)) + token_ids == Counter(measured)
