"""A layer: the order of norms, attention, MLP and residual adds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gptcalc.errors import UnknownNameError
from gptcalc.modules.itemised import Dims, Itemised, make, register
from gptcalc.modules.passing import Kept, Pass


class Half(NamedTuple):
    """The names of attention or MLP, of the norm that belongs to it and of the one after it, where there are any."""

    part: str
    norm: str | None
    post_norm: str | None


@register("block")
class Block(Itemised):
    """Attention, then MLP, each with a residual add; norms before and after each part may be missing.

    `order` is `pre`: x + part(norm(x)) (GPT-2 on; Xiong et al. 2020), `post`: norm(x + part(x)) (GPT-1), or `parallel`:
    x + (attention(norm(x)) + mlp(norm(x))), where the MLP without a norm of its own reads what attention reads (GPT-J,
    whose order of additions this is; Cohere adds from the left). What a part says may be normalised again before the
    add (`attention_post_norm`, `mlp_post_norm`: Gemma 2), and is multiplied by `residual_multiplier` (Granite).
    """

    def __init__(  # noqa: PLR0913  the fields of the part
        self,
        dims: Dims,
        *,
        order: Literal["pre", "post", "parallel"],
        attention_norm: Mapping[str, Any] | None,
        attention: Mapping[str, Any],
        attention_post_norm: Mapping[str, Any] | None = None,
        mlp_norm: Mapping[str, Any] | None,
        mlp: Mapping[str, Any],
        mlp_post_norm: Mapping[str, Any] | None = None,
        residual_multiplier: float = 1.0,
    ) -> None:
        """Build the parts under their published names, in the order in which they run."""
        super().__init__()
        if order not in ("pre", "post", "parallel"):
            raise UnknownNameError.near("order of norms", str(order), ["pre", "post", "parallel"])
        self.order, self.residual_multiplier = order, residual_multiplier
        given = ((attention, attention_norm, attention_post_norm), (mlp, mlp_norm, mlp_post_norm))
        self.halves = tuple(Half(str(part["name"]), _name(norm), _name(post_norm)) for part, norm, post_norm in given)
        for part, norm, post_norm in given:
            for one in (part, post_norm, norm) if order == "post" else (norm, part, post_norm):
                if one is not None:
                    self.attach(str(one["name"]), make(one, dims))

    def forward(self, x: Tensor, shared: Pass | None = None, cache: Kept | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); `shared` and `cache` go to the attention."""
        attention, mlp = self.halves
        if self.order == "parallel":
            y = self._normalised(attention.norm, x)
            both = self._said(attention, self.child(attention.part)(y, shared, cache))
            y = y if mlp.norm is None else self._normalised(mlp.norm, x)
            both = both + self._said(mlp, self.child(mlp.part)(y))
            return x + both
        if self.order == "post":
            x = self._normalised(
                attention.norm, x + self._said(attention, self.child(attention.part)(x, shared, cache))
            )
            return self._normalised(mlp.norm, x + self._said(mlp, self.child(mlp.part)(x)))
        x = x + self._said(attention, self.child(attention.part)(self._normalised(attention.norm, x), shared, cache))
        return x + self._said(mlp, self.child(mlp.part)(self._normalised(mlp.norm, x)))

    def _normalised(self, norm: str | None, x: Tensor) -> Tensor:
        if norm is None:
            return x
        y: Tensor = self.child(norm)(x)
        return y

    def _said(self, half: Half, y: Tensor) -> Tensor:
        """What is added of a part's output."""
        y = self._normalised(half.post_norm, y)
        return y if self.residual_multiplier == 1.0 else y * self.residual_multiplier

    def make_cache(self, batch: int, seq: int, dtype: torch.dtype) -> Kept:
        """Room for what its attention remembers."""
        attention: Any = self.child(self.halves[0].part)
        cache: Kept = attention.make_cache(batch, seq, dtype)
        return cache

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """The parts in the order in which they run."""
        for part, norm, post_norm in self.halves:
            for name in (part, post_norm, norm) if self.order == "post" else (norm, part, post_norm):
                if name is not None:
                    yield from self.child(name).itemise()


def _name(part: Mapping[str, Any] | None) -> str | None:
    return None if part is None else str(part["name"])
