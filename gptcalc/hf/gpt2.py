"""GPT-2 as transformers runs it [models/gpt2/modeling_gpt2.py, activations.py, pytorch_utils.py]."""

from collections.abc import Sequence

from gptcalc import tape
from gptcalc.formula import Dim
from gptcalc.hf import common
from gptcalc.hf.activations import activate
from gptcalc.parts import attend
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.block import Block
from gptcalc.parts.embedding import TokenEmbedding, Unembedding
from gptcalc.parts.mlp import DenseMLP
from gptcalc.parts.norm import LayerNorm
from gptcalc.parts.positions import LearnedPositions
from gptcalc.spec import AnyPart, Spec
from gptcalc.tape import Op, Rows, Setting, Tape, Tensor


def buffers(spec: Spec, at: Setting) -> tuple[Tensor, ...]:  # noqa: ARG001  every class's signature
    """None."""
    return ()


def rank(name: str) -> int:  # noqa: ARG001
    """As in the inventory."""
    return 0


def input_rows(spec: Spec, at: Setting) -> Tape:
    """Token rows and position rows, which live until the trunk returns, their sum, the mask, dropout."""
    rows = Rows(at.within(spec.trunk))
    token, positions = spec.embedding, spec.positions
    if not isinstance(token, TokenEmbedding) or not isinstance(positions, LearnedPositions):
        raise TypeError("GPT-2 has a token table and a position table")
    inside = at.within(spec.trunk)
    table = token.table(inside.within(token.name))
    vectors = _held(rows, tape.embedding(at.ids, table, at.unique, "token rows"), inside.within(token.name))
    count = common.position_ids(rows, inside)
    places = inside.within(positions.name)
    table = places.weight("position table", "weight", at.n_ctx, at.width)
    beside = _held(rows, tape.embedding(count, table, at.seq, "position rows"), places)
    x = rows(tape.add(vectors, beside, "input vectors"))
    common.unpacked(rows, inside, count)
    if at.attention == "eager":
        common.causal_mask(rows, inside)
    if at.training and token.dropout:
        before, x = x, rows(tape.dropout(x, f"{x.label} after dropout"))
        rows.drop(before)
    return Tape(tuple(rows), (x,))


def _held(rows: Rows, op: Op, at: Setting) -> Tensor:
    """What a child module makes, and the trunk holds until it returns."""
    return rows(op._replace(shared=True, where=at.where))


def block_arguments(at: Setting) -> tuple[Tensor, ...]:
    """The mask, which eager attention reads."""
    return (common.mask_of(at),)


def block_keywords(at: Setting) -> tuple[Tensor, ...]:
    """The position IDs."""
    return (common.positions_of(at),)


def layer_rows(at: Setting, block: Block) -> tuple[Op, ...]:
    """`GPT2Block`: what attention returns lives until the block does, and so does what goes into the second add."""
    rows, x = Rows(at), at.x
    normed = _norm(rows, at, block.attention_norm, x)
    attended, *weights = _attention(rows, at, block.attention, normed)
    between = rows(tape.add(attended, x, "x after attention"))
    rows.drop(normed)
    normed = _norm(rows, at, block.mlp_norm, between)
    out = _mlp(rows, at, block.mlp, normed)
    rows(tape.add(between, out, "x after MLP"))
    rows.drop(normed, between, out, attended, *weights, x)
    return tuple(rows)


def _norm(rows: Rows, at: Setting, norm: AnyPart | None, x: Tensor) -> Tensor:
    if not isinstance(norm, LayerNorm):
        raise TypeError("GPT-2 has LayerNorms")
    rows += norm.normalise(at.within(norm.name), x, at.width)
    return rows[-1].output


