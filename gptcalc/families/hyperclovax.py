"""HyperCLOVA X (NAVER 2025): Granite's stack with norms after each part too; logits are multiplied."""

from typing import Annotated, Any

from pydantic import Field

from gptcalc.families.family import Layer
from gptcalc.families.granite import Granite
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.block import Block
from gptcalc.parts.embedding import Unembedding
from gptcalc.spec import AnyPart


class HyperCLOVAX(Granite):
    """transformers' `HyperCLOVAXForCausalLM`; where a file is silent, scores have the usual scale."""

    model_type = "hyperclovax"
    huggingface = dict(Granite.huggingface) | {"attention_multiplier": ("score_scale",)}
    defaults = {**Granite.defaults}

    score_scale: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = None
    use_post_norm: Annotated[bool, Field(strict=True)] = True

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention, with a scale of its own where one is given."""
        usual = self.score_scale in (None, self.heads[2] ** -0.5)
        scale = None if usual else self.score_scale
        return super().attention(name, layer, **published).model_copy(update={"scale": scale})

    def block(self, layer: Layer) -> Block:
        """Granite's layer, with a norm after each part."""
        norms = {"attention_post_norm": self.norm("post_norm1"), "mlp_post_norm": self.norm("post_norm2")}
        return super().block(layer).model_copy(update=norms if self.use_post_norm else {})

    def parts(self) -> dict[str, AnyPart | None]:
        """Multiplied token rows, and multiplied logits."""
        names = self.layout
        multiplied = Unembedding(name=names.unembedding, tied=self.tied, multiplier=self.logits_scaling)
        return {**super().parts(), "unembedding": multiplied}
