"""GPT-1 (Radford et al. 2018): norms after the residual adds, none at the end."""

from gptcalc.families.family import Layer
from gptcalc.families.gpt2 import GPT2
from gptcalc.parts.block import Block


class GPT1(GPT2):
    """transformers' `OpenAIGPTLMHeadModel`; its `afn` "gelu" is the tanh approximation (`gelu_new`)."""

    model_type = "openai-gpt"
    huggingface = {
        key: fields for key, fields in GPT2.huggingface.items() if key not in ("n_inner", "activation_function")
    } | {"afn": ("activation",)}
    layout = GPT2.layout._replace(tokens="tokens_embed", positions="positions_embed", final_norm="")
    defaults = {**GPT2.defaults, "n_vocab": 40478, "n_ctx": 512, "activation": "gelu"}

    def block(self, layer: Layer) -> Block:
        """GPT-2's layer in post-norm order."""
        block = super().block(layer)
        mlp = block.mlp.model_copy(update={"activation": {"gelu": "gelu_new"}.get(self.activation, self.activation)})
        return block.model_copy(update={"order": "post", "mlp": mlp})
