"""Qwen 3 (Yang et al. 2025): Qwen 2's stack without biases, with norms of query and key."""

from typing import Any

from gptcalc.families.family import Layer
from gptcalc.families.llama import Llama
from gptcalc.families.qwen2 import Qwen2
from gptcalc.parts.attention import MultiHeadAttention


class Qwen3(Qwen2):
    """transformers' `Qwen3ForCausalLM`."""

    model_type = "qwen3"
    huggingface = Qwen2.huggingface | {"attention_bias": Llama.huggingface["attention_bias"]}
    defaults = {**Qwen2.defaults, "qkv_bias": None, "d_head": 128}

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention whose queries and keys are normalised head by head."""
        return super().attention(name, layer, q_norm=self.norm("q_norm"), k_norm=self.norm("k_norm"), **published)
