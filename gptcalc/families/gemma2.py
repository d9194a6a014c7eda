"""Gemma 2 (Gemma Team 2024): norms before and after each part, windows in every other layer, bounded scores."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from gptcalc.families.family import FULL, SLIDING, Layer, Windowed, without
from gptcalc.families.gemma import Gemma
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.block import Block
from gptcalc.parts.embedding import Unembedding
from gptcalc.spec import AnyPart

Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


class Gemma2(Windowed, Gemma):
    """transformers' `Gemma2ForCausalLM`."""

    model_type = "gemma2"
    huggingface = without(Gemma.huggingface, "hidden_act") | {
        "hidden_activation": ("activation",),
        "query_pre_attn_scalar": ("query_scalar",),
        "attn_logit_softcapping": ("scores_softcap",),
        "final_logit_softcapping": ("logits_softcap",),
    }
    ignored: ClassVar[frozenset[str]] = frozenset({"hidden_act", "cache_implementation"})
    defaults = {
        **Gemma.defaults,
        "d_model": 2304,
        "n_layers": 26,
        "n_heads": 8,
        "n_kv_heads": 4,
        "d_ff": 9216,
        "sliding_window": 4096,
        "query_scalar": 256,
        "scores_softcap": 50.0,
        "logits_softcap": 30.0,
    }

    #: Scores are divided by its square root.
    query_scalar: Positive | None = None
    scores_softcap: Positive | None = None
    logits_softcap: Positive | None = None

    @classmethod
    def translate(cls, values: Mapping[str, object], where: str) -> dict[str, object]:
        """As Llama's: this class takes `gelu` at its word."""
        return super(Gemma, cls).translate(values, where)

    def layer_type(self, index: int) -> str:
        """A window in the first layer, and in every second one from there."""
        return FULL if index % 2 else SLIDING

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention with a scale of its own, and bounded scores."""
        usual = self.query_scalar in (None, self.heads[2])
        scale = None if usual else (self.query_scalar or 1.0) ** -0.5
        return super().attention(name, layer, scale=scale, softcap=self.scores_softcap, **published)

    def block(self, layer: Layer) -> Block:
        """Norm, attention, norm, add; norm, MLP, norm, add."""
        return Block(
            attention_norm=self.norm("input_layernorm"),
            attention=self.mixer(layer),
            attention_post_norm=self.norm("post_attention_layernorm"),
            mlp_norm=self.norm("pre_feedforward_layernorm"),
            mlp=self.mlp(layer),
            mlp_post_norm=self.norm("post_feedforward_layernorm"),
        )

    def parts(self) -> dict[str, AnyPart | None]:
        """Scaled token rows, and bounded logits."""
        bounded = Unembedding(name=self.layout.unembedding, tied=self.tied, softcap=self.logits_softcap)
        return {**super().parts(), "unembedding": bounded}
