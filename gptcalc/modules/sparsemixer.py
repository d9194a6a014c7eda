"""How Phi 3.5's router chooses two experts: SparseMixer (Liu et al. 2023, 2024; transformers' `sparsemixer`)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

#: A score may be drawn that is less than twice this below the largest, as a share of it (`router_jitter_noise`).
JITTER = 0.01
#: In training every fourth expert that is not the likeliest counts in full, the others a third: Heun's method.
THIRD, FULL = 0.3333, 0.75


def sparsemixer(scores: Tensor, *, training: bool) -> tuple[Tensor, Tensor]:
    """Of scores (M, E) the two experts of each token, and their shares: (M, 2) both, each share by itself of one.

    The second is chosen as the first, with the first one out of the way. In training both are drawn.
    """
    first, one = _choose(scores, scores, training=training)
    rest = scores.scatter(-1, one, -torch.inf)
    second, two = _choose(scores, rest, training=training)
    return torch.cat((first, second), dim=-1), torch.cat((one, two), dim=-1)


def _choose(scores: Tensor, left: Tensor, *, training: bool) -> tuple[Tensor, Tensor]:
    """One of the scores that are `left`, (M, E), and its share, (M, 1) both."""
    with torch.no_grad():
        most, best = left.max(dim=-1, keepdim=True)
    near = left.masked_fill(_far(scores, most), -torch.inf)
    chosen = _drawn(near) if training else best
    shares = near.softmax(dim=-1)
    share = shares.gather(-1, chosen)
    if training:
        share = cast(Tensor, _Heun.apply(scores, share, chosen, shares, _weights(shares, chosen)))  # type: ignore[no-untyped-call]
    return share, chosen


@torch.no_grad()
def _far(scores: Tensor, most: Tensor) -> Tensor:
    """Which scores are too far from the largest."""
    larger = scores.abs().clamp(min=most)
    return (most - scores) / larger > 2 * JITTER


@torch.no_grad()
def _drawn(scores: Tensor) -> Tensor:
    """Places drawn by the scores' softmax, as the largest after Gumbel's noise."""
    return (scores - torch.empty_like(scores).exponential_().log()).max(dim=-1, keepdim=True).indices


@torch.no_grad()
def _weights(shares: Tensor, chosen: Tensor) -> Tensor:
    """One for what is likeliest, and now and then for others; else a third."""
    most, likeliest = shares.max(dim=-1, keepdim=True)
    full = (chosen == likeliest) | (torch.rand_like(most) > FULL)
    return full.to(shares.dtype).mul_(1 - THIRD).add_(THIRD)


class _Heun(torch.autograd.Function):
    """The chosen's share times its weight; its gradient is that of the softmax, by which it was drawn."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917  what torch hands it
        ctx: FunctionCtx, scores: Tensor, share: Tensor, chosen: Tensor, shares: Tensor, weight: Tensor
    ) -> Tensor:
        """The weighted share, (M, 1)."""
        del scores
        ctx.save_for_backward(share, chosen, shares)
        return share * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradient of the scores, (M, E)."""
        share, chosen, shares = ctx.saved_tensors
        own = grad * share
        return (shares * -own).scatter_add_(-1, chosen, own), None, None, None, None
