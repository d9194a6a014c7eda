"""DeepSeek V2 (DeepSeek-AI 2024): latent attention, mixtures with shared experts."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from gptcalc.families.deepseek_v3 import DeepSeekV3
from gptcalc.families.family import without
from gptcalc.families.latent import Latent
from gptcalc.families.llama import Llama
from gptcalc.parts.mlp import MixtureMLP


class DeepSeekV2(DeepSeekV3):
    """transformers' `DeepseekV2ForCausalLM`, which does not scale what the chosen experts weigh to one."""

    model_type = "deepseek_v2"
    huggingface = without(DeepSeekV3.huggingface, "norm_topk_prob", "num_local_experts", "rope_interleave") | {
        "num_experts": ("n_experts",),
        "mlp_bias": Llama.huggingface["mlp_bias"],
    }
    ignored: ClassVar[frozenset[str]] = (DeepSeekV3.ignored - {"topk_method"}) | {"norm_topk_prob"}
    plain: ClassVar[Mapping[str, tuple[object, ...]]] = {"moe_layer_freq": (1,), "scoring_func": ("softmax",)}
    defaults = {
        **{key: value for key, value in DeepSeekV3.defaults.items() if key not in ("n_active", "n_groups")},
        **Latent.defaults,
        "n_vocab": 102400,
        "n_experts": 64,
        "d_expert": 1407,
        "n_shared_experts": 2,
        "first_dense": 0,
        "routed_scale": 1.0,
        "normalised": False,
        "n_active_groups": None,
    }

    topk_method: Literal["greedy", "group_limited_greedy"] = "greedy"

    def mixture(self, **published: object) -> MixtureMLP:
        """Experts chosen by a softmax, from all of them or from the best groups alone."""
        grouped = self.topk_method == "group_limited_greedy"
        everywhere = {} if grouped else {"n_groups": None, "n_active_groups": None}
        return super().mixture(scores="softmax", group_top=1, **everywhere, **published)
