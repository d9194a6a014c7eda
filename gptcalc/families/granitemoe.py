"""Granite 3's mixtures (IBM 2024)."""

from gptcalc.families.family import without
from gptcalc.families.granite import Granite
from gptcalc.families.mixtures import Mixture, Names
from gptcalc.parts.mlp import MixtureMLP


class GraniteMoE(Mixture, Granite):
    """transformers' `GraniteMoeForCausalLM`."""

    model_type = "granitemoe"
    names_of_mixture = Names(mixture="block_sparse_moe", router="router")
    huggingface = without(Granite.huggingface, "mlp_bias") | {
        "num_local_experts": ("n_experts",),
        "num_experts_per_tok": ("n_active",),
    }
    defaults = {**Granite.defaults, "n_experts": 8, "n_active": 2}

    def mixture(self, **published: object) -> MixtureMLP:
        """Experts weighted by a softmax over the chosen."""
        return super().mixture(**{"scores": "softmax_after", **published})
