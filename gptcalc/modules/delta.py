"""Linear attention: a state of fixed size stands for all tokens before."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from gptcalc.modules import ops
from gptcalc.modules.itemised import Dims, Itemised, empty, init_constant, init_normal, register
from gptcalc.modules.linear import Linear
from gptcalc.modules.norm import RMSNorm
from gptcalc.modules.passing import Pass, Room

#: Tokens that are computed together; the state is carried from chunk to chunk. A power of two.
CHUNK = 64
#: What is added to the squared length of a query or key before they are divided by the length.
LENGTH_EPS = 1e-6
#: Decays of one token at the start are drawn up to this (Gu & Dao 2023, Mamba's released code).
LARGEST_DECAY = 16.0


class DeltaCache(NamedTuple):
    """One layer's states (B, Nv, Hk, Hv) in fp32, and the last inputs of its convolution (B, features, kernel).

    Both are overwritten by each pass; a token after the last one that was seen is all that may come next.
    """

    state: Tensor
    inputs: Tensor

    @property
    def room(self) -> Room:
        """Any number of tokens."""
        return Room(self.state.shape[0], None)

    def start(self, inputs: Tensor) -> None:
        """Keep the last columns of inputs (B, features, T), after zeros where there are too few."""
        missing = max(self.inputs.shape[-1] - inputs.shape[-1], 0)
        self.inputs[..., :missing].zero_()
        self.inputs[..., missing:].copy_(inputs[..., missing - self.inputs.shape[-1] :])

    def next(self, inputs: Tensor) -> Tensor:
        """The last `kernel` columns with those of one token (B, features, 1), which are kept; in its dtype."""
        window = torch.cat((self.inputs[..., 1:].to(inputs.dtype), inputs), dim=-1)
        self.inputs.copy_(window)
        return window


class Given(NamedTuple):
    """What the rule reads of n = C·B·Nv pieces of L tokens, in fp32.

    Query and key (n, L, Hk), value (n, L, Hv); β and the logarithm of each token's decay (n, L, 1).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    beta: Tensor
    decay: Tensor


class Convolution(Itemised):
    """A causal filter of `kernel` tokens for each feature; `sizes` are those of query, key and value."""

    def __init__(self, sizes: tuple[int, int, int], kernel: int) -> None:
        """Allocate and initialise."""
        super().__init__()
        self.sizes = sizes
        self.weight = empty(sum(sizes), 1, kernel)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """From N(0, 0.02²)."""
        init_normal(self.weight)

    def by_group(self, n_groups: int) -> Tensor:
        """The filters (features, 1, kernel) in another order: query, key and values of each group side by side."""
        parts = [torch.unflatten(part, 0, (n_groups, -1)) for part in self.weight.split_with_sizes(self.sizes)]
        return torch.cat(parts, dim=1).flatten(0, 1)


