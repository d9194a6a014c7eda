"""Attention: who looks at whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gptcalc.modules import ops
from gptcalc.modules.itemised import Dims, Itemised, register
from gptcalc.modules.linear import Linear
from gptcalc.modules.passing import LayerCache, Pass
from gptcalc.modules.rotary import Rotary


@register("multi_head")
class MultiHeadAttention(Itemised):
    """Causal attention of N query heads of size H over K key/value heads (Vaswani et al. 2017; Ainslie et al. 2023).

    One name in `qkv_names` is one fused layer (query, key, value in this order), three names are three layers.
    """

    def __init__(  # noqa: PLR0913  the fields of the part
        self,
        dims: Dims,
        *,
        n_heads: int,
        n_kv_heads: int,
        d_head: int,
        qkv_bias: bool,
        out_bias: bool,
        qkv_names: Sequence[str] = ("q_proj", "k_proj", "v_proj"),
        out_name: str = "o_proj",
        transposed: bool = False,
        rotary: Mapping[str, Any] | None = None,
        dropout: float = 0.0,
        residual_dropout: float = 0.0,
    ) -> None:
        """Build the projections under their published names."""
        super().__init__()
        self.d_head, self.n_kv_heads = d_head, n_kv_heads
        self.dropout, self.residual_dropout = dropout, residual_dropout
        self.rotary = None if rotary is None else Rotary(d_head=d_head, **rotary)
        self.qkv_names, self.out_name = tuple(qkv_names), out_name
        outputs = [("attn_q", n_heads * d_head), ("attn_k", n_kv_heads * d_head), ("attn_v", n_kv_heads * d_head)]
        layers = [outputs] if len(self.qkv_names) == 1 else [[output] for output in outputs]
        for name, computed in zip(self.qkv_names, layers, strict=True):
            self.attach(name, Linear(dims.d_model, computed, bias=qkv_bias, transposed=transposed))
        d_joined, output = n_heads * d_head, [("attn_o", dims.d_model)]
        self.attach(out_name, Linear(d_joined, output, bias=out_bias, transposed=transposed))

    def forward(self, x: Tensor, shared: Pass | None = None, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); `shared` is what this forward pass has made already.

        With a `cache`, the new keys and values are kept there. The first pass looks at its own; a later one, of one
        token, at all that are there.
        """
        shared = Pass() if shared is None else shared
        query, key, value = (self._heads(part) for part in self._project(x))
        if self.rotary is not None:
            angles = shared.once(self.rotary, partial(self.rotary.angles, x, shared.start))
            query, key = self.rotary.rotate(query, angles), self.rotary.rotate(key, angles)
        if cache is not None:
            cache.write(key, value, shared.start)
            if shared.start:
                key, value = cache.read(shared.start + x.shape[1], query)
        joined = ops.attention(
            query,
            key,
            value,
            backend=shared.attention,
            dropout_p=self.dropout if self.training else 0.0,
            mask=self._mask(x, shared),
            causal=not shared.start,
        )
        output: Tensor = self.child(self.out_name)(joined.transpose(1, 2).flatten(2))
        return ops.dropout(output, self.residual_dropout, self.training)

    def _mask(self, x: Tensor, shared: Pass) -> Tensor | None:
        """What eager attention adds to the scores; the kernels make their own."""
        if shared.attention != "eager" or shared.start:
            return None
        return shared.once("causal mask", partial(ops.causal_mask, x))

    def make_cache(self, batch: int, seq: int, dtype: torch.dtype) -> LayerCache:
        """Room for the keys and values of `batch` sequences of `seq` tokens, on the device of the weights."""
        shape = (batch, self.n_kv_heads, seq, self.d_head)
        device = next(self.parameters()).device
        return LayerCache(*(torch.empty(shape, dtype=dtype, device=device) for _ in range(2)))

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Query (B, T, N·H), key and value (B, T, K·H)."""
        if len(self.qkv_names) > 1:
            return tuple(self.child(name)(x) for name in self.qkv_names)
        fused = self.child(self.qkv_names[0])
        if not isinstance(fused, Linear):
            raise TypeError(
                f"{self.qkv_names[0]} is a {type(fused).__name__}; only a Linear knows where to cut its output"
            )
        return fused.split(fused(x))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, heads·H) to (B, heads, T, H)."""
        return x.view(*x.shape[:-1], -1, self.d_head).transpose(1, 2)

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """The projections to query, key, value, then the one back."""
        for name in (*self.qkv_names, self.out_name):
            yield from self.child(name).itemise()
