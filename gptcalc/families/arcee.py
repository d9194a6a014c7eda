"""AFM (Arcee 2025): Llama's stack with a dense MLP and squared ReLU."""

from gptcalc.families.family import Layer
from gptcalc.families.llama import Llama
from gptcalc.parts.block import Block
from gptcalc.parts.mlp import DenseMLP


class Arcee(Llama):
    """transformers' `ArceeForCausalLM`."""

    model_type = "arcee"
    defaults = {
        **Llama.defaults,
        "n_ctx": 4096,
        "d_model": 2560,
        "d_ff": 18432,
        "activation": "relu2",
        "norm_eps": 1e-5,
    }

    def block(self, layer: Layer) -> Block:
        """Norm, attention, add; norm, dense MLP, add."""
        return Block(
            attention_norm=self.norm("input_layernorm"),
            attention=self.mixer(layer),
            mlp_norm=self.norm("post_attention_layernorm"),
            mlp=DenseMLP(
                name="mlp",
                d_ff=self.width_ff,
                activation=self.activation,
                bias=self.has_bias("mlp_bias"),
                dropout=self.residual_dropout,
            ),
        )
