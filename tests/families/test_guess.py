"""Model types without a family: by the class that a file names, or by fields that are all understood, or refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support import DATA, gptcalc

from gptcalc.api import count
from gptcalc.errors import GptcalcError
from gptcalc.families import find_family, is_known, model_types
from gptcalc.families.guess import NEEDED, guess

if TYPE_CHECKING:
    from pathlib import Path

LLAMA = {
    "model_type": "a_new_one",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "auto_map": {"AutoModelForCausalLM": "modeling.New"},
}


def test_fields_that_are_all_understood_are_counted_and_marked() -> None:
    """Llama's fields under another name: Llama's count, estimated, since no field says what else a class may have."""
    counted = count(LLAMA)

    assert counted.totals.stored == 8_030_261_248
    assert "model_type 'a_new_one' is not known: counted by its fields" in counted.to_dict()["notes"][0]
    assert "built like llama" in str(counted.to_dict()["model"]["estimated"])


def test_experts_are_understood_too() -> None:
    """With the fields of a mixture it is read as one."""
    config = LLAMA | {"num_local_experts": 8, "num_experts_per_tok": 2}

    assert guess(config, "here").family is find_family("mixtral", "here")


@pytest.mark.parametrize("key", ["num_memory_slots", "qk_norm", "num_shared_experts"])
def test_a_field_that_nobody_understands_is_named(key: str) -> None:
    """It could change the count: nothing is printed as exact, nor at all."""
    with pytest.raises(GptcalcError, match=rf"model_type: read 'a_new_one'; .*{key} is not understood"):
        count(LLAMA | {key: 4})


@pytest.mark.parametrize("key", ["vocab_size", "intermediate_size", "tie_word_embeddings", "rms_norm_eps"])
def test_a_size_that_is_not_given_is_named(key: str) -> None:
    """A class that is not known has no defaults."""
    with pytest.raises(GptcalcError, match=f"no llama: {key} is missing"):
        count({name: value for name, value in LLAMA.items() if name != key})


@pytest.mark.parametrize("missing", [False, True])
def test_a_known_class_in_architectures_is_believed(*, missing: bool) -> None:
    """Qwen 3's class with norms on query and key, whatever the type is called; the answer says so and is exact."""
    path = DATA / "configs" / "Qwen__Qwen3-0.6B.json"
    config: dict[str, Any] = json.loads(path.read_text())
    plain = count(config)
    named = config | {"model_type": "my_own"}
    if missing:
        del named["model_type"]
    counted = count(named)

    assert counted.totals == plain.totals
    assert counted.to_dict()["model"]["estimated"] == ""
    assert any("whose class Qwen3ForCausalLM it names" in note for note in counted.to_dict()["notes"])


def test_every_family_that_may_be_guessed_understands_its_own_published_files() -> None:
    """Llama's, Mixtral's and GPT-2's config.json under an unknown type are read as what they are."""
    for family in NEEDED:
        found = next(
            config
            for path in sorted((DATA / "configs").glob("*.json"))
            if (config := json.loads(path.read_text()))["model_type"] == family
        )
        own = {key: value for key, value in found.items() if key != "architectures"}
        assert guess(own | {"model_type": "unheard"}, "here").family is find_family(family, "here")


def test_the_command_refuses_in_one_line_with_near_names(tmp_path: Path) -> None:
    """Exit code 2, the type, those nearest to it, and what is not understood."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA | {"model_type": "qwen33", "n_hash_layers": 3}))
    result = gptcalc("count", str(path))

    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert "read 'qwen33'; nearest: qwen3" in result.stderr
    assert "n_hash_layers is not understood" in result.stderr


def test_known_types_are_not_guessed() -> None:
    """Neither those with a file of their own nor those with another name."""
    assert all(map(is_known, [*model_types(), "RefinedWeb", "kimi_k2"]))
    assert not is_known(None)
    assert not is_known("bert")


def test_many_reasons_are_cut_short() -> None:
    """An encoder's config lacks all that a decoder has: three reasons tell as much as eight."""
    with pytest.raises(GptcalcError, match=r"vocab_size is missing, .* and \d more$") as refused:
        count({"model_type": "bert", "hidden_size": 768})

    assert len(str(refused.value)) < 200
