"""Granite 4's mixtures (IBM 2025), beside which every token uses a shared expert."""

from gptcalc.families.granitemoe import GraniteMoE
from gptcalc.families.mixtures import Names
from gptcalc.parts.mlp import GatedMLP, MixtureMLP


class GraniteMoEShared(GraniteMoE):
    """transformers' `GraniteMoeSharedForCausalLM`, whose layers hold the shared expert beside the mixture."""

    model_type = "granitemoeshared"
    names_of_mixture = Names(mixture="", router="block_sparse_moe.router", shared="shared_mlp")
    huggingface = GraniteMoE.huggingface | {"shared_intermediate_size": ("d_shared",)}
    defaults = {**GraniteMoE.defaults, "d_shared": 0}

    def mixture(self, **published: object) -> MixtureMLP:
        """The mixture, under the names of its two modules."""
        return super().mixture(experts_name="block_sparse_moe.experts", **published)

    def shared_experts(self) -> GatedMLP | None:
        """The shared expert, gate and up in one layer."""
        fused = {"fused_name": "input_linear", "down_name": "output_linear"}
        shared = super().shared_experts()
        return shared and shared.model_copy(update=fused)
