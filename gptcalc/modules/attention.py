"""Attention: who looks at whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gptcalc.modules import ops
from gptcalc.modules.itemised import Dims, Itemised, empty, init_normal, make, register
from gptcalc.modules.linear import Linear
from gptcalc.modules.norm import Norm
from gptcalc.modules.passing import LayerCache, Pass
from gptcalc.modules.rotary import Rotary


class HeadNorms(Itemised):
    """A norm for each head, all of one kind."""

    def __init__(self, norms: Sequence[Norm]) -> None:
        """Keep them in the list that checkpoints have."""
        super().__init__()
        self.norms = nn.ModuleList(norms)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, heads, H) to the same: normalised together, multiplied by the gains side by side."""
        first, *_ = norms = [norm for norm in self.norms if isinstance(norm, Norm)]
        gains, biases = ([getattr(norm, key) for norm in norms] for key in ("weight", "bias"))
        y = first.normalise(x, None, None)
        if first.weight is not None:
            y = y * torch.stack(gains)
        return y if first.bias is None else y + torch.stack(biases)

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """Norm by norm."""
        for norm in self.norms:
            if isinstance(norm, Itemised):
                yield from norm.itemise()


def _norm(part: Mapping[str, Any], dims: Dims, over: str, heads: tuple[int, int]) -> Itemised:
    """The norm of so many heads of a size: over each, or over all together."""
    count, size = heads
    if over == "list":
        norms = [make(part, dims._replace(d_model=size)) for _ in range(count)]
        return HeadNorms([norm for norm in norms if isinstance(norm, Norm)])
    if over == "heads":
        return make({**part, "shape": heads}, dims)
    return make(part, dims._replace(d_model=count * size if over == "all" else size))


def _side_by_side(joined: Tensor, *, dense: bool) -> Tensor:
    """The weighted values of all heads, (B, T, N·H); `dense` where a bias is added to them by torch's `linear`.

    It does so in the kernel of the product for dense rows alone, which one head's are not that a kernel computed wider.
    """
    return joined.flatten(2).contiguous() if dense else joined.flatten(2)


def _gated(joined: Tensor, gate: Tensor | None) -> Tensor:
    """The weighted values (B, T, N·H), each through its gate."""
    return joined if gate is None else joined * gate.sigmoid()


def _temperatures(like: Tensor, start: int, factor: float, since: int) -> Tensor:
    """1 + `factor`·log(1 + ⌊t/`since`⌋) for the t-th token, counted from one: (T, 1, 1), in the dtype of `like`."""
    count = torch.arange(start + 1, start + like.shape[1] + 1, dtype=torch.float32, device=like.device)
    return ((count / since).floor().log1p() * factor + 1.0).to(like.dtype)[:, None, None]


