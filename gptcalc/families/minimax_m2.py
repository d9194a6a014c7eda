"""MiniMax M2 (MiniMax 2025): mixtures in all layers, norms over all queries and all keys."""

from collections.abc import Mapping
from typing import Any, ClassVar

from gptcalc.families.family import Layer, without
from gptcalc.families.llama import Llama
from gptcalc.families.mixtures import Mixture
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.mlp import MixtureMLP


class MiniMaxM2(Mixture):
    """transformers' `MiniMaxM2ForCausalLM`."""

    model_type = "minimax_m2"
    huggingface = without(Llama.huggingface, "attention_bias", "mlp_bias") | {
        "num_local_experts": ("n_experts",),
        "num_experts": ("n_experts",),
        "num_experts_per_tok": ("n_active",),
    }
    ignored: ClassVar[frozenset[str]] = frozenset({"num_mtp_modules", "mtp_transformer_layers", "use_mtp"})
    plain: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "qk_norm_type": ("per_layer",),
        "scoring_func": ("sigmoid",),
        "shared_intermediate_size": (0,),
        "use_qk_norm": (True,),
        "use_routing_bias": (True,),
    }
    defaults = {
        **Llama.defaults,
        "n_vocab": 200064,
        "n_ctx": 196608,
        "d_model": 3072,
        "n_layers": 62,
        "n_heads": 48,
        "n_kv_heads": 8,
        "d_head": 128,
        "d_ff": 1536,
        "rope_theta": 5_000_000.0,
        "n_experts": 256,
        "n_active": 8,
    }

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention whose queries are normalised together, and so are its keys."""
        norms = {"q_norm": self.norm("q_norm"), "k_norm": self.norm("k_norm"), "norm_over": "all"}
        return super().attention(name, layer, **norms, **published)

    def mixture(self, **published: object) -> MixtureMLP:
        """Experts chosen by sigmoids."""
        return super().mixture(scores="sigmoid", **published)
