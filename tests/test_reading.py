"""Files that describe a model: every form that people have, and everything that is no such file."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import gptcalc

import gptcalc as package
from gptcalc.catalog import presets, resolve
from gptcalc.errors import GptcalcError
from gptcalc.families import model_types
from gptcalc.reading.files import read_mapping, read_model
from gptcalc.reading.nested import MULTIMODAL, SAME_WEIGHTS

GPT = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
PYTHON_GPT = f"import torch\nGPT_CONFIG_124M = {GPT!r}\n"
#: rasbt/LLMs-from-scratch, ch05/07_gpt_to_llama and ch05/11_qwen3.
LLAMA2 = (
    'LLAMA2_CONFIG_7B = {"vocab_size": 32000, "context_length": 4096, "emb_dim": 4096, "n_heads": 32, "n_layers": 32,'
    ' "hidden_dim": 11008, "dtype": torch.bfloat16}\n'
)
LLAMA3 = (
    'LLAMA3_CONFIG_8B = {"vocab_size": 128_256, "context_length": 8192, "emb_dim": 4096, "n_heads": 32, "n_layers": 32,'
    ' "hidden_dim": 14_336, "n_kv_groups": 8, "rope_base": 500_000.0, "rope_freq": None, "dtype": torch.bfloat16}\n'
)
LLAMA32 = (
    'LLAMA32_CONFIG_1B = {"vocab_size": 128_256, "context_length": 131_072, "emb_dim": 2048, "n_heads": 32,'
    ' "n_layers": 16, "hidden_dim": 8192, "n_kv_groups": 8, "rope_base": 500_000.0, "dtype": torch.bfloat16,'
    ' "rope_freq": {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}}\n'
)
QWEN3 = (
    'QWEN_CONFIG_06_B = {"vocab_size": 151_936, "context_length": 40_960, "emb_dim": 1024, "n_heads": 16,'
    ' "n_layers": 28, "hidden_dim": 3072, "head_dim": 128, "qk_norm": True, "n_kv_groups": 8, "rope_base": 1_000_000.0,'
    ' "dtype": torch.bfloat16}\n'
)
GEMMA3 = (
    'GEMMA3_CONFIG_270M = {"vocab_size": 262_144, "context_length": 32_768, "emb_dim": 640, "n_heads": 4,'
    ' "n_layers": 18, "hidden_dim": 2048, "head_dim": 256, "qk_norm": True, "n_kv_groups": 1,'
    ' "rope_local_base": 10_000.0, "rope_base": 1_000_000.0, "sliding_window": 512, "dtype": torch.bfloat16,'
    ' "query_pre_attn_scalar": 256, "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3}\n'
)
NANOGPT_CLASS = """
from dataclasses import dataclass

@dataclass
class GPTConfig:
    block_size: int = 1024
    vocab_size: int = 50304 # a multiple of 64
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True

class GPT(nn.Module):
    def __init__(self, config):
        self.transformer = nn.ModuleDict(dict(wte = nn.Embedding(config.vocab_size, config.n_embd)))

    @classmethod
    def from_pretrained(cls, model_type):
        config_args = {'gpt2': dict(n_layer=12, n_head=12, n_embd=768)}[model_type]
        config_args['vocab_size'] = 50257
        config = GPTConfig(**config_args)
"""
NANOGPT_TRAIN = """
out_dir = 'out'
batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8
n_layer = 12
n_head = 12
n_embd = 12 * 64
bias = False
vocab_size = 50257
"""
CHAPTER_5 = """
def main(gpt_config, input_prompt, model_size, device):
    settings = download_and_load_gpt2(model_size=model_size, models_dir="gpt2")
    gpt = GPTModel(gpt_config)

if __name__ == "__main__":
    CHOOSE_MODEL = "gpt2-xl (1558M)"
    BASE_CONFIG = {"vocab_size": 50257, "context_length": 1024, "drop_rate": 0.0, "qkv_bias": True}
    model_configs = {
        "gpt2-small (124M)": {"emb_dim": 768, "n_layers": 12, "n_heads": 12},
        "gpt2-xl (1558M)": {"emb_dim": 1600, "n_layers": 48, "n_heads": 25},
    }
    BASE_CONFIG.update(model_configs[CHOOSE_MODEL])