def _attention(rows: Rows, at: Setting, part: AnyPart, x: Tensor) -> tuple[Tensor, ...]:
    """`GPT2Attention`: its output, and where attention is written out the weights that it returns."""
    if not isinstance(part, MultiHeadAttention):
        raise TypeError("GPT-2 has multi-head attention")
    inside = at.within(part.name)
    own = Rows(inside)
    size, heads = Dim("H", part.d_head), Dim("N", part.n_heads)
    fused = tape.made(x, "query, key, value", *at.tokens, Dim("(N+2K)", 3 * part.n_heads), size)
    fused = tape.project(inside, own, part.qkv_names[0], x, fused, bias=True, transposed=True)
    cut = tape.split(fused, *(tape.made(fused, label, *at.tokens, heads, size) for label in ("query", "key", "value")))
    own(cut)
    own.drop(fused)
    given = attend.Given(*(attend.by_head(part, inside, own, access.tensor) for access in cut.writes))
    if at.attention == "eager":
        joined, *weights = _eager(part, inside, own, given)
    else:
        joined, weights = common.sdpa(part, inside, own, given), []
    out = tape.project(inside, own, part.out_name, joined, tape.made(x, "attention output"), bias=True, transposed=True)
    own.drop(joined)
    if at.training and part.residual_dropout:
        before, out = out, own(tape.dropout(out, "dropped attention output"))
        own.drop(before)
    own.drop(*given)
    rows += own
    return out, *weights


def _eager(part: MultiHeadAttention, at: Setting, rows: Rows, given: attend.Given) -> tuple[Tensor, Tensor]:
    """`eager_attention_forward`: the weighted values side by side, and the weights."""
    query, key, value = given
    product = attend.matmul(rows, query, key, attend.scores_of(query, key))
    scores = rows(tape.scale(product, "scaled scores"))
    rows.drop(product)
    scaled, scores = scores, rows(tape.add(scores, common.mask_of(at), "masked scores"))
    rows.drop(scaled)
    shares = rows(tape.softmax(scores, "attention weights"))
    rows.drop(scores)
    (exact, read) = rows.meant(shares, value)
    if exact.dtype != read.dtype:
        shares = rows(tape.cast(exact, read.dtype, "attention weights as values are"))
        rows.drop(exact)
    shares = attend.dropped(part, at, rows, shares)
    return common.side_by_side(rows, attend.weighted_sum(rows, query, shares, value)), shares


def _mlp(rows: Rows, at: Setting, part: AnyPart, x: Tensor) -> Tensor:
    """`GPT2MLP`."""
    if not isinstance(part, DenseMLP):
        raise TypeError("GPT-2 has a dense MLP")
    inside = at.within(part.name)
    own, inner = Rows(inside), Dim("F", part.d_ff)

    def project(name: str, x: Tensor, out: Tensor) -> Tensor:
        return tape.project(inside, own, name, x, out, bias=True, transposed=True)

    up = project(part.up_name, x, tape.made(x, "up-projection", *at.tokens, inner))
    active = activate(own, part.activation, up, "activation")
    own.drop(*(() if active is up else (up,)))
    out = project(part.down_name, active, tape.made(x, "MLP output"))
    own.drop(active)
    if at.training and part.dropout:
        before, out = out, own(tape.dropout(out, "dropped MLP output"))
        own.drop(before)
    rows += own
    return out


def head_rows(
    spec: Spec, at: Setting, targets: Tensor | None, shared: Sequence[Tensor], *, last: bool
) -> tuple[Op, ...]:
    """Final norm, unembedding, loss."""
    rows, inside = Rows(at), at.within(spec.trunk)
    out = _norm(rows, inside, spec.final_norm, at.x)
    rows.drop(at.x, *shared)
    if not isinstance(spec.unembedding, Unembedding) or not isinstance(spec.embedding, TokenEmbedding):
        raise TypeError("GPT-2 has a token table and an unembedding")
    if last:
        before, out = out, rows(tape.cut(out, "last position", at.tokens[0], Dim("1", 1), out.dims[-1]))
        rows.drop(before)
    table = spec.embedding.table(inside.within(spec.embedding.name))
    rows += spec.unembedding.ops(at.within(spec.unembedding.name), out, table)
    logits = rows[-1].output
    if targets is None:
        rows.drop(out)
        return tuple(rows)
    common.loss(rows, at, logits, targets)
    rows.drop(logits, out)
    return tuple(rows)
