"""Attention's core by backend: which kernels torch runs between query, key, value and their weighted sum."""

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from gptcalc import tape
from gptcalc.formula import Dim, Product
from gptcalc.parts.scores import Scores
from gptcalc.tape import Rows, Setting, Tensor
from gptcalc.units import ceil_div

if TYPE_CHECKING:
    from gptcalc.parts.attention import MultiHeadAttention

#: Where the logarithms of mem-efficient attention's sums are padded to [kAlignLSE, mem_eff_attention].
LSE_ALIGNMENT = 32
#: Where rows of a mask lie apart by this, mem-efficient attention takes it as it is [sdp, preprocess_mask].
MASK_ALIGNMENT = 8
#: Head sizes that flash attention takes are multiples of this.
FLASH_ALIGNMENT = 8


class Given(NamedTuple):
    """Query (B, T, N, H), key and value (B, S, K, H)."""

    query: Tensor
    key: Tensor
    value: Tensor


class Attends(Protocol):
    """What a backend must know of the part that it works for."""

    @property
    def dropout(self) -> float:
        """The share of the attention weights that is dropped in training."""

    @property
    def scores(self) -> Scores:
        """What becomes of the scores."""

    #: Whether keys and values come out of the cache as they lie there, by head.
    reads_heads_of_cache: ClassVar[bool]

    def cache(self, batch: Dim, seq: Dim, dtype: str) -> tuple[Tensor, Tensor]:
        """Room for T tokens of B sequences: (B, heads, T, size) each."""


Attend = Callable[[Attends, Setting, Rows, Given], Tensor]


def core(part: Attends, setting: Setting, rows: Rows, given: Given) -> Tensor:
    """The weighted values by `setting.attention`; what is made on the way may be made again in the backward pass."""
    start = len(rows)
    joined = BACKENDS[setting.attention](part, setting, rows, given)
    if setting.again:
        rows.again(start, "attention", given)
    return joined


def fused(part: Attends, setting: Setting, rows: Rows, given: Given) -> Tensor:
    """One kernel, by `setting.attention`: flash, cuDNN's, or the mem-efficient one. The output is (B, T, N, H)."""
    return by_kernel(part, setting, rows, given, _shared_mask(part, setting, rows))


def by_kernel(part: Attends, setting: Setting, rows: Rows, given: Given, mask: Tensor | None) -> Tensor:
    """One kernel that is given a mask, or knows itself what is causal. The output is (B, T, N, H)."""
    asked = rows.meant(*given, *(() if mask is None else (mask,)))
    read = rows.lowered("attention", *asked)
    pads = _is_padded(setting, given.query)
    query, key, value = _padded(rows, Given(*read[:3])) if pads else read[:3]
    batch, heads, seq, _ = tape.heads_first(query)
    seeds = (Tensor("dropout state", (Dim("2", 2),), "int64"), Tensor("dropout offset", (), "int64"))
    axes: tuple[Dim, ...] = (batch, heads, seq)
    if setting.attention == "efficient":
        padded = ceil_div(seq.size, LSE_ALIGNMENT) * LSE_ALIGNMENT
        axes = (batch, heads, Dim("⌈T⌉32", padded if setting.training else 0))
    if setting.attention != "flash":
        seeds = (Tensor("dropout state", (), "int64"), Tensor("dropout offset", (), "int64"))
    lse = Tensor("log-sum-exp of the scores", axes, "fp32")
    op = tape.attention(setting.attention, query, key, value, "weighted values", lse, seeds, read[3:])
    out = rows(op._replace(drops_out=setting.training and part.dropout > 0))
    if pads:
        whole, out = out, rows(tape.cut(out, "weighted values, cut back", batch, heads, seq, given.query.dims[-1]))
        rows.drop(query, key, value, whole)
    rows.drop(*tape.made_of(asked, read))
    return out


