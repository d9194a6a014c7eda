"""GPT-1 (Radford et al. 2018): norms after the residual adds, none at the end."""

from gptcalc.families.gpt2 import GPT2
from gptcalc.parts.block import Block
from gptcalc.parts.embedding import TokenEmbedding
from gptcalc.spec import Spec


class GPT1(GPT2):
    """transformers' `OpenAIGPTLMHeadModel`; its `afn` "gelu" is the tanh approximation (`gelu_new`)."""

    model_type = "openai-gpt"
    huggingface = {
        key: fields for key, fields in GPT2.huggingface.items() if key not in ("n_inner", "activation_function")
    } | {"afn": ("activation",)}
    defaults = {**GPT2.defaults, "n_vocab": 40478, "n_ctx": 512, "activation": "gelu"}

    def spec(self) -> Spec:
        """GPT-2's stack with GPT-1's names and without the final norm."""
        return (
            super()
            .spec()
            .model_copy(
                update={
                    "embedding": TokenEmbedding(name="tokens_embed", dropout=self.embedding_dropout),
                    "positions": self.position_part("positions_embed"),
                    "final_norm": None,
                }
            )
        )

    def block(self) -> Block:
        """GPT-2's layer in post-norm order."""
        block = super().block()
        mlp = block.mlp.model_copy(update={"activation": {"gelu": "gelu_new"}.get(self.activation, self.activation)})
        return block.model_copy(update={"order": "post", "mlp": mlp})
