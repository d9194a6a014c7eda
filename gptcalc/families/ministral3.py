"""Ministral 3 (Mistral AI 2025): Mistral's stack without a window, whose scores grow sharper with the position."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from gptcalc.families.family import ROPE, Layer
from gptcalc.families.mistral import Mistral
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.spec import Size


class Ministral3(Mistral):
    """transformers' `Ministral3ForCausalLM`."""

    model_type = "ministral3"
    defaults = {
        **Mistral.defaults,
        "n_vocab": 131072,
        "n_ctx": 262144,
        "n_layers": 34,
        "d_head": 128,
        "norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "rope_scaling": "yarn",
        "sliding_window": None,
        "tempered": 0.1,
        "tempered_from": 16384,
    }

    tempered: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
    tempered_from: Size

    @classmethod
    def translate(cls, values: Mapping[str, object], where: str) -> dict[str, object]:
        """As every family's; how scores grow stands among the rotary parameters."""
        own = super().translate(values, where)
        rope = next((rope for key in ROPE if isinstance(rope := values.get(key), Mapping)), {})
        names = {"llama_4_scaling_beta": "tempered", "original_max_position_embeddings": "tempered_from"}
        return {field: rope[key] for key, field in names.items() if rope.get(key) is not None} | own

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention whose queries grow with the logarithm of their position."""
        grown = {"tempered": self.tempered, "tempered_from": self.tempered_from} if self.tempered else {}
        return super().attention(name, layer, **grown, **published)
