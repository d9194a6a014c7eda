"""A mixture of gated networks of which each token uses a few; no token is dropped."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from gptcalc.errors import InvalidValueError
from gptcalc.modules import ops
from gptcalc.modules.activation import activation_named
from gptcalc.modules.itemised import Dims, Itemised, empty, init_normal, register
from gptcalc.modules.linear import Linear


class Experts(Itemised):
    """E gated networks, fused: `gate_up_proj` (E, 2·F, D) holds gate rows, then up rows; `down_proj` is (E, D, F)."""

    def __init__(self, d_model: int, d_ff: int, n_experts: int, n_active: int, activation: str) -> None:
        """Allocate and initialise."""
        super().__init__()
        self.n_experts = n_experts
        self.active = (n_active, n_experts)
        self.activation = activation_named(activation)
        self.gate_up_proj = empty(n_experts, 2 * d_ff, d_model)
        self.down_proj = empty(n_experts, d_model, d_ff)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights from N(0, 0.02²)."""
        init_normal(self.gate_up_proj)
        init_normal(self.down_proj)

    def forward(self, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """The sum over each token's experts, weighted: x (M, D), `chosen` and `shares` (M, k), result (M, D)."""
        load = self._load(chosen)
        order = chosen.flatten().argsort(stable=True)
        tokens = order // chosen.shape[1]
        rows = x[tokens].split_with_sizes(load)
        weights = zip(rows, self.gate_up_proj.unbind(), self.down_proj.unbind(), strict=True)
        computed = torch.cat([self._expert(group, gate_up, down) for group, gate_up, down in weights])
        weighted = computed * shares.flatten()[order].unsqueeze(-1)
        return torch.zeros_like(x).index_add(0, tokens, weighted.to(x.dtype))

    def _expert(self, rows: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        gate, up = functional.linear(rows, gate_up).chunk(2, dim=-1)
        return functional.linear(self.activation(gate) * up, down)

    def _load(self, chosen: Tensor) -> list[int]:
        """How many rows each expert gets; on the meta device nothing is decided, and the load is as even as can be."""
        if chosen.is_meta:
            least, rest = divmod(chosen.numel(), self.n_experts)
            return [least + (expert < rest) for expert in range(self.n_experts)]
        counts: list[int] = torch.bincount(chosen.flatten(), minlength=self.n_experts).tolist()
        return counts

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """The gate's and the up projection's halves, then down."""
        gate, up = self.gate_up_proj.chunk(2, dim=1)
        yield "experts_gate", gate
        yield "experts_up", up
        yield "experts_down", self.down_proj


@register("mixture")
class MixtureMLP(Itemised):
    """A router picks `n_active` of `n_experts` gated networks for each token (Jiang et al. 2024, §2.1)."""

    def __init__(  # noqa: PLR0913  the fields of the part
        self,
        dims: Dims,
        *,
        d_ff: int,
        activation: str,
        n_experts: int,
        n_active: int,
        router_name: str = "gate",
        experts_name: str = "experts",
        dropout: float = 0.0,
    ) -> None:
        """Build the router and the experts under their published names."""
        super().__init__()
        if n_active > n_experts:
            raise InvalidValueError(f"n_active: read {n_active}; allowed: at most n_experts={n_experts}")
        self.n_active, self.dropout = n_active, dropout
        self.router_name, self.experts_name = router_name, experts_name
        self.attach(router_name, Linear(dims.d_model, [("router", n_experts)]))
        self.attach(experts_name, Experts(dims.d_model, d_ff, n_experts, n_active, activation))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D); probabilities in fp32, those of the chosen experts scaled to sum to one."""
        rows = x.reshape(-1, x.shape[-1])
        scores: Tensor = self.child(self.router_name)(rows)
        shares, chosen = scores.float().softmax(dim=-1).topk(self.n_active, dim=-1)
        shares = shares / shares.sum(dim=-1, keepdim=True)
        y: Tensor = self.child(self.experts_name)(rows, chosen, shares)
        return ops.dropout(y.view(x.shape), self.dropout, self.training)

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """The router, then the experts."""
        yield from self.child(self.router_name).itemise()
        yield from self.child(self.experts_name).itemise()
