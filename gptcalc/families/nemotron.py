"""Nemotron-4 and Minitron (Parmar et al. 2024): LayerNorms around one, squared ReLU, half of each head rotated."""

from gptcalc.families.family import Layer
from gptcalc.families.llama import Llama
from gptcalc.parts.block import Block
from gptcalc.spec import AnyPart


class Nemotron(Llama):
    """transformers' `NemotronForCausalLM`."""

    model_type = "nemotron"
    huggingface = {
        **{key: fields for key, fields in Llama.huggingface.items() if key != "rms_norm_eps"},
        "norm_eps": ("norm_eps",),
        "partial_rotary_factor": ("rotary_fraction",),
    }
    defaults = {
        **Llama.defaults,
        "n_vocab": 256000,
        "n_ctx": 4096,
        "d_model": 6144,
        "n_heads": 48,
        "d_ff": 24576,
        "activation": "relu2",
        "norm_bias": True,
        "norm_eps": 1e-5,
        "rotary_fraction": 0.5,
    }

    def norm(self, name: str) -> AnyPart:
        """A LayerNorm whose gain is 1 + weight."""
        return self.layer_norm(name).model_copy(update={"unit_offset": True})

    def block(self, layer: Layer) -> Block:
        """Llama's layer with an MLP of two layers."""
        return super().block(layer).model_copy(update={"mlp": self.dense_mlp("mlp", "up_proj", "down_proj")})
