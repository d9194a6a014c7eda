"""Llama 4 (Meta 2025): mixtures in all or every other layer, chunks of tokens in layers that rotate, all in others."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from gptcalc.families.family import CHUNKED, FULL, Layer, without
from gptcalc.families.llama import Llama
from gptcalc.families.mixtures import Count, Mixture, Names
from gptcalc.families.rotated import PartlyRotated
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.mlp import GatedMLP, MixtureMLP
from gptcalc.parts.norm import RMSNorm
from gptcalc.spec import Size


class Llama4(Mixture, PartlyRotated, Llama):
    """transformers' `Llama4ForCausalLM`, the language model of Llama 4."""

    model_type = "llama4_text"
    interleaved = True
    names_of_mixture = Names(mixture="feed_forward", router="router", shared="shared_expert")
    kinds_allowed: ClassVar[tuple[str, ...]] = (FULL, CHUNKED)
    huggingface = without(Llama.huggingface, "mlp_bias", "intermediate_size") | {
        "intermediate_size": ("d_expert",),
        "intermediate_size_mlp": ("d_ff",),
        "num_local_experts": ("n_experts",),
        "num_experts_per_tok": ("n_active",),
        "interleave_moe_layer_step": ("sparse_step",),
        "attn_temperature_tuning": ("tempered",),
    }
    ignored: ClassVar[frozenset[str]] = frozenset({"for_llm_compressor"})
    defaults = {
        **Llama.defaults,
        "n_vocab": 202048,
        "n_ctx": 131072,
        "d_model": 5120,
        "n_layers": 48,
        "n_heads": 40,
        "n_kv_heads": 8,
        "d_head": 128,
        "d_ff": 16384,
        "norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "attention_chunk_size": 8192,
        "n_experts": 16,
        "n_active": 1,
        "d_expert": 8192,
        "n_shared_experts": 1,
        "normalised": False,
    }

    #: The layers with a mixture, where it is not every `sparse_step`th.
    moe_layers: tuple[Count, ...] | None = None
    attention_chunk_size: Size | None = None
    use_qk_norm: Annotated[bool, Field(strict=True)] = True
    #: Whether layers that do not rotate make scores sharper the further a token is (`attn_scale`, `floor_scale`).
    tempered: bool = True
    attn_scale: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] = 0.1
    floor_scale: Size = 8192

    def is_mixture(self, index: int) -> bool:
        """Whether layer `index` has experts: it is listed, or every `sparse_step`th."""
        return super().is_mixture(index) if self.moe_layers is None else index in self.moe_layers

    @property
    def all_mixtures(self) -> bool:
        """Whether every layer has experts by the rule."""
        return self.moe_layers is None and super().all_mixtures

    def layer_type(self, index: int) -> str:
        """Chunks of tokens where a layer rotates."""
        return CHUNKED if self.rotates(index) else FULL

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention to a chunk, with norms after the rotation that have no weights; or to all, sharpened."""
        own: dict[str, Any] = {}
        if layer.attention == CHUNKED and self.attention_chunk_size:
            own |= {"window": self.attention_chunk_size, "chunked": True}
        if layer.rotary and self.use_qk_norm:
            norm = RMSNorm(name="qk_norm", eps=self.norm_eps, learned=False)
            own |= {"q_norm": norm, "k_norm": norm, "norm_after_rotary": True}
        if not layer.rotary and self.tempered:
            own |= {"tempered": self.attn_scale, "tempered_from": self.floor_scale}
        return super().attention(name, layer, **own, **published)

    def mlp(self, layer: Layer) -> GatedMLP | MixtureMLP:
        """The gated MLP, or the mixture."""
        return super().mlp(layer).model_copy(update={"name": self.names_of_mixture.mixture})

    def mixture(self, **published: object) -> MixtureMLP:
        """Experts whose input is weighted by the sigmoids of the scores of the chosen."""
        return super().mixture(**{"order": "in_out", "scores": "sigmoid_after", "weighted_input": True, **published})

    def override(self, changes: Mapping[str, object], where: str) -> Self:
        """As every family's; listed mixtures go on by the rule, where they follow it."""
        by_rule = tuple(range(self.sparse_step - 1, self.n_layers, self.sparse_step))
        follows = {"moe_layers": None} if "n_layers" in changes and self.moe_layers == by_rule else {}
        return super().override(follows | dict(changes), where)
