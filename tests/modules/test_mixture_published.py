"""Every family's mixture computes what the module of its transformers class does, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from class_oracle import class_config
from transformers import AutoModelForCausalLM
from transformers.models.phimoe import modeling_phimoe

from gptcalc.catalog import resolve
from gptcalc.families import find_family, model_types
from gptcalc.families.mixtures import Mixture
from gptcalc.modules.itemised import Dims, make
from gptcalc.modules.sparsemixer import sparsemixer

#: Sizes of a toy, under every name that a class may have for them.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_heads"), 2),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "max_seq_len"), 64),
    **dict.fromkeys(("intermediate_size", "intermediate_size_mlp", "shared_intermediate_size"), 20),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 12),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 8),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), None),
    "vocab_size": 31,
    "head_dim": 16,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "num_shared_experts": 2,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
#: What else a type is asked for.
MORE: dict[str, tuple[dict[str, Any], ...]] = {
    "aria_text": ({"moe_num_experts": 8, "moe_topk": 3},),
    "axk1": ({"n_group": 4, "topk_group": 2},),
    "cohere2_moe": (
        {"num_shared_experts": 2},
        {"shared_expert_combination_strategy": "sum", "num_shared_experts": 1, "expert_selection_fn": "sigmoid"},
    ),
    "dbrx": (
        {
            "ffn_config": {"ffn_hidden_size": 20, "moe_num_experts": 8, "moe_top_k": 3},
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4},
        },
    ),
    "deepseek_v2": (
        {"n_group": 1, "topk_group": 1},
        {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    ),
    "deepseek_v3": ({"n_group": 4, "topk_group": 2}, {"n_group": 2, "topk_group": 1, "norm_topk_prob": False}),
    "glm4_moe": ({"n_group": 2, "topk_group": 1}, {"n_group": 1, "topk_group": 1}),
    "gpt_oss": ({"swiglu_limit": 0.5},),
    "granitemoeshared": ({}, {"shared_intermediate_size": 0}),
    "hunyuan_v1_moe": ({"num_experts": 8, "moe_topk": 3},),
    "llama4_text": ({"num_experts_per_tok": 1}, {"num_experts_per_tok": 3}),
    "phimoe": ({"num_experts_per_tok": 2},),
    "qwen3_moe": ({"norm_topk_prob": True}, {"norm_topk_prob": False}),
}


def _config(kind: str, more: dict[str, Any]) -> dict[str, Any]:
    known = class_config({"model_type": kind}).to_dict()
    return {"model_type": kind, **{key: size for key, size in SIZES.items() if key in known}, **more}


KINDS = [kind for kind in sorted(model_types()) if issubclass(find_family(kind, "test"), Mixture)]
CASES = [(kind, more) for kind in KINDS for more in MORE.get(kind, ({},))]


def _pair(kind: str, more: dict[str, Any]) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.nn.Module]:
    """The first mixture of the class, every number random, and ours with its weights."""
    config = _config(kind, more)
    spec = resolve(config, {}).spec
    parts = [group.block.model_dump()["mlp"] for group in spec.layers for _ in range(group.n_layers)]
    index, part = next((index, part) for index, part in enumerate(parts) if part["kind"] == "mixture")
    own = class_config(config)
    own._experts_implementation = "eager"
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(own).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5)
    layer = model.get_submodule(f"{spec.trunk}.{spec.layers_name}.{index}")
    holder = layer.get_submodule(part["name"])
    if hasattr(holder, "post_mlp_layernorm"):  # A.X K1's, which our block has
        holder.post_mlp_layernorm = torch.nn.Identity()
    ours = make({**part, "name": "mlp"}, Dims.of(spec)).eval()
    weights = dict(holder.named_parameters())
    ours.load_state_dict({name: weights[name] for name in ours.state_dict()})

    def theirs(x: torch.Tensor) -> torch.Tensor:
        if part["name"]:
            y = holder(x)
            return (y[0] if isinstance(y, tuple) else y).view(x.shape)
        y = layer.block_sparse_moe(x)
        return y if layer.shared_mlp is None else y + layer.shared_mlp(x)

    return theirs, ours


@pytest.mark.parametrize(("kind", "more"), CASES, ids=[f"{kind}-{'-'.join(more) or 'plain'}" for kind, more in CASES])
def test_a_mixture_computes_what_its_class_does(kind: str, more: dict[str, Any]) -> None:
    """With copied weights every number is the class's to 1e-5 in fp32, and so are the gradients."""
    theirs, ours = _pair(kind, more)
    x = torch.randn(3, 17, 32)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    published, computed = theirs(one), ours(two)
    assert published.abs().max() > 0.1
    torch.testing.assert_close(computed, published, rtol=1e-5, atol=1e-5)
    weights = torch.randn(x.shape)
    (published * weights).sum().backward()
    (computed * weights).sum().backward()
    torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-4)


def test_sparsemixer_in_training_is_that_of_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same numbers drawn: experts, shares and gradients, of likely and of unlikely choices."""
    scores = torch.randn(64, 5).mul(0.02).add(1.0)
    noise, chance = torch.empty(64, 5).exponential_(), torch.rand(64, 1)
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self: self.copy_(noise))
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self: self)
    monkeypatch.setattr(torch, "rand_like", lambda _: chance.clone())
    one, two = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    published, chosen = modeling_phimoe.sparsemixer(one, jitter_eps=0.01, training=True)
    shares, experts = sparsemixer(two, training=True)
    assert torch.equal(chosen, experts)
    assert not torch.equal(chosen[:, 0], scores.argmax(-1))
    torch.testing.assert_close(shares, published, rtol=1e-6, atol=1e-6)
    weights = torch.randn(64, 2)
    (published * weights).sum().backward()
    (shares * weights).sum().backward()
    torch.testing.assert_close(two.grad, one.grad, rtol=1e-6, atol=1e-6)
