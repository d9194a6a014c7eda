"""GLM 4 (Team GLM 2024): biases on query, key and value, half of each head rotated in pairs, a fused gated MLP."""

from gptcalc.families.family import Layer, without
from gptcalc.families.llama import Llama
from gptcalc.parts.mlp import GatedMLP, MixtureMLP


class GLM(Llama):
    """transformers' `GlmForCausalLM`."""

    model_type = "glm"
    interleaved = True
    huggingface = without(Llama.huggingface, "mlp_bias") | {"attention_bias": ("qkv_bias",)}
    defaults = {
        **Llama.defaults,
        "n_vocab": 151552,
        "n_ctx": 131072,
        "n_layers": 40,
        "n_kv_heads": 2,
        "d_head": 128,
        "d_ff": 13696,
        "norm_eps": 1.5625e-07,
        "rotary_fraction": 0.5,
        "qkv_bias": True,
    }

    def mlp(self, layer: Layer) -> GatedMLP | MixtureMLP:
        """The gated MLP, gate and up in one layer."""
        return super().mlp(layer).model_copy(update={"fused_name": "gate_up_proj"})
