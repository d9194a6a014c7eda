"""Every wrong request: one clear error, exit code 2, nothing on stdout."""

from __future__ import annotations

import json
import os
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from support import gptcalc

GPT2 = {"model_type": "gpt2"}

#: What is typed -> what the error must say.
OPTIONS = {
    "unknown preset": (["count", "gtp2"], ["'gtp2'", "gpt2"]),
    "unknown preset, another command": (["check", "gpt3-175"], ["'gpt3-175'", "gpt3-175b"]),
    "unknown preset to show": (["presets", "show", "distilgpt"], ["'distilgpt'", "distilgpt2"]),
    "empty name": (["count", ""], ["''"]),
    "case that is none": (["bench", "layernom.forward"], ["'layernom.forward'", "layernorm.forward"]),
    "glob that matches no case": (["bench", "zzz*"], ["'zzz*'", "allowed", "embedding.forward"]),
    "device that is none": (["bench", "--device", "cuda0"], ["'cuda0'", "cuda"]),
    "dtype that cannot be timed": (["bench", "--dtype", "fp32,fp8"], ["'fp8'", "fp16"]),
    "backend that is none": (["bench", "--backend", "eager,compiled"], ["'compiled'", "compile"]),
    "range without a step": (["bench", "--rows", "1:8"], ["--rows", "'1:8'", "256:16384:x2"]),
    "range that falls": (["bench", "--d-model", "64:8:x2"], ["--d-model", "ends before it starts"]),
    "range without growth": (["bench", "--d-model", "8:64:x1"], ["--d-model", "'8:64:x1'"]),
    "zero rows": (["bench", "--rows", "0"], ["--rows", "'0'", "from 1"]),
    "endless sweep": (["bench", "--rows", "1:2000000000:+1"], ["--rows", "20,000"]),
    "too many points": (["bench", "--rows", "1:9999:+1", "--d-model", "1,2,3"], ["points", "20,000"]),
    "rows and a batch": (["bench", "--rows", "8", "--batch", "2"], ["--rows", "--batch", "or"]),
    "two batches": (["bench", "--batch", "1,2"], ["--batch", "'1,2'", "one size"]),
    "sequence beyond the context": (["bench", "--seq", "2048"], ["2,048", "1,024"]),
    "unknown model to time": (["bench", "--model", "gpt2-xxl"], ["'gpt2-xxl'", "gpt2-xl"]),
    "no time": (["bench", "--time-budget", "0"], ["--time-budget", "'0'", "10m"]),
    "endless time": (["bench", "--time-budget", "inf"], ["--time-budget", "'inf'"]),
    "negative threshold": (["bench", "--threshold=-5%"], ["--threshold", "'-5%'", "0.05"]),
    "no threads": (["bench", "--threads", "0"], ["--threads"]),
    "run to show that is not there": (["bench", "show", "no.json"], ["no.json", "--save"]),
    "no run to show": (["bench", "show"], ["FILE"]),
    "run to compare with that is not there": (["bench", "--against", "no.json"], ["no.json"]),
    "file in no folder": (["bench", "empty", "--device", "cpu", "--save", "no/run.json"], ["no/run.json", "No such"]),
    "unknown command": (["cuont"], ["cuont", "count"]),
    "unknown option": (["count", "--d-modle", "8"], ["--d-modle", "--d-model"]),
    "option without value": (["count", "--d-model"], ["--d-model"]),
    "two models": (["count", "gpt2", "gpt2-xl"], ["gpt2-xl"]),
    "zero width": (["count", "--d-model", "0"], ["read 0", "from 1"]),
    "negative layers": (["count", "--n-layers", "-3"], ["n_layers", "read -3", "from 1"]),
    "fractional heads": (["count", "--n-heads", "12.5"], ["n_heads", "read 12.5", "whole number"]),
    "boolean width": (["count", "--d-model", "true"], ["d_model", "read True", "whole number"]),
    "string width": (["count", "--d-model", "wide"], ["d_model", "'wide'", "whole number"]),
    "null width": (["count", "--d-model", "none"], ["d_model"]),
    "absurd layers": (["count", "--n-layers", "1000000000000"], ["n_layers", "1,000,000"]),
    "absurd width": (["count", "--d-model", "99999999999"], ["d_model", "2,147,483,647"]),
    "width of 2,000 digits": (["count", "--d-model", "9" * 2000], ["d_model", "characters"]),
    "infinite width": (["count", "--d-model", "inf"], ["d_model", "'inf'"]),
    "exponent": (["count", "--d-model", "1e3"], ["d_model", "whole number"]),
    "zero vocabulary": (["count", "--vocab", "0"], ["n_vocab", "read 0"]),
    "negative context": (["count", "--context", "-1"], ["n_ctx", "read -1"]),
    "zero feed-forward": (["count", "--d-ff", "0"], ["d_ff", "read 0"]),
    "zero head size": (["count", "--d-head", "0"], ["d_head", "read 0"]),
    "width no multiple of the head": (["count", "--d-model", "1000"], ["read 1000", "d_head = 64", "960, 1024"]),
    "width below the head": (["count", "--d-model", "32"], ["read 32", "64"]),
    "heads that do not divide": (["count", "--n-heads", "7"], ["n_heads", "read 7", "d_model = 768", "6, 8"]),
    "key heads that do not divide": (["count", "--n-kv-heads", "5"], ["read 5", "n_heads = 12", "4, 6"]),
    "more key heads than heads": (["count", "--n-kv-heads", "24"], ["read 24", "n_heads = 12"]),
    "unknown positions": (["count", "--positions", "learnt"], ["'learnt'", "learned"]),
    "odd head with rotary positions": (
        ["count", "--positions", "rotary", "--d-head", "63"],
        ["read 63", "rotary", "even"],
    ),
    "unknown key in --set": (["count", "--set", "n_layerz=3"], ["'n_layerz'", "n_layer"]),
    "no equals sign in --set": (["count", "--set", "n_layer"], ["'n_layer'", "KEY=VALUE"]),
    "no key in --set": (["count", "--set", "=3"], ["'=3'", "KEY=VALUE"]),
    "string in --set": (["count", "--set", "n_layer=many"], ["n_layers", "'many'"]),
    "fraction in --set": (["count", "--set", "n_embd=768.5"], ["d_model", "768.5"]),
    "boolean in --set": (["count", "--set", "n_head=true"], ["n_heads", "True"]),
    "number for a boolean": (["count", "--set", "tie_word_embeddings=2"], ["tied", "read 2", "true or false"]),
    "unknown activation": (["count", "--set", "activation_function=gelo"], ["'gelo'", "gelu"]),
    "dropout of one": (["count", "--set", "attn_pdrop=1"], ["attention_dropout", "read 1"]),
    "the same field twice": (["count", "--d-model", "64", "--set", "n_embd=128"], ["d_model", "n_embd", "give one"]),
    "the same key twice": (["count", "--set", "n_embd=64", "--set", "n_embd=128"], ["n_embd", "once"]),
    "unknown format": (["count", "--format", "yaml"], ["yaml", "json"]),
    "unknown depth": (["count", "--depth", "4"], ["depth", "read 4"]),
    "every tensor of a million layers": (["count", "--n-layers", "1000000", "--depth", "3"], ["--depth 2"]),
    "a check of a million layers": (["check", "--n-layers", "1000000"], ["1,000,000", "10,000"]),
    "a name longer than any path": (["count", "x" * 5000], ["preset", "characters"]),
    "a file that never ends": (["count", "/dev/zero"], ["/dev/zero", "10 MiB"]),
    "no regular character": (["count", "\u2028\u0000x".replace("\u0000", "\u0001")], ["preset"]),
    "unknown witness": (["check", "gpt2", "--witness", "transformer"], ["'transformer'", "transformers"]),
    "all and one": (["check", "gpt2", "--all"], ["gpt2", "--all"]),
    "missing file": (["count", "nowhere/config.json"], ["nowhere/config.json", "no such file"]),
    "unknown schema": (["schema", "cuont"], ["'cuont'", "count"]),
    "unknown claims model": (["claims", "gtp3"], ["'gtp3'", "gpt3"]),
}


