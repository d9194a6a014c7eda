"""Aria's language model (Rhymes AI 2024): mixtures in all layers, with shared experts."""

from gptcalc.families.family import without
from gptcalc.families.llama import Llama
from gptcalc.families.mixtures import Mixture, Names
from gptcalc.parts.mlp import MixtureMLP


class Aria(Mixture):
    """transformers' `AriaTextForCausalLM`."""

    model_type = "aria_text"
    names_of_mixture = Names(router="router", shared="shared_experts")
    huggingface = without(Llama.huggingface) | {
        "moe_num_experts": ("n_experts",),
        "moe_topk": ("n_active",),
        "moe_num_shared_experts": ("n_shared_experts",),
    }
    defaults = {**Llama.defaults, "d_ff": 4096, "n_experts": 8, "n_active": 2, "n_shared_experts": 2}

    def mixture(self, **published: object) -> MixtureMLP:
        """Experts weighted by a softmax over the chosen."""
        return super().mixture(order="in_out", scores="softmax_after", **published)