"""

#: A file's name, its text, and what the model stores as its own code counts it (untied where that unties).
FORMS: dict[str, tuple[str, str, int]] = {
    "LLMs-from-scratch in Python": ("gpt.py", PYTHON_GPT, 163_009_536),
    "LLMs-from-scratch in JSON": ("gpt.json", json.dumps(GPT), 163_009_536),
    "LLMs-from-scratch in JSON, named": ("gpt.json", json.dumps({"GPT_CONFIG_124M": GPT}), 163_009_536),
    "LLMs-from-scratch in TOML": (
        "gpt.toml",
        "".join(f"{key} = {json.dumps(value)}\n" for key, value in GPT.items()),
        163_009_536,
    ),
    "LLMs-from-scratch inside main()": (
        "gpt.py",
        f"def main():\n    GPT_CONFIG_124M = {GPT!r}\n    torch.manual_seed(123)\n",
        163_009_536,
    ),
    "LLMs-from-scratch, put together": ("generate.py", CHAPTER_5, 1_638_022_400),
    "LLMs-from-scratch, one field changed": (
        "gpt.py",
        f"{PYTHON_GPT}GPT_CONFIG_124M['qkv_bias'] = True\n",
        163_037_184,
    ),
    "LLMs-from-scratch, copied": (
        "gpt.py",
        f"NEW = {{**{GPT!r}, 'qkv_bias': True}}\nNEW |= {{'n_layers': 6 * 2}}\n",
        163_037_184,
    ),
    "LLMs-from-scratch Llama 2": ("llama2.py", LLAMA2, 6_738_415_616),
    "LLMs-from-scratch Llama 3": ("llama3.py", LLAMA3, 8_030_261_248),
    # 1,235,814,400 with the table shared, as the chapter prints it beside 1,498,482,688.
    "LLMs-from-scratch Llama 3.2": ("llama32.py", LLAMA32, 1_498_482_688),
    # 596,049,920 with the table shared.
    "LLMs-from-scratch Qwen3": ("qwen3.py", QWEN3, 596_049_920 + 151_936 * 1024),
    # 268,098,176 with the table shared.
    "LLMs-from-scratch Gemma 3": ("gemma3.py", GEMMA3, 268_098_176 + 262_144 * 640),
    "nanoGPT's class": ("model.py", NANOGPT_CLASS, 124_475_904),
    "nanoGPT's settings": ("config/train.py".replace("/", "_"), NANOGPT_TRAIN, 124_337_664),
    "nanoGPT's dictionary as text": ("notes.txt", "CONFIG = dict(n_layer=12, n_head=12, n_embd=768)", 124_475_904),
    "a dictionary alone": ("notes.txt", repr(GPT), 163_009_536),
    "Hugging Face's names in Python": (
        "hf.py",
        "import torch\nconfig = {'model_type': 'gpt2', 'n_layer': 6, 'torch_dtype': torch.float16}",
        81_912_576,
    ),
    "Llama's params.json": (
        "params.json",
        '{"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "vocab_size": 32000}',
        6_738_415_616,
    ),
    "Llama 2 70B's params.json": (
        "params.json",
        (
            '{"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8,'
            ' "n_layers": 80, "norm_eps": 1e-05, "vocab_size": 32000}'
        ),
        68_976_648_192,
    ),
    "Llama 3 8B's params.json": (
        "params.json",
        (
            '{"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "multiple_of": 1024,'
            ' "ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500000.0}'
        ),
        8_030_261_248,
    ),
    "Mixtral's params.json": (
        "params.json",
        (
            '{"dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,'
            ' "norm_eps": 1e-05, "vocab_size": 32000, "moe": {"num_experts_per_tok": 2, "num_experts": 8}}'
        ),
        46_702_792_704,
    ),
    "gptcalc's own names": ("own.json", '{"model_type": "gpt2", "d_model": 768, "n_vocab": 50257}', 124_439_808),
    "a preset's table": (
        "preset.toml",
        '[mine]\ntitle = "Mine"\nsource = "me"\n[mine.hyperparameters]\nmodel_type = "gpt2"\nn_layer = 6\n',
        81_912_576,
    ),
    "strings for numbers": (
        "config.json",
        '{"model_type": "gpt2", "n_layer": "6", "tie_word_embeddings": "True", "layer_norm_epsilon": "1e-5"}',
        81_912_576,
    ),
    "an old config without model_type": (
        "config.json",
        '{"architectures": ["GPT2LMHeadModel"], "n_layer": 6, "n_embd": 768, "n_head": 12, "n_ctx": 1024}',
        81_912_576,
    ),
    "a byte order mark": ("config.json", '\ufeff{"model_type": "gpt2", "n_layer": 6}', 81_912_576),
}


def _stored(source: Any) -> int:
    return package.count(source).totals.stored


@pytest.mark.parametrize(("name", "text", "stored"), FORMS.values(), ids=FORMS.keys())
def test_every_form_that_people_have_is_read(tmp_path: Path, name: str, text: str, stored: int) -> None:
    """Each file gives the count that its own code would have."""
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")

    assert _stored(path) == stored


def test_the_dictionary_itself_is_a_model_too() -> None:
    """What a notebook has at hand needs no file."""
    assert _stored(GPT) == 163_009_536


def test_how_a_file_was_read_is_said(tmp_path: Path) -> None:
    """Conventions that the file does not state stand in the notes, and so do numbers in strings."""
    (tmp_path / "gpt.py").write_text(PYTHON_GPT)
    (tmp_path / "train.py").write_text("batch_size = 12\nblock_size = 1024\n")
    notes = [resolve(tmp_path / name, {}).notes for name in ("gpt.py", "train.py")]

    assert "untied, qkv_bias false" in notes[0][0]
    assert "bias false" in notes[1][0]
    assert "50,304" in notes[1][0]
    assert resolve({"model_type": "gpt2", "n_layer": "6"}, {}).notes == (
        "read as numbers or truth values: n_layer '6'",
    )


def test_settings_of_train_py_have_its_defaults_not_the_class_s() -> None:
    """In nanoGPT, train.py says bias=False where GPTConfig says True; the same sizes are two models."""
    sizes = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024}

    assert _stored(sizes) - _stored(sizes | {"batch_size": 12}) == _stored(sizes) - _stored(sizes | {"bias": False}) > 0


def test_a_dictionary_with_norms_for_queries_is_qwen3() -> None:
    """LLMs-from-scratch's Qwen3 and Gemma 3 dictionaries name those families; a dictionary without is Llama's."""
    llama = {"vocab_size": 9, "context_length": 8, "emb_dim": 8, "n_heads": 2, "n_layers": 1, "hidden_dim": 4}
    gemma = {"qk_norm": True, "query_pre_attn_scalar": 4, "layer_types": ["full_attention"], "rope_local_base": 1e4}
    experts = {"qk_norm": True, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6}
    read = [read_mapping(llama | more, "x").fields for more in ({}, {"qk_norm": True, "head_dim": 6}, gemma, experts)]

    assert [fields["model_type"] for fields in read] == ["llama", "qwen3", "gemma3_text", "qwen3_moe"]
    assert [fields["head_dim"] for fields in read] == [4, 6, 4, 4]
    assert not any(fields["tie_word_embeddings"] for fields in read)


@pytest.mark.parametrize("preset", list(presets()), ids=lambda preset: preset.name)
def test_what_count_prints_can_be_counted_again(tmp_path: Path, preset: Any) -> None:
    """The JSON of a count, and the model in it, are files that give the same count."""
    count = package.count(preset.name)
    answer = json.loads(json.dumps(count.to_dict()))
    (tmp_path / "whole.json").write_text(json.dumps(answer))
    (tmp_path / "model.json").write_text(json.dumps(answer["model"]))

    for name in ("whole.json", "model.json"):
        assert package.count(tmp_path / name).totals == count.totals


def test_own_names_are_strict() -> None:
    """In gptcalc's own form an unknown field is a slip, in a config.json it is somebody else's."""
    with pytest.raises(GptcalcError, match=r"'n_layerz'; nearest: n_layer"):
        resolve({"model_type": "gpt2", "n_vocab": 9, "n_layerz": 3}, {})
    assert "n_layerz" in resolve({"model_type": "gpt2", "n_layerz": 3}, {}).notes[0]


TWO = f"A = {GPT!r}\nB = {{**A, 'n_layers': 6}}\n"


def test_one_of_several_configs_is_named(tmp_path: Path) -> None:
    """`path.py:NAME` chooses, in Python, JSON and TOML alike; from Python too."""
    (tmp_path / "two.py").write_text(TWO)
    (tmp_path / "two.json").write_text(json.dumps({"A": GPT, "B": {**GPT, "n_layers": 6}}))
    stored = [gptcalc("count", f"{tmp_path}/two.{kind}:B", "--format", "json").stdout for kind in ("py", "json")]

    assert {json.loads(text)["totals"]["stored"] for text in stored} == {_stored({**GPT, "n_layers": 6})}
    assert _stored(tmp_path / "two.py:A") == _stored(GPT)


SAFETENSORS = struct.pack("<Q", 64) + b'{"__metadata__":{}}'
#: A file's name, its content, what is asked for beside the path, and what the error must say.
REFUSED: dict[str, tuple[str, bytes, str, list[str]]] = {
    "two dictionaries": ("two.py", TWO.encode(), "", ["2 configs", "A, B", "two.py:A"]),
    "a name that is none": ("two.py", TWO.encode(), ":C", ["'C'", "A, B"]),
    "one name, two values": (
        "two.py",
        f"if big:\n    A = {GPT!r}\nelse:\n    A = {GPT | {'n_layers': 6}!r}\n".encode(),
        "",
        ["A has different values", "lines 2, 4"],
    ),
    "a field that is no literal": (
        "x.py",
        PYTHON_GPT.replace("768", "WIDTH").encode(),
        "",
        ["emb_dim", "line 2", "literal"],
    ),
    "a field changed under a condition": (
        "x.py",
        f"{PYTHON_GPT}if big:\n    GPT_CONFIG_124M['n_layers'] = 24\n".encode(),
        "",
        ["n_layers", "line 4"],
    ),
    "a dictionary filled by a call": (
        "x.py",
        f"{PYTHON_GPT}GPT_CONFIG_124M.update(load())\n".encode(),
        "",
        ["GPT_CONFIG_124M", "line 3"],
    ),
    "a class without a default": (
        "x.py",
        NANOGPT_CLASS.replace("n_embd: int = 768", "n_embd: int").encode(),
        "",
        ["n_embd"],
    ),
    "Python without a model": ("x.py", b"print({'a': 1})\nSIZES = {'width': 3}\n", "", ["SIZES", "no dictionary"]),
    "no Python": ("x.py", b"def f(:\n", "", ["not Python", "line 1"]),
    "nested Python": ("x.py", b"x = " + b"[" * 5000, "", ["not Python"]),
    "minus signs": ("x.py", b"x = " + b"-" * 200_000 + b"1", "", ["x.py"]),
    "a sum of a hundred thousand": ("x.py", b"x = 1" + b"+1" * 100_000, "", ["x.py"]),
    "a chain of calls": ("x.py", b"x = f" + b"()" * 100_000, "", ["x.py"]),
    "powers": ("x.py", b"config = {'model_type': 'gpt2', 'n_embd': 9**9**9**9}", "", ["n_embd", "literal"]),
    "a long hexadecimal": (
        "x.py",
        b"config = {'model_type': 'gpt2', 'n_embd': 0x" + b"f" * 9999 + b"}",
        "",
        ["n_embd", "bits"],
    ),
    "laughs": (
        "x.py",
        b"a0 = [1, 1]\n"
        + b"".join(b"a%d = [a%d, a%d]\n" % (n, n - 1, n - 1) for n in range(1, 99))
        + b"c = {'model_type': 'gpt2', 'x': a98}",
        "",
        ["x.py", "values"],
    ),
    "copies": (
        "x.py",
        b"a = {%s}\n" % b",".join(b"'%d':1" % n for n in range(9999)) + b"b = {**a}\n" * 9999,
        "",
        ["copies"],
    ),
    "a key twice in Python": (
        "x.py",
        b"config = {'model_type': 'gpt2', 'n_embd': 8, 'n_embd': 9}",
        "",
        ["'n_embd'", "twice"],
    ),
    "the model is a checkpoint's": ("x.py", b"init_from = 'gpt2-xl'\nbatch_size = 1\n", "", ["init_from", "'gpt2-xl'"]),
    "a fork's own switch": ("x.json", json.dumps({**GPT, "n_experts": 8}).encode(), "", ["n_experts", "weights"]),
    "no width": (
        "x.json",
        b'{"emb_dim": 8, "vocab_size": 9, "context_length": 8, "n_layers": 2}',
        "",
        ["qkv_bias", "missing"],
    ),
    "a vocabulary that the tokenizer knows": (
        "params.json",
        b'{"dim": 64, "n_layers": 2, "n_heads": 2, "vocab_size": -1}',
        "",
        ["vocab_size", "-1", "tokenizer"],
    ),
    "a multiple of nothing": (
        "params.json",
        b'{"dim": 64, "n_layers": 2, "n_heads": 2, "vocab_size": 9, "multiple_of": 0}',
        "",
        ["multiple_of", "read 0"],
    ),
    "UTF-16": ("config.json", '{"model_type": "gpt2"}'.encode("utf-16"), "", ["UTF-16"]),
    "UTF-16 without its mark": ("config.json", '{"model_type": "gpt2"}'.encode("utf-16-le"), "", ["zero bytes"]),
    "safetensors": ("model.safetensors", SAFETENSORS, "", ["safetensors"]),
    "GGUF": ("model.gguf", b"GGUF\x03\0\0\0", "", ["GGUF"]),
    "PyTorch's weights": ("pytorch_model.bin", b"PK\x03\x04....", "", ["PyTorch"]),
    "a Git LFS pointer": ("config.json", b"version https://git-lfs.github.com/spec/v1\n", "", ["LFS"]),
    "a web page": ("config.json", b"<!DOCTYPE html><html>", "", ["web page"]),
    "a tokenizer": ("config.json", b'{"version": "1.0", "added_tokens": [], "model": {}}', "", ["tokenizer"]),
    "a tokenizer's config": ("config.json", b'{"tokenizer_class": "LlamaTokenizer"}', "", ["tokenizer"]),
    "generation settings": (
        "config.json",
        b'{"_from_model_config": true, "eos_token_id": 2}',
        "",
        ["generation settings", "config.json"],
    ),
    "an adapter": (
        "config.json",
        b'{"peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-2-7b"}',
        "",
        ["adapter", "meta-llama/Llama-2-7b"],
    ),
    "an index": ("config.json", b'{"metadata": {}, "weight_map": {}}', "", ["index"]),
    "10^12 layers": ("config.json", b'{"model_type": "gpt2", "n_layer": 1000000000000}', "", ["n_layers", "1,000,000"]),
    "too long": ("config.json", b'{"model_type": "gpt2", "x": "' + b"x" * (10 * 2**20) + b'"}', "", ["10 MiB"]),
    "too long for TOML": ("config.toml", b"# \n" * 2**19, "", ["1 MiB"]),
    "a million values": ("config.json", b'{"model_type": "gpt2", "x": [' + b"1," * 999_999 + b"1]}", "", ["values"]),
    "forty levels": ("config.json", b'{"model_type": ' + b"[" * 40 + b"]" * 40 + b"}", "", ["levels"]),
    "a hexadecimal of TOML": ("x.toml", b'model_type = "gpt2"\nn_embd = 0x' + b"f" * 9999, "", ["n_embd", "bits"]),
    "nested TOML": ("x.toml", b"x = " + b"[" * 50_000, "", ["not TOML"]),
    "a key twice in TOML": ("x.toml", b'model_type = "gpt2"\nn_embd = 8\nn_embd = 9\n', "", ["not TOML", "line 3"]),
    "a multimodal model of an unknown kind": (
        "config.json",
        b'{"model_type": "mine", "text_config": {"hidden_size": 8}}',
        "",
        ["text_config", "model_type is missing", "'mine'"],
    ),
    "two ties of an unknown kind": (
        "config.json",
        (
            b'{"model_type": "mine", "tie_word_embeddings": true,'
            b' "text_config": {"model_type": "llama", "tie_word_embeddings": false}}'
        ),
        "",
        ["tie_word_embeddings", "True", "False"],
    ),
}


@pytest.mark.parametrize(("name", "content", "chosen", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_everything_else_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes, chosen: str, said: list[str]
) -> None:
    """A file that is no model is refused soon, in at most two lines, with exit code 2 and no answer."""
    (tmp_path / name).write_bytes(content)
    begin = time.perf_counter()
    done = gptcalc("count", name + chosen, cwd=tmp_path)

    assert time.perf_counter() - begin < 20
    assert (done.returncode, done.stdout) == (2, "")
    assert 1 <= len(done.stderr.splitlines()) <= 2, done.stderr
    assert len(done.stderr) < 500
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr
    for words in said:
        assert words in done.stderr


def test_a_folder_without_a_config_names_what_is_near(tmp_path: Path) -> None:
    """What was looked for is said, and the file that may have been meant."""
    (tmp_path / "params.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text("{}")
    done = gptcalc("count", str(tmp_path))

    assert done.returncode == 2
    assert "config.json: no such file; nearest:" in done.stderr
    assert "adapter_config.json" in done.stderr


def test_what_is_no_literal_and_changes_no_count_is_no_obstacle(tmp_path: Path) -> None:
    """torch.bfloat16 and a rescaled rotary base are expressions, and no weight depends on them."""
    text = LLAMA3 + "LLAMA3_CONFIG_8B['rope_base'] = rescale_theta(LLAMA3_CONFIG_8B['rope_base'], 8192, 1024)\n"
    (tmp_path / "x.py").write_text(text)

    assert _stored(tmp_path / "x.py") == 8_030_261_248


def test_a_python_file_is_never_run(tmp_path: Path) -> None:
    """What a file would do if it were run is not done."""
    ran = tmp_path / "ran"
    (tmp_path / "x.py").write_text(f"open({str(ran)!r}, 'w')\n{PYTHON_GPT}")

    assert _stored(tmp_path / "x.py") == 163_009_536
    assert not ran.exists()


@pytest.mark.parametrize("arguments", [["count", "gpt2", "--format", "json"]])
def test_a_preset_opens_no_reader(arguments: list[str]) -> None:
    """Reading costs only those who give a file: neither the reader nor ast is imported for a preset."""
    code = (
        f"import sys; from gptcalc.cli.app import run; run({arguments!r});"
        "print([name for name in sys.modules if name.startswith('gptcalc.reading')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr.splitlines()[-1] == "[]"


def test_importing_the_reader_opens_nothing() -> None:
    """`import gptcalc.reading` is free until a file is read."""
    code = "import sys, gptcalc.reading; print({'ast', 'json', 'pydantic', 'tomllib'} & set(sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


LLAMA_TEXT: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
}


def test_the_language_model_of_a_multimodal_config_is_counted() -> None:
    """The text's own config is counted alone, and the note says what was left out."""
    llava = {"model_type": "llava", "text_config": LLAMA_TEXT, "vision_config": {"model_type": "clip_vision_model"}}
    model = resolve(llava, {})

    assert package.count(llava).totals == package.count(LLAMA_TEXT).totals
    assert model.notes == (
        "'llava' is multimodal: its language model is counted (text_config); left out: vision_config",
    )
    assert _stored({"llm_config": LLAMA_TEXT}) == _stored(LLAMA_TEXT)
    thinker = {"model_type": "qwen2_5_omni", "thinker_config": {"text_config": LLAMA_TEXT}}
    assert _stored(thinker) == _stored(LLAMA_TEXT)
    untyped = {key: value for key, value in LLAMA_TEXT.items() if key != "model_type"}
    assert _stored({"model_type": "llava", "text_config": untyped}) == _stored(LLAMA_TEXT)


