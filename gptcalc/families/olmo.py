"""OLMo (Groeneveld et al. 2024): Llama's stack with norms that learn nothing."""

from typing import Annotated

from pydantic import Field

from gptcalc.families.family import Layer
from gptcalc.families.llama import Llama
from gptcalc.parts.block import Block
from gptcalc.parts.norm import LayerNorm
from gptcalc.spec import AnyPart


class OLMo(Llama):
    """transformers' `OlmoForCausalLM`; its ε is always 1e-5."""

    model_type = "olmo"
    huggingface = {
        **{key: fields for key, fields in Llama.huggingface.items() if key not in ("mlp_bias", "rms_norm_eps")},
        "clip_qkv": ("clip_qkv",),
    }
    defaults = {**Llama.defaults, "n_vocab": 50304, "norm_eps": 1e-5}

    clip_qkv: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] | None = None

    def norm(self, name: str) -> AnyPart:
        """A LayerNorm without weights."""
        return LayerNorm(name=name, eps=self.norm_eps, learned=False)

    def block(self, layer: Layer) -> Block:
        """Llama's layer; query, key and value may be clipped."""
        attention = self.attention("self_attn", layer, clip=self.clip_qkv)
        return super().block(layer).model_copy(update={"attention": attention})
