"""Phi 3 and 4 (Abdin et al. 2024): Mistral's stack with fused layers."""

from typing import Any, ClassVar

from gptcalc.families.family import Layer
from gptcalc.families.mistral import Mistral
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.mlp import GatedMLP, MixtureMLP


class Phi3(Mistral):
    """transformers' `Phi3ForCausalLM`."""

    model_type = "phi3"
    huggingface = Mistral.huggingface | {
        "resid_pdrop": ("residual_dropout",),
        "embd_pdrop": ("embedding_dropout",),
    }
    #: Where long angles begin.
    ignored: ClassVar[frozenset[str]] = frozenset({"original_max_position_embeddings"})
    defaults = {
        **Mistral.defaults,
        "n_vocab": 32064,
        "n_ctx": 4096,
        "d_model": 3072,
        "n_kv_heads": None,
        "d_ff": 8192,
        "norm_eps": 1e-5,
        "sliding_window": None,
    }

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention with one layer for query, key and value."""
        return super().attention(name, layer, qkv_names=("qkv_proj",), **published)

    def mlp(self, layer: Layer) -> GatedMLP | MixtureMLP:
        """The gated MLP, gate and up in one layer."""
        return super().mlp(layer).model_copy(update={"fused_name": "gate_up_proj"})