@pytest.mark.parametrize(("arguments", "said"), OPTIONS.values(), ids=OPTIONS.keys())
def test_a_wrong_option_is_one_clear_error(arguments: list[str], said: list[str]) -> None:
    """A wrong option names what was read and what is allowed, exits with 2 and prints no answer."""
    _assert_refused(gptcalc(*arguments), said)


#: A file's name and content -> what the error must say.
FILES: dict[str, tuple[str, bytes, list[str]]] = {
    "empty": ("config.json", b"", ["empty"]),
    "only white space": ("config.json", b" \n\t", ["empty"]),
    "binary": ("config.json", bytes(range(256)), ["not text"]),
    "truncated": ("config.json", b'{"model_type": "gpt2"', ["not JSON", "line 1"]),
    "a list": ("config.json", b"[1, 2]", ["list", "object"]),
    "a null": ("config.json", b"null", ["read null;", "object"]),
    "a number": ("config.json", b"42", ["read a number;", "object"]),
    "no model_type": ("config.json", b'{"n_embd": 768}', ["model_type is missing", "gpt2"]),
    "unknown model_type": ("config.json", b'{"model_type": "gpt22"}', ["'gpt22'", "gpt2"]),
    "model_type of another type": ("config.json", b'{"model_type": 2}', ["model_type"]),
    "model_type that leaves the folder": ("config.json", b'{"model_type": "../../x"}', ["model_type"]),
    "negative": ("config.json", json.dumps(GPT2 | {"n_layer": -1}).encode(), ["n_layers", "read -1"]),
    "fractional": ("config.json", json.dumps(GPT2 | {"n_embd": 768.0}).encode(), ["d_model", "768.0"]),
    "boolean": ("config.json", json.dumps(GPT2 | {"n_head": True}).encode(), ["n_heads", "True"]),
    "string": ("config.json", json.dumps(GPT2 | {"vocab_size": "many"}).encode(), ["n_vocab", "'many'"]),
    "a number of 5,000 digits": ("config.json", b'{"model_type": "gpt2", "n_embd": ' + b"9" * 5000 + b"}", ["JSON"]),
    "deeply nested": ("config.json", b'{"a":' * 100_000, ["JSON"]),
    "two names of one field": (
        "config.json",
        json.dumps(GPT2 | {"n_embd": 768, "hidden_size": 512}).encode(),
        ["n_embd", "hidden_size", "d_model"],
    ),
    "a key that stands twice": (
        "config.json",
        b'{"model_type": "gpt2", "n_layer": 2, "n_layer": 3}',
        ["'n_layer'", "twice"],
    ),
    "a string for a fraction": (
        "config.json",
        b'{"model_type": "gpt2", "layer_norm_epsilon": "small"}',
        ["'small'", "number"],
    ),
    "a boolean for a fraction": ("config.json", b'{"model_type": "llama", "rope_theta": true}', ["rope_theta", "True"]),
    "infinity": ("config.json", b'{"model_type": "llama", "rope_theta": Infinity}', ["rope_theta", "inf"]),
    "not a number": (
        "config.json",
        b'{"model_type": "gpt2", "embd_pdrop": NaN}',
        ["embedding_dropout", "nan", "from 0"],
    ),
    "an unknown rotary rule": (
        "config.json",
        b'{"model_type": "llama", "rope_scaling": {"rope_type": "yarm"}}',
        ["'yarm'", "yarn"],
    ),
    "two rotary angles": (
        "config.json",
        b'{"model_type": "llama", "rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4}}',
        ["rope_theta", "500000.0", "10000.0", "once"],
    ),
    "a rotary rule that is a number": (
        "config.json",
        b'{"model_type": "llama", "rope_scaling": 5}',
        ["read 5", "rope_type"],
    ),
    "a key of control characters": ("model.toml", b'model_type = "gpt2"\n"n_\\u001b[31m" = 3\n', ["'n_\\x1b[31m'"]),
    "cross attention": ("config.json", json.dumps(GPT2 | {"add_cross_attention": True}).encode(), ["cross"]),
    "unknown key in TOML": ("model.toml", b'model_type = "gpt2"\nn_layerz = 3\n', ["'n_layerz'", "n_layer"]),
    "broken TOML": ("model.toml", b"model_type = \n", ["not TOML", "line 1"]),
    "more active experts than experts": (
        "config.json",
        b'{"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3}',
        ["n_active", "read 3", "2"],
    ),
    "rope that is a list": ("config.json", b'{"model_type": "llama", "rope_parameters": [1]}', ["rope_parameters"]),
}