@register("multi_head")
class MultiHeadAttention(Itemised):
    """Causal attention of N query heads of size H over K key/value heads (Vaswani et al. 2017; Ainslie et al. 2023).

    Three names in `qkv_names` are three layers; one is a fused layer, whose rows are query, key and value, in this
    order for the model or (`fused_by` groups) for each key and the queries that share it, or query, value and key for
    each quarter of the heads.
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
        fused_by: Literal["parts", "groups", "quarters"] = "parts",
        transposed: bool = False,
        rotary: Mapping[str, Any] | None = None,
        q_norm: Mapping[str, Any] | None = None,
        k_norm: Mapping[str, Any] | None = None,
        norm_over: Literal["head", "heads", "list", "all"] = "head",
        norm_after_rotary: bool = False,
        clip: float | None = None,
        window: int | None = None,
        chunked: bool = False,
        scale: float | None = None,
        softcap: float | None = None,
        alibi: bool = False,
        alibi_steepness: float = 1.0,
        tempered: float | None = None,
        tempered_from: int | None = None,
        sinks: bool = False,
        gated: bool = False,
        dropout: float = 0.0,
        residual_dropout: float = 0.0,
    ) -> None:
        """Build the projections under their published names."""
        super().__init__()
        self.d_head, self.n_heads, self.n_kv_heads = d_head, n_heads, n_kv_heads
        self.dropout, self.residual_dropout, self.scale = dropout, residual_dropout, scale
        self.rotary = None if rotary is None else Rotary(d_head=d_head, **rotary)
        self.qkv_names, self.out_name = tuple(qkv_names), out_name
        self.fused_by = fused_by if len(self.qkv_names) == 1 else "parts"
        self.norm_over, self.norm_after_rotary, self.gated = norm_over, norm_after_rotary, gated
        self.clip, self.softcap, self.alibi = clip, softcap, alibi
        self.alibi_steepness = alibi_steepness
        self.window, self.chunked = window, chunked
        self.tempered = None if tempered is None else (tempered, tempered_from or 1)
        outputs = [
            ("attn_q", n_heads * d_head * (2 if gated else 1)),
            ("attn_k", n_kv_heads * d_head),
            ("attn_v", n_kv_heads * d_head),
        ]
        layers = [outputs] if len(self.qkv_names) == 1 else [[output] for output in outputs]
        for name, computed in zip(self.qkv_names, layers, strict=True):
            self.attach(name, Linear(dims.d_model, computed, bias=qkv_bias, transposed=transposed))
        d_joined, output = n_heads * d_head, [("attn_o", dims.d_model)]
        self.attach(out_name, Linear(d_joined, output, bias=out_bias, transposed=transposed))
        norms = [None if norm is None else (str(norm["name"]), norm) for norm in (q_norm, k_norm)]
        self.norm_names = tuple(norm and norm[0] for norm in norms)
        for named, count in zip(norms, (n_heads, n_kv_heads), strict=True):
            if named is not None and named[0] not in self._modules:  # Llama 4 has one for both, without weights
                self.attach(named[0], _norm(named[1], dims, norm_over, (count, d_head)))
        self.sinks: nn.Parameter | None
        self.register_parameter("sinks", empty(n_heads) if sinks else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A sink is one more logit: drawn as every matrix is."""
        if self.sinks is not None:
            init_normal(self.sinks)

    def forward(self, x: Tensor, shared: Pass | None = None, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); `shared` is what this forward pass has made already.

        With a `cache`, the new keys and values are kept there. The first pass looks at its own; a later one, of one
        token, at all that are there.
        """
        shared = Pass() if shared is None else shared
        backend = self._backend(shared.attention)
        query, key, value, gate = self._project(x)
        if not self.norm_after_rotary:
            query, key = self._normalised(query, key)
        if self.rotary is not None:
            angles = shared.once(self.rotary, partial(self.rotary.angles, x, shared.start))
            query, key = self.rotary.rotate(query, angles), self.rotary.rotate(key, angles)
        if self.norm_after_rotary:
            query, key = self._normalised(query, key)
        if self.tempered is not None:
            query = query * shared.once(self.tempered, partial(_temperatures, x, shared.start, *self.tempered))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        if cache is not None:
            cache.write(key, value, shared.start)
            if shared.start:
                key, value = cache.read(shared.start + x.shape[1], query)
        joined = shared.core(ops.attention)(
            query,
            key,
            value,
            backend=backend,
            dropout_p=self.dropout if self.training else 0.0,
            mask=self._mask(x, shared, backend),
            causal=not shared.start,
            scale=self.scale,
            softcap=self.softcap,
            sinks=self.sinks,
        )
        joined = joined.transpose(1, 2)
        project = self.child(self.out_name)
        dense = project.bias is not None and not project.transposed
        output: Tensor = project(_gated(_side_by_side(joined, dense=dense), gate))  # which no name keeps
        return ops.dropout(output, self.residual_dropout, self.training)

    def _backend(self, asked: str) -> str:
        """What no kernel of torch does is written out."""
        written_out = self.softcap is not None or self.sinks is not None
        return "eager" if asked == "auto" and written_out else asked

    def _mask(self, x: Tensor, shared: Pass, backend: str) -> Tensor | None:
        """What is added to the scores: eager attention needs all of it, kernels know themselves what is causal."""
        length = x.shape[1]
        window = self.window if self.window is not None and self.window < length else None
        if not self.alibi and (shared.start or (window is None and backend != "eager")):
            return None
        sight = ops.Sight(
            window=window,
            chunked=self.chunked and window is not None,
            alibi=self.n_heads if self.alibi else 0,
            steepness=self.alibi_steepness,
            aligned=backend != "eager",
        )
        return shared.once(sight, partial(ops.mask, x, shared.start, sight))

    def make_cache(self, batch: int, seq: int, dtype: torch.dtype) -> LayerCache:
        """Room for keys and values of `batch` sequences of `seq` tokens, at most a window, where the weights are."""
        shape = (batch, self.n_kv_heads, min(seq, self.window or seq), self.d_head)
        device = next(self.parameters()).device
        key, value = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        return LayerCache(key, value, self.window, self.chunked)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Query (B, T, N, H), key and value (B, T, K, H), and where there is one the gate (B, T, N·H)."""
        if len(self.qkv_names) > 1:
            query, key, value = (self._by_head(self._clipped(self.child(name)(x))) for name in self.qkv_names)
            if not self.gated:
                return query, key, value, None
            query, gate = query.view(*query.shape[:2], self.n_heads, 2 * self.d_head).chunk(2, dim=-1)
            return query, key, value, gate.flatten(2)
        fused = self.child(self.qkv_names[0])
        if not isinstance(fused, Linear):
            raise TypeError(
                f"{self.qkv_names[0]} is a {type(fused).__name__}; only a Linear knows where to cut its output"
            )
        y = self._clipped(fused(x))
        if self.fused_by != "parts":
            query, key, value = (part.flatten(2, 3) for part in self._groups(y, -1))
        else:
            query, key, value = (self._by_head(part) for part in fused.split(y))
        return query, key, value, None

    def _clipped(self, x: Tensor) -> Tensor:
        """No number beyond `clip`."""
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, T, heads·H) to (B, T, heads, H)."""
        return x.view(*x.shape[:-1], -1, self.d_head)

    def _groups(self, x: Tensor, axis: int) -> tuple[Tensor, ...]:
        """Query, key and value in an axis (N+2·K)·H that is cut group by group: (groups, heads of each, H)."""
        if self.fused_by == "quarters":
            n_groups, heads = 4, (self.n_heads // 4,) * 3
        else:
            n_groups, heads = self.n_kv_heads, (self.n_heads // self.n_kv_heads, 1, 1)
        at = axis % x.dim()
        groups = x.view(*x.shape[:at], n_groups, sum(heads), self.d_head, *x.shape[at + 1 :])
        parts = groups.split_with_sizes(heads, dim=at + 1)
        return (parts[0], parts[2], parts[1]) if self.fused_by == "quarters" else parts

    def _normalised(self, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        """Query and key (B, T, heads, H), each by its norm where it has one."""
        named = zip(self.norm_names, (query, key), strict=True)
        return tuple(x if name is None else self._by_norm(name, x) for name, x in named)

    def _by_norm(self, name: str, x: Tensor) -> Tensor:
        """The norm reads rows that lie side by side, and reads their gradients so."""
        norm, dense = self.child(name), x.contiguous()
        return ops.dense_gradient(norm(dense.flatten(2)).view(x.shape) if self.norm_over == "all" else norm(dense))

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """The projections to query, key, value, then the one back."""
        for name in (*self.qkv_names, self.out_name):
            layer = self.child(name)
            if self.fused_by != "parts" and name != self.out_name:
                yield from self._itemise_groups(layer)
            else:
                yield from layer.itemise()
        for name in (name for name in self.norm_names if name is not None):
            yield from (("qk_norm", tensor) for _, tensor in self.child(name).itemise())
        if self.sinks is not None:
            yield "attn_sinks", self.sinks

    def _itemise_groups(self, layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
        if not isinstance(layer, Linear):
            raise TypeError(f"a {type(layer).__name__} has no groups")
        keys = ("attn_q", "attn_k", "attn_v")
        yield from zip(keys, self._groups(layer.weight, int(layer.transposed)), strict=True)
        if layer.bias is not None:
            yield from zip((f"{key}_bias" for key in keys), self._groups(layer.bias, 0), strict=True)
