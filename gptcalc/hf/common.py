"""What transformers' classes have in common: position IDs, masks, attention by kernel, the loss."""

from gptcalc import tape
from gptcalc.formula import Dim
from gptcalc.parts import attend
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.tape import Rows, Setting, Tensor

_ONE = Dim("1", 1)


def row_of_one(at: Setting) -> Dim:
    """The first axis of what all sequences share: of a single sequence, that of the batch."""
    batch = at.tokens[0]
    return batch if batch.size == 1 else _ONE


def position_ids(rows: Rows, at: Setting) -> Tensor:
    """`torch.arange(T) + past_seen_tokens`; the trunk holds them until it returns."""
    count = rows(_fresh("arange", "positions", "int64", at.seq))
    found = rows(tape.whole("aten::add", (count,), positions_of(at)))
    rows[-1] = rows[-1]._replace(shared=True)
    rows.drop(count)
    return found


def positions_of(at: Setting) -> Tensor:
    """The position IDs, (1, T)."""
    return Tensor("position IDs", (row_of_one(at), at.seq), "int64")


def unpacked(rows: Rows, at: Setting, positions: Tensor) -> None:
    """`find_packed_sequence_indices`: that positions go up by one everywhere is looked at before a mask is made."""
    batch, seq = at.tokens
    first = rows(tape.whole("aten::sub", (positions,), Tensor("position before the first", (batch, _ONE), "int64")))
    joined = Tensor("positions with the one before", (batch, Dim("(T+1)", seq.size + 1)), "int64")
    rows(tape.whole("aten::cat", (first, positions), joined))
    steps = rows(tape.whole("aten::sub", (joined,), Tensor("steps between positions", (batch, seq), "int64")))
    rows.drop(joined)
    breaks = rows(tape.whole("aten::ne", (steps,), tape.made(steps, "where a sequence begins", dtype="bool")))
    numbers = rows(tape.whole("aten::cumsum", (breaks,), tape.made(steps, "numbers of sequences")))
    rows.drop(breaks)
    single = rows(tape.whole("aten::eq", (numbers,), Tensor("rows of one sequence", (batch,), "bool")))
    none = rows(tape.whole("aten::all", (single,), Tensor("whether all rows are", (), "bool")))
    rows.drop(single, none, first, steps, numbers)


def causal_mask(rows: Rows, at: Setting, window: int | None = None) -> None:
    """What eager attention adds to the scores of every layer: `eager_mask` of `sdpa_mask`, for each sequence one."""
    seen = _seen(rows, at, window)
    zero = rows(_fresh("zeros", "0", at.dtype))
    least = rows(_fresh("scalar_tensor", "least number", at.dtype))
    rows(tape.whole("aten::where", (seen, zero, least), mask_of(at, window)))
    rows[-1] = rows[-1]._replace(shared=True)
    rows.drop(seen, zero, least)


def window_mask(rows: Rows, at: Setting, window: int) -> None:
    """Who is seen within a window, a bit each: `sdpa_mask`, where the window hides anything, or would the next one."""
    if at.seq.size >= window:
        _seen(rows, at, window)
        rows[-1] = rows[-1]._replace(shared=True)


def mask_of(at: Setting, window: int | None = None) -> Tensor:
    """The mask that eager attention adds: (B, 1, T, T)."""
    label = "causal mask" if window is None else f"mask of a window of {window}"
    return Tensor(label, (*at.tokens[:1], _ONE, at.seq, at.seq), at.dtype)


def sight_of(at: Setting, window: int | None = None) -> Tensor:
    """Who is seen: (T, T), a bit each, spread over the sequences."""
    return Tensor(f"who is seen{'' if window is None else f' of a window of {window}'}", (at.seq, at.seq), "bool")


