"""Configs as they really come: mangled ones hold their count, and no bytes at all bring the reader down."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import DATA, examples

import gptcalc
from gptcalc.catalog import Resolved
from gptcalc.errors import GptcalcError
from gptcalc.families import find_family, model_types
from gptcalc.families.family import IRRELEVANT
from gptcalc.reading.files import read_mapping, read_model
from gptcalc.reading.record import ModelFields


def _published() -> dict[str, dict[str, Any]]:
    configs = {path.stem: json.loads(path.read_text()) for path in sorted((DATA / "configs").glob("*.json"))}
    known = {kind.replace("-", "_") for kind in model_types()}
    return {name: config for name, config in configs.items() if config["model_type"].replace("-", "_") in known}


PUBLISHED = _published()


def _count(config: object, folder: Path) -> int:
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return gptcalc.count(path).totals.stored


def _without_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The config without the fields whose value transformers' class has anyway."""
    transformers = pytest.importorskip("transformers")
    given = {key: value for key, value in config.items() if key != "model_type"}
    for key in config:
        fewer = {name: value for name, value in given.items() if name != key}
        full = transformers.AutoConfig.for_model(config["model_type"], **given).to_dict()
        with suppress(Exception):  # without it the class finds the others impossible
            if transformers.AutoConfig.for_model(config["model_type"], **fewer).to_dict() == full:
                given = fewer
    return {"model_type": config["model_type"], **given}


def _with_nulls(config: dict[str, Any]) -> dict[str, Any]:
    """The config with nulls where it is silent: fields of the family that may be left to follow, and any others."""
    family = find_family(config["model_type"], "here")
    optional = [
        key
        for key, fields in family.huggingface.items()
        if len(fields) == 1 and not family.model_fields[fields[0]].is_required() and fields[0] not in family.defaults
    ]
    silent = [
        key for key in optional if not any(family.huggingface.get(name) == family.huggingface[key] for name in config)
    ]
    return {**dict.fromkeys([*silent, "task_specific_params", "rope_scaling_of_mine"]), **config}


def _with_other_names(config: dict[str, Any]) -> dict[str, Any]:
    """The config with each field under another of its names, where it has one."""
    family = find_family(config["model_type"], "here")
    others = {
        key: next((name for name, own in family.huggingface.items() if own == fields and name not in config), key)
        for key, fields in family.huggingface.items()
    }
    return {others.get(key, key): value for key, value in config.items()} | {"torch_dtype": "bfloat16"}


def _with_strings(config: dict[str, Any]) -> dict[str, Any]:
    """The config with all its numbers and truth values as strings."""
    return {key: str(value) if isinstance(value, bool | int | float) else value for key, value in config.items()}


def _with_unknown_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The config with fields that tools add."""
    return {
        **config,
        "_name_or_path": "/models/1",
        "unsloth_version": "2025.1",
        "quantization_config": {"bits": 4, "group_size": "128", "desc_act": False},
        "auto_map": {"AutoModel": "modeling.Mine"},
        "transformers_version": "5.0",
    }


def _reordered(config: dict[str, Any]) -> dict[str, Any]:
    """The config in another order."""
    items = list(config.items())
    random.Random(0).shuffle(items)
    return dict(items)


MANGLES = {
    "without defaults": _without_defaults,
    "nulls": _with_nulls,
    "other names": _with_other_names,
    "strings": _with_strings,
    "unknown keys": _with_unknown_keys,
    "reordered": _reordered,
    "all": lambda config: _reordered(_with_strings(_with_unknown_keys(_with_nulls(_with_other_names(config))))),
}


@pytest.mark.parametrize("mangle", MANGLES)
def test_a_mangled_config_holds_its_count(mangle: str, tmp_path: Path) -> None:
    """Every published config keeps its count under what people and tools do to their files."""
    assert len(PUBLISHED) > 30
    for name, config in PUBLISHED.items():
        mangled = MANGLES[mangle](config)

        assert _count(mangled, tmp_path) == _count(config, tmp_path), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_that_lost_a_size_says_which_or_takes_the_class_s(name: str, tmp_path: Path) -> None:
    """A lost field is the class's default, and said, or contradicts another field in an error; never unsaid."""
    config = PUBLISHED[name]
    family = find_family(config["model_type"], "here")
    for key in config.keys() & family.huggingface.keys():
        path = tmp_path / "config.json"
        path.write_text(json.dumps({other: value for other, value in config.items() if other != key}))
        model, refused = _counted(path)
        if model is None:
            assert any(field in refused for field in (*family.huggingface, *family.model_fields)), key
            continue
        own = getattr(model.family, family.huggingface[key][0])
        given = getattr(gptcalc.count(config).model.family, family.huggingface[key][0])
        assert own == given or family.huggingface[key][0] in {*model.defaults, *UNSAID}, key


