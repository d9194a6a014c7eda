"""Jais 2 (Inception 2025): a dense MLP with squared ReLU, LayerNorms, biases."""

from gptcalc.families.arcee import Arcee
from gptcalc.families.family import without
from gptcalc.families.llama import Llama
from gptcalc.parts.norm import LayerNorm


class Jais2(Arcee):
    """transformers' `Jais2ForCausalLM`."""

    model_type = "jais2"
    huggingface = without(Llama.huggingface, "rms_norm_eps") | {"layer_norm_eps": ("norm_eps",)}
    defaults = {
        **Arcee.defaults,
        "n_vocab": 150272,
        "n_ctx": 8192,
        "d_model": 3328,
        "n_heads": 26,
        "d_ff": 26624,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
    }

    def norm(self, name: str) -> LayerNorm:
        """A LayerNorm."""
        return LayerNorm(name=name, eps=self.norm_eps)
