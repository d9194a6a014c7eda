"""OLMoE (Muennighoff et al. 2024): Llama's stack with mixtures in all layers, norms over all queries and all keys."""

from typing import Annotated, Any

from pydantic import Field

from gptcalc.families.family import Layer, without
from gptcalc.families.llama import Llama
from gptcalc.families.mixtures import Mixture
from gptcalc.parts.attention import MultiHeadAttention


class OLMoE(Mixture):
    """transformers' `OlmoeForCausalLM`, whose heads have size D/N."""

    model_type = "olmoe"
    huggingface = without(Llama.huggingface, "mlp_bias", "head_dim") | {
        "num_experts": ("n_experts",),
        "num_local_experts": ("n_experts",),
        "num_experts_per_tok": ("n_active",),
        "norm_topk_prob": ("normalised",),
        "clip_qkv": ("clip",),
    }
    defaults = {
        **Llama.defaults,
        "n_vocab": 50304,
        "n_ctx": 4096,
        "d_model": 2048,
        "n_layers": 16,
        "n_heads": 16,
        "d_ff": 2048,
        "norm_eps": 1e-5,
        "n_experts": 64,
        "n_active": 8,
        "normalised": False,
    }

    clip: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] | None = None

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention whose queries are normalised together, and so are its keys; then all may be bounded."""
        norms = {"q_norm": self.norm("q_norm"), "k_norm": self.norm("k_norm"), "norm_over": "all"}
        return super().attention(name, layer, clip=self.clip, **norms, **published)
