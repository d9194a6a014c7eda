"""A layer: the order of norms, attention, MLP and residual adds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from gptcalc.errors import UnknownNameError
from gptcalc.modules.itemised import Dims, Itemised, make, register
from gptcalc.modules.passing import LayerCache, Pass


@register("block")
class Block(Itemised):
    """Attention, then MLP, each with a norm and a residual add.

    `order` is `pre`: x + part(norm(x)) (GPT-2 on; Xiong et al. 2020), or `post`: norm(x + part(x)) (GPT-1).
    """

    def __init__(  # noqa: PLR0913  the fields of the part
        self,
        dims: Dims,
        *,
        order: Literal["pre", "post"],
        attention_norm: Mapping[str, Any],
        attention: Mapping[str, Any],
        mlp_norm: Mapping[str, Any],
        mlp: Mapping[str, Any],
    ) -> None:
        """Build the four parts under their published names, in the order in which they run."""
        super().__init__()
        if order not in ("pre", "post"):
            raise UnknownNameError.near("order of norms", str(order), ["pre", "post"])
        self.post = order == "post"
        halves = ((attention_norm, attention), (mlp_norm, mlp))
        self.names = tuple((str(norm["name"]), str(part["name"])) for norm, part in halves)
        for half in halves:
            for part in half[::-1] if self.post else half:
                self.attach(str(part["name"]), make(part, dims))

    def forward(self, x: Tensor, shared: Pass | None = None, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); `shared` and `cache` go to the attention."""
        (attention_norm, attention), (mlp_norm, mlp) = self.names
        if self.post:
            x = self.child(attention_norm)(x + self.child(attention)(x, shared, cache))
            x = self.child(mlp_norm)(x + self.child(mlp)(x))
        else:
            x = x + self.child(attention)(self.child(attention_norm)(x), shared, cache)
            x = x + self.child(mlp)(self.child(mlp_norm)(x))
        return x

    def make_cache(self, batch: int, seq: int, dtype: torch.dtype) -> LayerCache:
        """Room for what its attention remembers."""
        attention: Any = self.child(self.names[0][1])
        cache: LayerCache = attention.make_cache(batch, seq, dtype)
        return cache

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """The four parts in the order in which they run."""
        for half in self.names:
            for name in half[::-1] if self.post else half:
                yield from self.child(name).itemise()
