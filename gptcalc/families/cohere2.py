"""Command R7B and A (Cohere 2024): three layers with a window and rotations for one without either."""

from collections.abc import Iterable, Mapping
from typing import ClassVar

from gptcalc.families.cohere import Cohere
from gptcalc.families.family import FULL, SLIDING, Layer, Windowed, without
from gptcalc.spec import Layers


class Cohere2(Windowed, Cohere):
    """transformers' `Cohere2ForCausalLM`, whose heads have size D/N."""

    model_type = "cohere2"
    huggingface = without(Cohere.huggingface, "head_dim") | {"sliding_window_pattern": ("window_period",)}
    ignored: ClassVar[frozenset[str]] = frozenset({"cache_implementation", "head_dim"})
    plain: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "layer_switch": (4,),
        "order_of_interleaved_layers": ("local_attn_first",),
        "position_embedding_type": ("rope_gptj",),
        "rotary_pct": (1,),
        "use_embedding_sharing": (True,),
        "use_gated_activation": (True,),
        "use_parallel_block": (True,),
        "use_parallel_embedding": (False,),
    }
    defaults = {**Cohere.defaults, "rope_theta": 10_000.0, "sliding_window": 4096}

    window_period: Layers = 4

    def layer_type(self, index: int) -> str:
        """A window in all but every fourth layer."""
        return SLIDING if (index + 1) % self.window_period else FULL

    def layers(self) -> Iterable[Layer]:
        """Rotations where there is a window."""
        return (layer._replace(rotary=layer.attention == SLIDING) for layer in super().layers())
