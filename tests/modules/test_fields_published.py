"""Fields outside attention and mixtures: with copied weights the reference decoder says what the class says."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from class_oracle import class_config
from conftest import randomised

from gptcalc.catalog import resolve
from gptcalc.modules import build
from gptcalc.spec import Activation

LLAMA = {
    "vocab_size": 67,
    "max_position_embeddings": 23,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 37,
}
FULL_HEADS = {key: value for key, value in LLAMA.items() if key not in ("num_key_value_heads", "head_dim")}
NEOX = FULL_HEADS | {"hidden_size": 64, "rotary_pct": 0.5}
GPTJ = {"vocab_size": 67, "n_positions": 23, "n_embd": 48, "n_layer": 2, "n_head": 3, "rotary_dim": 8}
OPT = {
    "vocab_size": 67,
    "max_position_embeddings": 23,
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "ffn_dim": 41,
    "word_embed_proj_dim": 30,
}
FALCON = {key: FULL_HEADS[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
WIDE_FALCON = FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}
GRANITE = LLAMA | {
    "embedding_multiplier": 12.0,
    "logits_scaling": 0.5,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.3,
}
GRANITE.pop("head_dim")

#: Configs of classes by what is told apart in them.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "parallel, own norms": ("gpt_neox", NEOX),
    "one after the other": ("gpt_neox", NEOX | {"use_parallel_residual": False}),
    "parallel, shared norm": ("gptj", GPTJ),
    "parallel, grouped": ("falcon", WIDE_FALCON),
    "parallel, one norm": ("falcon", WIDE_FALCON | {"num_ln_in_parallel_attn": 1}),
    "pre, by name": ("falcon", FALCON | {"parallel_attn": False, "bias": True}),
    "parallel, biased head": ("phi", FULL_HEADS | {"hidden_size": 64}),
    "multiplied logits": ("cohere", LLAMA | {"hidden_size": 40, "logit_scale": 2.0}),
    "norms after parts": ("glm4", LLAMA | {"head_dim": 16}),
    "fused gate and up": ("phi3", FULL_HEADS),
    "gain of 1 + weight, scaled rows": ("gemma", LLAMA),
    "LayerNorm of 1 + weight": ("nemotron", LLAMA | {"head_dim": 12}),
    "norms that learn nothing": ("olmo", FULL_HEADS),
    "narrow rows, norms after adds": ("opt", OPT | {"word_embed_proj_dim": 13, "do_layer_norm_before": False}),
    "narrow rows, tied apart": ("opt", OPT | {"word_embed_proj_dim": 13, "tie_word_embeddings": False}),
    "positions from two on": ("opt", OPT | {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    "four multipliers": ("granite", GRANITE),
    **{f"{name} in a gate": ("llama", LLAMA | {"hidden_act": name}) for name in get_args(Activation)},
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_the_class(case: str) -> None:
    """Every weight random, logits are equal to 1e-5 in fp32, and far from zero."""
    model_type, fields = CASES[case]
    config = {"model_type": model_type, **fields}
    spec = resolve(config, {}).spec
    assert spec.unknown_ops == ()
    torch.manual_seed(0)
    published = randomised(_with_values(config)).eval()
    ours = build(spec).eval()
    ours.load_state_dict({name: tensor for name, tensor in published.state_dict().items() if name in ours.state_dict()})
    tokens = torch.randint(3, spec.n_vocab, (2, 13))
    with torch.no_grad():
        logits, theirs = ours(tokens).logits, published(tokens).logits
    assert theirs.abs().max() > 0.5, "logits near zero would prove nothing"
    torch.testing.assert_close(logits, theirs, rtol=1e-5, atol=1e-5)


def _with_values(config: dict[str, Any]) -> Any:
    """The class on the CPU, no token of it being padding."""
    from transformers import AutoModelForCausalLM

    whole = class_config(config)
    whole.pad_token_id = None
    return AutoModelForCausalLM.from_config(whole, attn_implementation="eager").float()
