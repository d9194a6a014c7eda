"""GLM 4.5 and 4.6 (GLM Team 2025): mixtures after a dense first layer, half of each head rotated."""

from typing import Annotated, Any

from pydantic import Field

from gptcalc.families.family import Layer, without
from gptcalc.families.llama import Llama
from gptcalc.families.mixtures import ROUTED, Grouped
from gptcalc.parts.attention import MultiHeadAttention


class GLM4MoE(Grouped):
    """transformers' `Glm4MoeForCausalLM`; no bias on the output of attention."""

    model_type = "glm4_moe"
    huggingface = without(Llama.huggingface, "mlp_bias") | ROUTED | {"attention_bias": ("qkv_bias",)}
    defaults = {
        **Llama.defaults,
        "n_vocab": 151552,
        "n_ctx": 131072,
        "n_layers": 46,
        "n_heads": 96,
        "n_kv_heads": 8,
        "d_ff": 10944,
        "norm_eps": 1e-5,
        "rotary_fraction": 0.5,
        "n_experts": 128,
        "n_active": 8,
        "d_expert": 1408,
        "n_shared_experts": 1,
        "first_dense": 1,
        "n_groups": 1,
        "n_active_groups": 1,
    }

    use_qk_norm: Annotated[bool, Field(strict=True)] = False

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention; its queries and keys may be normalised head by head."""
        norms = {"q_norm": self.norm("q_norm"), "k_norm": self.norm("k_norm")}
        return super().attention(name, layer, **(norms if self.use_qk_norm else {}), **published)
