"""Attention's core by backend: which kernels torch runs between query, key, value and their weighted sum."""

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from gptcalc import tape
from gptcalc.formula import Dim, Product
from gptcalc.tape import Rows, Setting, Tensor
from gptcalc.units import ceil_div

if TYPE_CHECKING:
    from gptcalc.parts.attention import MultiHeadAttention

#: Where the logarithms of mem-efficient attention's sums are padded to [kAlignLSE, mem_eff_attention].
LSE_ALIGNMENT = 32
#: Head sizes that flash attention takes are multiples of this.
FLASH_ALIGNMENT = 8


class Given(NamedTuple):
    """Query (B, T, N, H), key and value (B, S, K, H)."""

    query: Tensor
    key: Tensor
    value: Tensor


class Attends(Protocol):
    """What a backend must know of the part that it works for."""

    dropout: float
    #: Whether keys and values come out of the cache as they lie there, by head.
    reads_heads_of_cache: ClassVar[bool]

    def cache(self, batch: Dim, seq: Dim, dtype: str) -> tuple[Tensor, Tensor]:
        """Room for T tokens of B sequences: (B, heads, T, size) each."""


Attend = Callable[[Attends, Setting, Rows, Given], Tensor]


def fused(part: Attends, setting: Setting, rows: Rows, given: Given) -> Tensor:
    """One kernel, by `setting.attention`: flash, cuDNN's, or the mem-efficient one. The output is (B, T, N, H)."""
    pads = _is_padded(setting, given.query)
    query, key, value = _padded(rows, given) if pads else given
    batch, heads, seq, _ = tape.heads_first(query)
    seeds = (Tensor("dropout state", (Dim("2", 2),), "int64"), Tensor("dropout offset", (), "int64"))
    axes: tuple[Dim, ...] = (batch, heads, seq)
    if setting.attention == "efficient":
        padded = ceil_div(seq.size, LSE_ALIGNMENT) * LSE_ALIGNMENT
        axes = (batch, heads, Dim("⌈T⌉32", padded if setting.training else 0))
    if setting.attention != "flash":
        seeds = (Tensor("dropout state", (), "int64"), Tensor("dropout offset", (), "int64"))
    lse = Tensor("log-sum-exp of the scores", axes, "fp32")
    op = tape.attention(setting.attention, query, key, value, "weighted values", lse, seeds)
    out = rows(op._replace(drops_out=setting.training and part.dropout > 0))
    if not pads:
        return out
    cut = rows(tape.cut(out, "weighted values, cut back", batch, heads, seq, given.query.dims[-1]))
    rows.drop(query, key, value, out)
    return cut


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
    mask = _shared_mask(setting, rows) if setting.cached is None else None
    query, key, value = _in_memory_order(part, setting, given)
    keys, values = _for_all_heads(rows, query, key, value)
    product = _product(rows, query, keys, _scores(query, key))
    scores = rows(tape.scale(product, "scaled scores"))
    rows.drop(product)
    if mask is not None:
        scaled, scores = scores, rows(tape.add(scores, mask, "masked scores"))
        rows.drop(scaled)
    shares = _dropped(part, setting, rows, rows(tape.softmax(scores, "attention weights")))
    rows.drop(scores)
    out = _weighted_sum(rows, query, shares, values)
    rows.drop(shares, *(x for x in (keys, values) if x not in (key, value)))
    return out


def math(part: Attends, setting: Setting, rows: Rows, given: Given) -> Tensor:
    """What torch's `scaled_dot_product_attention` runs where no fused kernel does, in fp32. The output is (B, N, T, H).

    √scale goes to query and key each, every layer makes a mask, and the weights are cast back though nobody reads them
    [attention.cpp, _scaled_dot_product_attention_math].
    """
    wide, dtype = _in_memory_order(part, setting, given), given.query.dtype
    if is_half := dtype != "fp32":
        wide = Given(*[rows(tape.cast(x, "fp32", f"{x.label} in fp32")) for x in wide])
    query = rows(tape.scale(wide.query, "scaled query"))
    mask = _own_mask(setting, rows) if setting.cached is None else None
    keys, values = _for_all_heads(rows, *wide)
    scaled_keys = rows(tape.scale(keys, "scaled key"))
    scores = _product(rows, query, scaled_keys, _scores(query, wide.key))
    rows.drop(scaled_keys)
    if mask is not None:
        unmasked, scores = scores, rows(tape.add_in_place(scores, mask, "masked scores"))
        rows.drop(unmasked)
    shares = _dropped(part, setting, rows, _safe_softmax(rows, scores))
    unread = [rows(tape.cast(shares, dtype, "attention weights, unread"))] if is_half else []
    out = _weighted_sum(rows, query, shares, values)
    if is_half:
        exact, out = out, rows(tape.cast(out, dtype, "rounded weighted values"))
        rows.drop(exact)
    held = [mask] if mask is not None else []
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


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """(B, N, T, S)."""
    batch, heads, seq, _ = tape.heads_first(query)
    return tape.made(query, "scores", batch, heads, seq, tape.heads_first(key)[2])


