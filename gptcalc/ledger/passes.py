"""One pass through a model, in stretches: the input, each recorded layer, the head; forwards, and in reverse.

Of each group of equal layers at most three are recorded: the first, one of those between, and the last. A layer touches
only itself and its neighbours, so that the middle one stands for all others.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple, Self

from gptcalc.formula import Dim
from gptcalc.hf import Code, code_of
from gptcalc.parts.block import Block
from gptcalc.parts.embedding import TokenEmbedding, Unembedding
from gptcalc.parts.loss import cross_entropy, in_chunks
from gptcalc.parts.positions import LearnedPositions, SinusoidalPositions
from gptcalc.parts.stage import input_stage
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.tape.record import Buffered, Home, Recorder
from gptcalc.tape.replay import Group
from gptcalc.tape.rows import Checkpoint, Op, Rows, Setting, Tensor, cut, leave, ops_of, result, under
from gptcalc.tape.unknown import computed

#: Layers of a group that are recorded.
RECORDED = 3


class Stretch(NamedTuple):
    """Rows that run in one go: of a layer, or outside the layers. It reads `setting.x` and hands on `out`.

    `beside` is what else the caller then holds.
    """

    label: str
    layer: Home
    rows: tuple[Op, ...]
    out: Tensor
    beside: tuple[Tensor, ...] = ()

    def keeping(self, *values: Tensor) -> Self:
        """The same rows, where the caller holds `values` too."""
        rows = (op._replace(drops=tuple(one for one in op.drops if one not in values)) for op in self.rows)
        return self._replace(rows=tuple(rows), beside=values)


def groups(spec: Spec, recorded: int) -> tuple[Group, ...]:
    """What of the layers is recorded: of equal ones in a row, or of a pattern that repeats, so many repetitions."""
    blocks = [group.block for group in spec.layers]
    kinds = [(group.n_layers, blocks.index(group.block)) for group in spec.layers]
    found: list[Group] = []
    place = 0
    while place < len(kinds):
        first = sum(other.recorded for other in found)
        period, repetitions = _repeats(kinds, place, recorded)
        if period:
            taken = range(place, place + period)
            pattern = tuple(index for index in taken for _ in range(kinds[index][0]))
            found.append(Group(first, recorded * len(pattern), repetitions * len(pattern), pattern))
        else:
            n_layers, period, repetitions = kinds[place][0], 1, 1
            found.append(Group(first, min(n_layers, recorded), n_layers, (place,)))
        place += period * repetitions
    return tuple(found)


#: The longest pattern of groups that is looked for.
LONGEST_PATTERN = 8


def _repeats(kinds: Sequence[tuple[int, int]], start: int, recorded: int) -> tuple[int, int]:
    """How many groups from `start` on repeat, and how often, where that is oftener than is recorded; else 0, 0."""
    for period in range(2, LONGEST_PATTERN + 1):
        end = start + period
        while end < len(kinds) and kinds[end] == kinds[end - period]:
            end += 1
        if (repetitions := (end - start) // period) > recorded:
            return period, repetitions
    return 0, 0


def setting(spec: Spec, plan: Plan, seq: int, *, training: bool, worst: bool = False) -> Setting:
    """The dims of a pass over `seq` tokens of each sequence."""
    rows = plan.batch * seq
    cached = plan.seq > seq and not training
    return Setting(
        rows=Dim("M", rows),
        seq=Dim("1" if cached else "T", seq),
        width=Dim("D", spec.d_model),
        n_vocab=Dim("V", spec.n_vocab),
        n_ctx=Dim("C", spec.n_ctx),
        unique=Dim("U", computed(min, rows, spec.n_vocab)),
        dtype=plan.dtype,
        autocast=plan.autocast,
        batch=Dim("B", plan.batch),
        training=training,
        cached=Dim("T", plan.seq) if cached else None,
        kv_dtype=plan.kv_dtype,
        worst_routing=worst,
        again=training and plan.checkpointing == "selective",
    )


# --- The stretches of a pass -----------------------------------------------------------------------------------------


def code(spec: Spec, plan: Plan) -> Code | None:
    """The code that runs, where it is not the reference."""
    return None if plan.implementation == "reference" else code_of(spec.family)


def trunk(
    spec: Spec, at: Setting, among: tuple[Group, ...], attention: Sequence[str], own: Code | None = None
) -> list[Stretch]:
    """The input stage and the layers, by the reference or by code of its `own`."""
    if own is not None:
        return _own_trunk(own, spec, at, among, attention)
    inside = at.within(spec.trunk)
    if not isinstance(spec.embedding, TokenEmbedding):
        raise TypeError(f"part {spec.embedding.kind!r} is no token table")
    positions = spec.positions if isinstance(spec.positions, LearnedPositions | SinusoidalPositions) else None
    between = [part for part in (spec.embedding_projection, spec.embedding_norm) if part is not None]
    rows = input_stage(inside, spec.embedding, positions, between=between, training=at.training).ops
    found = [Stretch("input", None, rows, rows[-1].output)]
    inside = inside._replace(shared={})
    for group in among:
        for layer, place in group.kinds:
            block = inside.within(f"{spec.layers_name}.{{}}")._replace(first=not layer, attention=attention[place])
            ops = ops_of(spec.layers[place].block, block, at.x)
            found.append(Stretch("layer", layer, ops, result(ops)))
    return found


def _own_trunk(own: Code, spec: Spec, at: Setting, among: tuple[Group, ...], attention: Sequence[str]) -> list[Stretch]:
    inside = at.within(spec.trunk)._replace(shared={})
    rows, (x,) = own.input_rows(spec, at._replace(attention=attention[0], shared={}))
    found = [Stretch("input", None, rows, x)]
    for group in among:
        for layer, place in group.kinds:
            block = spec.layers[place].block
            if not isinstance(block, Block):
                raise TypeError(f"part {block.kind!r} is no block")
            within = inside.within(f"{spec.layers_name}.{{}}")._replace(first=not layer, attention=attention[place])
            ops = own.layer_rows(within, block)
            found.append(Stretch("layer", layer, ops, result(ops)))
    return found


def head(  # noqa: PLR0913  what a head depends on
    spec: Spec,
    at: Setting,
    targets: Tensor | None,
    shared: Sequence[Tensor],
    *,
    last: bool = False,
    chunks: int = 1,
    own: Code | None = None,
) -> Stretch:
    """Final norm, projection, unembedding (of the `last` position alone, or of all), and in training the loss.

    That may be computed in several `chunks`.
    """
    if own is not None:
        ops = own.head_rows(spec, at, targets, shared, last=last)
        return Stretch("head", None, ops, result(ops))
    rows, x = Rows(at), at.x
    inside = at.within(spec.trunk)
    for part in (part for part in (spec.final_norm, spec.output_projection) if part is not None):
        rows += ops_of(part, inside, x)
        rows.drop(x)
        x = rows[-1].output
    rows.append(leave(*shared))
    if last:
        before, x = x, rows(cut(x, "last position", at.tokens[0], Dim("1", 1), x.dims[-1]))
        rows.drop(before)
    if not isinstance(spec.unembedding, Unembedding) or not isinstance(spec.embedding, TokenEmbedding):
        raise TypeError(f"part {spec.unembedding.kind!r} is no unembedding, or {spec.embedding.kind!r} no token table")
    table = spec.embedding.table(inside.within(spec.embedding.name))
    unembed = partial(spec.unembedding.ops, at.within(spec.unembedding.name), table=table)
    if targets is not None and chunks > 1:
        rows += in_chunks(at, x, targets, chunks, unembed)
        rows.drop(x)
        return Stretch("head", None, tuple(rows), result(rows))
    rows += unembed(x)
    logits = rows[-1].output
    if targets is None:
        rows.drop(x)
        return Stretch("head", None, tuple(rows), logits)
    rows += cross_entropy(at, logits, targets)
    rows.drop(x)
    return Stretch("head", None, tuple(rows), result(rows))


def recomputed(  # noqa: PLR0913, PLR0917  what a layer is given, and how
    stretches: Sequence[Stretch],
    at: Setting,
    shared: Sequence[Tensor] = (),
    arguments: Sequence[Tensor] = (),
    keywords: Sequence[Tensor] = (),
    handed: Sequence[Tensor] = (),
) -> list[Stretch]:
    """The stretches, the layers among them under checkpoints: each keeps its input, and holds what else it is given.

    What the layers themselves have made for all (`shared`) lives until the first one needs it no more. Of what it is
    given it keeps the `arguments` as it keeps its input; what comes by keyword it merely holds:
    what it reads of all that is `handed` on, and the `keywords` that it does not read.
    """
    found, ends = [], tuple(shared)
    for stretch in stretches:
        if stretch.layer is None:
            found.append(stretch)
            continue
        read = {access.tensor for op in stretch.rows for access in op.reads}
        keeps = (at.x, *(tensor for tensor in arguments if tensor in read))
        holds = (*keywords, *(tensor for tensor in handed if tensor in read and tensor not in keeps))
        found.append(stretch._replace(rows=under(stretch.rows, Checkpoint("block", keeps, holds, ends))))
        ends = ()
    return found


def shared_by_layers(stretches: list[Stretch]) -> tuple[Tensor, ...]:
    """What the first layer made for all of them, which ends with the trunk."""
    rows = [op for stretch in stretches for op in stretch.rows]
    made = [access.tensor for op in rows if op.shared for access in op.writes]
    dropped = {tensor for op in rows for tensor in op.drops}
    return tuple(tensor for tensor in made if tensor not in dropped)


# --- Running them ----------------------------------------------------------------------------------------------------


def forward(record: Recorder, stretches: list[Stretch], at: Setting) -> list[list[Op]]:
    """Run each stretch; for each, the rows that autograd has recorded."""
    kept: list[list[Op]] = []
    for number, stretch in enumerate(stretches):
        carried = record.slot(stretches[number - 1].out) if number else None
        record.segment(stretch.label, stretch.layer)
        if carried is not None:
            record.bind(at.x, carried, needs=at.training)
        kept.append([])
        for checkpoint, rows in groupby(_as_cached(stretch.rows), lambda op: op.checkpoint if at.training else None):
            if checkpoint is not None:
                record.enter(checkpoint)
            kept[-1] += [op for op in rows if record.run(op, training=at.training, keeps=checkpoint is None)]
    _end_of_autocast(record, stretches)
    return kept


def _as_cached(rows: Iterable[Op]) -> Iterator[Op]:
    """The rows as a forward pass runs them: what autocast has cast already is there, for later chunks of the loss too.

    A recomputation has a cache of its own, and casts again.
    """
    cached: set[Tensor] = set()
    for op in rows:
        if op.cached and op.output in cached:
            continue
        if op.cached:
            cached.add(op.output)
        yield op


def _end_of_autocast(record: Recorder, stretches: list[Stretch]) -> None:
    """Autocast lets go of the copies of weights that it has made."""
    for stretch in stretches:
        cached = dict.fromkeys(op.output for op in stretch.rows if op.cached)
        if cached:
            record.segment(stretch.label, stretch.layer)
        for copy in cached:
            record.release(record.slot(copy))


def backward(record: Recorder, stretches: list[Stretch], kept: list[list[Op]], at: Setting) -> None:
    """The rows in reverse, the gradient of each stretch's input handed to the one before."""
    seed = record.seed(stretches[-1].out)
    handed: Buffered | None = None
    for number in reversed(range(len(stretches))):
        stretch = stretches[number]
        record.segment(stretch.label, stretch.layer)
        if handed is not None:
            record.push_gradient(stretch.out, handed)
        for checkpoint, rows in groupby(reversed(kept[number]), lambda op: op.checkpoint):
            if checkpoint is None:
                for op in rows:
                    record.reverse(op)
            else:
                _reverse_again(record, checkpoint, stretch, tuple(rows))
        handed = record.pop_gradient(at.x) if number else None
    record.segment("head")
    record.release(seed)


def _reverse_again(record: Recorder, checkpoint: Checkpoint, stretch: Stretch, kept: Sequence[Op]) -> None:
    """The rows under a checkpoint in reverse: the first that wants what it kept has all of them run again.

    What the checkpoint keeps goes with the last tensor that autograd has kept.
    """
    rows = [op for op in stretch.rows if op.checkpoint is checkpoint]
    waits, first = True, [op for op in kept if op.saves][-1]
    for op in kept:
        if waits and op.saves and record.reached(op):
            record.again(rows, checkpoint, kept)
            waits = False
        record.reverse(op, (*checkpoint.keeps, *checkpoint.holds, *checkpoint.ends) if op is first else ())
