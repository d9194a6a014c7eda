"""Finding a model, and what follows from changing it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gptcalc
from gptcalc.catalog import resolve
from gptcalc.errors import GptcalcError


def stored(model: object = None, **overrides: object) -> int:
    """Stored parameters."""
    return gptcalc.count(model, **overrides).totals.stored  # type: ignore[arg-type]


def test_no_model_is_gpt2_small() -> None:
    """Overrides alone speak of GPT-2 Small."""
    assert stored() == stored("gpt2") == stored("openai-community/gpt2") == stored("GPT2-Small") == 124_439_808


def test_a_new_width_keeps_the_head_size_and_the_ratio_of_the_mlp() -> None:
    """GPT-2 Small at width 1024 has 16 heads of 64 and an MLP of 4096."""
    model = resolve("gpt2", {"d_model": 1024})

    assert model.family.heads == (16, 16, 64)
    assert model.family.width_ff == 4096
    assert {key: (change.was, change.now) for key, change in model.followed.items()} == {
        "n_heads": (12, 16),
        "n_kv_heads": (12, 16),
        "d_ff": (3072, 4096),
    }
    assert model.changed["d_model"] == (768, 1024)


def test_what_is_given_explicitly_wins() -> None:
    """Heads, head size and MLP width given with a new width stay as given."""
    model = resolve("gpt2", {"d_model": 1024, "n_heads": 8, "d_ff": 1000})

    assert model.family.heads == (8, 8, 128)
    assert model.family.width_ff == 1000
    assert resolve("gpt2", {"d_model": 1024, "d_head": 32}).family.heads == (32, 32, 32)
    assert resolve("gpt2", {"d_head": 32}).family.heads == (12, 12, 32)
    assert resolve("gpt2", {"n_heads": 16}).family.heads == (16, 16, 48)
    assert resolve("llama-3-8b", {"n_heads": 16}).family.heads == (16, 8, 256)
    assert resolve("llama-3-8b", {"d_head": 64, "n_heads": 16}).family.heads == (16, 8, 64)


def test_grouped_heads_stay_grouped() -> None:
    """Llama 3 8B keeps its 8 key/value heads, head size and MLP ratio at another width."""
    model = resolve("llama-3-8b", {"d_model": 2048})

    assert model.family.heads == (16, 8, 128)
    assert model.family.width_ff == 7168


def test_the_ratio_of_the_mlp_must_stay_whole() -> None:
    """A width at which d_ff would be a fraction is an error that names the nearest widths."""
    config = {"model_type": "llama", "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 1000}

    with pytest.raises(GptcalcError, match=r"read 831; d_ff keeps its ratio 1000/512 .* nearest: 768, 832"):
        resolve(config, {"d_model": 831})


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"tied": False}, 163_037_184),
        ({"bias": False}, 124_337_664),
        ({"n_vocab": 50304}, 124_475_904),
        ({"qkv_bias": False}, 124_412_160),
        ({"qkv_bias": False, "tie_word_embeddings": False}, 163_009_536),
        ({"positions": "sinusoidal"}, 124_439_808 - 1024 * 768),
        ({"positions": "rotary"}, 124_439_808 - 1024 * 768),
        ({"positions": "none", "n_ctx": 7}, 124_439_808 - 1024 * 768),
        ({"n_ctx": 2048}, 125_226_240),
        ({"vocab_size": 40478}, 116_929_536),
        ({"n_layer": 6}, 81_912_576),
    ],
    ids=str,
)
def test_known_variants_of_gpt2_small_come_out_of_overrides(override: dict[str, object], expected: int) -> None:
    """Each number in circulation is GPT-2 Small with one or two fields changed."""
    assert stored("gpt2", **override) == expected


def test_no_bias_overrules_a_presets_own_bias_fields() -> None:
    """`bias` speaks of all biases, unless one is given beside it."""
    assert stored("llms-from-scratch-124m", bias=True) == 163_037_184
    assert stored("llms-from-scratch-124m", bias=True, qkv_bias=False) == 163_009_536


def test_both_kinds_of_names_give_the_same_model() -> None:
    """Hugging Face's names and gptcalc's own are two ways to say one thing."""
    assert (
        resolve("gpt2", {"n_embd": 1024, "n_layer": 3}).spec == resolve("gpt2", {"d_model": 1024, "n_layers": 3}).spec
    )


def test_a_config_is_read_from_a_file_a_folder_and_a_mapping(tmp_path: Path) -> None:
    """config.json, its folder, a TOML file and a mapping are one model."""
    config = {"model_type": "gpt2", "n_embd": 96, "n_head": 4, "n_layer": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.toml").write_text('model_type = "gpt2"\nd_model = 96\nn_heads = 4\nn_layers = 3\n')
    specs = [resolve(source, {}).spec for source in (tmp_path / "config.json", tmp_path, tmp_path / "own.toml", config)]

    assert all(spec == specs[0] for spec in specs)


def test_nulls_mean_what_transformers_makes_of_them() -> None:
    """A null in an optional field is its rule, in a required one the class's default; neither is a number."""
    mixtral = {"model_type": "mixtral", "num_attention_heads": 32}

    assert resolve(mixtral, {}).family.heads == (32, 8, 128)
    assert resolve(mixtral | {"num_key_value_heads": None}, {}).family.heads == (32, 32, 128)
    assert resolve({"model_type": "gpt2", "n_inner": None, "n_embd": 96}, {}).family.width_ff == 384
    assert resolve({"model_type": "gpt2", "vocab_size": None}, {}).family.n_vocab == 50257
    with pytest.raises(GptcalcError, match="d_ff: read None"):
        resolve({"model_type": "llama", "intermediate_size": None}, {})


