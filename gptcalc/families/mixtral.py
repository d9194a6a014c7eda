"""Mixtral (Jiang et al. 2024): Llama's stack with a mixture of gated experts for its MLP."""

from gptcalc.errors import InvalidValueError
from gptcalc.families.family import Layer
from gptcalc.families.llama import Llama
from gptcalc.parts.mlp import MixtureMLP
from gptcalc.spec import Size


class Mixtral(Llama):
    """transformers' `MixtralForCausalLM`, experts fused into one tensor for each projection."""

    model_type = "mixtral"
    huggingface = {
        key: fields for key, fields in Llama.huggingface.items() if key not in ("attention_bias", "mlp_bias")
    } | {
        "num_local_experts": ("n_experts",),
        "num_experts": ("n_experts",),
        "num_experts_per_tok": ("n_active",),
    }
    defaults = {
        **Llama.defaults,
        "n_ctx": 131072,
        "n_kv_heads": 8,
        "d_ff": 14336,
        "norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "n_experts": 8,
        "n_active": 2,
    }

    n_experts: Size
    n_active: Size

    def mlp(self, layer: Layer) -> MixtureMLP:
        """E experts, of which each token uses `n_active`; they have no biases."""
        if self.n_active > self.n_experts:
            raise InvalidValueError(f"n_active: read {self.n_active}; allowed: at most n_experts={self.n_experts}")
        if self.has_bias("mlp_bias"):
            raise InvalidValueError("mlp_bias: read True; allowed: false (Mixtral's experts have no biases)")
        return MixtureMLP(
            name="mlp",
            d_ff=self.width_ff,
            activation=self.activation,
            n_experts=self.n_experts,
            n_active=self.n_active,
            dropout=self.residual_dropout,
        )