def _is_padded(setting: Setting, x: Tensor) -> bool:
    """Whether heads of a size that flash does not take are padded with zeros [attention.cpp, pad_last_dim]."""
    return setting.attention == "flash" and x.dims[-1].size % FLASH_ALIGNMENT > 0


def _padded(rows: Rows, given: Given) -> Given:
    """Copies (B, heads, T, ⌈H⌉8)."""
    found = []
    for x in given:
        batch, heads, seq, size = tape.heads_first(x)
        wide = Dim("⌈H⌉8", ceil_div(size.size, FLASH_ALIGNMENT) * FLASH_ALIGNMENT)
        out = tape.made(x, f"padded {x.label}", batch, heads, seq, wide)
        found.append(rows(tape.whole("aten::constant_pad_nd", (x,), out)))
    return Given(*found)


# --- Written out: one kernel after the other --------------------------------------------------------------------------


def eager(part: Attends, setting: Setting, rows: Rows, given: Given) -> Tensor:
    """Products, softmax and dropout, as transformers' GPT-2 has them. The output is (B, N, T, H).

    The first layer of a pass makes the mask for all.
    """
    mask = _shared_mask(part, setting, rows)
    query, key, value = _in_memory_order(part, setting, Given(*rows.meant(*given)))
    keys, values = for_all_heads(rows, query, key, value)
    product = matmul(rows, query, keys, scores_of(query, key))
    scores = rows(tape.scale(product, "scaled scores"))
    rows.drop(product)
    if part.scores.softcap is not None:
        scores = _capped(rows, scores)
    if mask is not None:
        scaled, scores = scores, rows(tape.add(scores, mask, "masked scores"))
        rows.drop(scaled)
    if part.scores.sinks:
        seen, scores = scores, _with_sinks(setting, rows, scores)
        rows.drop(seen)
    shares = rows(tape.softmax(scores, "attention weights"))
    rows.drop(scores)
    if part.scores.sinks:
        wide, shares = shares, rows(tape.cut(shares, "attention weights but the sink's", *seen.dims))
        rows.drop(wide)
    shares = dropped(part, setting, rows, shares)
    out = weighted_sum(rows, query, shares, values)
    rows.drop(shares, *(x for x in (keys, values) if x not in (key, value)))
    return out


def math(part: Attends, setting: Setting, rows: Rows, given: Given, *, causal: bool = True) -> Tensor:
    """What torch's `scaled_dot_product_attention` runs where no fused kernel does, in fp32. The output is (B, N, T, H).

    √scale goes to query and key each, every layer makes a mask, and the weights are cast back though nobody reads them
    [attention.cpp, _scaled_dot_product_attention_math].
    """
    return by_math(part, setting, rows, given, _shared_mask(part, setting, rows), causal=causal)


def by_math(  # noqa: PLR0913  what it is given
    part: Attends, setting: Setting, rows: Rows, given: Given, shared: Tensor | None, *, causal: bool
) -> Tensor:
    """The same with a mask that layers share, or else one of its own, where it is `causal`."""
    asked = rows.meant(*given, *(() if shared is None else (shared,)))
    read = rows.lowered("attention", *asked)
    inside, mask = Rows(setting._replace(autocast="")), None if shared is None else read[3]
    joined = _by_math(part, setting, inside, Given(*read[:3]), mask, causal=causal)
    rows += inside
    rows.drop(*tape.made_of(asked, read))
    return joined


