"""The parameter ledger against published counts, and the laws that it keeps at any size."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from support import DATA, facts, toy_configs

import gptcalc
from gptcalc.catalog import resolve
from gptcalc.ledger.parameters import Parameters, parameters, stored

FACTS = facts()


def count_config(fact: dict[str, Any]) -> Parameters:
    """The ledger of a fact's config.json."""
    return parameters(resolve(DATA / "configs" / fact["config_file"], {}).spec)


@pytest.mark.parametrize("fact", FACTS, ids=[fact["id"] for fact in FACTS])
def test_published_models_count_as_transformers_counts_them(fact: dict[str, Any]) -> None:
    """Every component of every known model equals the transformers class, from its config.json alone."""
    ledger = count_config(fact)

    assert fact["breakdown"] == {line.key: line.stored for line in ledger.lines if line.stored}
    assert fact["params"] == ledger.totals.stored
    assert fact["non_embedding_params"] == ledger.totals.non_embedding
    assert fact.get("active_params", fact["params"]) == ledger.totals.active


def test_the_popular_breakdown_of_gpt3_is_bridged_to_what_is_stored() -> None:
    """175,181,291,520 becomes 174,604,259,328 by the tied table, positions, biases and norms."""
    ledger = gptcalc.count("gpt3-175b").parameters
    popular = {line.key: line.matrices for line in ledger.lines if line.matrices}

    assert popular == {
        "embedding": 617_558_016,
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_o"), 14_495_514_624),
        **dict.fromkeys(("mlp_up", "mlp_down"), 57_982_058_496),
        "unembedding": 617_558_016,
    }
    assert ledger.totals.matrices == 175_181_291_520
    assert [(step.key, step.amount) for step in ledger.bridge] == [
        ("tied", -617_558_016),
        ("positions", 25_165_824),
        ("biases", 10_616_832),
        ("norms", 4_743_168),
    ]
    assert ledger.totals.stored == 174_604_259_328


def test_the_rule_of_thumb_states_its_error() -> None:
    """12·L·D² of GPT-3 is 0.38 % below what is stored and 0.009 % below the layers alone."""
    rule = gptcalc.count("gpt3-175b").parameters.rule_of_thumb

    assert rule.value == 12 * 96 * 12288**2
    assert rule.error_stored == Fraction(rule.value - 174_604_259_328, 174_604_259_328)
    assert rule.error_non_embedding == Fraction(rule.value - 173_961_535_488, 173_961_535_488)


@given(toy_configs())
def test_totals_are_sums_and_the_bridge_closes(drawn: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """For any model: lines add up, the bridge leads from matrices to stored, and no part exceeds the whole."""
    config, own = drawn
    ledger = parameters(resolve(config | own, {}).spec)
    totals = ledger.totals

    assert totals.stored == sum(line.stored for line in ledger.lines)
    assert totals.matrices == sum(line.matrices for line in ledger.lines)
    assert totals.stored == totals.matrices + sum(step.amount for step in ledger.bridge)
    assert all(line.formula.value == line.stored for line in ledger.lines if not line.tied)
    assert 0 < totals.non_embedding <= totals.stored
    assert 0 < totals.active <= totals.stored


@given(toy_configs())
def test_tying_saves_exactly_the_unembedding(drawn: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Tied and untied differ by V·D in what is stored, and not at all in the popular breakdown."""
    config, own = drawn
    tied, untied = (parameters(resolve(config | own | {"tied": tied}, {}).spec).totals for tied in (True, False))

    assert untied.stored - tied.stored == own["n_vocab"] * own["d_model"]
    assert untied.matrices == tied.matrices


@given(toy_configs())
def test_layers_are_affine(drawn: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Each further layer adds the same number of parameters."""
    config, own = drawn
    first, second, third = (
        parameters(resolve(config | own | {"n_layers": layers}, {}).spec).totals.stored for layers in (1, 2, 3)
    )

    assert third - second == second - first > 0


def test_numbers_stay_exact_at_any_size() -> None:
    """At the largest dims that a tensor can have, the count is the closed form of GPT-2, to the last digit."""
    width, layers, vocabulary = 2**31 - 64, 10**6, 2**31 - 1
    stored = gptcalc.count(d_model=width, n_layers=layers, n_vocab=vocabulary, d_ff=4 * 2**20).totals.stored
    block = 4 * width**2 + 4 * width + 2 * width * 4 * 2**20 + 4 * 2**20 + width + 4 * width

    assert stored == layers * block + (vocabulary + 1024 + 2) * width


def test_equal_layers_in_several_stretches_are_one_l() -> None:
    """Sliding and full layers of equal tensors are counted together; two equal slices of one tensor are two."""
    gemma = {line.key: line.formula for line in gptcalc.count("gemma-3-1b").lines}
    qwen = {line.key: line.formula for line in gptcalc.count("qwen3-next-80b-a3b").lines}

    assert (gemma["attn_q"].letters, gemma["attn_q"].numbers) == ("L×N×H×D", "26×4×256×1,152")
    assert qwen["router"].numbers == "48×512×2,048"
    assert "2×Nk×Hk×D" in qwen["linear_attn"].letters
    assert qwen["linear_attn"].numbers.startswith("36×(")


@pytest.mark.parametrize("name", ["gpt2", "gemma-2-9b", "gpt-oss-20b", "qwen3-next-80b-a3b"])
def test_the_total_alone_is_that_of_the_lines(name: str) -> None:
    """Tied tables once, every copy of every layer."""
    spec = resolve(name, {}).spec
    assert stored(spec) == parameters(spec).totals.stored
