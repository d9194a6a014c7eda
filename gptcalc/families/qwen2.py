"""Qwen 1.5 to 2.5 (Yang et al. 2024): Llama's stack with biases on query, key and value."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from gptcalc.families.family import FULL, SLIDING, Windowed, without
from gptcalc.families.llama import Llama
from gptcalc.spec import MOST


class Qwen2(Windowed, Llama):
    """transformers' `Qwen2ForCausalLM`; the layers from `max_window_layers` on see a window where that is asked for."""

    model_type = "qwen2"
    huggingface = without(Llama.huggingface, "attention_bias", "mlp_bias")
    defaults = {
        **Llama.defaults,
        "n_vocab": 151936,
        "n_ctx": 32768,
        "n_kv_heads": 32,
        "d_ff": 22016,
        "qkv_bias": True,
        "sliding_window": 4096,
    }

    use_sliding_window: Annotated[bool, Field(strict=True)] = False
    max_window_layers: Annotated[int, Field(strict=True, ge=0, le=MOST)] = 28

    @classmethod
    def translate(cls, values: Mapping[str, object], where: str) -> dict[str, object]:
        """As every family's; a window of 0 is what the class writes for none."""
        own = super().translate(values, where)
        if own.get("sliding_window") == 0:
            own["sliding_window"] = None
        return own

    @property
    def has_window(self) -> bool:
        """Whether a window is asked for, and there is one."""
        return self.use_sliding_window and self.sliding_window is not None

    def layer_type(self, index: int) -> str:
        """A window after the first layers."""
        return SLIDING if self.has_window and index >= self.max_window_layers else FULL
