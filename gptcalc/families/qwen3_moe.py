"""Qwen 3's mixtures (Yang et al. 2025)."""

from gptcalc.families.family import FULL, SLIDING, without
from gptcalc.families.mixtures import Mixture
from gptcalc.families.qwen2_moe import Qwen2MoE
from gptcalc.families.qwen3 import Qwen3


class Qwen3MoE(Mixture, Qwen3):
    """transformers' `Qwen3MoeForCausalLM`: no shared experts; a window is every layer's, or none's."""

    model_type = "qwen3_moe"
    huggingface = {
        **Qwen3.huggingface,
        **without(Qwen2MoE.huggingface, "qkv_bias", "shared_expert_intermediate_size"),
        "num_local_experts": ("n_experts",),
    }
    defaults = {
        **Qwen3.defaults,
        "d_model": 2048,
        "n_layers": 24,
        "n_kv_heads": 4,
        "d_head": None,
        "d_ff": 6144,
        "n_experts": 128,
        "n_active": 8,
        "d_expert": 768,
        "normalised": False,
    }

    def layer_type(self, index: int) -> str:
        """The same for every layer."""
        return SLIDING if self.has_window else FULL
