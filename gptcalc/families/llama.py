"""Llama 1 to 3 (Touvron et al. 2023; Dubey et al. 2024): rotary positions, RMSNorm, gated MLP, grouped heads."""

from collections.abc import Mapping
from typing import ClassVar

from gptcalc.families.family import ROPE, Family, Layer, Layout
from gptcalc.parts.block import Block
from gptcalc.parts.mlp import GatedMLP, MixtureMLP
from gptcalc.parts.norm import RMSNorm
from gptcalc.spec import AnyPart


class Llama(Family):
    """transformers' `LlamaForCausalLM`."""

    model_type = "llama"
    huggingface: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vocab_size": ("n_vocab",),
        "max_position_embeddings": ("n_ctx",),
        "hidden_size": ("d_model",),
        "num_hidden_layers": ("n_layers",),
        "num_attention_heads": ("n_heads",),
        "num_key_value_heads": ("n_kv_heads",),
        "head_dim": ("d_head",),
        "intermediate_size": ("d_ff",),
        "hidden_act": ("activation",),
        "rms_norm_eps": ("norm_eps",),
        "tie_word_embeddings": ("tied",),
        "attention_bias": ("qkv_bias", "out_bias"),
        "mlp_bias": ("mlp_bias",),
        "attention_dropout": ("attention_dropout",),
        "rope_theta": ("rope_theta",),
        "partial_rotary_factor": ("rotary_fraction",),
    }
    nested: ClassVar[tuple[str, ...]] = ROPE
    layout = Layout(
        trunk="model", layers="layers", tokens="embed_tokens", positions="embed_positions", final_norm="norm"
    )
    defaults: ClassVar[Mapping[str, object]] = {
        "n_vocab": 32000,
        "n_ctx": 2048,
        "d_model": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "d_ff": 11008,
        "activation": "silu",
        "tied": False,
        "positions": "rotary",
        "bias": False,
        "norm_eps": 1e-6,
    }

    def norm(self, name: str) -> AnyPart:
        """An RMSNorm."""
        return RMSNorm(name=name, eps=self.norm_eps)

    def block(self, layer: Layer) -> Block:
        """Norm, attention, add; norm, MLP, add."""
        return Block(
            attention_norm=self.norm("input_layernorm"),
            attention=self.mixer(layer),
            mlp_norm=self.norm("post_attention_layernorm"),
            mlp=self.mlp(layer),
        )

    def mixer(self, layer: Layer) -> AnyPart:
        """What a layer reads other tokens with."""
        return self.attention("self_attn", layer)

    def mlp(self, layer: Layer) -> GatedMLP | MixtureMLP:
        """The gated MLP."""
        return GatedMLP(
            name="mlp",
            d_ff=self.width_ff,
            activation=self.activation,
            bias=self.has_bias("mlp_bias"),
            dropout=self.residual_dropout,
        )