def _by_math(  # noqa: PLR0913  what it is given
    part: Attends, setting: Setting, rows: Rows, given: Given, shared: Tensor | None, *, causal: bool
) -> Tensor:
    """Its ops, in dtypes that autocast leaves alone."""
    wide, dtype = _in_memory_order(part, setting, given), given.query.dtype
    if is_half := dtype != "fp32":
        wide = Given(*[rows(tape.cast(x, "fp32", f"{x.label} in fp32")) for x in wide])
    query = rows(tape.scale(wide.query, "scaled query"))
    mask = _own_mask(setting, rows) if causal and setting.cached is None and shared is None else shared
    keys, values = for_all_heads(rows, *wide)
    scaled_keys = rows(tape.scale(keys, "scaled key"))
    scores = matmul(rows, query, scaled_keys, scores_of(query, wide.key))
    rows.drop(scaled_keys)
    if mask is not None:
        unmasked, scores = scores, rows(tape.add_in_place(scores, mask, "masked scores"))
        rows.drop(unmasked)
    shares = dropped(part, setting, rows, _safe_softmax(rows, scores))
    unread = [rows(tape.cast(shares, dtype, "attention weights, unread"))] if is_half else []
    out = weighted_sum(rows, query, shares, values)
    if is_half:
        exact, out = out, rows(tape.cast(out, dtype, "rounded weighted values"))
        rows.drop(exact)
    held = [mask] if mask is not None and mask is not shared else []
    held += [x for x in (keys, values) if x not in wide]
    rows.drop(query, shares, *held, *unread, *(wide if is_half else ()))
    return out


def _in_memory_order(part: Attends, setting: Setting, given: Given) -> Given:
    """Keys and values of a cache lie there as (B, K, S, H)."""
    if setting.cached is None or not part.reads_heads_of_cache:
        return given
    batch, seq, heads, size = given.key.dims
    key, value = (x._replace(dims=(batch, heads, seq, size), base=x) for x in given[1:])
    return Given(given.query, key, value)


def scores_of(query: Tensor, key: Tensor) -> Tensor:
    """What the product of query and key is like: (B, N, T, S)."""
    batch, heads, seq, _ = tape.heads_first(query)
    return tape.made(query, "scores", batch, heads, seq, tape.heads_first(key)[2])


def _capped(rows: Rows, scores: Tensor) -> Tensor:
    """The scores bounded by tanh, in three steps; drops the scores."""
    small = rows(tape.whole("aten::div", (scores,), tape.made(scores, "scores in units of the cap")))
    bounded = rows(tape.activation("tanh", small, "tanh of the scores"))
    rows.drop(small)
    capped = rows(tape.scale(bounded, "capped scores"))
    rows.drop(bounded, scores)
    return capped


def _with_sinks(setting: Setting, rows: Rows, scores: Tensor) -> Tensor:
    """The scores, and for each head one more."""
    *axes, keys = scores.dims
    sinks = rows(tape.expand(setting.weight("sinks", "sinks", axes[1]), "sinks of every token", *axes))
    out = rows(tape.join((scores, sinks), tape.made(scores, "scores and sinks", *axes, Dim("(T+1)", keys.size + 1))))
    rows.drop(sinks)
    return out


def _shared_mask(part: Attends, setting: Setting, rows: Rows) -> Tensor | None:
    """What is added to the scores, made by the first layer that sees so: a kernel knows itself what is causal."""
    seq, is_eager, decodes = setting.seq, setting.attention == "eager", setting.cached is not None
    sight = part.scores._replace(softcap=None, sinks=False)
    if not sight.masks(seq.size):
        sight = Scores()
    if not sight.alibi and (decodes or (sight.window is None and not is_eager)):
        return None
    once = setting.once(("mask", sight, is_eager))
    seen = setting.cached or seq
    width = seen if is_eager else Dim("⌈T⌉8", ceil_div(seen.size, MASK_ALIGNMENT) * MASK_ALIGNMENT)
    made, causal = Rows(setting), Tensor(f"causal mask{once.suffix}", (seq, width), setting.dtype)
    if not sight.alibi:
        mask = _hidden(sight, made, causal)
    else:
        shifts = Tensor(f"mask of distances{once.suffix}", (width,), setting.dtype)
        mask = _by_distance(sight.alibi, setting, made, shifts)
        if not decodes:
            later, shifts = _hidden(sight, made, causal), mask
            both = tape.made(shifts, f"distances and what is hidden{once.suffix}", shifts.dims[0], seq, width)
            mask = made(tape.whole("aten::add", (shifts, later), both))
            made.drop(shifts, later)
    if once.new:
        rows += [op._replace(shared=True) for op in made]
    return mask


