"""Phi 3.5 MoE (Abdin et al. 2024): LayerNorms, mixtures in all layers, two experts by SparseMixer."""

from collections.abc import Mapping
from typing import ClassVar

from gptcalc.families.family import Windowed, without
from gptcalc.families.llama import Llama
from gptcalc.families.mixtures import Mixture, Names
from gptcalc.parts.mlp import MixtureMLP
from gptcalc.parts.norm import LayerNorm


class PhiMoE(Mixture, Windowed, Llama):
    """transformers' `PhimoeForCausalLM`."""

    model_type = "phimoe"
    names_of_mixture = Names(router="router")
    huggingface = without(Llama.huggingface, "mlp_bias") | {
        "num_local_experts": ("n_experts",),
        "num_experts": ("n_experts",),
        "num_experts_per_tok": ("n_active",),
        "lm_head_bias": ("unembedding_bias",),
    }
    ignored: ClassVar[frozenset[str]] = frozenset({"original_max_position_embeddings"})
    plain: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "router_jitter_noise": (0.01,),
        "input_jitter_noise": (0,),
        "hidden_dropout": (0,),
    }
    defaults = {
        **Llama.defaults,
        "n_vocab": 32064,
        "n_ctx": 131072,
        "n_kv_heads": 8,
        "d_ff": 6400,
        "norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "n_experts": 16,
        "n_active": 2,
    }

    def norm(self, name: str) -> LayerNorm:
        """A LayerNorm."""
        return LayerNorm(name=name, eps=self.norm_eps)

    def mixture(self, **published: object) -> MixtureMLP:
        """Experts chosen one after the other, each by a softmax over what comes near it."""
        return super().mixture(scores="sparsemixer", normalised=False, **published)
