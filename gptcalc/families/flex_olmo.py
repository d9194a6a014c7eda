"""FlexOlmo (Shi et al. 2025): OLMo 2's stack with a mixture in every layer."""

from gptcalc.families.mixtures import Mixture
from gptcalc.families.olmo2 import OLMo2


class FlexOLMo(Mixture, OLMo2):
    """transformers' `FlexOlmoForCausalLM`."""

    model_type = "flex_olmo"
    huggingface = OLMo2.huggingface | {
        "num_experts": ("n_experts",),
        "num_local_experts": ("n_experts",),
        "num_experts_per_tok": ("n_active",),
        "norm_topk_prob": ("normalised",),
    }
    defaults = {
        **OLMo2.defaults,
        "n_vocab": 100352,
        "n_ctx": 4096,
        "norm_eps": 1e-6,
        "rope_theta": 500_000.0,
        "n_experts": 7,
        "n_active": 5,
        "normalised": False,
    }
