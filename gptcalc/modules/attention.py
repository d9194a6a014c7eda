"""Attention: who looks at whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gptcalc.modules import ops
from gptcalc.modules.itemised import Dims, Itemised, make, register
from gptcalc.modules.linear import Linear
from gptcalc.modules.passing import LayerCache, Pass
from gptcalc.modules.rotary import Rotary


@register("multi_head")
class MultiHeadAttention(Itemised):
    """Causal attention of N query heads of size H over K key/value heads (Vaswani et al. 2017; Ainslie et al. 2023).

    Three names in `qkv_names` are three layers; one is a fused layer, whose rows are query, key and value, in this
    order for the model or (`fused_by` groups) for each key and the queries that share it. Query and key may be
    normalised, each head by itself.
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
        fused_by: Literal["parts", "groups"] = "parts",
        transposed: bool = False,
        rotary: Mapping[str, Any] | None = None,
        q_norm: Mapping[str, Any] | None = None,
        k_norm: Mapping[str, Any] | None = None,
        norm_after_rotary: bool = False,
        scale: float | None = None,
        dropout: float = 0.0,
        residual_dropout: float = 0.0,
    ) -> None:
        """Build the projections under their published names."""
        super().__init__()
        self.d_head, self.n_heads, self.n_kv_heads = d_head, n_heads, n_kv_heads
        self.dropout, self.residual_dropout, self.scale = dropout, residual_dropout, scale
        self.rotary = None if rotary is None else Rotary(d_head=d_head, **rotary)
        self.qkv_names, self.out_name = tuple(qkv_names), out_name
        self.by_group = len(self.qkv_names) == 1 and fused_by == "groups"
        self.norm_after_rotary = norm_after_rotary
        outputs = [("attn_q", n_heads * d_head), ("attn_k", n_kv_heads * d_head), ("attn_v", n_kv_heads * d_head)]
        layers = [outputs] if len(self.qkv_names) == 1 else [[output] for output in outputs]
        for name, computed in zip(self.qkv_names, layers, strict=True):
            self.attach(name, Linear(dims.d_model, computed, bias=qkv_bias, transposed=transposed))
        d_joined, output = n_heads * d_head, [("attn_o", dims.d_model)]
        self.attach(out_name, Linear(d_joined, output, bias=out_bias, transposed=transposed))
        norms = [None if norm is None else (str(norm["name"]), norm) for norm in (q_norm, k_norm)]
        self.norm_names = tuple(norm and norm[0] for norm in norms)
        for name, norm in (norm for norm in norms if norm is not None):
            self.attach(name, make(norm, dims._replace(d_model=d_head)))

    def forward(self, x: Tensor, shared: Pass | None = None, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); `shared` is what this forward pass has made already.

        With a `cache`, the new keys and values are kept there. The first pass looks at its own; a later one, of one
        token, at all that are there.
        """
        shared = Pass() if shared is None else shared
        query, key, value = self._project(x)
        if not self.norm_after_rotary:
            query, key = self._normalised(query, key)
        if self.rotary is not None:
            angles = shared.once(self.rotary, partial(self.rotary.angles, x, shared.start))
            query, key = self.rotary.rotate(query, angles), self.rotary.rotate(key, angles)
        if self.norm_after_rotary:
            query, key = self._normalised(query, key)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
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
            scale=self.scale,
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

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query (B, T, N, H), key and value (B, T, K, H)."""
        if len(self.qkv_names) > 1:
            query, key, value = (self._by_head(self.child(name)(x)) for name in self.qkv_names)
            return query, key, value
        fused = self.child(self.qkv_names[0])
        if not isinstance(fused, Linear):
            raise TypeError(
                f"{self.qkv_names[0]} is a {type(fused).__name__}; only a Linear knows where to cut its output"
            )
        if self.by_group:
            query, key, value = (part.flatten(2, 3) for part in self._groups(fused(x), -1))
        else:
            query, key, value = (self._by_head(part) for part in fused.split(fused(x)))
        return query, key, value

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, T, heads·H) to (B, T, heads, H)."""
        return x.view(*x.shape[:-1], -1, self.d_head)

    def _groups(self, x: Tensor, axis: int) -> tuple[Tensor, ...]:
        """Of an axis (N+2·K)·H, which is seen as (K, N/K + 2, H): the queries, the key and the value of each group."""
        per_group = self.n_heads // self.n_kv_heads
        groups = x.unflatten(axis, (self.n_kv_heads, per_group + 2, self.d_head))
        return groups.split((per_group, 1, 1), dim=axis - 1 if axis < 0 else axis + 1)

    def _normalised(self, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        """Query and key (B, T, heads, H), each by its norm where it has one."""
        named = zip(self.norm_names, (query, key), strict=True)
        return tuple(x if name is None else self._by_norm(name, x) for name, x in named)

    def _by_norm(self, name: str, x: Tensor) -> Tensor:
        """The norm reads rows that lie side by side, and reads their gradients so."""
        return ops.dense_gradient(self.child(name)(x.contiguous()))

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """The projections to query, key, value, then the one back."""
        for name in (*self.qkv_names, self.out_name):
            layer = self.child(name)
            if self.by_group and name != self.out_name:
                yield from self._itemise_groups(layer)
            else:
                yield from layer.itemise()
        for name in (name for name in self.norm_names if name is not None):
            yield from (("qk_norm", tensor) for _, tensor in self.child(name).itemise())

    def _itemise_groups(self, layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
        if not isinstance(layer, Linear):
            raise TypeError(f"a {type(layer).__name__} has no groups")
        keys = ("attn_q", "attn_k", "attn_v")
        yield from zip(keys, self._groups(layer.weight, int(layer.transposed)), strict=True)
        if layer.bias is not None:
            yield from zip((f"{key}_bias" for key in keys), self._groups(layer.bias, 0), strict=True)
