"""Llama 1 to 3 (Touvron et al. 2023; Dubey et al. 2024): rotary positions, RMSNorm, gated MLP, grouped heads."""

from collections.abc import Mapping

from gptcalc.errors import InvalidValueError, shown
from gptcalc.families.family import Family
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.block import Block
from gptcalc.parts.embedding import TokenEmbedding, Unembedding
from gptcalc.parts.mlp import GatedMLP, MixtureMLP
from gptcalc.parts.norm import RMSNorm
from gptcalc.spec import LayerGroup, Spec


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
        "rope_scaling": ("rope_scaling",),
    }
    nested = ("rope_parameters",)
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
        """Rotary parameters come as two fields (transformers 4), or as one object (transformers 5)."""
        flat = dict(values)
        for key in ("rope_parameters", "rope_scaling"):
            rope = flat.pop(key, None)
            if isinstance(rope, str):
                flat["rope_scaling"] = rope
            elif isinstance(rope, Mapping):
                kind = rope.get("rope_type", rope.get("type", "default"))
                flat["rope_scaling"] = None if kind == "default" else kind
                flat |= {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
            elif rope is not None:
                raise InvalidValueError(f"{where}: {key}: read {shown(rope)}; allowed: an object with rope_type")
        return super().translate(flat, where)

    def spec(self) -> Spec:
        """Norm, attention, add; norm, gated MLP, add; a final norm."""
        return Spec(
            family=self.model_type,
            d_model=self.d_model,
            n_vocab=self.n_vocab,
            n_ctx=self.n_ctx,
            trunk="model",
            layers_name="layers",
            embedding=TokenEmbedding(name="embed_tokens", dropout=self.embedding_dropout),
            positions=self.position_part("embed_positions"),
            layers=(LayerGroup(n_layers=self.n_layers, block=self.block()),),
            final_norm=self.norm("norm"),
            unembedding=Unembedding(name="lm_head", tied=self.tied, bias=self.unembedding_bias),
        )

    def norm(self, name: str) -> RMSNorm:
        """An RMSNorm of the family."""
        return RMSNorm(name=name, eps=self.norm_eps)

    def block(self) -> Block:
        """One layer, its tensors named as the published checkpoints have them."""
        n_heads, n_kv_heads, d_head = self.heads
        return Block(
            attention_norm=self.norm("input_layernorm"),
            attention=MultiHeadAttention(
                name="self_attn",
                n_heads=n_heads,
                n_kv_heads=n_kv_heads,
                d_head=d_head,
                qkv_bias=self.has_bias("qkv_bias"),
                out_bias=self.has_bias("out_bias"),
                rotary=self.rotary(),
                dropout=self.attention_dropout,
                residual_dropout=self.residual_dropout,
            ),
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
