"""Families from Mistral on: every tensor is the transformers class's, drawn, silent and published configs alike."""

from __future__ import annotations

import json
from typing import Any

import pytest
from class_oracle import assert_defaults, assert_same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import DATA, examples, facts

from gptcalc.catalog import resolve
from gptcalc.errors import InvalidValueError
from gptcalc.ledger.parameters import parameters

Options = dict[str, st.SearchStrategy[Any]]

FLAG, SMALL = st.booleans(), st.integers(1, 9)
HEAD: Options = {"head_dim": st.sampled_from([2, 4, 6])}
#: Heads of which a quarter is even.
WIDE: Options = {"head_dim": st.sampled_from([8, 16])}
BIAS: Options = {"attention_bias": FLAG}
WINDOW: Options = {"sliding_window": st.none() | SMALL}
QWEN: Options = {"use_sliding_window": FLAG, "sliding_window": SMALL, "max_window_layers": st.integers(0, 5)}
SPARSE: Options = {
    "moe_intermediate_size": SMALL,
    "norm_topk_prob": FLAG,
    "mlp_only_layers": st.lists(st.integers(0, 6), max_size=3),
    "decoder_sparse_step": st.integers(1, 3),
}
SHARED: Options = {"shared_expert_intermediate_size": SMALL}
LINEAR: Options = {
    "linear_num_key_heads": st.sampled_from([1, 2]),
    "linear_num_value_heads": st.sampled_from([2, 4]),
    "linear_key_head_dim": SMALL,
    "linear_value_head_dim": SMALL,
    "linear_conv_kernel_dim": SMALL,
    "full_attention_interval": st.integers(1, 5),
}
ROUTED: Options = {
    "moe_intermediate_size": SMALL,
    "n_shared_experts": st.integers(1, 3),
    "first_k_dense_replace": st.integers(0, 3),
    "routed_scaling_factor": st.sampled_from([1.0, 2.5]),
}
DENSE_LATENT: Options = {
    "kv_lora_rank": SMALL,
    "q_lora_rank": st.none() | SMALL,
    "qk_nope_head_dim": SMALL,
    "qk_rope_head_dim": st.sampled_from([2, 4]),
    "v_head_dim": SMALL,
}
LATENT: Options = ROUTED | DENSE_LATENT

