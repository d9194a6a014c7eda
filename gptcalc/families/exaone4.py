"""EXAONE 4 (LG AI Research 2025): norms after each part alone and of heads, rotations where there is a window."""

from collections.abc import Iterable, Mapping
from typing import Any

from gptcalc.families.family import FULL, SLIDING, Layer, Windowed, without
from gptcalc.families.olmo2 import OLMo2
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.spec import Layers


class EXAONE4(Windowed, OLMo2):
    """transformers' `Exaone4ForCausalLM`."""

    model_type = "exaone4"
    huggingface = without(OLMo2.huggingface, "attention_bias") | {"sliding_window_pattern": ("window_period",)}
    defaults = {
        **OLMo2.defaults,
        "n_vocab": 102400,
        "d_ff": 16384,
        "n_kv_heads": 32,
        "sliding_window": 4096,
    }

    window_period: Layers = 4

    @classmethod
    def translate(cls, values: Mapping[str, object], where: str) -> dict[str, object]:
        """As every family's; a pattern may be spelled (`LLLG`), and is 0 where there is no window."""
        own = super().translate(values, where)
        period = own.get("window_period")
        if isinstance(period, str):
            own["window_period"] = len(period)
        elif period == 0:
            del own["window_period"]
        return own

    def layer_type(self, index: int) -> str:
        """A window in all but every fourth layer."""
        return SLIDING if self.sliding_window and (index + 1) % self.window_period else FULL

    def layers(self) -> Iterable[Layer]:
        """Rotations where there is a window, and everywhere where there is none."""
        everywhere = self.sliding_window is None
        return (layer._replace(rotary=everywhere or layer.attention == SLIDING) for layer in super().layers())

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention whose queries and keys are normalised head by head."""
        norms = {"q_norm": self.norm("q_norm"), "k_norm": self.norm("k_norm")}
        attention: MultiHeadAttention = super(OLMo2, self).attention(name, layer, **norms, **published)
        seen = {"window": self.sliding_window} if layer.attention == SLIDING else {}
        return attention.model_copy(update=seen)
