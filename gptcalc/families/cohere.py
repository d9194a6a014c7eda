"""Command R (Cohere 2024): attention and a gated MLP side by side, LayerNorms without shifts, multiplied logits."""

from typing import Annotated, Any

from pydantic import Field

from gptcalc.families.family import Layer, without
from gptcalc.families.llama import Llama
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.block import Block
from gptcalc.parts.embedding import Unembedding
from gptcalc.parts.norm import LayerNorm, RMSNorm
from gptcalc.spec import AnyPart


class Cohere(Llama):
    """transformers' `CohereForCausalLM`."""

    model_type = "cohere"
    interleaved = True
    huggingface = without(Llama.huggingface, "mlp_bias", "rms_norm_eps") | {"layer_norm_eps": ("norm_eps",)}
    defaults = {
        **Llama.defaults,
        "n_vocab": 256000,
        "n_ctx": 8192,
        "d_model": 8192,
        "n_layers": 40,
        "n_heads": 64,
        "d_ff": 22528,
        "norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tied": True,
    }

    logit_scale: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 0.0625
    use_qk_norm: Annotated[bool, Field(strict=True)] = False

    def norm(self, name: str) -> LayerNorm | RMSNorm:
        """A LayerNorm without shifts."""
        return LayerNorm(name=name, eps=self.norm_eps, bias=False)

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention; its queries and keys may be normalised, with gains for each head."""
        norms = {"q_norm": self.norm("q_norm"), "k_norm": self.norm("k_norm"), "norm_over": "heads"}
        return super().attention(name, layer, **(norms if self.use_qk_norm else {}), **published)

    def block(self, layer: Layer) -> Block:
        """Norm; attention and MLP of the same; add."""
        return Block(
            order="parallel",
            attention_norm=self.norm("input_layernorm"),
            attention=self.mixer(layer),
            mlp_norm=None,
            mlp=self.mlp(layer),
        )

    def parts(self) -> dict[str, AnyPart | None]:
        """Multiplied logits."""
        return {
            "unembedding": Unembedding(name=self.layout.unembedding, tied=self.tied, multiplier=self.logit_scale),
        }
