"""A.X K1 (SK Telecom 2026): DeepSeek V3's stack with a norm after each mixture."""

from typing import ClassVar

from gptcalc.families.deepseek_v3 import DeepSeekV3
from gptcalc.families.family import Layer
from gptcalc.parts.block import Block


class AXK1(DeepSeekV3):
    """transformers' `AXK1ForCausalLM`, whose mixture holds the norm."""

    model_type = "axk1"
    ignored: ClassVar[frozenset[str]] = DeepSeekV3.ignored
    defaults = {
        **DeepSeekV3.defaults,
        "n_vocab": 163840,
        "n_ctx": 32768,
        "n_heads": 64,
        "n_kv_heads": 64,
        "n_experts": 192,
        "first_dense": 1,
    }

    def block(self, layer: Layer) -> Block:
        """DeepSeek's layer, with the norm where its MLP is a mixture."""
        norm = self.norm("mlp.post_mlp_layernorm") if layer.mlp == "mixture" else None
        return super().block(layer).model_copy(update={"mlp_post_norm": norm})
