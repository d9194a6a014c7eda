"""Trinity (Arcee 2025): gated attention with windows and rotations in three layers of four, mixtures by sigmoids."""

from collections.abc import Iterable
from typing import Any

from gptcalc.families.family import FULL, SLIDING, Layer, Windowed, without
from gptcalc.families.llama import Llama
from gptcalc.families.mixtures import Mixture, Names
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.block import Block
from gptcalc.parts.embedding import TokenEmbedding
from gptcalc.parts.mlp import MixtureMLP
from gptcalc.spec import AnyPart, Flag, Layers


class AFMoE(Mixture, Windowed, Llama):
    """transformers' `AfmoeForCausalLM`."""

    model_type = "afmoe"
    names_of_mixture = Names(router="router.gate", shared="shared_experts")
    huggingface = without(Llama.huggingface, "mlp_bias") | {
        "num_experts": ("n_experts",),
        "num_local_experts": ("n_experts",),
        "num_experts_per_tok": ("n_active",),
        "num_shared_experts": ("n_shared_experts",),
        "num_dense_layers": ("first_dense",),
        "moe_intermediate_size": ("d_expert",),
        "route_scale": ("routed_scale",),
        "global_attn_every_n_layers": ("window_period",),
        "mup_enabled": ("multiplied",),
    }
    defaults = {
        **Llama.defaults,
        "n_vocab": 200192,
        "n_ctx": 16384,
        "d_model": 2048,
        "n_heads": 16,
        "d_head": 128,
        "d_ff": 6144,
        "norm_eps": 1e-5,
        "sliding_window": 1024,
        "n_experts": 64,
        "n_active": 6,
        "d_expert": 1408,
        "n_shared_experts": 2,
        "first_dense": 1,
    }

    window_period: Layers = 4
    #: Whether token rows are multiplied by √D.
    multiplied: Flag = False

    def layer_type(self, index: int) -> str:
        """A window in all but every fourth layer."""
        return SLIDING if (index + 1) % self.window_period else FULL

    def layers(self) -> Iterable[Layer]:
        """Rotations where there is a window."""
        return (layer._replace(rotary=layer.attention == SLIDING) for layer in super().layers())

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention with a gate of its own, whose queries and keys are normalised head by head."""
        own = {"q_norm": self.norm("q_norm"), "k_norm": self.norm("k_norm"), "gated": True, "gate_name": "gate_proj"}
        return super().attention(name, layer, **own, **published)

    def mixture(self, **published: object) -> MixtureMLP:
        """Experts chosen by sigmoids, with a correction."""
        return super().mixture(scores="sigmoid", correction="expert_bias", **published)

    def block(self, layer: Layer) -> Block:
        """Norm, attention, norm, add; norm, MLP, norm, add."""
        return Block(
            attention_norm=self.norm("input_layernorm"),
            attention=self.mixer(layer),
            attention_post_norm=self.norm("post_attention_layernorm"),
            mlp_norm=self.norm("pre_mlp_layernorm"),
            mlp=self.mlp(layer),
            mlp_post_norm=self.norm("post_mlp_layernorm"),
        )

    def parts(self) -> dict[str, AnyPart | None]:
        """Token rows, multiplied where that is asked for."""
        multiplier = self.d_model**0.5 if self.multiplied else 1.0
        embedding = TokenEmbedding(name=self.layout.tokens, dropout=self.embedding_dropout, multiplier=multiplier)
        return {"embedding": embedding}
