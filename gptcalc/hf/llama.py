"""Llama's stack as transformers runs it [models/llama/modeling_llama.py], and its kin: Qwen 3, Mistral, Gemma 2.

RMSNorm is written in Python, angles and masks are made once in a pass and handed to every layer, and no cache is used
(`use_cache=False`, as the Trainer has it).
"""

from collections.abc import Sequence
from functools import partial

from gptcalc import tape
from gptcalc.formula import Dim
from gptcalc.hf import common, experts
from gptcalc.hf.activations import activate
from gptcalc.parts import attend
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.block import Block
from gptcalc.parts.embedding import TokenEmbedding, Unembedding
from gptcalc.parts.mlp import GatedMLP, MixtureMLP
from gptcalc.parts.norm import RMSNorm
from gptcalc.spec import AnyPart, Spec
from gptcalc.tape import Op, Rows, Setting, Tape, Tensor
from gptcalc.units import ceil_div

# --- The input stage -------------------------------------------------------------------------------------------------


def buffers(spec: Spec, at: Setting) -> tuple[Tensor, ...]:
    """The frequencies of the rotations, twice (`inv_freq`, `original_inv_freq`); what token rows are scaled by."""
    half = Dim("H/2", _attention_of(spec.layers[0].block).d_head // 2)
    frequencies = [Tensor(label, (half,), "fp32") for label in ("frequencies", "original frequencies")]
    scaled = isinstance(spec.embedding, TokenEmbedding) and spec.embedding.scaled
    return (*([Tensor("scale of token rows", (), at.dtype)] if scaled else []), *frequencies)


def rank(name: str) -> int:
    """A layer makes attention and MLP before its norms."""
    return int(name.rpartition(".")[0].endswith("layernorm"))


def input_rows(spec: Spec, at: Setting) -> Tape:
    """Token rows, which the trunk holds until it returns, and what is handed to every layer: masks, angles."""
    inside = at.within(spec.trunk)
    rows, token = Rows(inside), spec.embedding
    if not isinstance(token, TokenEmbedding):
        raise TypeError(f"part {token.kind!r} is no token table")
    rows += token.ops(inside.within(token.name), at.ids)
    rows[-1] = rows[-1]._replace(shared=True)
    x = rows[-1].output
    positions = common.position_ids(rows, inside)
    parts = [_attention_of(group.block) for group in spec.layers]
    for window in _windows(spec.family, parts):
        common.unpacked(rows, inside, positions)
        _mask(rows, inside, window)
    _angles(rows, inside, positions, Dim("H", parts[0].d_head))
    vectors = rows(tape.view(x, "input vectors"))  # `hidden_states = inputs_embeds`: the trunk holds both
    return Tape(tuple(rows), (vectors,))


def _attention_of(block: AnyPart) -> MultiHeadAttention:
    part = block.attention if isinstance(block, Block) else None
    if not isinstance(part, MultiHeadAttention):
        raise TypeError(f"part {block.kind!r} has no multi-head attention")
    return part


#: Families whose trunk makes a mask for each type of layer, that of full attention first, whether or not it is used.
_BY_TYPE = ("qwen3", "gemma2")


def _windows(family: str, parts: Sequence[MultiHeadAttention]) -> list[int | None]:
    """The windows for which the trunk asks for a mask, in its order; `None` is full attention."""
    windows = sorted({part.window for part in parts if part.window is not None})
    if family in _BY_TYPE:
        return [None, *windows]
    return [*windows] or [None]


def _mask(rows: Rows, at: Setting, window: int | None) -> None:
    """The mask of layers that see so, where they are given one: `sdpa` knows itself what is causal."""
    if at.attention == "eager":
        common.causal_mask(rows, at, window)
    elif window is not None:
        common.window_mask(rows, at, window)


def _angles(rows: Rows, at: Setting, positions: Tensor, size: Dim) -> None:
    """`LlamaRotaryEmbedding`: cosines and sines (1, T, H), computed in fp32."""
    own, half = Rows(at.within("rotary_emb")), Dim("H/2", size.size // 2)
    axes = positions.dims
    exact = own(tape.cast(positions, "fp32", "positions in fp32"))
    freqs = own(tape.whole("aten::mul", (exact,), tape.made(exact, "half the angles", *axes, half)))
    own.drop(exact)
    both = own(tape.join((freqs, freqs), tape.made(freqs, "angles", *axes, size)))
    wide = []
    for name in ("cos", "sin"):
        wave = own(tape.whole(f"aten::{name}", (both,), tape.made(both, f"{name} of the angles")))
        wide.append(own(tape.scale(wave, f"scaled {name}" if at.dtype != "fp32" else _WAVES[name])))
        if at.dtype == "fp32":
            own[-1] = own[-1]._replace(shared=True)
        own.drop(wave)
    if at.dtype != "fp32":
        for name, wave in zip(_WAVES, wide, strict=True):
            own(tape.cast(wave, at.dtype, _WAVES[name]))
            own[-1] = own[-1]._replace(shared=True)
        own.drop(*wide)
    own.drop(freqs, both)
    rows += own


_WAVES = {"cos": "cosines", "sin": "sines"}


def _waves(at: Setting, size: Dim) -> tuple[Tensor, Tensor]:
    """Cosines and sines, which every layer is handed."""
    axes = (common.row_of_one(at), at.seq, size)
    cos, sin = (Tensor(label, axes, at.dtype) for label in _WAVES.values())
    return cos, sin


# --- A layer ---------------------------------------------------------------------------------------------------------


def block_arguments(at: Setting) -> tuple[Tensor, ...]:  # noqa: ARG001  as every family's
    """None: mask and angles are given by keyword."""
    return ()


def block_keywords(at: Setting) -> tuple[Tensor, ...]:
    """The position IDs."""
    return (common.positions_of(at),)


def layer_rows(at: Setting, block: Block) -> tuple[Op, ...]:
    """`LlamaDecoderLayer`: the caller holds the input until it returns, it the weights that attention returns."""
    rows, x = Rows(at), at.x
    normed = norm(rows, at, block.attention_norm, x)
    out, *weights = _attention(rows, at, block.attention, normed)
    rows.drop(normed)
    out = _after(rows, at, block.attention_post_norm, out)
    between = rows(tape.add(x, out, "x after attention"))
    rows.drop(out)
    normed = norm(rows, at, block.mlp_norm, between)
    out = _mlp(rows, at, block.mlp, normed)
    rows.drop(normed)
    out = _after(rows, at, block.mlp_post_norm, out)
    rows(tape.add(between, out, "x after MLP"))
    rows.drop(out, between, *weights, x)
    return tuple(rows)


def _after(rows: Rows, at: Setting, part: AnyPart | None, x: Tensor) -> Tensor:
    """What a part says, through the norm that follows it, where there is one."""
    if part is None:
        return x
    out = norm(rows, at, part, x)
    rows.drop(x)
    return out


def norm(rows: Rows, at: Setting, part: AnyPart | None, x: Tensor, *axes: Dim) -> Tensor:
    """`LlamaRMSNorm`: in fp32, rounded, then times the weight; what it says of x."""
    if not isinstance(part, RMSNorm):
        raise TypeError("Llama has RMSNorms")
    if part.unit_offset:
        return _gemma_norm(rows, at, part, x)
    own, label = Rows(at.within(part.name)), f"{x.label}, {part.name}"
    weight = at.within(part.name).weight("norm weight", "weight", *(axes or (at.width,)))
    wide = x if x.dtype == "fp32" else own(tape.cast(x, "fp32", f"{label}: in fp32"))
    squares = own(tape.power(wide, f"{label}: squares"))
    mean = own(tape.mean(squares, f"{label}: mean square"))
    own.drop(squares)
    safe = own(tape.shift(mean, f"{label}: mean square + ε"))
    scales = own(tape.rsqrt(safe, f"{label}: 1/rms"))
    own.drop(safe)
    normed = own(tape.multiply(wide, scales, f"{label}: normalised"))
    own.drop(scales, *(() if wide is x else (wide,)))
    rounded = normed if x.dtype == "fp32" else own(tape.cast(normed, x.dtype, f"{label}: rounded"))
    out = own(_by_weight(weight, rounded, f"normalised {label}"))
    own.drop(normed, mean, *(() if rounded is normed else (rounded,)))
    rows += own
    return out


def _gemma_norm(rows: Rows, at: Setting, part: RMSNorm, x: Tensor) -> Tensor:
    """`Gemma2RMSNorm`: times 1 + weight in fp32 too, then rounded."""
    own, label = Rows(at.within(part.name)), f"{x.label}, {part.name}"
    weight = at.within(part.name).weight("norm weight", "weight", at.width)
    wide = x if x.dtype == "fp32" else own(tape.cast(x, "fp32", f"{label}: in fp32"))
    squares = own(tape.power(wide, f"{label}: squares"))
    mean = own(tape.mean(squares, f"{label}: mean square"))
    own.drop(squares)
    safe = own(tape.shift(mean, f"{label}: mean square + ε"))
    own.drop(mean)
    scales = own(tape.rsqrt(safe, f"{label}: 1/rms"))
    own.drop(safe)
    normed = own(tape.multiply(wide, scales, f"{label}: normalised"))
    own.drop(scales, *(() if wide is x else (wide,)))
    exact = weight if weight.dtype == "fp32" else own(tape.cast(weight, "fp32", f"{label}: weight in fp32"))
    gain = own(tape.shift(exact, f"{label}: 1 + weight"))
    own.drop(*(() if exact is weight else (exact,)))
    label = f"normalised {label}"
    out = own(tape.multiply(normed, gain, label if x.dtype == "fp32" else f"{label}, in fp32"))
    own.drop(normed, gain)
    if x.dtype != "fp32":
        exact, out = out, own(tape.cast(out, x.dtype, label))
        own.drop(exact)
    rows += own
    return out


def _by_weight(weight: Tensor, x: Tensor, label: str) -> Op:
    """`weight * x`: both are kept."""
    return tape.whole("aten::mul", (weight, x), tape.made(x, label))._replace(saves=(x, weight))


# --- Attention -------------------------------------------------------------------------------------------------------


def _attention(rows: Rows, at: Setting, part: AnyPart, x: Tensor) -> tuple[Tensor, ...]:
    """`LlamaAttention`: its output, and where attention is written out the weights that it returns."""
    if not isinstance(part, MultiHeadAttention):
        raise TypeError("Llama has multi-head attention")
    inside = at.within(part.name)
    own, size = Rows(inside), Dim("H", part.d_head)
    vectors = []
    for name, label, heads in zip(
        part.qkv_names,
        ("query", "key", "value"),
        (Dim("N", part.n_heads), *[Dim("K", part.n_kv_heads)] * 2),
        strict=True,
    ):
        vectors.append(_vector(part, inside, own, name, tape.made(x, label, *at.tokens, heads, size), x))
    query, key, value = vectors
    turned = _rotated(own, query, *_waves(at, size)), _rotated(own, key, *_waves(at, size))
    own.drop(query, key)
    given = attend.Given(*turned, value)
    if at.attention == "eager":
        joined, *weights = _eager(part, inside, own, given)
    else:
        joined, weights = _sdpa(part, inside, own, given), []
    out = tape.project(inside, own, part.out_name, joined, tape.made(x, "attention output"), bias=part.out_bias)
    own.drop(joined, *given)
    rows += own
    return out, *weights


def _vector(  # noqa: PLR0913, PLR0917  what a projection is
    part: MultiHeadAttention, at: Setting, rows: Rows, name: str, out: Tensor, x: Tensor
) -> Tensor:
    """Query, key or value (B, T, heads, H): what the projection `name` makes of x, seen by head.

    The rotation gives query and key a gradient by head, which is copied, and so does a sum over the heads that share a
    value; else that of the value is as attention leaves it.
    """
    out = tape.project(at, rows, name, x, out, bias=part.qkv_bias)
    if out.label == "value" and (at.attention == "eager" or not common.repeats(part, at.seq.size)):
        return attend.by_head(part, at, rows, attend.by_token(part, at, rows, out))
    seen, own = _copied_by_head(rows, out), {"query": part.q_norm, "key": part.k_norm}.get(out.label)
    if own is None:
        return seen
    normed = norm(rows, at, own, seen, out.dims[-1])
    rows.drop(seen)
    return normed


def _copied_by_head(rows: Rows, x: Tensor) -> Tensor:
    """X, whose gradient comes dense by head (B, heads, T, H): it is copied where heads are to be side by side."""
    batch, seq, heads, size = x.dims
    if tape.joins(tape.made(x, "gradient", batch, heads, seq, size), heads, size):
        return x
    view = rows(tape.copied_back(x, f"{x.label} by head"))
    rows.drop(x)
    return view


def _rotated(rows: Rows, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`apply_rotary_pos_emb`: x·cos + rotate_half(x)·sin."""
    *axes, size = x.dims
    label, half = x.label, Dim("H/2", size.size // 2)
    along = rows(tape.multiply(x, cos, f"{label}·cos", constant=True))
    first, second = (rows(tape.cut(x, f"{which} half of {label}", *axes, half)) for which in ("first", "second"))
    negated = rows(tape.whole("aten::neg", (second,), tape.made(second, f"negated {second.label}")._replace(base=None)))
    turned = rows(tape.join((negated, first), tape.made(x, f"turned {label}")._replace(base=None)))
    rows.drop(negated, first, second)
    across = rows(tape.multiply(turned, sin, f"turned {label}·sin", constant=True))
    rows.drop(turned)
    out = rows(tape.add(along, across, f"rotated {label}"))
    rows.drop(along, across)
    return out


def _eager(part: MultiHeadAttention, at: Setting, rows: Rows, given: attend.Given) -> tuple[Tensor, Tensor]:
    """`eager_attention_forward`: softmax in fp32; the weighted values side by side, and the weights."""
    query, key, value = given
    keys, values = _for_all_heads(rows, query, key, value)
    product = attend.matmul(rows, query, keys, attend.scores_of(query, key))
    scores = rows(tape.scale(product, "scaled scores"))
    rows.drop(product)
    if part.softcap is not None:
        scores = _capped(rows, scores)
    scaled, scores = scores, rows(tape.add(scores, common.mask_of(at, part.window), "masked scores"))
    rows.drop(scaled)
    # CUDA's kernel itself reads fp16 and writes fp32 [aten/src/ATen/native/SoftMax.cpp].
    wide = scores if query.dtype in ("fp32", "fp16") else rows(tape.cast(scores, "fp32", "scores in fp32"))
    shares = rows(_exact_softmax(wide))
    rows.drop(*(() if wide is scores else (wide,)))
    if query.dtype != "fp32":
        exact, shares = shares, rows(tape.cast(shares, query.dtype, "attention weights"))
        rows.drop(exact)
    rows.drop(scores)
    shares = attend.dropped(part, at, rows, shares)
    flat = common.side_by_side(rows, attend.weighted_sum(rows, query, shares, values))
    rows.drop(*(x for x in (keys, values) if x not in given))
    return flat, shares


def _exact_softmax(x: Tensor) -> Op:
    """Softmax that is computed, and kept, in fp32."""
    op = tape.whole("aten::_softmax", (x,), tape.made(x, "softmax", dtype="fp32"))
    return op._replace(saves=(op.output,))


def _capped(rows: Rows, scores: Tensor) -> Tensor:
    """The scores bounded by tanh, each step in the place of the one before."""
    for op, label in (
        (tape.over_number, "scores in units of the cap"),
        (partial(tape.activation, "tanh"), "tanh of the scores"),
        (tape.scale, "capped scores"),
    ):
        before, scores = scores, rows(op(scores, label))
        rows.drop(before)
    return scores


def _sdpa(part: MultiHeadAttention, at: Setting, rows: Rows, given: attend.Given) -> Tensor:
    """`sdpa_attention_forward`: the weighted values side by side; a single token is told of no mask."""
    query, keys, values = given
    if common.repeats(part, at.seq.size):
        keys, values = _for_all_heads(rows, *given)
    # Autocast lowers what the function is given, and nothing inside it: a mask is made in the lower dtype.
    asked = rows.meant(query, keys, values)
    read = attend.Given(*rows.lowered("attention", *asked))
    inside = Rows(at._replace(autocast=""))
    mask = None
    if common.is_masked(part, at.seq.size):
        mask = _in_numbers(at, inside, common.sight_of(at, part.window), read.query.dtype)
    bias = mask
    if at.attention == "math":
        joined = attend.by_math(part, at._replace(autocast=""), inside, read, bias, causal=at.seq.size > 1)
    else:
        if mask is not None and at.attention == "efficient":
            bias = _aligned(inside, mask)
        joined = attend.by_kernel(part, at, inside, read, bias)
    rows += inside
    rows.drop(*{x for x in (mask, bias) if x is not None}, *tape.made_of(asked, read))
    flat = common.side_by_side(rows, joined)
    rows.drop(*(x for x in (keys, values) if x not in given))
    return flat


def _in_numbers(at: Setting, rows: Rows, seen: Tensor, dtype: str) -> Tensor:
    """0 where is seen, else −∞, for each sequence: torch makes it for every layer (`convert_boolean_attn_mask`)."""
    numbers = [rows(tape.whole("aten::scalar_tensor", (), Tensor(label, (), dtype))) for label in ("−∞", "0")]
    axes = (at.tokens[0], Dim("1", 1), *seen.dims)
    mask = rows(tape.whole("aten::where", (seen, *numbers), Tensor("mask in numbers", axes, dtype)))
    rows.drop(*numbers)
    return mask


def _aligned(rows: Rows, mask: Tensor) -> Tensor:
    """The mask as mem-efficient attention takes it: rows that are no multiple of 8 long are padded, and cut back."""
    *axes, keys = mask.dims
    if not keys.size % attend.MASK_ALIGNMENT:
        return mask
    padded = Dim("⌈T⌉8", ceil_div(keys.size, attend.MASK_ALIGNMENT) * attend.MASK_ALIGNMENT)
    return rows(tape.whole("aten::constant_pad_nd", (mask,), tape.made(mask, "padded mask", *axes, padded)))


def _for_all_heads(rows: Rows, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """`repeat_kv`: a single key and value are seen by every head, of more each is copied."""
    n_heads, (batch, shared, seq, size) = tape.heads_first(query)[1], tape.heads_first(key)
    if shared.size > 1 or n_heads.size == 1:
        return attend.for_all_heads(rows, query, key, value)
    keys, values = (rows(tape.expand(x, f"{x.label} of every head", batch, n_heads, seq, size)) for x in (key, value))
    return keys, values


# --- The MLP ---------------------------------------------------------------------------------------------------------


def _mlp(rows: Rows, at: Setting, part: AnyPart, x: Tensor) -> Tensor:
    """`LlamaMLP`: act(gate) · up, then down."""
    if isinstance(part, MixtureMLP):
        return experts.mixture(rows, at, part, x)
    if not isinstance(part, GatedMLP):
        raise TypeError("Llama has a gated MLP")
    inside, inner = at.within(part.name), Dim("F", part.d_ff)
    own = Rows(inside)
    gate = tape.project(inside, own, part.gate_name, x, tape.made(x, "gate", *at.tokens, inner), bias=part.bias)
    active = activate(own, part.activation, gate, "activated gate")
    own.drop(*(() if active is gate else (gate,)))
    up = tape.project(inside, own, part.up_name, x, tape.made(x, "up-projection", *at.tokens, inner), bias=part.bias)
    gated = own(tape.multiply(active, up, "gated"))
    own.drop(active, up)
    out = tape.project(inside, own, part.down_name, gated, tape.made(x, "MLP output"), bias=part.bias)
    own.drop(gated)
    rows += own
    return out


# --- The head --------------------------------------------------------------------------------------------------------


def head_rows(
    spec: Spec,
    at: Setting,
    targets: Tensor | None,
    shared: Sequence[Tensor],
    *,
    last: bool,  # noqa: ARG001  inference is not modelled
) -> tuple[Op, ...]:
    """Final norm, unembedding, loss."""
    rows, inside = Rows(at), at.within(spec.trunk)
    out = norm(rows, inside, spec.final_norm, at.x)
    rows.drop(at.x, *shared)
    if not isinstance(spec.unembedding, Unembedding) or not isinstance(spec.embedding, TokenEmbedding):
        raise TypeError("Llama has a token table and an unembedding")
    table = spec.embedding.table(inside.within(spec.embedding.name))
    rows += spec.unembedding.ops(at.within(spec.unembedding.name), out, table)
    logits = rows[-1].output
    if targets is None:
        rows.drop(out)
        return tuple(rows)
    common.loss(rows, at, logits, targets)
    rows.drop(logits, out)
    return tuple(rows)
