"""MiniCPM 3 (OpenBMB 2024): latent attention, scaled token rows, residuals and logits."""

from typing import Annotated

from pydantic import Field

from gptcalc.families.family import Layer
from gptcalc.families.latent import Latent
from gptcalc.families.llama import Llama
from gptcalc.parts.block import Block
from gptcalc.parts.embedding import TokenEmbedding, Unembedding
from gptcalc.spec import AnyPart, Size

Scale = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


class MiniCPM3(Latent):
    """transformers' `MiniCPM3ForCausalLM`."""

    model_type = "minicpm3"
    huggingface = Latent.huggingface | {"mlp_bias": Llama.huggingface["mlp_bias"]}
    defaults = {
        **Latent.defaults,
        "n_vocab": 73448,
        "n_ctx": 32768,
        "d_model": 2560,
        "n_layers": 62,
        "n_heads": 40,
        "n_kv_heads": 40,
        "d_ff": 6400,
        "norm_eps": 1e-5,
        "tied": True,
        "kv_rank": 256,
        "q_rank": 768,
        "d_nope": 64,
        "d_rope": 32,
        "rope_interleaved": False,
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 256,
    }

    scale_emb: Scale = 1.0
    scale_depth: Scale | None = None
    dim_model_base: Size | None = None

    def block(self, layer: Layer) -> Block:
        """Llama's layer; what is added is multiplied by `scale_depth`/√L."""
        scale = self.scale_depth / self.n_layers**0.5 if self.scale_depth else 1.0
        return super().block(layer).model_copy(update={"residual_multiplier": scale})

    def parts(self) -> dict[str, AnyPart | None]:
        """Multiplied token rows, and logits divided by the width in `dim_model_base`s."""
        names, dropout = self.layout, self.embedding_dropout
        divided = (self.dim_model_base or self.d_model) / self.d_model
        return {
            "embedding": TokenEmbedding(name=names.tokens, dropout=dropout, multiplier=self.scale_emb),
            "unembedding": Unembedding(name=names.unembedding, tied=self.tied, multiplier=divided),
        }
