"""OLMo 3 (OLMo Team 2025): OLMo 2's stack, three layers with a window for one without."""

from typing import Annotated

from pydantic import Field

from gptcalc.families.family import FULL, SLIDING, Layer, Windowed
from gptcalc.families.olmo2 import OLMo2
from gptcalc.parts.positions import Rotary


class OLMo3(Windowed, OLMo2):
    """transformers' `Olmo3ForCausalLM`: rules for long contexts are those of the layers without a window."""

    model_type = "olmo3"
    defaults = {**OLMo2.defaults, "rope_theta": 500_000.0, "sliding_window": 4096}

    local_rope_theta: Annotated[float | None, Field(strict=True, gt=0, allow_inf_nan=False)] = None

    def layer_type(self, index: int) -> str:
        """A window in all but every fourth layer."""
        return SLIDING if (index + 1) % 4 else FULL

    def rotary(self, layer: Layer) -> Rotary | None:
        """Plain angles in layers with a window."""
        rotary = super().rotary(layer)
        if rotary is None or layer.attention != SLIDING:
            return rotary
        return rotary.model_copy(update={"theta": self.local_rope_theta or self.rope_theta, "scaling": None})
