"""The catalogue: each preset resolves, counts as published, and answers to names of its own."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from support import ROOT, facts, published

from gptcalc.catalog import Preset, need_preset, presets, resolve
from gptcalc.families import find_family
from gptcalc.ledger.claims import judge, printed
from gptcalc.ledger.parameters import parameters

PRESETS = list(presets())
#: The facts call the language model of a multimodal checkpoint `ID (text)`.
FACTS = [{**fact, "id": fact["id"].removesuffix(" (text)")} for fact in facts()]
PUBLISHED = published()
#: The verdicts that agree with what the facts say of a published number.
VERDICTS = {
    "exact": {"exact"},
    "rounds": {"exact", "rounds"},
    "truncates": {"convention differs"},
    "differs": {"convention differs", "wrong"},
    "no": {"wrong"},
}
#: The API names, each with the estimate that it is not.
ESTIMATES = {
    "gpt3-ada": ("gpt3-ada-350m", 768),
    "gpt3-ada-350m": ("gpt3-ada", 1024),
    "gpt3-babbage": ("gpt3-babbage-1.3b", 1024),
    "gpt3-babbage-1.3b": ("gpt3-babbage", 2048),
    "gpt3-curie": ("gpt3-curie-6.7b", 2048),
    "gpt3-curie-6.7b": ("gpt3-curie", 4096),
}
BY_NAME = {preset.name: preset for preset in PRESETS}
each_preset = pytest.mark.parametrize("preset", PRESETS, ids=[preset.name for preset in PRESETS])


@each_preset
def test_resolves_by_every_name(preset: Preset) -> None:
    """A preset is found by its name and its aliases in any case of letters, and leaves nothing to a default."""
    for name in (preset.name, *preset.aliases):
        assert preset == resolve(name.upper(), {}).preset
    found = resolve(preset.name, {})

    assert dict(found.defaults) == {}
    assert preset.title == found.title


@each_preset
def test_writes_every_dim_out(preset: Preset) -> None:
    """No dim that has a published name follows from a default: vocabulary, context, widths, layers and heads."""
    family = resolve(preset.name, {}).family
    written = family.translate(
        {key: value for key, value in preset.hyperparameters.items() if key != "model_type"}, preset.name
    )
    dims = {"n_vocab", "n_ctx", "d_model", "n_layers", "n_heads", "d_ff", "norm_eps", "tied", "activation"}

    assert set() == dims & {own for fields in family.huggingface.values() for own in fields} - written.keys()


@each_preset
def test_holds_no_count_outside_its_claims(preset: Preset) -> None:
    """No total stands among the hyperparameters, where nothing would judge it: numbers to check are claims."""
    totals = parameters(resolve(preset.name, {}).spec).totals

    assert set() == set(totals) & {value for value in preset.hyperparameters.values() if isinstance(value, int)}
    assert preset.source
    assert preset.claims


@pytest.mark.parametrize("model", PUBLISHED, ids=[model["id"] for model in PUBLISHED])
def test_every_published_model_has_a_preset(model: dict[str, Any]) -> None:
    """A published model is found under its hub id, with every hyperparameter that its class reads."""
    found = need_preset(model["id"]).hyperparameters
    unread = find_family(model["model_type"], "test").ignored if "hf_config" in model else ()
    fields = {key: value for key, value in model.get("hf_config", {}).items() if key not in unread}
    expected = {"model_type": model["model_type"], **fields} if fields else {}
    objects = {key: value for key, value in expected.items() if isinstance(value, dict)}
    nested = {key: {name: found[key][name] for name in value} for key, value in objects.items()}

    assert expected == {key: found.get(key) for key in expected} | nested


@pytest.mark.parametrize("model", PUBLISHED, ids=[model["id"] for model in PUBLISHED])
def test_every_published_number_is_a_claim(model: dict[str, Any]) -> None:
    """Each number published about a model stands among its claims."""
    texts = {claim.text.replace(",", "") for claim in need_preset(model["id"]).claims}

    assert [one["text"] for one in model["published"] if one["text"].replace(",", "") not in texts] == []


@pytest.mark.parametrize("model", PUBLISHED, ids=[model["id"] for model in PUBLISHED])
def test_verdicts_are_those_of_the_facts(model: dict[str, Any]) -> None:
    """A published number is judged as the facts judge it; trailing zeros, as in `70B`, may also be mere places."""
    preset = need_preset(model["id"])
    for one in model["published"]:
        text = one["text"].replace(",", "")
        loose = {"rounds", "convention differs"} if len(printed(text).places) > 1 else set()
        allowed = VERDICTS[one["agrees"]] | loose
        claims = [claim for claim in preset.claims if claim.text.replace(",", "") == text]
        judged = [judge(preset, claim) for claim in claims if claim.of in ("stored", "active", "non_embedding")]

        assert {(one["text"], found.verdict) for found in judged} <= {(one["text"], verdict) for verdict in allowed}
        assert one["agrees"] != "differs" or all(found.reading for found in judged)


@pytest.mark.parametrize("fact", FACTS, ids=[fact["id"] for fact in FACTS])
def test_counts_as_the_transformers_class(fact: dict[str, Any]) -> None:
    """A preset named after a published model has its components, and the class's three totals."""
    ledger = parameters(resolve(fact["id"], {}).spec)

    assert fact["breakdown"] == {line.key: line.stored for line in ledger.lines if line.stored}
    assert fact["params"] == ledger.totals.stored
    assert fact["non_embedding_params"] == ledger.totals.non_embedding
    assert fact.get("active_params", fact["params"]) == ledger.totals.active


