"""OLMo 2 (OLMo Team 2025): norms after each part alone, and over all queries and all keys."""

from typing import Any

from gptcalc.families.family import Layer, without
from gptcalc.families.llama import Llama
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.block import Block


class OLMo2(Llama):
    """transformers' `Olmo2ForCausalLM`."""

    model_type = "olmo2"
    huggingface = without(Llama.huggingface, "mlp_bias")
    defaults = {**Llama.defaults, "n_vocab": 50304, "norm_eps": 1e-5}

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention whose queries are normalised together, and so are its keys."""
        norms = {"q_norm": self.norm("q_norm"), "k_norm": self.norm("k_norm"), "norm_over": "all"}
        return super().attention(name, layer, **norms, **published)

    def block(self, layer: Layer) -> Block:
        """Attention, norm, add; MLP, norm, add."""
        return Block(
            attention_norm=None,
            attention=self.mixer(layer),
            attention_post_norm=self.norm("post_attention_layernorm"),
            mlp_norm=None,
            mlp=self.mlp(layer),
            mlp_post_norm=self.norm("post_feedforward_layernorm"),
        )
