"""GPT-J (Wang & Komatsuzaki 2021): attention and MLP read one norm, rotations pair neighbouring features."""

from math import nextafter

from gptcalc.errors import InvalidValueError
from gptcalc.families.family import Family, Layer
from gptcalc.families.gpt2 import GPT2
from gptcalc.parts.block import Block
from gptcalc.parts.norm import LayerNorm
from gptcalc.parts.positions import Rotary
from gptcalc.spec import Size


class GPTJ(Family):
    """transformers' `GPTJForCausalLM`; attention has no biases, the unembedding has one."""

    model_type = "gptj"
    huggingface = {**GPT2.huggingface, "rotary_dim": ("rotary_dim",)}
    ignored = frozenset({"rotary", "scale_attn_weights"})
    interleaved = True
    ff_ratio = 4
    layout = GPT2.layout
    defaults = {
        "n_vocab": 50400,
        "n_ctx": 2048,
        "d_model": 4096,
        "n_layers": 28,
        "n_heads": 16,
        "activation": "gelu_new",
        "tied": False,
        "positions": "rotary",
        "bias": True,
        "qkv_bias": False,
        "out_bias": False,
        "unembedding_bias": True,
        "norm_eps": 1e-5,
        "rotary_dim": 64,
    }

    rotary_dim: Size

    def norm(self, name: str) -> LayerNorm:
        """A LayerNorm."""
        return self.layer_norm(name)

    def rotary(self, layer: Layer) -> Rotary | None:
        """The first `rotary_dim` features of each head are rotated."""
        d_head = self.heads[2]
        if self.positions != "rotary" or not layer.rotary:
            return None
        if self.rotary_dim > d_head or self.rotary_dim % 2:
            raise InvalidValueError(
                f"rotary_dim: read {self.rotary_dim}; allowed: an even size up to d_head = {d_head}"
            )
        fraction = self.rotary_dim / d_head
        if int(d_head * fraction) < self.rotary_dim:
            fraction = nextafter(fraction, 1.0)
        return Rotary(theta=self.rope_theta, fraction=fraction, scaling=self.rope_scaling, interleaved=self.interleaved)

    def block(self, layer: Layer) -> Block:
        """One norm, read by attention and MLP; both are added."""
        return Block(
            order="parallel",
            attention_norm=self.norm("ln_1"),
            attention=self.attention("attn", layer, out_name="out_proj"),
            mlp_norm=None,
            mlp=self.dense_mlp("mlp", "fc_in", "fc_out"),
        )
