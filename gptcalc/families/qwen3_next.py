"""Qwen 3 Next (Qwen Team 2025): three layers of linear attention for one of gated attention, mixtures in all."""

from typing import Any, ClassVar

from gptcalc.families.family import FULL, LINEAR, Layer, Windowed, without
from gptcalc.families.llama import Llama
from gptcalc.families.mixtures import Mixture
from gptcalc.families.qwen2_moe import Qwen2MoE
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.delta import GatedDeltaNet
from gptcalc.parts.norm import RMSNorm
from gptcalc.spec import AnyPart, Layers, Size


class Hybrid(Windowed, Llama):
    """A stack of which three layers in four have linear attention, and the others gated attention."""

    kinds_allowed: ClassVar[tuple[str, ...]] = (FULL, LINEAR)
    huggingface = without(Llama.huggingface, "mlp_bias") | {
        "linear_num_key_heads": ("n_linear_key_heads",),
        "linear_num_value_heads": ("n_linear_value_heads",),
        "linear_key_head_dim": ("d_linear_key",),
        "linear_value_head_dim": ("d_linear_value",),
        "linear_conv_kernel_dim": ("linear_kernel",),
    }
    defaults = {
        **Llama.defaults,
        "n_ctx": 32768,
        "n_heads": 16,
        "d_head": 256,
        "rotary_fraction": 0.25,
        "n_linear_key_heads": 16,
        "n_linear_value_heads": 32,
        "d_linear_key": 128,
        "d_linear_value": 128,
        "linear_kernel": 4,
    }

    full_attention_interval: Layers = 4
    n_linear_key_heads: Size
    n_linear_value_heads: Size
    d_linear_key: Size
    d_linear_value: Size
    linear_kernel: Size

    def layer_type(self, index: int) -> str:
        """Linear in all but every fourth layer."""
        return LINEAR if (index + 1) % self.full_attention_interval else FULL

    def norm(self, name: str) -> RMSNorm:
        """An RMSNorm whose weight is what its gain adds to 1."""
        return RMSNorm(name=name, eps=self.norm_eps, unit_offset=True)

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Gated attention whose queries and keys are normalised head by head."""
        norms = {"q_norm": self.norm("q_norm"), "k_norm": self.norm("k_norm")}
        return super().attention(name, layer, gated=True, **norms, **published)

    def mixer(self, layer: Layer) -> AnyPart:
        """Linear attention, or attention."""
        return self.linear_attention() if layer.attention == LINEAR else super().mixer(layer)

    def linear_attention(self) -> GatedDeltaNet:
        """A gated delta rule."""
        return GatedDeltaNet(
            name="linear_attn",
            n_key_heads=self.n_linear_key_heads,
            n_value_heads=self.n_linear_value_heads,
            d_key=self.d_linear_key,
            d_value=self.d_linear_value,
            kernel=self.linear_kernel,
            norm_eps=self.norm_eps,
        )


class Qwen3Next(Mixture, Hybrid):
    """transformers' `Qwen3NextForCausalLM`."""

    model_type = "qwen3_next"
    names_of_mixture = Qwen2MoE.names_of_mixture
    huggingface = without(Qwen2MoE.huggingface, "qkv_bias") | Hybrid.huggingface
    defaults = {
        **Hybrid.defaults,
        "n_vocab": 151936,
        "d_model": 2048,
        "n_layers": 48,
        "n_kv_heads": 2,
        "d_ff": 5632,
        "n_experts": 512,
        "n_active": 10,
        "d_expert": 512,
        "d_shared": 512,
        "normalised": True,
    }
