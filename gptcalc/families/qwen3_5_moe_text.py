"""Qwen 3.5's mixtures (Qwen Team 2026)."""

from gptcalc.families.mixtures import Mixture
from gptcalc.families.qwen2_moe import Qwen2MoE
from gptcalc.families.qwen3_5_text import Split


class Qwen35MoE(Mixture, Split):
    """transformers' `Qwen3_5MoeForCausalLM`: every layer has experts."""

    model_type = "qwen3_5_moe_text"
    names_of_mixture = Qwen2MoE.names_of_mixture
    huggingface = Split.huggingface | {
        "num_experts": ("n_experts",),
        "num_experts_per_tok": ("n_active",),
        "moe_intermediate_size": ("d_expert",),
        "shared_expert_intermediate_size": ("d_shared",),
    }
    defaults = {
        **Split.defaults,
        "d_model": 2048,
        "n_layers": 40,
        "n_kv_heads": 2,
        "d_ff": 512,
        "n_experts": 256,
        "n_active": 8,
        "d_expert": 512,
        "d_shared": 512,
    }
