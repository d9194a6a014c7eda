"""Solar Open (Upstage 2026): mixtures by sigmoids in all layers."""

from gptcalc.families.family import without
from gptcalc.families.llama import Llama
from gptcalc.families.mixtures import ROUTED, Grouped


class SolarOpen(Grouped):
    """transformers' `SolarOpenForCausalLM`; no layer has a dense MLP."""

    model_type = "solar_open"
    huggingface = without(Llama.huggingface, "mlp_bias") | without(ROUTED, "first_k_dense_replace")
    huggingface |= {"attention_bias": ("qkv_bias",)}
    ignored = Grouped.ignored | {"first_k_dense_replace"}
    defaults = {
        **Llama.defaults,
        "n_vocab": 196608,
        "n_ctx": 131072,
        "n_layers": 48,
        "n_heads": 64,
        "n_kv_heads": 8,
        "d_head": 128,
        "d_ff": 1280,
        "norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "n_experts": 128,
        "n_active": 8,
        "d_expert": 1280,
        "n_shared_experts": 1,
        "n_groups": 1,
        "n_active_groups": 1,
    }