#: What a class has beside `COMMON`, each of which may be left out.
OPTIONS: dict[str, Options] = {
    "mistral": HEAD | WINDOW,
    "qwen2": QWEN,
    "qwen3": HEAD | BIAS | QWEN,
    "qwen2_moe": QWEN | SPARSE | SHARED | {"qkv_bias": FLAG},
    "qwen3_moe": HEAD | BIAS | SPARSE,
    "qwen3_next": WIDE | BIAS | SPARSE | SHARED | LINEAR,
    "qwen3_5_text": WIDE | BIAS | LINEAR,
    "qwen3_5_moe_text": WIDE | BIAS | SHARED | LINEAR | {"moe_intermediate_size": SMALL},
    "gemma": HEAD | BIAS,
    "gemma2": HEAD | BIAS | {"sliding_window": SMALL} | {"attn_logit_softcapping": st.none() | st.just(9.0)},
    "gemma3_text": HEAD | BIAS | {"sliding_window": SMALL, "sliding_window_pattern": st.integers(1, 7)},
    "phi3": WINDOW,
    "olmo2": BIAS,
    "granite": BIAS | {"mlp_bias": FLAG, "embedding_multiplier": st.just(12.0), "logits_scaling": st.just(16.0)},
    "glm": WIDE | BIAS,
    "glm4": WIDE | BIAS,
    "deepseek_v2": LATENT | BIAS | {"mlp_bias": FLAG},
    "deepseek_v3": LATENT | BIAS | {"rope_interleave": FLAG},
    "gpt_oss": HEAD | BIAS | {"sliding_window": SMALL, "swiglu_limit": st.just(5.0)},
    "llama4_text": HEAD
    | BIAS
    | {
        "intermediate_size_mlp": SMALL,
        "interleave_moe_layer_step": st.integers(1, 3),
        "moe_layers": st.lists(st.integers(0, 6), unique=True, max_size=3),
        "no_rope_layer_interval": st.integers(1, 5),
        "attention_chunk_size": SMALL,
        "use_qk_norm": FLAG,
        "attn_temperature_tuning": FLAG,
    },
    "cohere": HEAD | BIAS | {"use_qk_norm": FLAG, "logit_scale": st.just(0.5)},
    "cohere2": BIAS | {"sliding_window": SMALL, "sliding_window_pattern": st.integers(1, 5)},
    "olmo3": BIAS | {"sliding_window": SMALL},
    "olmoe": BIAS | {"clip_qkv": st.none() | st.just(8.0), "norm_topk_prob": FLAG},
    "phimoe": BIAS | WINDOW | {"lm_head_bias": FLAG},
    "granitemoe": BIAS,
    "granitemoeshared": BIAS | {"shared_intermediate_size": st.integers(0, 5)},
    "glm4_moe": WIDE | BIAS | ROUTED | {"use_qk_norm": FLAG},
    "smollm3": BIAS
    | {"mlp_bias": FLAG, "no_rope_layer_interval": st.integers(1, 5)}
    | WINDOW
    | {"use_sliding_window": FLAG},
    "arcee": HEAD | BIAS | {"mlp_bias": FLAG},
    "jais2": HEAD | BIAS | {"mlp_bias": FLAG},
    "ernie4_5": HEAD | {"use_bias": FLAG},
    "exaone4": {"sliding_window": SMALL, "sliding_window_pattern": st.integers(1, 5)},
    "helium": BIAS | {"mlp_bias": FLAG},
    "hunyuan_v1_dense": HEAD | BIAS,
    "minicpm3": DENSE_LATENT | BIAS | {"mlp_bias": FLAG, "scale_depth": st.none() | st.just(1.5)},
    "youtu": DENSE_LATENT | BIAS,
    "minimax_m2": HEAD,
    "ministral": HEAD | WINDOW,
    "seed_oss": HEAD | BIAS | {"attention_out_bias": FLAG, "mlp_bias": FLAG},
    "dots1": HEAD | BIAS | ROUTED | WINDOW | {"max_window_layers": st.integers(0, 5)},
    "vaultgemma": HEAD | BIAS | {"sliding_window": SMALL},
    "glm4_moe_lite": {key: LATENT[key] for key in LATENT if key != "first_k_dense_replace"} | BIAS,
    "cwm": HEAD | {"mlp_bias": FLAG, "sliding_window": SMALL},
    "flex_olmo": BIAS | {"norm_topk_prob": FLAG},
    "hyperclovax": HEAD | BIAS | {"mlp_bias": FLAG, "use_post_norm": FLAG, "attention_multiplier": st.just(0.5)},
    "internlm3": HEAD,
    "iquestcoder": HEAD | BIAS | {"mlp_bias": FLAG},
    "ministral3": HEAD | WINDOW,
    "granite_swa": BIAS | {"mlp_bias": FLAG, "sliding_window": SMALL},
    "granitemoe_swa": BIAS | {"shared_intermediate_size": st.integers(0, 5), "sliding_window": SMALL},
    "exaone_moe": {
        "sliding_window": SMALL,
        "sliding_window_pattern": st.integers(1, 5),
        "moe_intermediate_size": SMALL,
        "num_shared_experts": st.integers(1, 3),
        "first_k_dense_replace": st.integers(0, 3),
    },
    "mellum": HEAD | BIAS | {"sliding_window": SMALL, "moe_intermediate_size": SMALL, "norm_topk_prob": FLAG},
    "hy_v3": HEAD | BIAS | {"mlp_bias": FLAG, "moe_intermediate_size": SMALL, "num_shared_experts": st.integers(1, 3)},
    "aria_text": HEAD | BIAS | {"mlp_bias": FLAG, "moe_num_shared_experts": st.integers(1, 3)},
    "hunyuan_v1_moe": HEAD | BIAS,
    "bitnet": BIAS,
    "ernie4_5_moe": HEAD
    | {
        "use_bias": FLAG,
        "moe_intermediate_size": SMALL,
        "moe_num_shared_experts": st.integers(0, 3),
        "moe_layer_start_index": st.integers(0, 3),
        "moe_layer_end_index": st.integers(-1, 5),
        "moe_layer_interval": st.integers(1, 3),
    },
    "afmoe": HEAD
    | BIAS
    | {
        "sliding_window": SMALL,
        "global_attn_every_n_layers": st.integers(1, 5),
        "moe_intermediate_size": SMALL,
        "num_dense_layers": st.integers(0, 3),
        "num_shared_experts": st.integers(1, 3),
        "mup_enabled": FLAG,
    },
    "cohere2_moe": HEAD
    | BIAS
    | {
        "sliding_window": SMALL,
        "sliding_window_pattern": st.integers(1, 5),
        "num_shared_experts": st.integers(0, 2),
        "first_k_dense_replace": st.integers(0, 1),
        "prefix_dense_intermediate_size": st.none() | SMALL,
        "prefix_dense_sliding_window_pattern": st.integers(1, 2),
        "expert_selection_fn": st.sampled_from(["softmax", "sigmoid"]),
        "shared_expert_combination_strategy": st.sampled_from(["average", "sum"]),
        "rms_norm_eps": st.none() | st.just(1e-5),
    },
    "axk1": LATENT | BIAS | {"q_lora_rank": SMALL, "rope_interleave": FLAG},
    "solar_open": HEAD | BIAS | {key: ROUTED[key] for key in ROUTED if key != "first_k_dense_replace"},
}
#: Fields that no class takes a default for that fits the others.
EXPERTS = {
    **dict.fromkeys(("qwen2_moe", "qwen3_next", "qwen3_5_moe_text", "olmoe", "flex_olmo"), "num_experts"),
    **dict.fromkeys(("qwen3_moe", "gpt_oss", "llama4_text"), "num_local_experts"),
    **dict.fromkeys(("phimoe", "granitemoe", "granitemoeshared"), "num_local_experts"),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe", "glm4_moe_lite"), "n_routed_experts"),
    **dict.fromkeys(("dots1", "solar_open"), "n_routed_experts"),
    **dict.fromkeys(("minimax_m2", "granitemoe_swa"), "num_local_experts"),
    **dict.fromkeys(("exaone_moe", "mellum", "hy_v3", "hunyuan_v1_moe", "afmoe", "cohere2_moe"), "num_experts"),
    **dict.fromkeys(("aria_text", "ernie4_5_moe"), "moe_num_experts"),
    "axk1": "n_routed_experts",
}
#: What a class calls the experts that a token uses, where that is not `num_experts_per_tok`.
ACTIVE = dict.fromkeys(("aria_text", "hunyuan_v1_moe"), "moe_topk") | {"ernie4_5_moe": "moe_k"}
#: The types whose experts are in eight groups by default.
GROUPED = ("axk1", "deepseek_v3")
#: What a class needs to run; its own default is no number, or none that divides.
NEEDED: dict[str, dict[str, int]] = {
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    **{key: {"head_dim": 128} for key in ("glm4_moe", "hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
}
COMMON: Options = {
    "vocab_size": st.integers(3, 50),
    "intermediate_size": SMALL,
    "max_position_embeddings": st.integers(8, 64),
    "tie_word_embeddings": FLAG,
}
#: A token id that classes look for in the token table.
IDS = {"pad_token_id": None}


@st.composite
def toys(draw: st.DrawFn, model_type: str) -> dict[str, Any]:
    """A small config of `model_type`, from which fields are left out."""
    n_kv_heads = draw(st.integers(1, 3))
    n_heads = n_kv_heads * draw(st.integers(1, 3))
    d_head = draw(st.sampled_from([2, 4, 6]))
    config = {
        "model_type": model_type,
        "hidden_size": n_heads * d_head,
        "num_hidden_layers": draw(st.integers(1, 7)),
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        **IDS,
        **NEEDED.get(model_type, {}),
        **({"head_dim": d_head} if model_type == "helium" else {}),
    }
    if model_type in EXPERTS:
        active = ACTIVE.get(model_type, "num_experts_per_tok")
        per_group = 8 if model_type in GROUPED else 2
        config |= {EXPERTS[model_type]: per_group * draw(st.integers(1, 4)), active: draw(st.integers(1, 2))}
    options = COMMON | OPTIONS[model_type]
    kept = draw(st.sets(st.sampled_from(sorted(options)), min_size=len(options) - 3))
    return config | {key: draw(options[key]) for key in sorted(kept)}


@pytest.mark.parametrize("model_type", OPTIONS)
@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_a_drawn_config_has_the_tensors_of_the_class(data: st.DataObject, model_type: str) -> None:
    """Names, shapes and total are the class's for any config of these model types, fields left out included."""
    assert_same(data.draw(toys(model_type)))


@pytest.mark.parametrize("model_type", OPTIONS)
def test_a_silent_file_is_read_as_the_class_reads_it(model_type: str) -> None:
    """A file that gives two layers alone means what the class takes for the rest."""
    assert_defaults(model_type, {"num_hidden_layers": 2, **NEEDED.get(model_type, {})})


@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(sizes=st.lists(SMALL, min_size=4, max_size=4), n_kv_heads=st.sampled_from([1, 2, 4]), clip=st.none() | SMALL)
def test_dbrx_is_read_from_objects_inside_its_config(sizes: list[int], n_kv_heads: int, clip: int | None) -> None:
    """DBRX's heads, experts and bounds stand in `attn_config` and `ffn_config`."""
    layers, half, width, experts = sizes
    attention = {"kv_n_heads": n_kv_heads, "clip_qkv": clip, "rope_theta": 500000.0}
    mixture = {"ffn_hidden_size": width, "moe_num_experts": experts, "moe_top_k": 1}
    toy = {"d_model": 8 * half, "n_heads": 4, "n_layers": layers, "vocab_size": 40, "max_seq_len": 16}

    model = assert_same({"model_type": "dbrx", **toy, "attn_config": attention, "ffn_config": mixture})

    block = model.spec.layers[0].block.model_dump()
    assert (block["attention"]["clip"], block["mlp"]["n_active"]) == (clip, 1)


def test_layers_of_granite_have_angles_of_their_own() -> None:
    """`layer_rope_theta` is the base of each layer's rotation, 0 where it does not rotate; it is one for each layer."""
    toy = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 3, **IDS}

    model = assert_same({"model_type": "granite_swa", **toy, "layer_rope_theta": [0, 5000.0, 10000.0]})

    attention = [group.block.model_dump()["attention"] for group in model.spec.layers]
    assert [part["rotary"] and part["rotary"]["theta"] for part in attention] == [None, 5000.0, 10000.0]
    assert [part["window"] for part in attention] == [None, 128, 128]
    with pytest.raises(InvalidValueError, match="one for each of 3 layers"):
        _ = resolve({"model_type": "granite_swa", **toy, "layer_rope_theta": [5000.0]}, {}).spec


def test_scores_of_ministral_3_grow_as_its_rotary_parameters_say() -> None:
    """`llama_4_scaling_beta` and the length from which it counts stand in `rope_parameters`."""
    rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32}
    rope |= {"llama_4_scaling_beta": 0.25}

    spec = resolve({"model_type": "ministral3", "num_hidden_layers": 1, "rope_parameters": rope}, {}).spec

    attention = spec.layers[0].block.model_dump()["attention"]
    assert (attention["tempered"], attention["tempered_from"]) == (0.25, 32)


