"""DBRX (Databricks 2024): mixtures of wide experts, fused and bounded query, key and value."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from gptcalc.errors import InvalidValueError, shown
from gptcalc.families.family import ROPE, Layer, Layout
from gptcalc.families.llama import Llama
from gptcalc.families.mixtures import Mixture, Names
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.block import Block
from gptcalc.parts.mlp import MixtureMLP
from gptcalc.parts.norm import LayerNorm

#: What the objects inside the config hold.
ATTENTION = {
    "attn_pdrop": "attention_dropout",
    "clip_qkv": "clip",
    "kv_n_heads": "n_kv_heads",
    "rope_theta": "rope_theta",
}
EXPERTS = {"ffn_hidden_size": "d_ff", "moe_num_experts": "n_experts", "moe_top_k": "n_active"}


class DBRX(Mixture):
    """transformers' `DbrxForCausalLM`."""

    model_type = "dbrx"
    nested = (*ROPE, "attn_config", "ffn_config")
    names_of_mixture = Names(mixture="ffn", router="router.layer")
    layout = Layout(trunk="transformer", layers="blocks", tokens="wte", positions="wpe", final_norm="norm_f")
    huggingface = {
        "vocab_size": ("n_vocab",),
        "max_seq_len": ("n_ctx",),
        "max_position_embeddings": ("n_ctx",),
        "d_model": ("d_model",),
        "hidden_size": ("d_model",),
        "n_layers": ("n_layers",),
        "num_hidden_layers": ("n_layers",),
        "n_heads": ("n_heads",),
        "num_attention_heads": ("n_heads",),
        "num_key_value_heads": ("n_kv_heads",),
        "resid_pdrop": ("residual_dropout",),
        "emb_pdrop": ("embedding_dropout",),
        "tie_word_embeddings": ("tied",),
        "rope_theta": ("rope_theta",),
    }
    defaults = {
        **Llama.defaults,
        "n_vocab": 32000,
        "n_ctx": 2048,
        "d_model": 2048,
        "n_layers": 24,
        "n_heads": 16,
        "n_kv_heads": 1,
        "d_ff": 3584,
        "norm_eps": 1e-5,
        "n_experts": 4,
        "n_active": 1,
    }

    clip: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] | None = None

    @classmethod
    def translate(cls, values: Mapping[str, object], where: str) -> dict[str, object]:
        """As every family's, with what stands in `attn_config` and `ffn_config`."""
        own = super().translate(values, where)
        for key, names in (("attn_config", ATTENTION), ("ffn_config", EXPERTS)):
            inner = {} if values.get(key) is None else values[key]
            if not isinstance(inner, Mapping):
                raise InvalidValueError(f"{where}: {key}: read {shown(inner)}; allowed: an object")
            own = {field: inner[name] for name, field in names.items() if inner.get(name) is not None} | own
            if key == "ffn_config":
                own |= cls._experts(inner, where)
        return own

    @staticmethod
    def _experts(inner: Mapping[str, object], where: str) -> dict[str, object]:
        """Activation and normalisation of the experts."""
        function, power = inner.get("ffn_act_fn"), inner.get("moe_normalize_expert_weights", 1.0)
        if power not in (None, 1):
            raise InvalidValueError(
                f"{where}: moe_normalize_expert_weights: read {shown(power)}; allowed: 1 or null (no part has others)"
            )
        found: dict[str, object] = {"normalised": power is not None}
        return found | {"activation": function.get("name", "silu")} if isinstance(function, Mapping) else found

    def norm(self, name: str) -> LayerNorm:
        """A LayerNorm without shifts."""
        return LayerNorm(name=name, eps=self.norm_eps, bias=False)

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention with one layer for query, key and value, each bounded."""
        return super().attention(name, layer, qkv_names=("Wqkv",), out_name="out_proj", clip=self.clip, **published)

    def block(self, layer: Layer) -> Block:
        """Norm, attention, add; norm, mixture, add."""
        return Block(
            attention_norm=self.norm("norm_attn_norm.norm_1"),
            attention=self.attention("norm_attn_norm.attn", layer),
            mlp_norm=self.norm("norm_attn_norm.norm_2"),
            mlp=self.mlp(layer),
        )

    def mixture(self, **published: object) -> MixtureMLP:
        """Experts that lie below each other in three matrices."""
        names = {"experts_name": "experts.mlp", "expert_names": ("w1", "v1", "w2")}
        return super().mixture(order="stacked", **names, **published)
