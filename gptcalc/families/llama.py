"""Llama 1 to 3 (Touvron et al. 2023; Dubey et al. 2024): rotary positions, RMSNorm, gated MLP, grouped heads."""

from collections.abc import Mapping

from gptcalc.errors import InvalidValueError, shown
from gptcalc.families.family import Family, Layout
from gptcalc.parts.block import Block
from gptcalc.parts.mlp import GatedMLP, MixtureMLP
from gptcalc.parts.norm import RMSNorm


class Llama(Family):
    """transformers' `LlamaForCausalLM`."""

    model_type = "llama"
    huggingface = {
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
    }
    nested = ("rope_parameters", "rope_scaling")
    layout = Layout(
        trunk="model", layers="layers", tokens="embed_tokens", positions="embed_positions", final_norm="norm"
    )
    defaults = {
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

    @classmethod
    def translate(cls, values: Mapping[str, object], where: str) -> dict[str, object]:
        """Rotary parameters come as two fields (transformers 4), or in an object (transformers 5)."""
        own = super().translate({key: value for key, value in values.items() if key not in ROPE}, where)
        if "rope_scaling" in values:
            own["rope_scaling"] = None
        for key in (key for key in ROPE if values.get(key) is not None):
            for field, value in _rope(values[key], f"{where}: {key}").items():
                if own.get(field) not in (None, value):
                    raise InvalidValueError(
                        f"{where}: read {field}={shown(own[field])} and {shown(value)} in {key}; give it once"
                    )
                own[field] = value
        return own

    def norm(self, name: str) -> RMSNorm:
        """An RMSNorm."""
        return RMSNorm(name=name, eps=self.norm_eps)

    def block(self) -> Block:
        """Norm, attention, add; norm, MLP, add."""
        return Block(
            attention_norm=self.norm("input_layernorm"),
            attention=self.attention("self_attn"),
            mlp_norm=self.norm("post_attention_layernorm"),
            mlp=self.mlp(),
        )

    def mlp(self) -> GatedMLP | MixtureMLP:
        """The gated MLP."""
        return GatedMLP(
            name="mlp",
            d_ff=self.width_ff,
            activation=self.activation,
            bias=self.has_bias("mlp_bias"),
            dropout=self.residual_dropout,
        )


#: The fields that may hold an object of rotary parameters.
ROPE = ("rope_parameters", "rope_scaling")


def _rope(value: object, where: str) -> dict[str, object]:
    """The own fields in an object of rotary parameters, or in the name of a scaling rule."""
    rope = {"rope_type": value} if isinstance(value, str) else value
    if not isinstance(rope, Mapping):
        raise InvalidValueError(f"{where}: read {shown(value)}; allowed: an object with rope_type")
    kind = rope.get("rope_type", rope.get("type", "default"))
    fields: dict[str, object] = {} if kind == "default" else {"rope_scaling": kind}
    return fields | ({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {})
