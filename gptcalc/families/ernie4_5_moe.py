"""ERNIE 4.5's mixtures (Baidu 2025): a router whose correction is a tensor of the model, shared experts."""

from typing import Annotated

from pydantic import Field

from gptcalc.families.ernie4_5 import Ernie45
from gptcalc.families.mixtures import Count, Mixture, Names
from gptcalc.parts.mlp import MixtureMLP


class Ernie45MoE(Mixture, Ernie45):
    """transformers' `Ernie4_5_MoeForCausalLM`; what a bias is asked for has one, the unembedding too."""

    model_type = "ernie4_5_moe"
    names_of_mixture = Names(shared="shared_experts")
    huggingface = Ernie45.huggingface | {
        "use_bias": ("qkv_bias", "out_bias", "mlp_bias", "unembedding_bias"),
        "moe_num_experts": ("n_experts",),
        "num_experts": ("n_experts",),
        "moe_k": ("n_active",),
        "num_experts_per_tok": ("n_active",),
        "moe_intermediate_size": ("d_expert",),
        "moe_num_shared_experts": ("n_shared_experts",),
        "moe_layer_start_index": ("first_dense",),
        "moe_layer_end_index": ("last_mixture",),
        "moe_layer_interval": ("sparse_step",),
    }
    ignored = frozenset({"moe_norm_min"})
    defaults = {
        **Ernie45.defaults,
        "d_model": 2560,
        "n_layers": 28,
        "n_heads": 20,
        "n_kv_heads": 4,
        "d_head": None,
        "d_ff": 12288,
        "n_experts": 64,
        "n_active": 6,
        "d_expert": 1536,
        "n_shared_experts": 2,
        "first_dense": 1,
    }

    #: The last layer that may have experts; -1 for the last of all.
    last_mixture: Count | Annotated[int, Field(strict=True, ge=-1, le=-1)] = -1

    def is_mixture(self, index: int) -> bool:
        """Whether layer `index` has experts: one of so many, from the first to the last that may."""
        return super().is_mixture(index) and (self.last_mixture < 0 or index <= self.last_mixture)

    @property
    def all_mixtures(self) -> bool:
        """Whether every layer has experts by the rule."""
        return self.last_mixture < 0 and super().all_mixtures

    def mixture(self, **published: object) -> MixtureMLP:
        """Experts chosen by corrected scores."""
        named = {"correction": "gate.moe_statics.e_score_correction_bias", "correction_row": True}
        return super().mixture(**named, **published)
