"""SmolLM 3 (Hugging Face 2025): Llama's stack in which every fourth layer does not rotate."""

from typing import Annotated

from pydantic import Field

from gptcalc.families.family import FULL, SLIDING
from gptcalc.families.llama import Llama
from gptcalc.families.rotated import PartlyRotated


class SmolLM3(PartlyRotated, Llama):
    """transformers' `SmolLM3ForCausalLM`; a window, where one is asked for, is that of the layers without rotations."""

    model_type = "smollm3"
    ignored = frozenset({"max_window_layers"})
    defaults = {
        **Llama.defaults,
        "n_vocab": 128256,
        "n_ctx": 32768,
        "d_model": 2048,
        "n_layers": 36,
        "n_heads": 16,
        "n_kv_heads": 4,
        "rope_theta": 2_000_000.0,
        "tied": True,
    }

    use_sliding_window: Annotated[bool, Field(strict=True)] = False

    def layer_type(self, index: int) -> str:
        """A window where there are no rotations."""
        return SLIDING if self.use_sliding_window and self.sliding_window and not self.rotates(index) else FULL