@pytest.mark.parametrize(("name", "content", "said"), FILES.values(), ids=FILES.keys())
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, name: str, content: bytes, said: list[str]) -> None:
    """A wrong file is named with what is wrong in it, exits with 2 and prints no answer."""
    path = tmp_path / name
    path.write_bytes(content)

    _assert_refused(gptcalc("count", str(path)), said)


def test_a_file_that_may_not_be_read_is_one_clear_error(tmp_path: Path) -> None:
    """A folder that is closed to the reader is said to be; root reads everything."""
    folder = tmp_path / "closed"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    folder.chmod(0)
    if os.access(folder, os.R_OK):
        pytest.skip("this user may read everything")

    _assert_refused(gptcalc("count", str(folder / "config.json")), ["cannot be read"])


def test_a_folder_without_config_is_one_clear_error(tmp_path: Path) -> None:
    """A folder is read through its config.json, and its absence is said."""
    _assert_refused(gptcalc("count", str(tmp_path)), ["config.json", "no such file"])


def _assert_refused(done: CompletedProcess[str], said: list[str]) -> None:
    error = done.stderr

    assert done.stdout == ""
    assert done.returncode == 2, error
    assert 1 <= len(error.splitlines()) <= 2
    assert len(error) < 500
    assert "Traceback" not in error
    for words in said:
        assert words in error
