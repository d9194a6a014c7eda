"""BitNet b1.58 (Ma et al. 2025): Llama's stack with a norm before the output layers of attention and MLP."""

from typing import Any

from gptcalc.families.family import Layer, without
from gptcalc.families.llama import Llama
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.mlp import GatedMLP, MixtureMLP


class BitNet(Llama):
    """transformers' `BitNetForCausalLM`, whose weights are numbers before they are rounded to three values."""

    model_type = "bitnet"
    huggingface = without(Llama.huggingface, "mlp_bias")
    defaults = {
        **Llama.defaults,
        "n_vocab": 128256,
        "d_model": 2560,
        "n_layers": 30,
        "n_heads": 20,
        "n_kv_heads": 5,
        "d_ff": 6912,
        "activation": "relu2",
        "norm_eps": 1e-5,
        "rope_theta": 500_000.0,
    }

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention with a norm before its output layer."""
        return super().attention(name, layer, out_norm=self.norm("attn_sub_norm"), **published)

    def mlp(self, layer: Layer) -> GatedMLP | MixtureMLP:
        """The gated MLP with a norm before its output layer."""
        return super().mlp(layer).model_copy(update={"inner_norm": self.norm("ffn_sub_norm")})
