"""Attention: who looks at whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from gptcalc.modules.itemised import Dims, Itemised, register
from gptcalc.modules.linear import Linear
from gptcalc.modules.rotary import AngleTables, Rotary


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
        self.d_head, self.grouped = d_head, n_kv_heads < n_heads
        self.dropout, self.residual_dropout = dropout, residual_dropout
        self.rotary = None if rotary is None else Rotary(d_head=d_head, **rotary)
        self.qkv_names, self.out_name = tuple(qkv_names), out_name
        outputs = [("attn_q", n_heads * d_head), ("attn_k", n_kv_heads * d_head), ("attn_v", n_kv_heads * d_head)]
        layers = [outputs] if len(self.qkv_names) == 1 else [[output] for output in outputs]
        for name, computed in zip(self.qkv_names, layers, strict=True):
            self.attach(name, Linear(dims.d_model, computed, bias=qkv_bias, transposed=transposed))
        d_joined, output = n_heads * d_head, [("attn_o", dims.d_model)]
        self.attach(out_name, Linear(d_joined, output, bias=out_bias, transposed=transposed))

    def forward(self, x: Tensor, tables: AngleTables | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); `tables` holds the rotary angles that this forward pass has computed already."""
        query, key, value = (self._heads(part) for part in self._project(x))
        if self.rotary is not None:
            angles = self.rotary.angles(x, {} if tables is None else tables)
            query, key = self.rotary.rotate(query, angles), self.rotary.rotate(key, angles)
        joined = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
            enable_gqa=self.grouped,
        )
        output: Tensor = self.child(self.out_name)(joined.transpose(1, 2).flatten(2))
        return functional.dropout(output, self.residual_dropout, self.training)

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
