"""Hunyuan's dense models (Tencent 2025): Llama's stack with norms of query and key after the rotation."""

from typing import Any

from gptcalc.families.family import Layer, without
from gptcalc.families.llama import Llama
from gptcalc.parts.attention import MultiHeadAttention


class HunyuanDense(Llama):
    """transformers' `HunYuanDenseV1ForCausalLM`."""

    model_type = "hunyuan_v1_dense"
    huggingface = without(Llama.huggingface, "mlp_bias")
    ignored = frozenset({"eod_token_id"})
    defaults = {**Llama.defaults, "n_vocab": 290943, "norm_eps": 1e-5}

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention whose rotated queries and keys are normalised head by head."""
        norms = {"q_norm": self.norm("query_layernorm"), "k_norm": self.norm("key_layernorm")}
        return super().attention(name, layer, norm_after_rotary=True, **norms, **published)
