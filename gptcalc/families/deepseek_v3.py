"""DeepSeek V3, Moonlight, Kimi K2 (DeepSeek-AI 2024): latent attention, sigmoid routers over groups of experts."""

from typing import ClassVar

from gptcalc.families.latent import Latent
from gptcalc.families.mixtures import ROUTED, Grouped


class DeepSeekV3(Grouped, Latent):
    """transformers' `DeepseekV3ForCausalLM`; it has no layers that predict further tokens."""

    model_type = "deepseek_v3"
    huggingface = Latent.huggingface | ROUTED | {"rope_interleave": ("rope_interleaved",)}
    ignored: ClassVar[frozenset[str]] = Latent.ignored | Grouped.ignored
    defaults = {
        **Latent.defaults,
        "n_vocab": 129280,
        "n_ctx": 4096,
        "d_model": 7168,
        "n_layers": 61,
        "n_heads": 128,
        "n_kv_heads": 128,
        "d_ff": 18432,
        "kv_rank": 512,
        "q_rank": 1536,
        "d_nope": 128,
        "d_rope": 64,
        "d_value": 128,
        "n_experts": 256,
        "n_active": 8,
        "d_expert": 2048,
        "n_shared_experts": 1,
        "first_dense": 3,
        "routed_scale": 2.5,
        "n_groups": 8,
        "n_active_groups": 4,
    }
