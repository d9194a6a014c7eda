"""GLM 4.7 Flash (Z.ai 2026): DeepSeek V3's stack with smaller parts."""

from gptcalc.families.deepseek_v3 import DeepSeekV3


class GLM4MoELite(DeepSeekV3):
    """transformers' `Glm4MoeLiteForCausalLM`; where a file is silent, its first layer alone is dense."""

    model_type = "glm4_moe_lite"
    defaults = {
        **DeepSeekV3.defaults,
        "n_vocab": 154880,
        "n_ctx": 202752,
        "d_model": 2048,
        "n_layers": 47,
        "n_heads": 20,
        "n_kv_heads": 20,
        "d_ff": 10240,
        "norm_eps": 1e-5,
        "q_rank": 768,
        "d_nope": 192,
        "d_value": 256,
        "n_experts": 64,
        "n_active": 4,
        "d_expert": 1536,
        "first_dense": 1,
        "routed_scale": 1.8,
        "n_groups": 1,
        "n_active_groups": 1,
    }
