"""Mellum 2 (JetBrains 2026): Qwen 3's mixtures, of which some layers have a window and angles of their own."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from gptcalc.families.family import FULL, SLIDING, Layer, Windowed, without
from gptcalc.families.llama import Llama
from gptcalc.families.mixtures import UNROUTED, Mixture
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.positions import Rotary


class Mellum(Mixture, Windowed, Llama):
    """transformers' `MellumForCausalLM`; it has no layers that predict further tokens."""

    model_type = "mellum"
    ignored: ClassVar[frozenset[str]] = UNROUTED | {"mtp_layer_types", "mtp_mlp_layer_types"}
    huggingface = without(Llama.huggingface, "mlp_bias") | {
        "num_experts": ("n_experts",),
        "num_local_experts": ("n_experts",),
        "num_experts_per_tok": ("n_active",),
        "moe_intermediate_size": ("d_expert",),
        "norm_topk_prob": ("normalised",),
    }
    defaults = {
        **Llama.defaults,
        "n_vocab": 98304,
        "n_ctx": 131072,
        "d_model": 2304,
        "n_layers": 28,
        "n_kv_heads": 4,
        "d_head": 128,
        "d_ff": 7168,
        "rope_theta": 500_000.0,
        "local_rope_theta": 10_000.0,
        "sliding_window": 1024,
        "n_experts": 64,
        "n_active": 8,
        "d_expert": 896,
    }

    local_rope_theta: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]

    def layer_type(self, index: int) -> str:
        """All tokens, where the file does not say."""
        return FULL

    def rotary(self, layer: Layer) -> Rotary | None:
        """Plain local angles in layers with a window."""
        rotary = super().rotary(layer)
        if rotary is None or layer.attention != SLIDING:
            return rotary
        return rotary.model_copy(update={"theta": self.local_rope_theta, "scaling": None})

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention whose queries and keys are normalised head by head."""
        return super().attention(name, layer, q_norm=self.norm("q_norm"), k_norm=self.norm("k_norm"), **published)
