"""A mixture of gated networks of which each token uses a few; no token is dropped."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from gptcalc.errors import InvalidValueError, UnknownNameError
from gptcalc.modules import ops
from gptcalc.modules.activation import activation_named
from gptcalc.modules.checks import is_hollow
from gptcalc.modules.itemised import Dims, Itemised, empty, init_constant, init_normal, make, register
from gptcalc.modules.linear import Linear
from gptcalc.modules.sparsemixer import sparsemixer

#: How steep the sigmoid of gpt-oss's SwiGLU is (its `swiglu_alpha`).
STEEPNESS = 1.702

#: What makes shares of all scores, or of the largest alone.
_SQUASH: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": partial(torch.softmax, dim=-1),
    "softmax_after": partial(torch.softmax, dim=-1),
    "sigmoid": torch.sigmoid,
    "sigmoid_after": torch.sigmoid,
}
SCORES = (*_SQUASH, "sparsemixer")
#: How many experts SparseMixer chooses.
CHOSEN = 2


class Experts(Itemised):
    """E gated networks, of which each token uses `n_active`; what they are made of is said below."""

    def __init__(self, n_experts: int, n_active: int, activation: str, *, weighted_input: bool) -> None:
        """Allocate nothing yet."""
        super().__init__()
        self.n_experts, self.weighted_input = n_experts, weighted_input
        self.active = (n_active, n_experts)
        self.activation = activation_named(activation)

    def forward(self, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """The sum over each token's experts, weighted: x (M, D), `chosen` and `shares` (M, k), result (M, D).

        A `weighted_input` is multiplied by the shares; else what the experts compute is.
        """
        load = self._load(chosen)
        order = chosen.flatten().argsort(stable=True)
        tokens = order // chosen.shape[1]
        taken = x[tokens]
        if self.weighted_input:
            taken = taken * shares.to(x.dtype).flatten()[order].unsqueeze(-1)
        experts = zip(taken.split_with_sizes(load), *self._cut(), strict=True)
        computed = torch.cat([self._expert(rows, *weights) for rows, *weights in experts])
        weighted = computed if self.weighted_input else computed * shares.flatten()[order].unsqueeze(-1)
        return torch.zeros_like(x).index_add(0, tokens, weighted.to(x.dtype))

    @abstractmethod
    def _cut(self) -> Sequence[Sequence[Tensor]]:
        """The weights, each cut into those of every expert."""

    @abstractmethod
    def _expert(self, rows: Tensor, *weights: Tensor) -> Tensor:
        """One expert over its rows (…, D), with its own weights."""

    def _load(self, chosen: Tensor) -> list[int]:
        """How many rows each expert gets; without values nothing is decided, and the load is as even as can be."""
        if is_hollow(chosen):
            least, rest = divmod(chosen.numel(), self.n_experts)
            return [least + (expert < rest) for expert in range(self.n_experts)]
        counts: list[int] = torch.bincount(chosen.flatten(), minlength=self.n_experts).tolist()
        return counts


class FusedExperts(Experts):
    """One tensor for gate and up of all experts, (E, 2·F, D), and one for down, (E, D, F), or (`swapped`) x @ W.

    Gate rows come first, then up rows; where they are `clamped`, they alternate, are bounded, and up is shifted by one
    before gpt-oss's SwiGLU.
    """

    def __init__(  # noqa: PLR0913  what experts may be
        self,
        dims: tuple[int, int],
        n_experts: int,
        n_active: int,
        activation: str,
        *,
        names: Sequence[str] = ("gate_up_proj", "down_proj"),
        bias: bool = False,
        swapped: bool = False,
        clamped: float | None = None,
        weighted_input: bool = False,
    ) -> None:
        """Allocate and initialise: `dims` are D and F."""
        super().__init__(n_experts, n_active, activation, weighted_input=weighted_input)
        (d_model, d_ff), self.swapped, self.clamped = dims, swapped, clamped
        shapes = {names[0]: (2 * d_ff, d_model), names[-1]: (d_model, d_ff)}
        self.weight_names, self.bias_names = tuple(shapes), tuple(f"{name}_bias" for name in shapes if bias)
        for name, (d_out, d_in) in shapes.items():
            self.register_parameter(name, empty(n_experts, *((d_in, d_out) if swapped else (d_out, d_in))))
            if bias:
                self.register_parameter(f"{name}_bias", empty(n_experts, d_out))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights from N(0, 0.02²), biases zero."""
        for name in self.weight_names:
            init_normal(self.get_parameter(name))
        for name in self.bias_names:
            init_constant(self.get_parameter(name), 0.0)

    def _cut(self) -> Sequence[Sequence[Tensor]]:
        return [self.get_parameter(name).unbind() for name in (*self.weight_names, *self.bias_names)]

    def _expert(self, rows: Tensor, *weights: Tensor) -> Tensor:
        gate_up, down, *biases = weights
        gate_up_bias, down_bias = biases or (None, None)
        gate, up = self._halves(self._linear(rows, gate_up, gate_up_bias))
        return self._linear(self._gated(gate, up), down, down_bias)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.swapped:
            return functional.linear(x, weight, bias)
        return x @ weight if bias is None else torch.addmm(bias, x, weight)

    def _halves(self, fused: Tensor) -> tuple[Tensor, ...]:
        if self.clamped is None:
            return fused.chunk(2, dim=-1)
        return fused[..., ::2].clamp_max(self.clamped), fused[..., 1::2].clamp(-self.clamped, self.clamped)

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        if self.clamped is None:
            return self.activation(gate) * up
        active = gate * torch.sigmoid(gate * STEEPNESS)
        return (up + 1) * active

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """The gate's and the up projection's halves, then down, then all biases."""
        first, down = (self.get_parameter(name) for name in self.weight_names)
        gate_up = first.transpose(1, 2) if self.swapped else first
        halves = gate_up.chunk(2, dim=1) if self.clamped is None else (gate_up[:, ::2], gate_up[:, 1::2])
        yield from zip(("experts_gate", "experts_up"), halves, strict=True)
        yield "experts_down", down
        for name in self.bias_names:
            yield "experts_bias", self.get_parameter(name)


