"""Phi-1 to Phi-2 (Gunasekar et al. 2023; Microsoft 2023): attention and MLP read one norm, biases everywhere."""

from gptcalc.errors import InvalidValueError
from gptcalc.families.family import Family, Layer
from gptcalc.families.llama import Llama
from gptcalc.parts.block import Block
from gptcalc.parts.norm import LayerNorm
from gptcalc.spec import Flag


class Phi(Family):
    """transformers' `PhiForCausalLM`; half of each head is rotated where a file does not say how much."""

    model_type = "phi"
    huggingface = {
        **{key: fields for key, fields in Llama.huggingface.items() if not key.endswith(("_bias", "_eps"))},
        "layer_norm_eps": ("norm_eps",),
        "embd_pdrop": ("embedding_dropout",),
        "resid_pdrop": ("residual_dropout",),
        "partial_rotary_factor": ("rotary_fraction",),
        "qk_layernorm": ("qk_layernorm",),
    }
    nested = Llama.nested
    layout = Llama.layout._replace(final_norm="final_layernorm")
    defaults = {
        "n_vocab": 51200,
        "n_ctx": 2048,
        "d_model": 2048,
        "n_layers": 24,
        "n_heads": 32,
        "d_ff": 8192,
        "activation": "gelu_new",
        "tied": False,
        "positions": "rotary",
        "bias": True,
        "unembedding_bias": True,
        "norm_eps": 1e-5,
        "rotary_fraction": 0.5,
        "qk_layernorm": False,
    }

    qk_layernorm: Flag

    def norm(self, name: str) -> LayerNorm:
        """A LayerNorm."""
        return self.layer_norm(name)

    def block(self, layer: Layer) -> Block:
        """One norm, read by attention and MLP; both are added."""
        n_heads, _, d_head = self.heads
        if self.qk_layernorm and n_heads * d_head != self.d_model:
            raise InvalidValueError(f"d_head: read {d_head}; allowed with qk_layernorm: d_model/n_heads")
        norms = {"q_norm": self.norm("q_layernorm"), "k_norm": self.norm("k_layernorm")} if self.qk_layernorm else {}
        return Block(
            order="parallel",
            attention_norm=self.norm("input_layernorm"),
            attention=self.attention("self_attn", layer, out_name="dense", **norms),
            mlp_norm=None,
            mlp=self.dense_mlp("mlp", "fc1", "fc2"),
        )
