"""The embedding stage: tables and vectors of published models, in bytes."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gptcalc.catalog import resolve
from gptcalc.ledger.embedding import EmbeddingStage, embedding_stage
from gptcalc.plan import Plan
from gptcalc.report.embedding import claims

#: "Model Configurations" of the study notes 'GPT Embedding Implementation from Scratch': what they say, what is true.
NOTES = {
    "gpt2-small": ("~39.4M", 39_383_808, "rounds"),
    "gpt2-medium": ("~52.5M", 52_511_744, "rounds"),
    "gpt2-large": ("~65.1M", 65_639_680, "wrong"),
    "gpt2-xl": ("~81.2M", 82_049_600, "wrong"),
}


def stage(model: str, batch: int = 2, seq: int = 10, **overrides: object) -> EmbeddingStage:
    """The stage of a preset."""
    return embedding_stage(resolve(model, overrides).spec, Plan(batch=batch, seq=seq))


@pytest.mark.parametrize("model", NOTES)
def test_the_table_of_the_study_notes_comes_out(model: str) -> None:
    """Embedding parameters of each GPT-2 are V·D + C·D, and the notes' rows are judged by it."""
    said, parameters, verdict = NOTES[model]
    found = stage(model)
    judged = {one.claim.text: one for one in claims(resolve(model, {}))}

    assert {one.claim.of for one in judged.values()} <= {"embedding", "positions", "embedding + positions"}
    assert parameters == found.parameters == (50_257 + 1024) * found.spec.d_model
    assert judged[said].verdict == verdict
    assert judged[said].computed == parameters


def test_bytes_are_elements_times_the_width_of_the_dtype() -> None:
    """V·D·4, C·D·4 and B·T·D·4 in fp32, half of each in bf16 and fp16."""
    found = stage("gpt2")
    amounts = {line.key: (line.formula.letters, line.bytes_in("fp32"), line.bytes_in("bf16")) for line in found.lines}

    assert amounts == {
        "embedding": ("V×D", 50_257 * 768 * 4, 50_257 * 768 * 2),
        "positions": ("C×D", 1024 * 768 * 4, 1024 * 768 * 2),
        "activations": ("B×T×D", 2 * 10 * 768 * 4, 2 * 10 * 768 * 2),
    }
    assert found.bytes_in("fp16") == found.bytes_in("bf16") == sum(bf16 for _, _, bf16 in amounts.values())
    assert found.bytes_in("fp32", "weights") == 4 * found.parameters


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "none"])
def test_positions_that_store_nothing_have_no_table(positions: str) -> None:
    """Without learned positions the stage is the token table alone."""
    found = stage("gpt2", positions=positions)

    assert [line.key for line in found.lines] == ["embedding", "activations"]
    assert found.parameters == 50_257 * 768


def test_what_stands_between_token_rows_and_layers_is_in_the_stage() -> None:
    """OPT-350M's projection W to D, not the one back; BLOOM's norm on token rows; the rows of positions for padding."""
    narrow, normed = stage("opt-350m"), stage("bloom-7b1")

    assert [(line.key, line.formula.letters) for line in narrow.lines] == [
        ("embedding", "V×W"),
        ("embedding_proj", "W×D"),
        ("positions", "(C+2)×D"),
        ("activations", "B×T×D"),
    ]
    assert narrow.parameters == 50_272 * 512 + 512 * 1024 + 2050 * 1024
    assert [line.key for line in normed.lines] == ["embedding", "norm_weight", "norm_bias", "activations"]
    assert normed.parameters == 250_880 * 4096 + 2 * 4096


def test_the_share_is_of_what_the_model_stores() -> None:
    """39,383,808 of GPT-2 Small's 124,439,808; of an untied model the unembedding is not in the stage."""
    assert stage("gpt2").share == Fraction(39_383_808, 124_439_808)
    assert stage("llama-3-8b").share == Fraction(128_256 * 4096, 8_030_261_248)


def test_activations_grow_with_batch_and_length_alone() -> None:
    """Twice the batch, or twice the tokens, is twice the vectors and the same tables."""
    one, wide, long = stage("gpt2"), stage("gpt2", batch=4), stage("gpt2", seq=20)

    assert (
        wide.bytes_in("fp32", "activations")
        == long.bytes_in("fp32", "activations")
        == 2 * one.bytes_in("fp32", "activations")
    )
    assert wide.parameters == long.parameters == one.parameters


def test_a_changed_model_has_no_claims() -> None:
    """What was published about a preset says nothing about another width; another dropout leaves its tables alone."""
    assert claims(resolve("gpt2", {"d_model": 1024})) == []
    assert claims(resolve("gpt2", {"attention_dropout": 0.0}))
