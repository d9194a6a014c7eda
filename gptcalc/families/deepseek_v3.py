"""DeepSeek V3, Moonlight, Kimi K2 (DeepSeek-AI 2024): latent attention, sigmoid routers over groups of experts."""

from collections.abc import Mapping
from typing import ClassVar

from gptcalc.families.latent import Latent
from gptcalc.families.mixtures import Mixture, Names
from gptcalc.parts.mlp import MixtureMLP
from gptcalc.spec import Size


class DeepSeekV3(Mixture, Latent):
    """transformers' `DeepseekV3ForCausalLM`; it has no layers that predict further tokens."""

    model_type = "deepseek_v3"
    names_of_mixture = Names(shared="shared_experts")
    huggingface = Latent.huggingface | {
        "rope_interleave": ("rope_interleaved",),
        "n_routed_experts": ("n_experts",),
        "num_local_experts": ("n_experts",),
        "num_experts_per_tok": ("n_active",),
        "moe_intermediate_size": ("d_expert",),
        "first_k_dense_replace": ("first_dense",),
        "norm_topk_prob": ("normalised",),
        "routed_scaling_factor": ("routed_scale",),
        "n_group": ("n_groups",),
        "topk_group": ("n_active_groups",),
    }
    ignored: ClassVar[frozenset[str]] = Latent.ignored | {
        *("num_nextn_predict_layers", "num_mtp_layers", "topk_method", "aux_loss_alpha", "seq_aux", "ep_size"),
    }
    plain: ClassVar[Mapping[str, tuple[object, ...]]] = {"moe_layer_freq": (1,), "scoring_func": ("sigmoid",)}
    defaults: ClassVar[Mapping[str, object]] = {
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

    n_groups: Size | None = None
    n_active_groups: Size | None = None

    def mixture(self, **published: object) -> MixtureMLP:
        """Experts chosen by sigmoids, from the best groups alone."""
        groups = {"n_groups": self.n_groups, "n_active_groups": self.n_active_groups}
        return super().mixture(**{"scores": "sigmoid", **groups, **published})