@register("gated_delta_net")
class GatedDeltaNet(Itemised):
    """Nv states (Hk, Hv) that decay, and are corrected by each token (Yang et al. 2025, Gated Delta Networks).

    A token's key k (of length one), value v, β and decay a turn the state S into a·S + β·k·(v − a·S·k); its query reads
    the new state. Queries and keys of Nk groups are shared by Nv/Nk states each. What is read is normalised and gated.
    """

    def __init__(  # noqa: PLR0913  the fields of the part
        self,
        dims: Dims,
        *,
        n_key_heads: int,
        n_value_heads: int,
        d_key: int,
        d_value: int,
        kernel: int,
        norm_eps: float = 1e-6,
    ) -> None:
        """Build the projections, the convolution and the norm under their published names."""
        super().__init__()
        self.n_groups, self.per_group = n_key_heads, n_value_heads // n_key_heads
        self.d_key, self.d_value, self.kernel = d_key, d_value, kernel
        self.dt_bias, self.A_log = empty(n_value_heads), empty(n_value_heads)
        keys, values = n_key_heads * d_key, n_value_heads * d_value
        self.conv1d = Convolution((keys, keys, values), kernel)
        self.in_proj_qkvz = Linear(dims.d_model, [("linear_attn", 2 * keys + 2 * values)])
        self.in_proj_ba = Linear(dims.d_model, [("linear_attn", 2 * n_value_heads)])
        self.norm = RMSNorm(dims, eps=norm_eps, shape=(d_value,))
        self.out_proj = Linear(values, [("linear_attn", dims.d_model)])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The steps' biases are one, the decays are drawn evenly."""
        init_constant(self.dt_bias, 1.0)
        if not self.A_log.is_meta:
            with torch.no_grad():
                self.A_log.uniform_(0.01, LARGEST_DECAY).log_()

    def forward(self, x: Tensor, shared: Pass | None = None, cache: DeltaCache | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); a `cache` keeps the states after the last token, and what the convolution reads."""
        length = 1 if shared is not None and shared.start else CHUNK
        values = self.per_group * self.d_value
        mixed, gate = self._cut(self.in_proj_qkvz(x), 2 * self.d_key + values, values)
        y = self._read(x, mixed, length, cache)
        output: Tensor = self.out_proj(self._gated(y, gate))
        return output

    def _cut(self, y: Tensor, *sizes: int) -> tuple[Tensor, ...]:
        """(B, T, Nk·features) to parts (B, T, Nk, size).

        It is cut with six axes: of four, torch may take tokens for channels, and put gradients together in their order.
        """
        parts = torch.unflatten(y, -1, (self.n_groups, 1, 1, -1)).split_with_sizes(sizes, dim=-1)
        return tuple(part.flatten(2, 4) for part in parts)

    def _read(self, x: Tensor, mixed: Tensor, length: int, cache: DeltaCache | None) -> Tensor:
        """What every token reads of the states (B, C·L, Nk, Nv/Nk, Hv), by pieces of `length` tokens."""
        given = Given(*self._vectors(mixed, length, cache), *self._rates(x, length))
        if length == 1 and cache is not None:
            return self._by_token(step(given, cache.state.flatten(0, 1)), x)
        y, states = chunked(given, x.shape[0] * self.n_groups * self.per_group)
        if cache is not None:
            cache.state.flatten(0, 1).copy_(states[-1])
        return self._by_token(y, x)

    def _rates(self, x: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """β and the logarithm of the decay of every token, (n, L, 1) each."""
        b, a = self._cut(self.in_proj_ba(x), self.per_group, self.per_group)
        heads = (1, 1, self.n_groups, self.per_group)
        steps = functional.softplus(a.float() + self.dt_bias.float().view(heads))
        decay = steps * -self.A_log.float().exp().view(heads)
        return _rate_by_chunk(b.sigmoid(), length), _rate_by_chunk(decay, length)

    def _vectors(self, mixed: Tensor, length: int, cache: DeltaCache | None) -> tuple[Tensor, Tensor, Tensor]:
        """Of what is projected (B, T, Nk, features): query, key (n, L, Hk) and value (n, L, Hv)."""
        y = torch.unflatten(_padded(self._convolved(mixed, length, cache), length), 1, (self.n_groups, -1))
        sizes = (self.d_key, self.d_key, self.per_group * self.d_value)
        query, key, value = y.split_with_sizes(sizes, dim=2)
        return (
            self._unit(_by_chunk(query.unsqueeze(2), length), 1 / sqrt(self.d_key)),
            self._unit(_by_chunk(key.unsqueeze(2), length), 1.0),
            _by_chunk(torch.unflatten(value, 2, (self.per_group, -1)), length).flatten(0, 3),
        )

    def _convolved(self, mixed: Tensor, length: int, cache: DeltaCache | None) -> Tensor:
        """(B, T, Nk, features) to (B, Nk·features, T): filtered over the tokens, then SiLU."""
        weight = self.conv1d.by_group(self.n_groups)
        inputs = mixed.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).flatten(1, 2)
        if length == 1 and cache is not None:
            return functional.silu(functional.conv1d(cache.next(inputs), weight, groups=weight.shape[0]))
        if cache is not None:
            cache.start(inputs)
        y = functional.conv1d(inputs, weight, padding=self.kernel - 1, groups=weight.shape[0])
        return functional.silu(y[..., : inputs.shape[-1]])

    def _unit(self, x: Tensor, scale: float) -> Tensor:
        """Queries or keys (C, B, Nk, 1, L, Hk), `scale` times as long as one, for every state: (n, L, Hk).

        √(Σx² + ε) is √Hk times the root of a mean.
        """
        unit = ops.rms_norm(x, None, LENGTH_EPS / self.d_key) * (scale / sqrt(self.d_key))
        return (unit if self.per_group == 1 else unit.repeat_interleave(self.per_group, dim=3)).flatten(0, 3)

    def _by_token(self, y: Tensor, x: Tensor) -> Tensor:
        """What was read (C, B·Nv, L, Hv) in the order of tokens, in the dtype of x: (B, C·L, Nk, Nv/Nk, Hv)."""
        y = torch.unflatten(y, 1, (x.shape[0], self.n_groups, self.per_group)).permute(1, 0, 4, 2, 3, 5)
        return y.to(x.dtype, memory_format=torch.contiguous_format, copy=True).flatten(1, 2)

    def _gated(self, y: Tensor, gate: Tensor) -> Tensor:
        """(B, T, Nv·Hv): what was read, normalised, times SiLU of the gate (B, T, Nk, values) in fp32."""
        opened = torch.unflatten(functional.silu(gate.float()), -1, (self.per_group, -1))
        return (cast(Tensor, self.norm(y))[:, : gate.shape[1]] * opened).to(y.dtype).flatten(2)

    def make_cache(self, batch: int, seq: int, dtype: torch.dtype) -> DeltaCache:  # noqa: ARG002  of any length
        """Room for the states of `batch` sequences, in fp32 whatever the dtype, and for the inputs in `dtype`."""
        sizes = (self.n_groups * self.per_group, self.d_key, self.d_value)
        device = self.A_log.device
        return DeltaCache(
            torch.empty((batch, *sizes), dtype=torch.float32, device=device),
            torch.empty((batch, sum(self.conv1d.sizes), self.kernel), dtype=dtype, device=device),
        )

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """All of it is linear attention; filters and projections, cut where they are computed for different things."""
        yield from (("linear_attn", tensor) for tensor in (self.dt_bias, self.A_log))
        yield from (("linear_attn", part) for part in self.conv1d.weight.split_with_sizes(self.conv1d.sizes))
        for layer in (self.in_proj_qkvz, self.in_proj_ba, self.norm, self.out_proj):
            yield from (("linear_attn", tensor) for _, tensor in layer.itemise())


# --- In chunks -------------------------------------------------------------------------------------------------------


def _padded(x: Tensor, length: int, *after: int) -> Tensor:
    """X with zeros after the last token, up to a multiple of `length`; the axes after the tokens' are `after`."""
    missing = -x.shape[-1 - len(after) // 2] % length
    return functional.pad(x, (*after, 0, missing)) if missing else x


def _by_chunk(x: Tensor, length: int) -> Tensor:
    """(B, Nk, heads, H, T) to (C, B, Nk, heads, L, H), copied, in fp32."""
    x = torch.unflatten(x, -1, (-1, length)).permute(4, 0, 1, 2, 5, 3)
    return x.to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def _rate_by_chunk(x: Tensor, length: int) -> Tensor:
    """(B, T, Nk, heads) to (n, L, 1), copied, in fp32."""
    # x keeps its tensor to the end: whether a caller's temporary goes earlier depends on how Python calls a function.
    pieces = torch.unflatten(_padded(x, length, 0, 0, 0, 0), 1, (-1, length)).permute(1, 0, 3, 4, 2)
    return pieces.to(torch.float32, memory_format=torch.contiguous_format, copy=True).flatten(0, 3).unsqueeze(-1)


class _Inverse(torch.autograd.Function):
    """(1 − x)⁻¹ of strictly lower triangular x (n, L, L), L a power of two: by blocks of twice the size each time.

    Of a block [[a, 0], [c, b]] that is [[a⁻¹, 0], [b⁻¹·c·a⁻¹, b⁻¹]] with c of x: as exact as substitution. The result
    alone is kept.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        """From single elements, of which each is its own inverse, to the whole."""
        places = torch.arange(x.shape[-1], device=x.device)
        apart = places[:, None] ^ places
        inverse = _linked(x, apart, 1) + torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        size = 2
        while size < x.shape[-1]:
            inverse = torch.baddbmm(inverse, inverse @ _linked(x, apart, size), inverse)
            size *= 2
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The inverse changes by inverse · dx · inverse."""
        turned = ctx.saved_tensors[0].transpose(1, 2)
        return (turned @ grad @ turned).tril_(-1)


def _linked(x: Tensor, apart: Tensor, size: int) -> Tensor:
    """Of lower triangular x what links the second half of each block of twice the `size` to the first, else zeros.

    There the places of row and column, `apart` by their bits, first differ in the bit that `size` is.
    """
    return x.masked_fill(apart // size != 1, 0.0)


class _Scan(torch.autograd.Function):
    """From chunk to chunk: what is corrected, what is read, and the next state; every result into room made before.

    Given (C, B·Nv, L, ·): `new` values and what the state says to them (`read`), queries (`asked`) and what is read
    `within` the chunk, keys at its end (`written`), and how much is left of a state (`lasting`, (C, B·Nv, 1, 1)).
    """

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917  what the rule has
        ctx: Any,
        new: Tensor,
        read: Tensor,
        asked: Tensor,
        within: Tensor,
        written: Tensor,
        lasting: Tensor,
        keeps: bool,  # noqa: FBT001
    ) -> tuple[Tensor, Tensor]:
        """What is read (C, B·Nv, L, Hv), and the states: around each chunk where autograd `keeps` them, or the last."""
        n_chunks, n_states = new.shape[:2]
        kept = n_chunks if keeps else 1
        states = new.new_zeros(kept + keeps, n_states, read.shape[-1], new.shape[-1])
        corrected = new.new_empty(kept, *new.shape[1:])
        y = torch.empty_like(new)
        for n in range(n_chunks):
            at, after = (n, n + 1) if keeps else (0, 0)
            torch.baddbmm(new[n], read[n], states[at], out=corrected[at])
            torch.bmm(asked[n], states[at], out=y[n])
            y[n].baddbmm_(within[n], corrected[at])
            torch.mul(states[at], lasting[n], out=states[after])
            states[after].baddbmm_(written[n].transpose(1, 2), corrected[at])
        ctx.save_for_backward(read, asked, within, written, lasting, corrected, states)
        ctx.mark_non_differentiable(states)
        ctx.set_materialize_grads(False)
        return y, states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Any:
        """From the last chunk to the first, the gradient of the state carried along."""
        read, asked, within, written, lasting, corrected, states = ctx.saved_tensors
        found = [torch.empty_like(x) for x in (corrected, read, asked, within, written, lasting)]
        to_new, to_read, to_asked, to_within, to_written, to_lasting = found
        to_state, product = torch.zeros_like(states[0]), torch.empty_like(states[0])
        for n in reversed(range(len(read))):
            torch.bmm(within[n].transpose(1, 2), grad[n], out=to_new[n])
            to_new[n].baddbmm_(written[n], to_state)
            torch.bmm(corrected[n], to_state.transpose(1, 2), out=to_written[n])
            torch.bmm(grad[n], corrected[n].transpose(1, 2), out=to_within[n])
            torch.bmm(grad[n], states[n].transpose(1, 2), out=to_asked[n])
            torch.bmm(to_new[n], states[n].transpose(1, 2), out=to_read[n])
            torch.mul(to_state, states[n], out=product)
            torch.sum(product, dim=(1, 2), keepdim=True, out=to_lasting[n])
            to_state.mul_(lasting[n])
            to_state.baddbmm_(asked[n].transpose(1, 2), grad[n])
            to_state.baddbmm_(read[n].transpose(1, 2), to_new[n])
        return *found, None


def chunked(given: Given, n_states: int) -> tuple[Tensor, Tensor]:
    """What is read (C, B·Nv, L, Hv), and states of which the last one (B·Nv, Hk, Hv) is that after the last chunk.

    Within a chunk all that tokens change in the state is solved for at once (Yang et al. 2024, "Parallelizing linear
    transformers with the delta rule", §3.2): `read` is what the state at its start says to that, negated, and `new`
    what is written into a state of nothing.
    """
    query, key, value, beta, decay = given
    since = decay.cumsum(1)
    grown, against = since.exp(), -beta
    between = _between(since)
    within = torch.bmm(query, key.transpose(1, 2)) * between
    below = torch.bmm(key, key.transpose(1, 2)) * between * against
    inverse = cast(Tensor, _Inverse.apply(below))  # type: ignore[no-untyped-call]
    new = torch.bmm(inverse, value * beta)
    read = torch.bmm(inverse, key * (against * grown))
    end = since[:, -1:]
    steps = (new, read, query * grown, within, key * (end - since).exp(), end.exp())
    keeps = torch.is_grad_enabled() and new.requires_grad
    found = _Scan.apply(*(torch.unflatten(x, 0, (-1, n_states)) for x in steps), keeps)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], found)


def _between(since: Tensor) -> Tensor:
    """How much of what is written by one token (column) is left at another (row): (n, L, L), zeros for later ones."""
    later = torch.ones(since.shape[1], since.shape[1], dtype=torch.bool, device=since.device).triu(1)
    return (since - since.transpose(1, 2)).masked_fill(later, -torch.inf).exp()


def step(given: Given, state: Tensor) -> Tensor:
    """One token of every sequence: what it reads, (1, B·Nv, 1, Hv), of the `state` (B·Nv, Hk, Hv), changed in place."""
    query, key, value, beta, decay = given
    state.mul_(decay.exp())
    change = (value - key @ state) * beta
    state.baddbmm_(key.transpose(1, 2), change)
    return (query @ state).unsqueeze(0)
