"""Layers that take turns: a pattern that repeats is recorded three times, and stands for all repetitions."""

from __future__ import annotations

import pytest
from steps import ALL

from gptcalc.catalog import resolve
from gptcalc.ledger.memory import attention_choices
from gptcalc.ledger.passes import groups
from gptcalc.ledger.step import inference, training
from gptcalc.optimizers import optimizer
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.tape.kernels import torch_version
from gptcalc.tape.replay import Recording, fold, replay

GEMMA = {
    "model_type": "gemma3_text",
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 30,
    "sliding_window": 5,
}


def answers(recording: Recording) -> tuple[object, ...]:
    """Every stretch's peak, the rounded peaks, and what the allocator hands out."""
    found = fold(recording, range(len(recording.record.stages)))
    return (
        [(point.stage, point.requested) for point in found.points],
        found.rounded,
        replay(recording, expandable=False),
    )


@pytest.mark.parametrize("impl", ["foreach", "fused", "for-loop"])
def test_a_folded_pattern_is_the_whole_run(impl: str) -> None:
    """Five sliding layers and a full one, four times, and two more: each instant, each phase, by the byte."""
    spec = resolve(GEMMA, {}).spec
    plan = Plan(batch=2, seq=11)
    update = optimizer(plan.model_copy(update={"optimizer_impl": impl}), torch_version(plan.torch))
    kernels = [[choice.backend for choice in attention_choices(spec, plan, training=on)] for on in (True, False)]
    trained = [training(spec, plan, kernels[0], update, None, recorded=n) for n in (3, ALL)]
    asked = [inference(spec, plan, kernels[1], None, recorded=n) for n in (3, ALL)]

    assert answers(trained[0]) == answers(trained[1])
    assert answers(asked[0]) == answers(asked[1])


@pytest.mark.parametrize(
    ("attention", "own"),
    [("eager", {"checkpointing": "full"}), ("math", {"checkpointing": "selective"}), ("eager", {"chunked_loss": 5})],
)
def test_a_folded_pattern_that_runs_again_is_the_whole_run(attention: str, own: dict[str, object]) -> None:
    """Each layer under a checkpoint, or its attention; masks live until the first layer needs them no more."""
    spec = resolve(GEMMA, {}).spec
    plan = Plan.model_validate({"batch": 2, "seq": 11, "optimizer": "sgd", "attention": attention} | own)
    update, kernels = optimizer(plan, torch_version(plan.torch)), [attention] * len(spec.layers)

    assert answers(training(spec, plan, kernels, update, None, recorded=3)) == answers(
        training(spec, plan, kernels, update, None, recorded=ALL)
    )


def test_a_pattern_is_recorded_three_times() -> None:
    """Of Qwen3-Next's 48 layers, three linear ones and a full one in turns, twelve are recorded."""
    (group,) = groups(resolve("qwen3-next-80b-a3b", {}).spec, 3)

    assert (group.recorded, group.n_layers, group.pattern) == (12, 48, (0, 0, 0, 1))
    assert [group.actual(place) for place in (0, 3, 4, 7, 8, 11)] == [
        range(1),
        range(3, 4),
        range(4, 44, 4),
        range(7, 44, 4),
        range(44, 45),
        range(47, 48),
    ]


def test_what_does_not_repeat_is_recorded_group_by_group() -> None:
    """GPT-2 has one group; Gemma 3's last layers are one of their own."""
    assert [group.pattern for group in groups(resolve("gpt2", {}).spec, 3)] == [(0,)]
    spec: Spec = resolve(GEMMA, {}).spec
    assert [(group.pattern, group.n_layers) for group in groups(spec, 3)] == [((0, 0, 0, 0, 0, 1), 24), ((8,), 2)]