def test_the_type_of_a_language_model_follows_from_the_outer_one() -> None:
    """Where the inner config names none, transformers' outer class has a default, also for old flat files."""
    transformers = pytest.importorskip("transformers")
    for outer, kind in MULTIMODAL.items():
        known = transformers.CONFIG_MAPPING[outer]()
        assert known.text_config.model_type == kind.text, outer
    flat = read_mapping({**LLAMA_TEXT, "model_type": "qwen2_vl", "vision_config": {}}, "x")
    assert flat.fields["model_type"] in ("qwen2", "qwen2_vl_text")
    assert "vision_config" not in flat.fields


TIES = ["gemma3", "llama4", "llava", "llava_next", "mistral3", "qwen2_5_vl", "qwen3_vl", "idefics3"]


@pytest.mark.parametrize("outer", TIES)
def test_ties_of_a_multimodal_model_are_those_of_its_class(outer: str) -> None:
    """Whether the outer object or the inner one decides differs by class; ours is what each class really ties."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind = MULTIMODAL[outer].text
    text = {**LLAMA_TEXT, "model_type": kind, "head_dim": 16, "pad_token_id": 0}
    for said in (None, True, False):
        for own in (None, True, False):
            inner = text if own is None else {**text, "tie_word_embeddings": own}
            config = {"text_config": inner} | ({} if said is None else {"tie_word_embeddings": said})
            with torch.device("meta"):
                built = transformers.AutoModelForImageTextToText.from_config(
                    transformers.CONFIG_MAPPING[outer](**json.loads(json.dumps(config)))
                )
            named = dict(built.named_modules())
            head = next(module for name, module in named.items() if name.endswith("lm_head"))
            table = next(module for name, module in named.items() if name.endswith("embed_tokens"))
            default = getattr(transformers.CONFIG_MAPPING[kind](), "tie_word_embeddings", False)
            read = read_mapping({**config, "model_type": outer}, "x").fields
            trunk = next(module for name, module in named.items() if hasattr(module, "embed_tokens"))
            unique = {id(weight): weight.numel() for part in (trunk, head) for weight in part.parameters()}

            if read["model_type"] in model_types():
                assert _stored({**config, "model_type": outer}) == sum(unique.values()), (outer, said, own)
            assert read.get("tie_word_embeddings", default) == (head.weight is table.weight), (outer, said, own)


@pytest.mark.parametrize("kind", SAME_WEIGHTS)
def test_a_language_model_counted_as_another_has_the_same_tensors(kind: str) -> None:
    """The classes of the two types, built from the same sizes, store the same parameters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {**LLAMA_TEXT, "head_dim": 16, "pad_token_id": 0}
    sizes |= {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
    shapes = []
    for one in (kind, SAME_WEIGHTS[kind]):
        config = transformers.CONFIG_MAPPING[one](**{key: sizes[key] for key in sizes if key != "model_type"})
        with torch.device("meta"):
            built = _text_class(kind)(config) if one == kind else transformers.AutoModel.from_config(config)
        shapes.append(sorted(tuple(weight.shape) for weight in built.parameters()))

    assert shapes[0] == shapes[1]
    with pytest.raises(GptcalcError, match="vocab_size is missing"):
        resolve({"model_type": "mine", "text_config": {"model_type": kind}}, {})
    assert kind not in model_types()


def _text_class(kind: str) -> Any:
    names = {
        "qwen2_vl_text": "qwen2_vl.modeling_qwen2_vl.Qwen2VLTextModel",
        "qwen2_5_vl_text": "qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VLTextModel",
        "qwen2_5_omni_text": "qwen2_5_omni.modeling_qwen2_5_omni.Qwen2_5OmniThinkerTextModel",
        "qwen3_vl_text": "qwen3_vl.modeling_qwen3_vl.Qwen3VLTextModel",
        "qwen3_vl_moe_text": "qwen3_vl_moe.modeling_qwen3_vl_moe.Qwen3VLMoeTextModel",
        "qwen3_omni_moe_text": "qwen3_omni_moe.modeling_qwen3_omni_moe.Qwen3OmniMoeThinkerTextModel",
    }
    from importlib import import_module

    module, _, name = names[kind].rpartition(".")
    return getattr(import_module(f"transformers.models.{module}"), name)


def test_reading_a_path_that_is_no_path_is_our_error() -> None:
    """Whatever a name is, reading it ends in `GptcalcError`."""
    for name in ("a\0b.json", "x" * 5000 + ".json", "/", "/dev/zero", "no.py:NAME"):
        with pytest.raises(GptcalcError):
            read_model(Path(name))


def test_a_tie_that_the_outer_class_decides_is_said() -> None:
    """Mistral by itself is untied, in `mistral3` it is tied unless the outer object says no."""

    def ties(outer: str, text: str, **said: bool) -> list[str]:
        config = {"model_type": outer, "text_config": {"model_type": text, "vocab_size": 64}, **said}
        return [note for note in read_mapping(config, "here").notes if "tie_word_embeddings" in note]

    [said] = ties("mistral3", "mistral")
    assert said.startswith("transformers' class of 'mistral3' ties where tie_word_embeddings is missing")
    assert said.endswith("else --untied")
    assert ties("mistral3", "mistral", tie_word_embeddings=True) == []
    assert ties("gemma3", "gemma3_text") == []
    assert ties("llama4", "llama4_text") == []
