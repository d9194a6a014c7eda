"""transformers' classes under autocast: the tape is, event for event, the step that they run on fake CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from steps import GPT2, LLAMA, of_tape, of_trace, tape_training

import gptcalc
from gptcalc.catalog import Resolved, resolve
from gptcalc.errors import InvalidValueError
from gptcalc.ledger.memory import memory
from gptcalc.plan import Plan
from gptcalc.witness.fake_cuda import Call

pytest.importorskip("torch")
pytest.importorskip("transformers")

from hf_steps import PLAN

from gptcalc.witness import hub_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gptcalc.witness.trace import Trace

QWEN = LLAMA | {"model_type": "qwen3"}
MISTRAL = LLAMA | {"model_type": "mistral", "sliding_window": 8}
GEMMA = LLAMA | {"model_type": "gemma2", "sliding_window": 8, "num_hidden_layers": 3}
#: As many keys as queries, of which no kernel makes more; a dropout of the weights.
UNGROUPED = {"num_key_value_heads": 6, "attention_dropout": 0.1}
FP16 = {"precision": "autocast-fp16"}
AGAIN = {"checkpointing": "full", "batch": 2, "seq": 16}
#: A model, the kernel of its attention, and what else is asked.
CASES: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    (GPT2, "eager", {}),
    (GPT2, "flash", FP16),
    (GPT2 | {"activation_function": "gelu", "tie_word_embeddings": False}, "efficient", AGAIN),
    (GPT2 | {"attn_pdrop": 0.0}, "eager", AGAIN | FP16),
    (LLAMA, "flash", {}),
    (LLAMA, "eager", AGAIN | FP16),
    (LLAMA | UNGROUPED, "efficient", AGAIN),
    (LLAMA | {"num_key_value_heads": 1, "tie_word_embeddings": True, "attention_bias": True}, "math", {"batch": 1}),
    (QWEN, "flash", AGAIN),
    (QWEN, "eager", FP16),
    (QWEN | UNGROUPED, "efficient", {"batch": 1}),
    (MISTRAL, "eager", FP16),
    (MISTRAL, "efficient", {}),
    (MISTRAL, "math", AGAIN),
    (MISTRAL | UNGROUPED, "efficient", {"batch": 1}),
    (MISTRAL | {"sliding_window": 20}, "flash", FP16),
    (GEMMA, "eager", {}),
    (GEMMA, "eager", AGAIN | FP16),
    (GEMMA | {"num_key_value_heads": 1, "attention_dropout": 0.1}, "eager", {"batch": 1}),
]


def _asked(case: tuple[dict[str, Any], str, dict[str, Any]]) -> tuple[Resolved, Plan]:
    config, attention, fields = case
    changes = {"attention": attention, "precision": "autocast-bf16"} | fields
    return resolve(config, {}), Plan.model_validate(PLAN.model_dump() | changes)


def _trace(case: tuple[dict[str, Any], str, dict[str, Any]]) -> Trace:
    """A step, in the other process."""
    return hub_steps.trace_training(*_asked(case), 1, "cuda")


@pytest.fixture(scope="module")
def found(fake_cuda: Callable[[Sequence[Call]], list[Any]]) -> list[Any]:
    """Every case on fake CUDA, in one process."""
    return fake_cuda([Call(_trace, (case,)) for case in CASES])


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_step_under_autocast_is_what_the_class_runs(found: list[Any], number: int) -> None:
    """Every allocation and free of a step, in order: with each kernel, in bf16 and fp16, also under checkpoints."""
    model, plan = _asked(CASES[number])
    ours, theirs = of_tape(tape_training(model.spec, plan, n_steps=1)), of_trace(found[number])
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    for (name, taped), (_, traced) in zip(ours, theirs, strict=True):
        assert taped == traced, name


@pytest.mark.usefixtures("found")
def test_the_class_is_a_witness_under_autocast() -> None:
    """`check` hears it on fake CUDA: of what autograd keeps, and of every phase."""
    settings = {"batch": 2, "seq": 13, "precision": "autocast-bf16"}
    check = gptcalc.check(MISTRAL, witness="transformers", settings=settings)
    assert check.agrees
    assert [seen.skipped for seen in check.evidence] == ["", ""]
    assert all("transformers on fake CUDA" in seen.subject for seen in check.evidence)


def test_a_mixture_under_autocast_is_refused() -> None:
    """Autocast leaves its grouped product in fp32, whose steps are not known."""
    config = LLAMA | {"model_type": "mixtral", "hidden_size": 48, "intermediate_size": 40}
    plan = Plan(seq=8, precision="autocast-bf16", implementation="transformers")
    with pytest.raises(InvalidValueError, match=r"precision: read 'autocast-bf16'.*allowed: bf16"):
        memory(resolve(config, {}).spec, plan, ("training",))
