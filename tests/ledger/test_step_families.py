"""Every family in memory: at toy size its tape is the traced reference's step, allocation by allocation."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING

import pytest
from decoders import decoder
from decoders import model_types as types_of_transformers
from steps import ALL, kept, of_tape, of_trace

from gptcalc.catalog import resolve
from gptcalc.errors import GptcalcError
from gptcalc.families import model_types
from gptcalc.ledger.memory import attention_choices, memory
from gptcalc.ledger.step import inference, training
from gptcalc.optimizers import optimizer
from gptcalc.plan import Plan
from gptcalc.tape.kernels import torch_version

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from gptcalc.witness.saved_tensors import saved  # noqa: E402  as above
from gptcalc.witness.trace import trace_inference, trace_training  # noqa: E402  it opens torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gptcalc.spec import Spec

#: Families of which some op has no part yet.
NOT_MODELLED = frozenset({"afmoe", "bitnet", "qwen3_5_moe_text", "qwen3_5_text"})
#: One for each kind of attention, for the other kernel that is written out.
WRITTEN_OUT = {"bloom", "deepseek_v3", "falcon", "gemma3_text", "gpt2", "gpt_neox", "mixtral", "qwen3_next"}
TYPES = [name for name in model_types() if name in types_of_transformers()]


pytestmark = pytest.mark.usefixtures("frozen")


@contextmanager
def arguments_held() -> Iterator[None]:
    """Python calls as 3.10 does, and 3.11 where torch has compiled something: a caller holds what it passes."""
    from torch._C._dynamo.eval_frame import set_eval_frame

    set_eval_frame(False)
    yield
    set_eval_frame(None)


@cache
def toy(model_type: str) -> Spec:
    """A small model of the class, in every kind of layer that it has, with plain angles: others are not run."""
    config = {**decoder(model_type).config, "model_type": model_type}
    if getattr(resolve(config, {}).family, "rope_scaling", None):
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0}
    return resolve(config, {}).spec


def test_the_families_whose_ops_are_not_modelled_are_these(record_property: Callable[[str, object], None]) -> None:
    """Printed: each with what no part can express. They get weights, states and the KV cache, and a line saying so."""
    unknown = {name: ops for name in TYPES if (ops := toy(name).unknown_ops)}
    record_property("families whose ops are not modelled", unknown or "none")

    assert set(unknown) == NOT_MODELLED


@pytest.mark.parametrize(
    ("attention", "precision", "model_type"),
    [
        *(("eager", "bf16", name) for name in TYPES if name not in NOT_MODELLED),
        *(("math", "fp32", name) for name in TYPES if name in WRITTEN_OUT),
    ],
)
def test_a_step_of_every_family_is_torchs(model_type: str, attention: str, precision: str) -> None:
    """Training, a prompt and a token: what is allocated and freed, in order, on kernels that are written out.

    The second time around callers hold on to arguments: no temporary's end hangs on how Python calls a function.
    """
    spec = toy(model_type)
    plan = Plan.model_validate(
        {
            "batch": 2,
            "seq": 11,
            "precision": precision,
            "kv_dtype": precision,
            "attention": attention,
            "optimizer": "sgd",
            "optimizer_impl": "fused",
        }
    )
    try:
        trained, asked = (
            [choice.backend for choice in attention_choices(spec, plan, training=on)] for on in (True, False)
        )
    except GptcalcError as error:
        pytest.skip(f"this kernel does not run: {error}")
    update = optimizer(plan, torch_version(plan.torch))
    training_step = training(spec, plan, trained, update, None, n_steps=1, recorded=ALL)

    assert kept(training_step) == Counter(f"{row.dtype} {row.bytes}" for row in saved(spec, plan))
    with arguments_held() if attention == "math" else nullcontext():
        assert of_tape(training_step) == of_trace(trace_training(spec, plan, 1))
        assert of_tape(inference(spec, plan, asked, None, recorded=ALL)) == of_trace(trace_inference(spec, plan))


@pytest.mark.parametrize(
    ("checkpointing", "model_type"),
    [
        *(("full", name) for name in TYPES if name not in NOT_MODELLED),
        *(("selective", name) for name in TYPES if name in WRITTEN_OUT),
    ],
)
def test_a_step_of_every_family_under_checkpoints_is_torchs(model_type: str, checkpointing: str) -> None:
    """Blocks of every kind, or the core of their attention, run again in the backward pass as torch has it."""
    spec = toy(model_type)
    plan = Plan.model_validate(
        {
            "batch": 2,
            "seq": 11,
            "attention": "eager",
            "optimizer": "sgd",
            "optimizer_impl": "fused",
            "checkpointing": checkpointing,
        }
    )
    backends = [choice.backend for choice in attention_choices(spec, plan, training=True)]
    update = optimizer(plan, torch_version(plan.torch))

    assert of_tape(training(spec, plan, backends, update, None, n_steps=1, recorded=ALL)) == of_trace(
        trace_training(spec, plan, 1)
    )


@pytest.mark.parametrize("model_type", [name for name in TYPES if name not in NOT_MODELLED])
def test_every_family_has_an_answer_with_torchs_own_choice(model_type: str) -> None:
    """In bf16 on an H100: every mode, with its kernels' own buffers."""
    found = memory(toy(model_type), Plan(batch=2, seq=11), ("training", "inference"))

    assert all(mode.totals.requested > 0 for mode in found.modes)
    assert all({line.kind for line in mode.lines} >= {"weights"} for mode in found.modes)
