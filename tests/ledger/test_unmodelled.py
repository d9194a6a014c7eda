"""A model whose ops no part can express: what is there whatever they are, and a line that says what is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest

from gptcalc.catalog import resolve
from gptcalc.errors import GptcalcError
from gptcalc.formula import Dim
from gptcalc.inventory import Weight, Weighted, linear
from gptcalc.ledger.memory import memory
from gptcalc.ledger.parameters import parameters
from gptcalc.parts.remembered import Remembered
from gptcalc.plan import Plan
from gptcalc.witness.check import check_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gptcalc.spec import Spec


class Oracle(Weighted):
    """Attention that keeps two numbers of each token, nobody knows how."""

    without_ops = None
    kind: Literal["oracle_for_tests"] = "oracle_for_tests"

    def weights(self, spec: Spec) -> Iterator[Weight]:
        width = (Dim("D", spec.d_model),)
        yield from linear("ask", [("attn_q", width)], width, bias=False)

    def remembered(self) -> Remembered:
        return Remembered("latent", ((Dim("2", 2),),))


@pytest.fixture
def spec() -> Spec:
    """GPT-2 with such attention in every layer."""
    spec = resolve("gpt2", {"n_layers": 3}).spec
    group = spec.layers[0]
    block = group.block.model_copy(update={"attention": Oracle(name="attn")})
    return spec.model_copy(update={"layers": (group.model_copy(update={"block": block}),)})


def test_training_holds_weights_gradients_and_states(spec: Spec) -> None:
    """Four times the weights with AdamW, and the roots of all second moments while it steps."""
    stored = parameters(spec).totals.stored
    (training,) = memory(spec, Plan(seq=64, precision="fp32"), ("training",)).modes
    kinds = {line.kind for line in training.lines}
    held = {kind: sum(line.amount for line in training.lines if line.kind == kind) for kind in kinds}

    assert held["weights"] == held["gradients"] == 4 * stored
    assert held["optimizer"] == 8 * stored
    assert training.phase == "optimizer"
    assert "activations" not in held


def test_inference_holds_weights_and_the_cache(spec: Spec) -> None:
    """Two numbers for each of 64 tokens of 5 sequences in 3 layers, in bf16."""
    (inference,) = memory(spec, Plan(seq=64, batch=5), ("inference",)).modes
    held = {line.kind: line.amount for line in inference.lines if line.kind == "kv_cache"}

    assert held == {"kv_cache": 3 * 64 * 5 * 2 * 2}


def test_a_line_says_what_is_not_in_the_numbers(spec: Spec) -> None:
    """By the name of the part, in each mode."""
    for mode in memory(spec, Plan(seq=8), ("training", "inference")).modes:
        assert "the ops of oracle_for_tests are not modelled" in mode.notes[0]


def test_no_witness_of_memory_is_heard(spec: Spec) -> None:
    """There is no tape to hold against it."""
    model = resolve("gpt2", {})._replace(spec=spec)

    with pytest.raises(GptcalcError, match="of which the ops of oracle_for_tests are not modelled"):
        check_memory(model, "trace", Plan(seq=8), ("training",))
