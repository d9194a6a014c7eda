"""Every family's reference decoder gives the logits of its transformers class, at once and token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from class_oracle import class_config

from gptcalc.catalog import resolve
from gptcalc.families import model_types
from gptcalc.modules import build
from gptcalc.spec import Spec

#: Sizes of a toy, under every name that a class may have for them.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 6),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"), 64),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim"), 36),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 1),
    "vocab_size": 71,
    "logit_scale": 1.0,
    "head_dim": 8,
    "sliding_window": 5,
    "attention_chunk_size": 5,
    "num_experts_per_tok": 2,
    "rotary_dim": 4,
    "word_embed_proj_dim": 48,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
#: What else a type is asked for: heads that all have a key, options that are off by default.
MORE: dict[str, tuple[dict[str, Any], ...]] = {
    "stablelm": ({}, {"qk_layernorm": True}, {"use_parallel_residual": True, "use_qkv_bias": True}),
    "gpt_neox": ({}, {"use_parallel_residual": False, "rotary_pct": 0.5}),
    "phi": ({}, {"qk_layernorm": True, "partial_rotary_factor": 0.5}),
    "falcon": (
        {"num_kv_heads": 2, "new_decoder_architecture": True},
        {"multi_query": True, "new_decoder_architecture": False},
        {"multi_query": False, "new_decoder_architecture": False, "num_kv_heads": 6, "bias": True},
        {"multi_query": False, "new_decoder_architecture": False, "num_kv_heads": 6, "alibi": True},
    ),
    "codegen": ({"n_head": 4, "n_embd": 32}, {"n_head": 8, "n_embd": 64}),
    "gpt_neo": ({"attention_types": [[["global", "local"], 2]], "window_size": 5, "num_heads": 6},),
    "mpt": ({}, {"attn_config": {"model_type": "", "clip_qkv": 0.5}}),
    "dbrx": (
        {
            "attn_config": {"model_type": "", "rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 0.5},
            "ffn_config": {"model_type": "", "ffn_hidden_size": 36, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "dots1": ({"n_shared_experts": 2},),
    "glm4_moe_lite": ({"num_key_value_heads": 6},),
    "llama4_text": ({}, {"use_qk_norm": False, "attn_temperature_tuning": True, "floor_scale": 4}),
    "minicpm3": ({"num_key_value_heads": 6},),
    "youtu": ({"num_key_value_heads": 6, "head_dim": 4},),
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3"), ({"num_key_value_heads": 6, "head_dim": 4},)),
    "cwm": ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},),
    "cohere": ({}, {"use_qk_norm": True}),
    "olmo": ({}, {"clip_qkv": 0.5}),
    "gemma2": ({}, {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 10}),
    "qwen3": ({}, {"use_sliding_window": True, "max_window_layers": 2, "attention_bias": True}),
    "glm4": ({}, {"attention_bias": True}),
    "mixtral": ({"sliding_window": None},),  # that of its published files
}
CASES = [(kind, more) for kind in sorted(model_types()) for more in MORE.get(kind, ({},))]


def _config(kind: str, more: dict[str, Any]) -> dict[str, Any]:
    """A toy of the type: the sizes that its class has, by the names that it is written under."""
    known = class_config({"model_type": kind})
    sizes = {key: size for key, size in SIZES.items() if key in known.to_dict()}
    return {"model_type": kind, **sizes, **more}


def _pair(kind: str, more: dict[str, Any]) -> tuple[Any, Any, Spec]:
    """The class and our decoder with its weights, each number random; the spec."""
    from transformers import AutoModelForCausalLM

    config = _config(kind, more)
    spec = resolve(config, {}).spec
    if spec.unknown_ops:
        pytest.skip(f"not known yet: {', '.join(spec.unknown_ops)}")
    rotaries = [group.block.model_dump()["attention"].get("rotary") for group in spec.layers]
    if any(rotary and rotary["scaling"] for rotary in rotaries):
        pytest.skip("scaled angles cannot be run")
    torch.manual_seed(0)
    own = class_config(config)
    if hasattr(own, "num_experts_per_tok"):
        own._experts_implementation = "eager"  # the grouped kernel wants widths that are multiples of four
    backend = "sdpa" if more.get("alibi") else "eager"  # Falcon's eager attention adds ALiBi a second time
    published = AutoModelForCausalLM.from_config(own, attn_implementation=backend).eval()
    with torch.no_grad():
        for parameter in published.parameters():
            parameter.normal_(0.0, 0.2)
    ours = build(spec).eval()
    names = {name for name, _ in published.named_parameters(remove_duplicate=False)}
    ours.load_state_dict({name: tensor for name, tensor in published.state_dict().items() if name in names})
    return published, ours, spec


@pytest.mark.parametrize(("kind", "more"), CASES, ids=[f"{kind}-{'-'.join(more) or 'plain'}" for kind, more in CASES])
def test_logits_equal_those_of_the_class(kind: str, more: dict[str, Any]) -> None:
    """With copied weights the logits are the class's to 1e-5 in fp32, of a whole text and token by token."""
    published, ours, spec = _pair(kind, more)
    tokens = torch.randint(spec.n_vocab, (2, 13), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = published(tokens).logits
        whole = ours(tokens).logits
        cache = ours.make_cache(2, 13)
        parts = [ours(tokens[:, :7], cache=cache).logits]
        parts += [ours(tokens[:, at : at + 1], cache=cache, start=at).logits for at in range(7, 13)]

    assert theirs.abs().max() > 0.05, "logits near zero would prove nothing"
    torch.testing.assert_close(whole, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat(parts, 1), theirs, rtol=1e-5, atol=1e-5)
