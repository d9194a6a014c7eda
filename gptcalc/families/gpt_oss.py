"""gpt-oss (OpenAI 2025): mixtures with biases and a bounded SwiGLU, sinks, a window in every other layer."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from gptcalc.families.family import FULL, SLIDING, Layer, Windowed, without
from gptcalc.families.llama import Llama
from gptcalc.families.mixtures import Mixture, Names
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.mlp import MixtureMLP


class GPTOSS(Mixture, Windowed, Llama):
    """transformers' `GptOssForCausalLM`."""

    model_type = "gpt_oss"
    names_of_mixture = Names(router="router")
    huggingface = without(Llama.huggingface, "mlp_bias") | {
        "num_local_experts": ("n_experts",),
        "num_experts": ("n_experts",),
        "num_experts_per_tok": ("n_active",),
        "experts_per_token": ("n_active",),
        "swiglu_limit": ("clamped",),
    }
    ignored: ClassVar[frozenset[str]] = frozenset({"initial_context_length"})
    plain: ClassVar[Mapping[str, tuple[object, ...]]] = {"swiglu_alpha": (1.702,)}
    defaults = {
        **Llama.defaults,
        "n_vocab": 201088,
        "n_ctx": 131072,
        "d_model": 2880,
        "n_layers": 36,
        "n_heads": 64,
        "n_kv_heads": 8,
        "d_head": 64,
        "d_ff": 2880,
        "norm_eps": 1e-5,
        "rope_theta": 150_000.0,
        "rope_scaling": "yarn",
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "sliding_window": 128,
        "n_experts": 128,
        "n_active": 4,
        "clamped": 7.0,
    }

    clamped: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]

    def layer_type(self, index: int) -> str:
        """A window in the first layer, and in every second one from there."""
        return FULL if index % 2 else SLIDING

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention with sinks."""
        return super().attention(name, layer, sinks=True, **published)

    def mixture(self, **published: object) -> MixtureMLP:
        """Experts and router, with biases where `mlp_bias` says so, weighted by a softmax over the chosen."""
        biases = dict.fromkeys(("router_bias", "experts_bias"), self.has_bias("mlp_bias"))
        own = {"order": "in_out", "scores": "softmax_after", "clamped": self.clamped}
        return super().mixture(**biases, **own, **published)