def _counted(source: object) -> tuple[Resolved | None, str]:
    """The model, or the text of our error."""
    try:
        return gptcalc.count(source).model, ""  # type: ignore[arg-type]
    except GptcalcError as error:
        return None, str(error)


#: Fields without influence on a count, whose defaults the header leaves out.
UNSAID = ("activation", "norm_eps", "embedding_dropout", "attention_dropout", "residual_dropout", "rope_theta")


NAMES = st.sampled_from(
    "model_type n_layer n_head n_embd block_size batch_size emb_dim vocab_size n_heads n_layers context_length qkv_bias"
    " hidden_dim dim multiple_of ffn_dim_multiplier text_config thinker_config tie_word_embeddings hidden_size parts"
    " model hyperparameters architectures n_vocab d_model num_hidden_layers rope_parameters dropout moe init_from"
    " d_head".split()
)
WORDS = st.sampled_from(
    [
        "gpt2",
        "llama",
        "mixtral",
        "openai-gpt",
        "llava",
        "gemma3",
        "768",
        "1e-5",
        "true",
        "-1",
        "nan",
        "",
        "GPT2LMHeadModel",
    ]
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2**40), st.integers(), st.floats(), WORDS, st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(NAMES | st.text(max_size=5), VALUES | SCALARS, max_size=8)
FRAGMENTS = st.sampled_from(
    """{ } [ ] ( ) : , = == ** * + - / // | . ... " ' \\ # @ \n \n\t if def class for with lambda return try: except:
    dict update True False None x cfg 0x 1e9 9 12 768 model_type 'model_type' 'gpt2' "gpt2" 'n_embd' GPTConfig emb_dim
    vocab_size n_layer [a.b] [[ ]] = = \\u1234 é # \ufeff not in is _ 'emb_dim': 'vocab_size': :=""".split(" ")
)
BOUNDED = settings(
    max_examples=examples(250),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _only_our_errors(path: Path) -> None:
    with suppress(GptcalcError):
        assert isinstance(read_model(path), ModelFields)
    model, refused = _counted(path)
    assert model is not None or (0 < len(refused) < 2000 and len(refused.splitlines()) <= 2)


@given(raw=st.binary(max_size=200), ending=st.sampled_from([".json", ".toml", ".py", ".txt", ""]))
@BOUNDED
def test_no_bytes_bring_the_reader_down(raw: bytes, ending: str, tmp_path: Path) -> None:
    """Whatever a file holds, the reader answers or refuses with an error of ours."""
    path = tmp_path / f"file{ending}"
    path.write_bytes(raw)

    _only_our_errors(path)


@given(value=OBJECTS | VALUES, python=st.booleans())
@BOUNDED
def test_no_json_and_no_dictionary_brings_the_reader_down(value: Any, *, python: bool, tmp_path: Path) -> None:
    """Fields that configs have, with values that they never have."""
    path = tmp_path / ("x.py" if python else "x.json")
    path.write_text(f"nan = inf = 0\nconfig = {value!r}" if python else json.dumps(value), encoding="utf-8")

    _only_our_errors(path)


@given(parts=st.lists(FRAGMENTS, max_size=30), ending=st.sampled_from([".json", ".toml", ".py", ".txt"]))
@BOUNDED
def test_no_text_brings_the_reader_down(parts: list[str], ending: str, tmp_path: Path) -> None:
    """Pieces of JSON, TOML and Python in any order."""
    path = tmp_path / f"x{ending}"
    path.write_text(" ".join(parts), encoding="utf-8")

    _only_our_errors(path)


@given(fields=OBJECTS)
@BOUNDED
def test_no_mapping_brings_the_reader_down(fields: dict[str, Any]) -> None:
    """The API meets the same values without a file."""
    with suppress(GptcalcError):
        assert isinstance(read_mapping(fields, "config"), ModelFields)
    model, refused = _counted(fields)
    assert model is not None or (0 < len(refused) < 2000 and len(refused.splitlines()) <= 2)


def test_what_changes_no_count_is_not_said_to_be_a_number() -> None:
    """A version that looks like a number stays a string, and no note speaks of it."""
    assert "transformers_version" in IRRELEVANT
    assert read_mapping({"model_type": "gpt2", "transformers_version": "5.0"}, "x").notes == ()
