"""The KV cache: what published models keep of a token, and the laws of windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import DATA, facts, gptcalc

from gptcalc.api import count
from gptcalc.catalog import resolve
from gptcalc.errors import GptcalcError
from gptcalc.families import model_types
from gptcalc.ledger.cache import cache

KNOWN = [
    model
    for model in facts()
    if "kv_cache_bytes_per_token_bf16" in model
    and str(model["model_type"]).replace("_", "-") in model_types()
    and (DATA / "configs" / str(model.get("config_file"))).exists()
]


def config(model: dict[str, Any]) -> Path:
    """The config.json of a fact."""
    return DATA / "configs" / str(model["config_file"])


@pytest.mark.parametrize("model", KNOWN, ids=lambda model: model["id"])
def test_published_models_keep_what_the_facts_say(model: dict[str, Any]) -> None:
    """Bytes that one token leaves in the caches of all layers, in bf16."""
    kept = cache(resolve(config(model), {}).spec)

    assert kept.bytes_per_token == model["kv_cache_bytes_per_token_bf16"]


def test_a_token_of_mixtral_leaves_two_vectors_of_each_key_head_in_every_layer() -> None:
    """2 × 32 layers × 8 heads × 128 numbers of two bytes; fp32 takes twice as much."""
    kept = count("mixtral-8x7b", seq=10).kv_cache

    assert kept.bytes_per_token == 2 * 32 * 8 * 128 * 2
    assert kept.bytes_at_seq == 10 * kept.bytes_per_token
    assert count("mixtral-8x7b", kv_dtype="fp32").kv_cache.bytes_per_token == 2 * kept.bytes_per_token
    assert [line.per_token.letters for line in kept.lines] == ["2×L×K×H"]


def test_without_a_length_the_cache_is_that_of_the_whole_context() -> None:
    """GPT-2 looks at 1,024 tokens at most."""
    kept = count("gpt2").kv_cache

    assert (kept.seq, kept.bytes_at_seq) == (1024, 1024 * kept.bytes_per_token)


@pytest.mark.parametrize("seq", [0, -1, True, 1.5, "8", 2**31])
def test_a_length_that_no_sequence_has_is_refused(seq: object) -> None:
    """What was read, and what is allowed."""
    with pytest.raises(GptcalcError, match=r"seq: read .*; allowed: a whole number from 1 to"):
        cache(resolve("gpt2", {}).spec, seq)


def test_the_command_shows_the_cache_at_a_length_and_refuses_an_unknown_dtype() -> None:
    """`--seq` and `--kv-dtype`, as the memory command has them."""
    text = gptcalc("count", "llama-3-8b", "--seq", "100", "--kv-dtype", "fp32").stdout
    wrong = gptcalc("count", "llama-3-8b", "--kv-dtype", "bf61")

    assert "at 100 tokens" in text
    assert f"{2 * 32 * 8 * 128 * 4 * 100:,}" in text
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--kv-dtype: read 'bf61'; nearest: bf16" in wrong.stderr
