"""Gemma 3 (Gemma Team 2025): five layers with a window for one without, norms of query and key."""

from typing import Annotated, Any

from pydantic import Field

from gptcalc.families.family import FULL, SLIDING, Layer
from gptcalc.families.gemma2 import Gemma2
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.positions import Rotary
from gptcalc.spec import Layers


class Gemma3(Gemma2):
    """transformers' `Gemma3ForCausalLM`: layers with a window rotate by angles of their own."""

    model_type = "gemma3_text"
    huggingface = Gemma2.huggingface | {
        "rope_local_base_freq": ("local_rope_theta",),
        "sliding_window_pattern": ("window_period",),
    }
    defaults = {
        **Gemma2.defaults,
        "n_vocab": 262208,
        "n_ctx": 131072,
        "rope_theta": 1_000_000.0,
        "local_rope_theta": 10_000.0,
        "scores_softcap": None,
        "logits_softcap": None,
    }

    local_rope_theta: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
    window_period: Layers = 6

    def layer_type(self, index: int) -> str:
        """A window in all but every sixth layer."""
        return SLIDING if (index + 1) % self.window_period else FULL

    def rotary(self, layer: Layer) -> Rotary | None:
        """Plain local angles in layers with a window."""
        rotary = super().rotary(layer)
        if rotary is None or layer.attention != SLIDING:
            return rotary
        return rotary.model_copy(update={"theta": self.local_rope_theta, "scaling": None})

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention whose queries and keys are normalised head by head."""
        return super().attention(name, layer, q_norm=self.norm("q_norm"), k_norm=self.norm("k_norm"), **published)
