"""Latent attention: keys and values are kept as one short vector for each token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gptcalc.modules import ops
from gptcalc.modules.itemised import Dims, Itemised, register
from gptcalc.modules.linear import Linear
from gptcalc.modules.norm import RMSNorm
from gptcalc.modules.passing import LayerCache, Pass
from gptcalc.modules.rotary import Angles, Rotary


@register("latent")
class LatentAttention(Itemised):
    """Causal attention of N heads whose keys and values come from a latent vector (DeepSeek-AI 2024, §2.1).

    A head's query and key have a part without positions, and a rotated one that all keys of a token share.
    """

    def __init__(  # noqa: PLR0913  the fields of the part
        self,
        dims: Dims,
        *,
        n_heads: int,
        kv_rank: int,
        q_rank: int | None,
        d_nope: int,
        d_rope: int,
        d_value: int,
        bias: bool,
        norm_eps: float,
        rotary: Mapping[str, Any],
        scale: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Build the projections and the norms of the latent vectors under their published names."""
        super().__init__()
        self.n_heads, self.kv_rank, self.q_rank = n_heads, kv_rank, q_rank
        self.d_nope, self.d_rope, self.d_value = d_nope, d_rope, d_value
        self.scale, self.dropout = scale, dropout
        self.rotary = Rotary(d_head=d_rope, **rotary)
        d_query = n_heads * (d_nope + d_rope)
        if q_rank is None:
            self.q_proj = Linear(dims.d_model, [("attn_q", d_query)])
        else:
            self.q_a_proj = Linear(dims.d_model, [("mla_q_a", q_rank)], bias=bias)
            self.q_a_layernorm = RMSNorm(dims, eps=norm_eps, shape=(q_rank,))
            self.q_b_proj = Linear(q_rank, [("mla_q_b", d_query)])
        self.kv_a_proj_with_mqa = Linear(dims.d_model, [("mla_kv_a", kv_rank + d_rope)], bias=bias)
        self.kv_a_layernorm = RMSNorm(dims, eps=norm_eps, shape=(kv_rank,))
        self.kv_b_proj = Linear(kv_rank, [("mla_kv_b", n_heads * (d_nope + d_value))])
        self.o_proj = Linear(n_heads * d_value, [("attn_o", dims.d_model)], bias=bias)

    def forward(self, x: Tensor, shared: Pass | None = None, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); a `cache` keeps latent vectors (B, 1, T, R) and rotated keys (B, 1, T, Hr)."""
        shared = Pass() if shared is None else shared
        angles = shared.once(self.rotary, partial(self.rotary.angles, x, shared.start))
        query = self._query(x, angles)
        keys, values = self._expand(*self._latent(x, angles, shared, cache))
        joined = shared.core(ops.attention)(
            query.transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            backend=shared.attention,
            dropout_p=self.dropout if self.training else 0.0,
            mask=self._mask(x, shared),
            causal=not shared.start,
            scale=self.scale,
        )
        output: Tensor = self.o_proj(joined.transpose(1, 2).flatten(2))
        return output

    def _query(self, x: Tensor, angles: Angles) -> Tensor:
        """(B, T, N, Hn+Hr), the last Hr features of each head rotated."""
        low = self.q_rank is not None
        heads = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) if low else self.q_proj(x)
        plain, turned = heads.unflatten(-1, (self.n_heads, -1)).split((self.d_nope, self.d_rope), dim=-1)
        return torch.cat((plain, self.rotary.rotate(turned, angles)), dim=-1)

    def _latent(self, x: Tensor, angles: Angles, shared: Pass, cache: LayerCache | None) -> tuple[Tensor, Tensor]:
        """The latent vectors (B, S, R) and rotated keys (B, S, 1, Hr) of these tokens, or of all that are there."""
        latent, key = self.kv_a_proj_with_mqa(x).split((self.kv_rank, self.d_rope), dim=-1)
        latent = self.kv_a_layernorm(latent.contiguous())
        key = self.rotary.rotate(key.unsqueeze(2), angles)
        if cache is not None:
            cache.write(latent.unsqueeze(1), key.transpose(1, 2), shared.start)
            if shared.start:
                latent, key = cache.read(shared.start + x.shape[1], x)
                return latent.squeeze(1), key.transpose(1, 2)
        return latent, key

    def _expand(self, latent: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, S, N, Hn+Hr) and values (B, S, N, Hv) of every head."""
        plain, values = (
            self.kv_b_proj(latent).unflatten(-1, (self.n_heads, -1)).split((self.d_nope, self.d_value), dim=-1)
        )
        return torch.cat((plain, key.expand(-1, -1, self.n_heads, -1)), dim=-1), values

    def _mask(self, x: Tensor, shared: Pass) -> Tensor | None:
        """What eager attention adds to the scores; the kernels make their own."""
        if shared.attention != "eager" or shared.start:
            return None
        sight = ops.Sight()
        return shared.once(sight, partial(ops.mask, x, shared.start, sight))

    def make_cache(self, batch: int, seq: int, dtype: torch.dtype) -> LayerCache:
        """Room for the latent vectors and the rotated keys of `batch` sequences of `seq` tokens."""
        device = self.o_proj.weight.device
        sizes = (self.kv_rank, self.d_rope)
        latent, key = (torch.empty((batch, 1, seq, size), dtype=dtype, device=device) for size in sizes)
        return LayerCache(latent, key)

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """The query's layers, those of keys and values, then the one back."""
        for name, child in self.named_children():
            tensors = child.itemise() if isinstance(child, Itemised) else iter(())
            yield from (("qk_norm" if name.endswith("norm") else key, tensor) for key, tensor in tensors)