def _hidden(sight: Scores, rows: Rows, mask: Tensor) -> Tensor:
    """(T, T), −∞ above the diagonal, and for what is too far back."""
    full = rows(tape.whole("aten::full", (), mask._replace(label=f"{mask.label} of −∞")))
    if sight.window is None:
        rows(tape.whole("aten::triu", (full,), mask))
        rows.drop(full)
        return mask
    after = tape.whole("aten::triu", (full,), mask._replace(label=f"{mask.label}: later ones"))
    if not sight.chunked:
        later = rows(after)
        before = rows(tape.whole("aten::tril", (full,), mask._replace(label=f"{mask.label}: distant ones")))
        rows(tape.whole("aten::add", (later, before), mask))
        rows.drop(full, later, before)
        return mask
    count = rows(tape.whole("aten::arange", (), Tensor(f"{mask.label}: positions", mask.dims[-1:], "int64")))
    chunks = rows(tape.whole("aten::floor_divide", (count,), tape.made(count, f"{mask.label}: chunks")))
    rows.drop(count)
    later = rows(after)
    others = rows(tape.whole("aten::ne", (chunks,), tape.made(mask, f"{mask.label}: other chunks", dtype="bool")))
    rows(tape.whole("aten::masked_fill", (later, others), mask))
    rows.drop(full, later, others, chunks)
    return mask


def _by_distance(n_heads: int, setting: Setting, rows: Rows, mask: Tensor) -> Tensor:
    """(N, 1, T): for each head its slope times the position of the key, computed in fp32."""
    heads, (seen,) = Dim("N", n_heads), mask.dims
    power = Dim("⌈N⌉2", 1 << (heads.size - 1).bit_length())

    def step(name: str, *reads: Tensor, dims: tuple[Dim, ...] = (power,)) -> Tensor:
        return rows(tape.whole(f"aten::{name}", reads, Tensor(f"{mask.label}: {name}", dims, "fp32")))

    count = step("arange")
    exponents = step("mul", count)
    rows.drop(count)
    slopes = step("pow", exponents)
    rows.drop(exponents)
    if power.size > heads.size:
        before, slopes = slopes, step("cat", slopes)
        rows.drop(before)
    positions = rows(tape.whole("aten::arange", (), Tensor(f"{mask.label}: positions", (seen,), "fp32")))
    out = rows(tape.whole("aten::mul", (slopes, positions), Tensor(mask.label, (heads, seen), "fp32")))
    if setting.dtype == "fp32":
        rows.drop(slopes, positions)
        return out
    rounded = rows(tape.cast(out, setting.dtype, out.label))
    rows.drop(out, slopes, positions)
    return rounded


def _own_mask(setting: Setting, rows: Rows) -> Tensor:
    """(T, T), 0 up to the diagonal and −∞ above."""
    square = (setting.seq, setting.seq)
    ones = rows(tape.whole("aten::ones", (), Tensor("ones", square, "bool")))
    seen = rows(tape.whole("aten::tril", (ones,), Tensor("who is seen", square, "bool")))
    rows.drop(ones)
    numbers = [rows(tape.whole("aten::scalar_tensor", (), Tensor(label, (), "fp32"))) for label in ("−∞", "0")]
    mask = rows(tape.whole("aten::where", (seen, *numbers), Tensor("causal mask", square, "fp32")))
    rows.drop(seen, *numbers)
    return mask


