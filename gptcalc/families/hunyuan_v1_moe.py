"""Hunyuan's mixtures (Tencent 2025): experts in all layers, one of which every token uses."""

from collections.abc import Mapping

from gptcalc.families.hunyuan_v1_dense import HunyuanDense
from gptcalc.families.mixtures import Mixture, Names


class HunyuanMoE(Mixture, HunyuanDense):
    """transformers' `HunYuanMoEV1ForCausalLM`."""

    model_type = "hunyuan_v1_moe"
    names_of_mixture = Names(router="gate.wg", shared="shared_mlp")
    huggingface = HunyuanDense.huggingface | {
        "num_experts": ("n_experts",),
        "num_local_experts": ("n_experts",),
        "moe_topk": ("n_active",),
    }
    defaults = {**HunyuanDense.defaults, "n_experts": 1, "n_active": 1, "n_shared_experts": 1}

    @classmethod
    def translate(cls, values: Mapping[str, object], where: str) -> dict[str, object]:
        """As every family's; how many experts a token uses may be listed for each layer, if all agree."""
        own = super().translate(values, where)
        listed = own.get("n_active")
        if isinstance(listed, list) and listed and listed.count(listed[0]) == len(listed):
            own["n_active"] = listed[0]
        return own