def test_windows_of_mellum_have_angles_of_their_own() -> None:
    """Layers with a window rotate by the parameters of `sliding_attention`."""
    rope = {"full_attention": {"rope_theta": 7.0}, "sliding_attention": {"rope_theta": 3.0}}
    kinds = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}

    spec = resolve({"model_type": "mellum", **kinds, "rope_parameters": rope}, {}).spec

    assert [group.block.model_dump()["attention"]["rotary"]["theta"] for group in spec.layers] == [3.0, 7.0]


def test_experts_of_hunyuan_are_listed_for_each_layer() -> None:
    """`moe_topk` may be a list, all of whose entries agree."""
    toy = {"model_type": "hunyuan_v1_moe", "num_hidden_layers": 2, "num_experts": 4, "head_dim": 128}

    spec = resolve({**toy, "moe_topk": [3, 3]}, {}).spec

    assert spec.layers[0].block.model_dump()["mlp"]["n_active"] == 3
    with pytest.raises(InvalidValueError, match="n_active"):
        resolve({**toy, "moe_topk": [3, 2]}, {})


def _published() -> list[Any]:
    """The published models of these types, each with its config."""
    configs = [(fact, json.loads((DATA / "configs" / fact["config_file"]).read_text())) for fact in facts()]
    return [
        pytest.param(fact, config, id=fact["id"])
        for fact, config in configs
        if config["model_type"] in {*OPTIONS, "dbrx"}
    ]


@pytest.mark.parametrize(("fact", "config"), _published())
def test_a_published_model_has_the_counts_of_the_facts(fact: dict[str, Any], config: dict[str, Any]) -> None:
    """Stored, by component and active are the class's, and nothing in its config goes unread."""
    model = resolve(config, {})
    ledger = parameters(model.spec)

    assert model.notes == ()
    assert ledger.totals.stored == fact["params"]
    assert {line.key: line.stored for line in ledger.lines if line.stored} == fact["breakdown"]
    assert ledger.totals.active == fact.get("active_params", ledger.totals.active)
