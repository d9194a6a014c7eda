"""Command's mixtures (Cohere 2026): Command R7B's attention beside experts, whose first layers may be dense."""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from gptcalc.families.cohere2 import Cohere2
from gptcalc.families.family import FULL, SLIDING, Layer
from gptcalc.families.mixtures import Mixture, Names
from gptcalc.parts.mlp import GatedMLP, MixtureMLP
from gptcalc.parts.norm import LayerNorm, RMSNorm
from gptcalc.spec import Layers, Size


class Cohere2MoE(Mixture, Cohere2):
    """transformers' `Cohere2MoeForCausalLM`; an expert is as wide as `d_ff`."""

    model_type = "cohere2_moe"
    names_of_mixture = Names(shared="shared_experts")
    huggingface = Cohere2.huggingface | {
        "head_dim": ("d_head",),
        "rms_norm_eps": ("rms_norm_eps",),
        "num_experts": ("n_experts",),
        "num_experts_per_tok": ("n_active",),
        "num_shared_experts": ("n_shared_experts",),
        "norm_topk_prob": ("normalised",),
        "first_k_dense_replace": ("first_dense",),
        "prefix_dense_intermediate_size": ("d_dense",),
        "prefix_dense_sliding_window_pattern": ("dense_window_period",),
        "expert_selection_fn": ("scores",),
        "shared_expert_combination_strategy": ("combined_by",),
    }
    ignored: ClassVar[frozenset[str]] = Cohere2.ignored - {"head_dim"}
    defaults = {**Cohere2.defaults, "d_head": 128, "n_experts": 8, "n_active": 2, "n_shared_experts": 0}

    #: The width of a dense MLP, where that is not `d_ff`.
    d_dense: Size | None = None
    dense_window_period: Layers = 1
    scores: Literal["softmax", "sigmoid"] = "softmax"
    combined_by: Literal["average", "sum"] = "average"
    #: ε of RMSNorms, which stand for LayerNorms where it is given.
    rms_norm_eps: Annotated[float, Field(strict=True, gt=0, lt=1, allow_inf_nan=False)] | None = None

    def layer_type(self, index: int) -> str:
        """Of the dense layers and of the others, a window in all but every so many."""
        first = self.first_dense or 0
        if index < first:
            return SLIDING if (index + 1) % self.dense_window_period else FULL
        return super().layer_type(index - first)

    def layers(self) -> Iterable[Layer]:
        """Rotations where there is a window, and in dense layers if none of them has one."""
        everywhere = self.dense_window_period == 1
        for layer in super().layers():
            yield layer._replace(rotary=layer.rotary or (layer.mlp == "dense" and everywhere))

    def norm(self, name: str) -> LayerNorm | RMSNorm:
        """A LayerNorm without shifts, or an RMSNorm."""
        return super().norm(name) if self.rms_norm_eps is None else RMSNorm(name=name, eps=self.rms_norm_eps)

    def mlp(self, layer: Layer) -> GatedMLP | MixtureMLP:
        """The dense MLP, which may have a width of its own, or the mixture."""
        mlp = super().mlp(layer)
        wide = {"d_ff": self.d_dense} if isinstance(mlp, GatedMLP) and self.d_dense else {}
        return mlp.model_copy(update=wide)

    def mixture(self, **published: object) -> MixtureMLP:
        """Experts weighted by what the chosen score, averaged with those that every token uses."""
        averaged = self.combined_by == "average" and self.shared_experts() is not None
        return super().mixture(scores=f"{self.scores}_after", averaged=averaged, **published)
