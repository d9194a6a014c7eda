"""Granite 3 (IBM 2024): Llama's stack with four multipliers."""

from typing import Annotated, Any

from pydantic import Field

from gptcalc.families.family import Layer
from gptcalc.families.llama import Llama
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.block import Block
from gptcalc.parts.embedding import TokenEmbedding, Unembedding
from gptcalc.spec import AnyPart

Multiplier = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Granite(Llama):
    """transformers' `GraniteForCausalLM`: it multiplies token rows, scores and what is added, and divides logits."""

    model_type = "granite"
    embedding_multiplier: Multiplier = 1.0
    attention_multiplier: Multiplier = 1.0
    residual_multiplier: Multiplier = 1.0
    logits_scaling: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 1.0

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention with a scale of its own."""
        return super().attention(name, layer, scale=self.attention_multiplier, **published)

    def block(self, layer: Layer) -> Block:
        """Llama's layer; what is added is multiplied."""
        return super().block(layer).model_copy(update={"residual_multiplier": self.residual_multiplier})

    def parts(self) -> dict[str, AnyPart | None]:
        """Multiplied token rows, and divided logits."""
        names = self.layout
        dropout, multiplier = self.embedding_dropout, self.embedding_multiplier
        return {
            "embedding": TokenEmbedding(name=names.tokens, dropout=dropout, multiplier=multiplier),
            "unembedding": Unembedding(name=names.unembedding, tied=self.tied, multiplier=1 / self.logits_scaling),
        }
