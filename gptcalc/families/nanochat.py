"""nanochat (Karpathy 2025): norms that learn nothing, also on token rows, query and key; squared ReLU."""

from typing import Annotated

from pydantic import Field

from gptcalc.families.family import Layer
from gptcalc.families.llama import Llama
from gptcalc.parts.block import Block
from gptcalc.parts.embedding import Unembedding
from gptcalc.parts.norm import RMSNorm
from gptcalc.spec import AnyPart


class NanoChat(Llama):
    """transformers' `NanoChatForCausalLM`; query and key are normalised after the rotation."""

    model_type = "nanochat"
    backwards = True
    huggingface = {
        **{key: fields for key, fields in Llama.huggingface.items() if key != "mlp_bias"},
        "final_logit_softcapping": ("logit_softcap",),
    }
    defaults = {
        **Llama.defaults,
        "n_vocab": 50304,
        "d_model": 768,
        "n_layers": 12,
        "n_heads": 6,
        "d_ff": 8192,
        "activation": "relu2",
        "logit_softcap": 15.0,
    }

    logit_softcap: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] | None = None

    def norm(self, name: str) -> RMSNorm:
        """An RMSNorm without weight."""
        return RMSNorm(name=name, eps=self.norm_eps, learned=False)

    def block(self, layer: Layer) -> Block:
        """Llama's order, with an MLP of two layers."""
        norms = {"q_norm": self.norm("q_norm"), "k_norm": self.norm("k_norm"), "norm_after_rotary": True}
        return Block(
            attention_norm=self.norm("input_layernorm"),
            attention=self.attention("self_attn", layer, **norms),
            mlp_norm=self.norm("post_attention_layernorm"),
            mlp=self.dense_mlp("mlp", "fc1", "fc2"),
        )

    def parts(self) -> dict[str, AnyPart | None]:
        """A norm on the token rows (the class runs its last norm there too), and bounded scores."""
        return {
            "embedding_norm": self.norm("embed_norm"),
            "unembedding": Unembedding(
                name=self.layout.unembedding,
                tied=self.tied,
                bias=self.unembedding_bias,
                softcap=self.logit_softcap,
            ),
        }
