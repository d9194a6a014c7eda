"""What families with mixtures of experts share: how many there are, which layers have them, how a router picks."""

from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import Field

from gptcalc.errors import InvalidValueError
from gptcalc.families.family import MOST_MIXED, Layer
from gptcalc.families.llama import Llama
from gptcalc.parts.mlp import GatedMLP, MixtureMLP
from gptcalc.spec import Layers, Size

Count = Annotated[int, Field(strict=True, ge=0)]


class Names(NamedTuple):
    """What published checkpoints call the modules of a mixture; no shared experts and no gate where there are none."""

    mixture: str = "mlp"
    router: str = "gate"
    shared: str = ""
    shared_gate: str = ""


class Mixture(Llama):
    """A stack of which some layers, or all, have a mixture of gated experts for their MLP.

    An expert has width `d_expert`, else `d_ff`; experts that every token uses have `d_shared` together, else
    `n_shared_experts` times that.
    """

    names_of_mixture: ClassVar[Names] = Names()

    n_experts: Size
    n_active: Size
    d_expert: Size | None = None
    n_shared_experts: Count | None = None
    d_shared: Count | None = None
    normalised: Annotated[bool, Field(strict=True)] = True
    routed_scale: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 1.0
    #: Layers with a dense MLP: so many at the start, these, and all but every `sparse_step`th.
    first_dense: Count | None = None
    dense_layers: tuple[Count, ...] | None = None
    sparse_step: Layers = 1
    #: For each layer whether it has experts, where no rule says so.
    mlp_layer_types: tuple[Literal["dense", "sparse"], ...] | None = None

    def is_mixture(self, index: int) -> bool:
        """Whether layer `index` has experts."""
        if self.mlp_layer_types:
            return self.mlp_layer_types[index] == "sparse"
        listed = index in (self.dense_layers or ())
        return index >= (self.first_dense or 0) and not listed and (index + 1) % self.sparse_step == 0

    @property
    def all_mixtures(self) -> bool:
        """Whether every layer has experts."""
        return not (self.first_dense or self.dense_layers or self.mlp_layer_types) and self.sparse_step == 1

    def layers(self) -> Iterable[Layer]:
        """As the stack has them, with experts where they are."""
        layers = super().layers()
        if self.all_mixtures and isinstance(layers, repeat):
            return repeat(next(layers)._replace(mlp="mixture"), self.n_layers)
        if self.mlp_layer_types and len(self.mlp_layer_types) != self.n_layers:
            count = len(self.mlp_layer_types)
            raise InvalidValueError(
                f"mlp_layer_types: read {count} entries; allowed: one for each of {self.n_layers} layers"
            )
        indices = range(self.n_layers)
        return (
            layer._replace(mlp="mixture" if self.is_mixture(index) else "dense")
            for index, layer in zip(indices, layers, strict=True)
        )

    def override(self, changes: Mapping[str, object], where: str) -> Self:
        """As every family's; a list with an entry for each layer goes on as it ends where `n_layers` changes."""
        listed, count = self.mlp_layer_types, changes.get("n_layers")
        if not listed or not isinstance(count, int) or count > MOST_MIXED:
            return super().override(changes, where)
        longer = (*listed, *[listed[-1]] * max(count - len(listed), 0))[:count]
        return super().override({"mlp_layer_types": longer} | dict(changes), where)

    def mlp(self, layer: Layer) -> GatedMLP | MixtureMLP:
        """The dense MLP, or the mixture."""
        return self.mixture() if layer.mlp == "mixture" else super().mlp(layer)

    def mixture(self, **published: object) -> MixtureMLP:
        """E experts, of which each token uses `n_active`, and those that all use."""
        if self.n_active > self.n_experts:
            raise InvalidValueError(f"n_active: read {self.n_active}; allowed: at most n_experts={self.n_experts}")
        biased = "experts_bias" in published or any("mlp_bias" in own for own in self.huggingface.values())
        if self.has_bias("mlp_bias") and not biased:  # a class that reads such a field has them in its other MLPs
            raise InvalidValueError("mlp_bias: read True; allowed: false (these experts have no biases)")
        names = self.names_of_mixture
        shared = self.shared_experts()
        fields: dict[str, object] = {
            "name": names.mixture,
            "d_ff": self.width_expert,
            "activation": self.activation,
            "n_experts": self.n_experts,
            "n_active": self.n_active,
            "router_name": names.router,
            "normalised": self.normalised,
            "scale": self.routed_scale,
            "shared": shared,
            "shared_gate_name": names.shared_gate if shared else "",
            "dropout": self.residual_dropout,
        }
        return MixtureMLP.model_validate(fields | published)

    @property
    def width_expert(self) -> int:
        """Fe: the width inside an expert."""
        return self.d_expert or self.width_ff

    @property
    def width_shared(self) -> int:
        """Fs: the width of all shared experts together."""
        return self.width_expert * (self.n_shared_experts or 0) if self.d_shared is None else self.d_shared

    def shared_experts(self) -> GatedMLP | None:
        """The experts that every token uses, as one gated MLP."""
        if not (self.names_of_mixture.shared and self.width_shared):
            return None
        return GatedMLP(
            name=self.names_of_mixture.shared,
            d_ff=self.width_shared,
            activation=self.activation,
            bias=self.has_bias("mlp_bias"),
            role="shared_experts",
        )


#: What DeepSeek V3 and those after it call the fields of their mixtures.
ROUTED = {
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
#: Their fields for training, for layers that predict further tokens, and for splitting over devices.
UNROUTED = frozenset(
    "num_nextn_predict_layers num_mtp_layers topk_method aux_loss_alpha seq_aux ep_size router_aux_loss_coef".split()
)


class Grouped(Mixture):
    """Mixtures whose router scores by sigmoids and picks from the best groups of experts (DeepSeek-AI 2024, §2.1.2)."""

    names_of_mixture = Names(shared="shared_experts")
    ignored: ClassVar[frozenset[str]] = UNROUTED
    plain: ClassVar[Mapping[str, tuple[object, ...]]] = {"moe_layer_freq": (1,), "scoring_func": ("sigmoid",)}

    n_groups: Size | None = None
    n_active_groups: Size | None = None

    def mixture(self, **published: object) -> MixtureMLP:
        """Experts chosen by sigmoids, from the best groups alone."""
        groups = {"n_groups": self.n_groups, "n_active_groups": self.n_active_groups}
        return super().mixture(**{"scores": "sigmoid", **groups, **published})