def for_all_heads(rows: Rows, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (B, N, S, H): each head's repeated for the queries that share it."""
    n_heads, (batch, shared, seq, size) = tape.heads_first(query)[1], tape.heads_first(key)
    if shared.size == n_heads.size:
        return key, value
    keys = rows(tape.repeat(key, "key of every head", batch, n_heads, seq, size))
    return keys, rows(tape.repeat(value, "value of every head", batch, n_heads, seq, size))


def matmul(rows: Rows, x: Tensor, other: Tensor, out: Tensor) -> Tensor:
    """A product of matrices for each of B·N."""
    x, other = rows.meant(x, other)
    read = rows.lowered(out.label, x, other)
    factors = [_by_matrix(rows, factor) for factor in read]
    product = rows(tape.bmm(factors[0], factors[1], out))
    rows.drop(*tape.made_of(read, factors), *tape.made_of((x, other), read))
    return product


def _by_matrix(rows: Rows, x: Tensor) -> Tensor:
    """X as (B·N, T, H), for which it is copied where B and N do not join."""
    batch, heads, seq, size = tape.heads_first(x)
    if tape.joins(x, batch, heads):
        return x
    return rows(tape.clone(x, f"copy of {x.label}", batch, heads, seq, size))


def dropped(part: Attends, setting: Setting, rows: Rows, shares: Tensor) -> Tensor:
    """The attention weights after dropout, if there is any."""
    if not (setting.training and part.dropout):
        return shares
    dropped = rows(tape.dropout(shares, "dropped attention weights"))
    rows.drop(shares)
    return dropped


def _safe_softmax(rows: Rows, scores: Tensor) -> Tensor:
    """Softmax with zeros where a row is −∞ throughout; drops the scores."""
    shares = rows(tape.softmax(scores, "softmax")._replace(saves=()))
    hidden = rows(tape.whole("aten::isneginf", (scores,), tape.made(scores, "what is hidden", dtype="bool")))
    none = tape.made(hidden, "rows that see nothing", *scores.dims[:-1])
    rows(tape.whole("aten::all", (hidden,), none))
    zero = rows(tape.whole("aten::scalar_tensor", (), Tensor("zero", (), scores.dtype)))
    out = rows(tape.safe_softmax(scores, shares, none, zero, "attention weights"))
    rows.drop(shares, hidden, none, zero, scores)
    return out


def weighted_sum(rows: Rows, query: Tensor, shares: Tensor, values: Tensor) -> Tensor:
    """(B, N, T, H), of which the gradient comes as (B, T, N, H)."""
    (batch, heads, seq, _), size = tape.heads_first(query), values.dims[-1]
    out = matmul(rows, shares, values, tape.made(shares, "weighted values", batch, heads, seq, size))
    if tape.joins(tape.made(out, "gradient", batch, seq, heads, size), batch, heads):
        return out
    return _copied_back(rows, out, "weighted values by head")


def _copied_back(rows: Rows, x: Tensor, label: str) -> Tensor:
    view = rows(tape.copied_back(x, label))
    rows.drop(x)
    return view


# --- Around it -------------------------------------------------------------------------------------------------------


def by_token(part: "MultiHeadAttention", setting: Setting, rows: Rows, x: Tensor) -> Tensor:
    """Query, key or value (B, T, heads, H) of a layer that computed (B·T, heads·H).

    Where the gradient has no such strides, it is copied: here, if its heads are side by side, else by `by_head`.
    """
    batch, seq, heads, size = x.dims
    comes = _gradient(part, setting, x)
    if tape.joins(comes, batch, seq) or not tape.joins(comes, heads, size):
        return x
    return _copied_back(rows, x, f"{x.label} by token")


def by_head(part: "MultiHeadAttention", setting: Setting, rows: Rows, x: Tensor) -> Tensor:
    """Query, key or value (B, T, heads, H), seen in (B, T, heads·H)."""
    if tape.joins(_gradient(part, setting, x), *x.dims[2:]):
        return x
    return _copied_back(rows, x, f"{x.label} by head")


def dense_gradient(part: "MultiHeadAttention", setting: Setting, rows: Rows, x: Tensor, *, query: bool) -> Tensor:
    """What a norm has made of query or key (B, T, heads, H): it reads a dense gradient, for which one may be copied."""
    comes = _from_attention if part.norm_after_rotary else _from_rotation
    if tape.joins(comes(part, setting, x, is_key=not query), *x.dims):
        return x
    return _copied_back(rows, x, f"{x.label} as attention reads it")


def _gradient(part: "MultiHeadAttention", setting: Setting, x: Tensor) -> Tensor:
    """The gradient of query, key or value in the order in which it comes back to the projection.

    A norm leaves it dense.
    """
    which = x.label.split()[0]
    if which == "value":
        return _from_attention(part, setting, x, is_key=False)
    if (part.q_norm if which == "query" else part.k_norm) is not None:
        return tape.made(x, "gradient")
    return _from_rotation(part, setting, x, is_key=which == "key")


def _from_rotation(part: "MultiHeadAttention", setting: Setting, x: Tensor, *, is_key: bool) -> Tensor:
    """The gradient of query or key in the order in which it comes back from the rotation.

    One of all features keeps the order. Of some, parts are put together: dense, but for (B, heads, H, T), where torch
    sees images whose channels, our tokens, lie innermost, and keeps them so [cat_compute_output_memory_format].
    """
    comes = _from_attention(part, setting, x, is_key=is_key)
    partial = part.rotary is not None and part.rotary.is_partial(part.d_head)
    return tape.made(x, "gradient") if partial and comes.dims[-1] == x.dims[-1] else comes


def _from_attention(part: "MultiHeadAttention", setting: Setting, x: Tensor, *, is_key: bool) -> Tensor:
    """The gradient of query, key or value in the order in which it comes back from attention.

    A fused kernel keeps the order of x, unless x was padded. A product of matrices leaves (B, heads, T, H), and for the
    key, which is read transposed, (B, heads, H, T); for heads that share a key these are summed: (B, heads, T, H).
    """
    batch, seq, heads, size = x.dims
    if BACKENDS[setting.attention] is fused:
        padded = (batch, heads, seq, size) if _is_padded(setting, x) else ()
        return tape.made(x, "gradient", *padded)
    if is_key and part.n_heads == part.n_kv_heads:
        return tape.made(x, "gradient", batch, heads, size, seq)
    return tape.made(x, "gradient", batch, heads, seq, size)


def read_cache(  # noqa: PLR0913, PLR0917  a step's own beside what is kept
    part: Attends, setting: Setting, rows: Rows, key: Tensor, value: Tensor, like: Tensor
) -> tuple[Tensor, Tensor]:
    """All keys and values (B, S, heads, size), this step's among them: views, or casts to the dtype of `like`."""
    batch, seq, window = setting.tokens[0], setting.cached or setting.seq, part.scores.window
    kept_of_all = part.cache(batch, seq, setting.kv_dtype)
    if window is not None and window < seq.size:
        seq = Dim("W", (seq.size - 1) % window + 1 if part.scores.chunked else window)
    found = []
    for kept in kept_of_all:
        view = rows(tape.cut(kept, f"{kept.label} so far", batch, seq, kept.dims[1], kept.dims[3]))
        if kept.dtype != like.dtype:
            wide = rows(tape.cast(view, like.dtype, f"{kept.label} in {like.dtype}"))
            rows.drop(view)
            view = wide
        found.append(view)
    rows.drop(key, value)
    return found[0], found[1]


def side_by_side(rows: Rows, joined: Tensor, dims: Product, *, dense: bool = False) -> Tensor:
    """The weighted values as the projection reads them, (B·T, N·H): copied, or viewed where that is possible.

    `dense` asks that rows follow each other too, which one head's do not that a kernel has computed wider than it is.
    """
    if joined.dims == dims:
        return joined
    joins = tape.is_dense(joined, *dims) if dense else all(tape.joins(joined, *axes) for axes in (dims[:2], dims[2:]))
    if joins:
        return rows(tape.view(joined, "weighted values side by side", *dims))
    return rows(tape.clone(joined, "weighted values side by side", *dims))


#: Every backend by name.
BACKENDS: dict[str, Attend] = {"flash": fused, "cudnn": fused, "efficient": fused, "eager": eager, "math": math}