def _shared_mask(setting: Setting, rows: Rows) -> Tensor:
    """(T, T), −∞ above the diagonal."""
    mask = Tensor("causal mask", (setting.seq, setting.seq), setting.dtype)
    if setting.first:
        full = rows(tape.whole("aten::full", (), mask._replace(label="mask of −∞"))._replace(shared=True))
        rows(tape.whole("aten::triu", (full,), mask)._replace(shared=True))
        rows.drop(full)
    return mask


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


def _for_all_heads(rows: Rows, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (B, N, S, H): each head's repeated for the queries that share it."""
    n_heads, (batch, shared, seq, size) = tape.heads_first(query)[1], tape.heads_first(key)
    if shared.size == n_heads.size:
        return key, value
    keys = rows(tape.repeat(key, "key of every head", batch, n_heads, seq, size))
    return keys, rows(tape.repeat(value, "value of every head", batch, n_heads, seq, size))


def _product(rows: Rows, x: Tensor, other: Tensor, out: Tensor) -> Tensor:
    """A product of matrices for each of B·N."""
    factors = [_by_matrix(rows, factor) for factor in (x, other)]
    rows(tape.bmm(factors[0], factors[1], out))
    rows.drop(*(factor for factor in factors if factor not in (x, other)))
    return out


def _by_matrix(rows: Rows, x: Tensor) -> Tensor:
    """X as (B·N, T, H), for which it is copied where B and N do not join."""
    batch, heads, seq, size = tape.heads_first(x)
    if tape.joins(x, batch, heads):
        return x
    return rows(tape.clone(x, f"copy of {x.label}", batch, heads, seq, size))


def _dropped(part: Attends, setting: Setting, rows: Rows, shares: Tensor) -> Tensor:
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


def _weighted_sum(rows: Rows, query: Tensor, shares: Tensor, values: Tensor) -> Tensor:
    """(B, N, T, H), of which the gradient comes as (B, T, N, H)."""
    (batch, heads, seq, _), size = tape.heads_first(query), values.dims[-1]
    out = _product(rows, shares, values, tape.made(shares, "weighted values", batch, heads, seq, size))
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
    rotated = part.rotary is not None and not part.norm_after_rotary
    if rotated and part.rotary is not None and part.rotary.is_partial(part.d_head):
        return x
    if tape.joins(_from_attention(part, setting, x, is_key=not query), *x.dims):
        return x
    return _copied_back(rows, x, f"{x.label} as attention reads it")


def _gradient(part: "MultiHeadAttention", setting: Setting, x: Tensor) -> Tensor:
    """The gradient of query, key or value in the order in which it comes back to the projection.

    A norm, and a rotation of some features, leave it dense; a rotation of all leaves its order as it is.
    """
    which = x.label.split()[0]
    norm = {"query": part.q_norm, "key": part.k_norm}.get(which)
    partial = part.rotary is not None and part.rotary.is_partial(part.d_head)
    if norm is not None or (partial and which != "value"):
        return tape.made(x, "gradient")
    return _from_attention(part, setting, x, is_key=which == "key")


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


def read_cache(part: Attends, setting: Setting, rows: Rows, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """All keys and values (B, S, heads, size), those of this step among them: views, or casts to the compute dtype."""
    batch, seq = setting.tokens[0], setting.cached or setting.seq
    found = []
    for kept in part.cache(batch, seq, setting.kv_dtype):
        view = rows(tape.cut(kept, f"{kept.label} so far", batch, seq, kept.dims[1], kept.dims[3]))
        if kept.dtype != setting.dtype:
            wide = rows(tape.cast(view, setting.dtype, f"{kept.label} in {setting.dtype}"))
            rows.drop(view)
            view = wide
        found.append(view)
    rows.drop(key, value)
    return found[0], found[1]


def side_by_side(rows: Rows, joined: Tensor, dims: Product) -> Tensor:
    """The weighted values as the projection reads them, (B·T, N·H): copied, or viewed where that is possible."""
    if joined.dims == dims:
        return joined
    if tape.joins(joined, *dims[:2]) and tape.joins(joined, *dims[2:]):
        return rows(tape.view(joined, "weighted values side by side", *dims))
    return rows(tape.clone(joined, "weighted values side by side", *dims))


#: Every backend by name.
BACKENDS: dict[str, Attend] = {"flash": fused, "cudnn": fused, "efficient": fused, "eager": eager, "math": math}
