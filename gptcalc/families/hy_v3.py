"""Hunyuan 3 (Tencent 2026): mixtures by sigmoids after the first layer, norms of query and key."""

from typing import Any, ClassVar

from gptcalc.families.family import Layer, without
from gptcalc.families.llama import Llama
from gptcalc.families.mixtures import UNROUTED, Mixture, Names
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.mlp import MixtureMLP


class HunyuanV3(Mixture):
    """transformers' `HYV3ForCausalLM`."""

    model_type = "hy_v3"
    names_of_mixture = Names(shared="shared_experts")
    ignored: ClassVar[frozenset[str]] = UNROUTED | {"enable_moe_fp32_combine"}
    huggingface = without(Llama.huggingface) | {
        "num_experts": ("n_experts",),
        "num_local_experts": ("n_experts",),
        "num_experts_per_tok": ("n_active",),
        "num_shared_experts": ("n_shared_experts",),
        "moe_intermediate_size": ("d_expert",),
        "router_scaling_factor": ("routed_scale",),
    }
    defaults = {
        **Llama.defaults,
        "n_vocab": 120832,
        "n_ctx": 131072,
        "n_layers": 80,
        "n_heads": 64,
        "n_kv_heads": 8,
        "d_head": 128,
        "d_ff": 13312,
        "norm_eps": 1e-5,
        "rope_theta": 11_158_840.0,
        "n_experts": 192,
        "n_active": 8,
        "d_expert": 1536,
        "n_shared_experts": 1,
        "first_dense": 1,
        "routed_scale": 2.826,
    }

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention whose queries and keys are normalised head by head."""
        return super().attention(name, layer, q_norm=self.norm("q_norm"), k_norm=self.norm("k_norm"), **published)

    def mixture(self, **published: object) -> MixtureMLP:
        """Experts chosen by sigmoids."""
        return super().mixture(scores="sigmoid", **published)
