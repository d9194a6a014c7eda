"""dots.llm1 (rednote-hilab 2025): mixtures by sigmoids, norms of query and key."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from gptcalc.families.family import FULL, SLIDING, Layer, Windowed, without
from gptcalc.families.llama import Llama
from gptcalc.families.mixtures import ROUTED, Grouped
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.spec import MOST


class Dots1(Grouped, Windowed, Llama):
    """transformers' `Dots1ForCausalLM`; the layers from `max_window_layers` on see a window."""

    model_type = "dots1"
    huggingface = without(Llama.huggingface, "mlp_bias") | ROUTED
    plain: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "moe_layer_freq": (1,),
        "scoring_func": ("sigmoid", "noaux_tc"),
    }
    defaults = {
        **Llama.defaults,
        "n_vocab": 152064,
        "d_model": 4608,
        "n_layers": 62,
        "n_kv_heads": 32,
        "d_ff": 10944,
        "d_expert": 1408,
        "normalised": False,
        "n_groups": 1,
        "n_active_groups": 1,
        "sliding_window": 4096,
    }

    max_window_layers: Annotated[int, Field(strict=True, ge=0, le=MOST)] = 62

    def layer_type(self, index: int) -> str:
        """A window after the first layers."""
        return SLIDING if self.sliding_window and index >= self.max_window_layers else FULL

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention whose queries and keys are normalised head by head."""
        return super().attention(name, layer, q_norm=self.norm("q_norm"), k_norm=self.norm("k_norm"), **published)