class StackedExperts(Experts):
    """Three matrices (E·F, D) of all gates, ups and downs, one expert under the other, as DBRX has."""

    def __init__(  # noqa: PLR0913  what experts may be
        self,
        dims: tuple[int, int],
        n_experts: int,
        n_active: int,
        activation: str,
        *,
        names: Sequence[str],
        weighted_input: bool = False,
    ) -> None:
        """Allocate and initialise: `dims` are D and F."""
        super().__init__(n_experts, n_active, activation, weighted_input=weighted_input)
        d_model, self.d_ff = dims
        self.weight_names = tuple(names)
        for name in self.weight_names:
            self.register_parameter(name, empty(n_experts * self.d_ff, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights from N(0, 0.02²)."""
        for name in self.weight_names:
            init_normal(self.get_parameter(name))

    def _cut(self) -> Sequence[Sequence[Tensor]]:
        return [self.get_parameter(name).split_with_sizes([self.d_ff] * self.n_experts) for name in self.weight_names]

    def _expert(self, rows: Tensor, *weights: Tensor) -> Tensor:
        gate, up, down = weights
        return (self.activation(functional.linear(rows, gate)) * functional.linear(rows, up)) @ down

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """Gate, up and down."""
        keys = ("experts_gate", "experts_up", "experts_down")
        yield from zip(keys, map(self.get_parameter, self.weight_names), strict=True)


class Correction(Itemised):
    """What is added to the scores of E experts for the choice alone; no gradient gets there."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        """Allocate and initialise the only parameter, `name`."""
        super().__init__()
        self.name = name
        self.register_parameter(name, empty(*shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zeros."""
        init_constant(self.get_parameter(self.name), 0.0)

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """It counts as a bias of the router."""
        yield "router_bias", self.get_parameter(self.name)


def _in_best_groups(shares: Tensor, n_groups: int, n_active_groups: int, top: int) -> Tensor:
    """The shares (M, E), but minus infinity outside the best groups, whose `top` shares have the largest sums."""
    groups = shares.view(*shares.shape[:-1], n_groups, -1)
    rated = groups.topk(top, dim=-1).values.sum(dim=-1)
    best = rated.topk(n_active_groups, dim=-1).indices
    closed = torch.ones_like(rated, dtype=torch.bool).scatter_(-1, best, value=False)
    return groups.masked_fill(closed.unsqueeze(-1), -torch.inf).flatten(-2)


@register("mixture")
class MixtureMLP(Itemised):
    """A router picks `n_active` of `n_experts` gated networks for each token (Jiang et al. 2024, §2.1).

    Whatever comes after the router's layer is computed in fp32. Scores may be of the best groups of experts alone; a
    group is as good as its `group_top` best scores together. All tokens use the `shared` experts.
    """

    def __init__(  # noqa: PLR0913  the fields of the part
        self,
        dims: Dims,
        *,
        d_ff: int,
        activation: str,
        n_experts: int,
        n_active: int,
        router_name: str = "gate",
        router_bias: bool = False,
        experts_name: str = "experts",
        expert_names: Sequence[str] = ("gate_up_proj", "down_proj"),
        experts_bias: bool = False,
        order: Literal["out_in", "in_out", "stacked"] = "out_in",
        scores: Literal["softmax", "softmax_after", "sigmoid", "sigmoid_after", "sparsemixer"] = "softmax",
        normalised: bool = True,
        scale: float = 1.0,
        n_groups: int | None = None,
        n_active_groups: int | None = None,
        group_top: int = 2,
        clamped: float | None = None,
        weighted_input: bool = False,
        shared: Mapping[str, Any] | None = None,
        shared_gate_name: str = "",
        averaged: bool = False,
        correction: str = "",
        correction_row: bool = False,
        dropout: float = 0.0,
    ) -> None:
        """Build the router, the experts and what all tokens use under their published names."""
        super().__init__()
        if n_active > n_experts:
            raise InvalidValueError(f"n_active: read {n_active}; allowed: at most n_experts={n_experts}")
        if scores not in SCORES:
            raise UnknownNameError.near("scores", scores, SCORES)
        if scores == "sparsemixer" and n_active != CHOSEN:
            raise InvalidValueError(f"n_active: read {n_active}; allowed with sparsemixer: {CHOSEN}")
        self.n_active, self.scores, self.scale, self.dropout = n_active, scores, scale, dropout
        self.normalised = normalised and scores != "softmax_after"  # which sum to one already
        limited = n_groups is not None and n_active_groups is not None and n_groups != n_active_groups
        self.groups = (n_groups or 1, n_active_groups or 1, group_top) if limited else None
        self.router_name, self.experts_name, self.shared_gate_name = router_name, experts_name, shared_gate_name
        self.shared_name = None if shared is None else str(shared["name"])
        self.averaged, self.correction = averaged, correction
        self.attach(router_name, Linear(dims.d_model, [("router", n_experts)], bias=router_bias))
        if correction:
            self._correct(correction, (1, n_experts) if correction_row else (n_experts,))
        sizes = (dims.d_model, d_ff)
        common: dict[str, Any] = {"names": expert_names, "weighted_input": weighted_input}
        fused: dict[str, Any] = {"bias": experts_bias, "swapped": order == "in_out", "clamped": clamped}
        experts = (
            StackedExperts(sizes, n_experts, n_active, activation, **common)
            if order == "stacked"
            else FusedExperts(sizes, n_experts, n_active, activation, **common, **fused)
        )
        self.attach(experts_name, experts)
        if shared is not None:
            self.attach(str(shared["name"]), make(shared, dims))
        if shared_gate_name:
            self.attach(shared_gate_name, Linear(dims.d_model, [("shared_expert_gate", 1)]))

    def _correct(self, name: str, shape: tuple[int, ...]) -> None:
        """A correction of the scores, in this module or in one further down."""
        if self.scores not in ("softmax", "sigmoid"):
            raise InvalidValueError(f"correction: read one with scores={self.scores}; allowed with softmax and sigmoid")
        path, _, own = name.rpartition(".")
        if path:
            self.attach(path, Correction(own, shape))
        else:
            self.register_parameter(own, empty(*shape))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """A correction of its own is zero."""
        if self.correction and "." not in self.correction:
            init_constant(self.get_parameter(self.correction), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        rows = x.reshape(-1, x.shape[-1])
        scores: Tensor = self.child(self.router_name)(rows)
        chosen, shares = self._choose(scores)
        y: Tensor = self.child(self.experts_name)(rows, chosen, shares)
        y = y.view(x.shape)
        if self.shared_name is not None:
            y = y + self._of_all(self.shared_name, x)
        if self.averaged:
            y = y * 0.5
        return ops.dropout(y, self.dropout, self.training)

    def _choose(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Of scores (M, E) which experts a token uses, and their shares, (M, k) both."""
        if self.scores == "sparsemixer":
            shares, chosen = sparsemixer(scores.float(), training=self.training)
        elif self.scores.endswith("_after"):
            largest, chosen = scores.float().topk(self.n_active, dim=-1)
            shares = _SQUASH[self.scores](largest)
            del largest
        elif self.correction or self.groups is not None:
            every = _SQUASH[self.scores](scores.float())
            chosen = self._best(every)
            shares = every.gather(-1, chosen)
            del every
        else:
            shares, chosen = _SQUASH[self.scores](scores.float()).topk(self.n_active, dim=-1)
        if self.normalised:
            shares = shares / shares.sum(dim=-1, keepdim=True)
        return chosen, shares if self.scale == 1 else shares * self.scale

    @torch.no_grad()
    def _best(self, shares: Tensor) -> Tensor:
        """Which experts have the largest shares (M, E), once corrected, in the best groups: (M, k)."""
        left = shares + self.get_parameter(self.correction) if self.correction else shares
        if self.groups is not None:
            left = _in_best_groups(left, *self.groups)
        chosen: Tensor = left.topk(self.n_active, dim=-1).indices
        return chosen

    def _of_all(self, name: str, x: Tensor) -> Tensor:
        """What all tokens' experts compute, where there is a gate weighted by it."""
        y: Tensor = self.child(name)(x)
        return y * self.child(self.shared_gate_name)(x).sigmoid() if self.shared_gate_name else y

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """The router, the experts, and what all tokens use."""
        for name in (self.router_name, self.experts_name, self.shared_name, self.shared_gate_name):
            if name:
                yield from self.child(name).itemise()
        if self.correction:
            yield "router_bias", self.get_parameter(self.correction)