def test_an_old_name_beside_the_new_one_is_not_read() -> None:
    """GPT-2's config.json has `n_ctx` beside `n_positions`; transformers reads the latter alone."""
    config = {"model_type": "gpt2", "n_positions": 1024, "n_ctx": 512}

    assert resolve(config, {}).family.n_ctx == 1024
    assert resolve({"model_type": "gpt2", "n_ctx": 512}, {}).family.n_ctx == 512


def test_what_a_config_leaves_out_is_said() -> None:
    """Missing fields take the class's defaults, nulls count as missing, unread fields are named."""
    model = resolve(
        {"model_type": "gpt2", "n_embd": 96, "n_head": 4, "n_inner": None, "n_layerz": 3, "use_cache": True}, {}
    )

    assert model.defaults["n_layers"] == 12
    assert "d_model" not in model.defaults
    assert model.notes == ("n_layerz is no field of this family and was not read (nearest: n_layer)",)


def test_a_field_that_changes_only_the_computation_is_said() -> None:
    """Scaling by layer stores nothing; where it is asked for, the report says that it is not modelled."""
    plain, scaled = (
        resolve({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": value}, {}) for value in (False, True)
    )

    assert plain.notes == ()
    assert len(scaled.notes) == 1
    assert "scale_attn_by_inverse_layer_idx = True changes how the model computes" in scaled.notes[0]
    assert plain.spec == scaled.spec


def test_gpt1_reads_its_gelu_as_the_tanh_approximation() -> None:
    """Transformers' table for `afn` says gelu and means gelu_new."""
    spec = resolve({"model_type": "openai-gpt", "afn": "gelu"}, {}).spec

    assert spec.layers[0].block.model_dump()["mlp"]["activation"] == "gelu_new"


def test_what_one_caller_gets_another_cannot_change() -> None:
    """Results of a preset are shared and read-only, down to the hyperparameters."""
    model = resolve("gpt3-175b", {})
    assert model.preset is not None

    for fields in (model.huggingface, model.preset.hyperparameters, model.changed):
        with pytest.raises(TypeError):
            fields["n_embd"] = 64  # type: ignore[index]


@pytest.mark.parametrize("model", [5, True, ["gpt2"], b"gpt2", {1: 2, "model_type": "gpt2"}, "a\0b.json", "x" * 5000])
def test_anything_that_is_no_model_is_our_error(model: object) -> None:
    """The API raises `GptcalcError` whatever it is given."""
    with pytest.raises(GptcalcError):
        gptcalc.count(model)  # type: ignore[arg-type]


def test_a_change_that_changes_nothing_is_not_said() -> None:
    """Overrides equal to what the model has leave it as it is."""
    assert resolve("gpt2", {"d_model": 768, "bias": True}).changed == {}
    with pytest.raises(GptcalcError, match="depth: read True"):
        gptcalc.count("gpt2", depth=True)


def test_every_default_that_a_count_uses_is_said() -> None:
    """A config that names only its layers: all other dims, ties and biases are defaults, derived ones included."""
    defaults = resolve({"model_type": "llama", "num_hidden_layers": 3}, {}).defaults

    assert defaults["n_kv_heads"] == 32
    assert defaults["d_head"] == 128
    assert defaults["d_ff"] == 11008
    assert defaults["qkv_bias"] is False
    assert "n_layers" not in defaults
    assert "rope_theta" not in defaults


def test_the_api_gives_frozen_results_in_every_form() -> None:
    """A count is a value: frozen, as a dictionary, as tables in a notebook."""
    count = gptcalc.count("gpt3-175b", n_vocab=50304)

    assert count.totals.stored == 174_604_259_328 + 47 * 12288
    assert count.to_dict()["totals"]["stored"] == count.totals.stored
    assert "174,604,836,864" in count._repr_html_()
    with pytest.raises(AttributeError):
        count.depth = 2  # type: ignore[misc]
    with pytest.raises(GptcalcError, match="nearest: gpt2"):
        gptcalc.count("gtp2")


def test_no_bias_says_which_biases_went() -> None:
    """Where a model says no of `bias` and yes of some of its biases, these are what `bias` changes."""
    model = resolve("gpt-oss-20b", {"bias": False})

    assert {key: tuple(change) for key, change in model.changed.items()} == dict.fromkeys(
        ("qkv_bias", "out_bias", "mlp_bias"), (True, False)
    )
    assert not any("bias" in line.key for line in gptcalc.count("gpt-oss-20b", bias=False).lines)


@pytest.mark.parametrize("change", [{"d_head": 32}, {"n_kv_heads": 8}], ids=str)
def test_a_change_that_other_fields_overrule_is_refused(change: dict[str, object]) -> None:
    """Latent attention makes its heads from other sizes: a head size of its own would be dropped silently."""
    with pytest.raises(GptcalcError, match=f"{next(iter(change))}: read .*; allowed: .*, which other fields give here"):
        resolve("deepseek-v3", change)


def test_a_change_that_no_part_reads_is_said() -> None:
    """Qwen3's mixtures have no dense layer, whose width `d_ff` is."""
    assert resolve("qwen3-30b-a3b", {"d_ff": 100}).notes[-1] == "d_ff: changed, but no part of this model reads it"
    assert resolve("qwen3-30b-a3b", {"d_ff": 100, "mlp_only_layers": [0]}).notes == ()
    assert resolve("gpt2", {"d_ff": 100}).notes == ()


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3-30b-a3b", "dbrx", "llama-4-scout"])
def test_biases_that_experts_cannot_have_are_refused(name: str) -> None:
    """`--bias` speaks of all biases; experts without them cannot follow."""
    with pytest.raises(GptcalcError, match="mlp_bias: read True; allowed: false"):
        resolve(name, {"bias": True})
    assert stored(name, bias=True, mlp_bias=False) > stored(name)


@pytest.mark.parametrize("name", ["gpt2", "gemma-3-1b", "gemma-3-27b", "gpt-oss-20b"])
def test_the_width_that_a_model_has_changes_nothing(name: str) -> None:
    """Where heads do not fill the width, the same width again leaves them alone."""
    model = resolve(name, {})

    assert resolve(name, {"d_model": model.family.d_model}).spec == model.spec


def test_many_unknown_fields_share_a_note() -> None:
    """A file of another program may have dozens of fields; the answer stays above its notes."""
    notes = resolve({"model_type": "gpt2"} | {f"mine_{index}": index for index in range(40)}, {}).notes

    assert notes == ("mine_0, mine_1, mine_2, mine_3 and 36 more are no fields of this family and were not read",)


def test_a_quantized_checkpoint_is_said_to_be_counted_before() -> None:
    """Four bits for a weight change no count, and every byte of the checkpoint."""
    config = {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}

    assert resolve(config, {}).notes[0].startswith("quantization_config: the weights are counted as they are before")
    assert resolve(config | {"quantization_config": None}, {}).notes == ()


def test_heads_do_not_follow_a_width_that_they_do_not_add_up_to() -> None:
    """Gemma 3's 32 heads of 128 are not its width: a new width leaves them as they are."""
    changed = resolve("gemma-3-27b", {"d_model": 1024})

    assert changed.family.heads == (32, 16, 128)
    assert "n_heads" not in changed.followed
