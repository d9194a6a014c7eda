"""Helium (Kyutai 2025): Llama's stack, rotated in pairs."""

from typing import Any

from gptcalc.errors import InvalidValueError
from gptcalc.families.family import Layer
from gptcalc.families.llama import Llama
from gptcalc.parts.attention import MultiHeadAttention


class Helium(Llama):
    """transformers' `HeliumForCausalLM`, whose heads together are as wide as the model."""

    model_type = "helium"
    interleaved = True
    huggingface = dict(Llama.huggingface) | {"attention_bias": ("qkv_bias",)}
    defaults = {
        **Llama.defaults,
        "n_vocab": 48000,
        "n_ctx": 4096,
        "d_model": 2560,
        "n_layers": 24,
        "n_heads": 20,
        "n_kv_heads": 20,
        "d_head": 128,
        "d_ff": 7040,
        "norm_eps": 1e-8,
        "rope_theta": 100_000.0,
    }

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention; its output layer is square."""
        n_heads, _, d_head = self.heads
        if n_heads * d_head != self.d_model:
            raise InvalidValueError(
                f"d_head: read {d_head}; allowed: n_heads·d_head = d_model ({n_heads}·{d_head} is not {self.d_model})"
            )
        return super().attention(name, layer, **published)