def _seen(rows: Rows, at: Setting, window: int | None) -> Tensor:
    """Who is not later and, where there is a window, not too far back: `and_masks` joins both to a true."""
    batch, seq = at.tokens
    axes = [
        rows(_fresh("arange", f"{label} of the mask", "int64", dim)) for label, dim in (("rows", batch), ("1", _ONE))
    ]
    for label in ("queries", "keys"):
        count = rows(_fresh("arange", f"{label} of the mask", "int64", seq))
        axes.append(
            rows(tape.whole("aten::add", (count,), tape.made(count, f"{label} of the mask, from the first on")))
        )
        rows.drop(count)
    out = sight_of(at, window)
    if window is None:
        seen = rows(tape.whole("aten::le", axes[2:], out))
        rows.drop(*axes)
        return seen
    true = rows(_fresh("new_ones", "true", "bool"))
    first = rows(tape.whole("aten::sub", axes[2:3], tape.made(axes[2], "first in sight")))
    near = rows(tape.whole("aten::gt", (axes[3], first), tape.made(out, "who is near")))
    rows.drop(first)
    both = rows(tape.whole("aten::bitwise_and", (true, near), tape.made(out, "who is near, and true")))
    rows.drop(near, true)
    past = rows(tape.whole("aten::le", axes[2:], tape.made(out, "who is not later")))
    seen = rows(tape.whole("aten::bitwise_and", (both, past), out))
    rows.drop(past, both, *axes)
    return seen


def _fresh(name: str, label: str, dtype: str, *dims: Dim) -> tape.Op:
    """What an op makes of nothing."""
    return tape.whole(f"aten::{name}", (), Tensor(label, dims, dtype))


#: Heads of more than this are repeated for those that share them (`use_gqa_in_sdpa`).
LARGEST_GROUPED = 256


def is_masked(part: MultiHeadAttention, seq: int) -> bool:
    """Whether `sdpa` is given a mask: from as many tokens on as there are in a window."""
    return part.window is not None and seq >= part.window


def repeats(part: MultiHeadAttention, seq: int) -> bool:
    """Whether `sdpa` is given key and value of every head, for want of a kernel that groups them."""
    return part.n_kv_heads < part.n_heads and (is_masked(part, seq) or part.d_head > LARGEST_GROUPED)


# --- Attention -------------------------------------------------------------------------------------------------------


def sdpa(part: MultiHeadAttention, at: Setting, rows: Rows, given: attend.Given) -> Tensor:
    """`sdpa_attention_forward` by the kernel of `at.attention`: (B, T, N, H). A single token sees all there is."""
    if at.attention == "math":
        joined = attend.math(part, at, rows, given, causal=at.seq.size > 1)
    else:
        joined = attend.BACKENDS[at.attention](part, at, rows, given)
    return side_by_side(rows, joined)


def side_by_side(rows: Rows, joined: Tensor) -> Tensor:
    """The weighted values as the projection reads them, (B, T, N, H), dense; the kernel's output ends."""
    batch, heads, seq, size = tape.heads_first(joined)
    dims = (batch, seq, heads, size)
    if joined.dims == dims and tape.is_dense(joined):
        return joined
    label = "weighted values side by side"
    dense = rows(tape.view(joined, label, *dims) if tape.is_dense(joined, *dims) else tape.clone(joined, label, *dims))
    rows.drop(joined)
    return dense


# --- The loss --------------------------------------------------------------------------------------------------------


def loss(rows: Rows, at: Setting, logits: Tensor, labels: Tensor) -> None:
    """`ForCausalLMLoss`: logits in fp32, labels padded by one that does not count and read from the second on."""
    inside = Rows(at.within("loss"))
    wide = logits if logits.dtype == "fp32" else inside(tape.cast(logits, "fp32", "logits in fp32"))
    batch, seq = at.tokens
    padded = tape.made(labels, "padded labels", batch, Dim("(T+1)", seq.size + 1))
    rows += inside
    rows(tape.whole("aten::constant_pad_nd", (labels,), padded))
    view = tape.cut(padded, "shifted labels", batch, seq)
    shifted = rows(
        view if batch.size == 1 else tape.whole("aten::clone", (padded,), tape.made(labels, "shifted labels"))
    )
    inside = Rows(at.within("loss"))
    scores = inside(tape.log_softmax(wide, "log-probabilities"))
    inside(tape.nll_loss(scores, shifted, "loss"))
    rows += inside
    rows.drop(scores, shifted, padded, *(() if wide is logits else (wide,)))