@pytest.mark.parametrize(
    ("model", "overrides", "stored"),
    [
        ("llms-from-scratch-124m", {}, 163_009_536),
        ("llms-from-scratch-124m", {"tied": True}, 124_412_160),
        ("nanogpt-124m-nobias", {}, 124_337_664),
        ("nanogpt-124m", {}, 124_475_904),
        ("gpt2-small", {"vocab_size": 40478}, 116_929_536),
        ("gpt2-medium", {"vocab_size": 40478}, 344_809_472),
        ("gpt2-large", {"vocab_size": 40478}, 761_512_960),
        ("gpt2-xl", {"vocab_size": 40478}, 1_541_964_800),
    ],
)
def test_counts_of_popular_variants(model: str, overrides: dict[str, object], stored: int) -> None:
    """Variants print what their authors' programs print."""
    assert stored == parameters(resolve(model, overrides).spec).totals.stored


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama-3-8b", {"rope_theta": 500_000.0, "norm_eps": 1e-5, "n_kv_heads": 8, "tied": False}),
        ("mixtral-8x7b", {"rope_theta": 1_000_000.0, "norm_eps": 1e-5, "n_active": 2, "n_ctx": 32_768}),
        ("gpt1", {"n_ctx": 512, "activation": "gelu", "embedding_dropout": 0.1}),
        ("gpt3-175b", {"n_ctx": 2048, "d_head": 128, "tied": True}),
        ("nanogpt-124m", {"activation": "gelu", "residual_dropout": 0.0, "n_vocab": 50_304}),
        ("llms-from-scratch-124m", {"qkv_bias": False, "out_bias": True, "tied": False, "attention_dropout": 0.1}),
    ],
)
def test_fields_are_the_published_ones(name: str, fields: dict[str, object]) -> None:
    """What no count shows is as published, not as the library's config class has it by default."""
    resolved = resolve(name, {}).family.resolved()

    assert fields == {field: resolved[field] for field in fields}


def test_names_are_unique() -> None:
    """No two presets share a name or an alias, whatever the case of letters."""
    names = Counter(name.lower() for preset in PRESETS for name in (preset.name, *preset.aliases))

    assert {name: times for name, times in names.items() if times > 1} == {}


def test_the_readme_says_how_many() -> None:
    """The number of presets in the README is that of the catalogue."""
    assert f"lists {len(PRESETS)} by family" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_nulls_are_written_as_the_word() -> None:
    """TOML has no null: where a published file has one against the class's default, the preset has it too."""
    nulls = {preset.name: [key for key, value in preset.hyperparameters.items() if value is None] for preset in PRESETS}

    assert nulls["deepseek-v2-lite"] == ["q_lora_rank"]
    assert nulls["mistral-7b-v0.3"] == ["sliding_window"]
    assert [preset.name for preset in PRESETS if "null" in preset.hyperparameters.values()] == []


def test_see_points_at_presets() -> None:
    """Every cross reference names another preset by its own name."""
    pairs = [(preset.name, other) for preset in PRESETS for other in preset.see]

    assert [pair for pair in pairs if pair[1] not in BY_NAME or pair[0] == pair[1]] == []


def test_exactly_the_api_names_are_estimates() -> None:
    """OpenAI never published six sizes: each says so, says why, and points at the other estimate."""
    assert set(ESTIMATES) == {preset.name for preset in PRESETS if preset.estimated}
    for name, (other, width) in ESTIMATES.items():
        assert "never published" in BY_NAME[name].estimated
        assert (other,) == BY_NAME[name].see
        assert width == resolve(name, {}).spec.d_model


@pytest.mark.parametrize(
    ("name", "printed", "used"), [("gpt3-xl", "24 heads of size 128", "16 heads of 128"), ("gpt3-13b", "5140", "5,120")]
)
def test_misprints_are_repaired_and_noted(name: str, printed: str, used: str) -> None:
    """The two misprints of Table 2.1 are quoted beside the value used and the table that settles it."""
    note = BY_NAME[name].notes[0]

    assert printed in note
    assert used in note
    assert "Table D.1" in note


def test_names_read_as_names() -> None:
    """Preset names are lower-case words, so that a shell needs no quotes and the look-up no folding."""
    assert [name for name in BY_NAME if not re.fullmatch(r"[a-z0-9.-]+", name)] == []
