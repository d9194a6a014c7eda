"""StarCoder 2 (Lozhkov et al. 2024): grouped heads, rotary positions, biases, and a window on every layer."""

from gptcalc.families.family import Family, Layer
from gptcalc.families.llama import Llama
from gptcalc.parts.block import Block
from gptcalc.parts.norm import LayerNorm
from gptcalc.spec import Size


class Starcoder2(Family):
    """transformers' `Starcoder2ForCausalLM`."""

    model_type = "starcoder2"
    huggingface = {
        **{key: fields for key, fields in Llama.huggingface.items() if not key.endswith(("_bias", "_eps"))},
        "norm_epsilon": ("norm_eps",),
        "use_bias": ("qkv_bias", "out_bias", "mlp_bias"),
        "sliding_window": ("sliding_window",),
        "embedding_dropout": ("embedding_dropout",),
        "residual_dropout": ("residual_dropout",),
    }
    nested = Llama.nested
    ignored = frozenset({"activation_function", "mlp_type", "norm_type"})
    layout = Llama.layout
    defaults = {
        "n_vocab": 49152,
        "n_ctx": 4096,
        "d_model": 3072,
        "n_layers": 30,
        "n_heads": 24,
        "n_kv_heads": 2,
        "d_ff": 12288,
        "activation": "gelu_pytorch_tanh",
        "tied": True,
        "positions": "rotary",
        "bias": True,
        "norm_eps": 1e-5,
    }

    sliding_window: Size | None = None

    def norm(self, name: str) -> LayerNorm:
        """A LayerNorm."""
        return self.layer_norm(name)

    def block(self, layer: Layer) -> Block:
        """Norm, attention, add; norm, MLP of two layers, add."""
        return Block(
            attention_norm=self.norm("input_layernorm"),
            attention=self.attention("self_attn", layer, window=self.sliding_window),
            mlp_norm=self.norm("post_attention_layernorm"),
            mlp=self.dense_mlp("mlp", "c_fc", "c_proj"),
        )
