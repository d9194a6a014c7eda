"""Qwen 1.5 MoE and Qwen 2 MoE: Qwen 2's stack with mixtures, and shared experts behind a gate of their own."""

from gptcalc.families.family import FULL, SLIDING
from gptcalc.families.mixtures import Mixture, Names
from gptcalc.families.qwen2 import Qwen2


class Qwen2MoE(Mixture, Qwen2):
    """transformers' `Qwen2MoeForCausalLM`."""

    model_type = "qwen2_moe"
    names_of_mixture = Names(shared="shared_expert", shared_gate="shared_expert_gate")
    huggingface = Qwen2.huggingface | {
        "qkv_bias": ("qkv_bias",),
        "num_experts": ("n_experts",),
        "num_experts_per_tok": ("n_active",),
        "moe_intermediate_size": ("d_expert",),
        "shared_expert_intermediate_size": ("d_shared",),
        "norm_topk_prob": ("normalised",),
        "mlp_only_layers": ("dense_layers",),
        "decoder_sparse_step": ("sparse_step",),
    }
    defaults = {
        **Qwen2.defaults,
        "d_model": 2048,
        "n_layers": 24,
        "n_heads": 16,
        "n_kv_heads": 16,
        "d_ff": 5632,
        "n_experts": 60,
        "n_active": 4,
        "d_expert": 1408,
        "d_shared": 5632,
        "normalised": False,
    }

    def layer_type(self, index: int) -> str:
        """A window in every other one of the first layers."""
        windowed = self.has_window and index < self.max_window_layers and index % 2 == 0
        return SLIDING if windowed else FULL
