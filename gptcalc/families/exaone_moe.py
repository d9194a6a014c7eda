"""K-EXAONE (LG AI Research 2025): EXAONE 4's attention in Llama's layers, mixtures by sigmoids after the first."""

from gptcalc.families.exaone4 import EXAONE4
from gptcalc.families.family import Layer, without
from gptcalc.families.llama import Llama
from gptcalc.families.mixtures import ROUTED, Grouped
from gptcalc.parts.block import Block


class EXAONEMoE(Grouped, EXAONE4):
    """transformers' `ExaoneMoeForCausalLM`."""

    model_type = "exaone_moe"
    huggingface = (
        EXAONE4.huggingface
        | without(ROUTED, "n_routed_experts", "num_local_experts")
        | {
            "num_experts": ("n_experts",),
            "num_shared_experts": ("n_shared_experts",),
        }
    )
    defaults = {
        **EXAONE4.defaults,
        "n_experts": 64,
        "n_active": 8,
        "d_expert": 1024,
        "n_shared_experts": 1,
        "first_dense": 1,
        "routed_scale": 2.5,
        "n_groups": 1,
        "n_active_groups": 1,
    }

    def block(self, layer: Layer) -> Block:
        """Norm, attention, add; norm, MLP, add."""
        return Llama.block(self, layer)
