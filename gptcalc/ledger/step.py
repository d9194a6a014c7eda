"""A training step and an inference run as scripts: what a user's loop does, recorded from the parts' tapes.

Training, with everything that a variable holds:

    loss = model(ids, targets).loss      # the logits are not kept
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()                # gradients become None
    del loss

Of each group of equal layers at most three are recorded: the first, one of those between, and the last. A layer touches
only itself and its neighbours, so that the middle one stands for all others.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from gptcalc.formula import Dim, Formula, Product
from gptcalc.inventory import Weight, inventory
from gptcalc.ledger.cache import remembered
from gptcalc.optimizers import Optimizer, Parameter
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.block import Block
from gptcalc.parts.delta import GatedDeltaNet
from gptcalc.parts.embedding import TokenEmbedding, Unembedding
from gptcalc.parts.latent import LatentAttention
from gptcalc.parts.loss import cross_entropy
from gptcalc.parts.positions import LearnedPositions, SinusoidalPositions
from gptcalc.parts.stage import input_stage
from gptcalc.plan import Plan
from gptcalc.spec import Part, Spec
from gptcalc.tape.record import Buffered, Home, Kernels, Recorder
from gptcalc.tape.replay import Group, Recording
from gptcalc.tape.rows import Op, Rows, Setting, Tensor, cut, leave, ops_of, result

#: Layers of a group that are recorded.
RECORDED = 3


class Stretch(NamedTuple):
    """Rows that run in one go: of a layer, or outside the layers. It reads `setting.x` and hands on `out`."""

    label: str
    layer: Home
    rows: tuple[Op, ...]
    out: Tensor


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
        unique=Dim("U", min(rows, spec.n_vocab)),
        dtype=plan.precision,
        batch=Dim("B", plan.batch),
        training=training,
        cached=Dim("T", plan.seq) if cached else None,
        kv_dtype=plan.kv_dtype,
        worst_routing=worst,
    )


def training(  # noqa: PLR0913  what a step depends on
    spec: Spec,
    plan: Plan,
    attention: Sequence[str],
    optimizer: Optimizer,
    kernels: Kernels | None,
    *,
    n_steps: int = 2,
    recorded: int = RECORDED,
    worst: bool = False,
) -> Recording:
    """Build, then `n_steps` steps of forward, backward, optimizer, end; `attention` names each group's kernel.

    Mixtures are routed evenly, or so that most is alive (`worst`).
    """
    record, among = Recorder(kernels), groups(spec, recorded)
    at = setting(spec, plan, plan.seq, training=True, worst=worst)
    parameters = _build(record, spec, plan, among)
    targets = at.ids._replace(label="targets")
    for tensor in (at.ids, targets):
        record.given(tensor, "inputs")
    stretches: list[Stretch] = []
    if not spec.unknown_ops:
        stretches = _trunk(spec, at, among, attention)
        stretches.append(_head(spec, at, targets, _shared(stretches)))
    for step in range(n_steps):
        record.new_step()
        record.stage("forward")
        kept = _forward(record, stretches, at)
        record.stage("backward")
        if stretches:
            _backward(record, stretches, kept, at)
        else:
            _gradients(record, parameters)
        record.stage("optimizer")
        trained = [one for one in parameters if record.has_gradient(one.tensor.name, one.layer)]
        if not step:
            optimizer.create(record, trained)
            record.segment("optimizer")
        optimizer.step(record, trained)
        record.stage("end")
        for tensor, layer, label in parameters:
            record.segment(label, layer)
            if (grad := record.parameter_gradient(tensor.name)) is not None:
                record.release(grad)
        record.segment("end")
        if stretches:
            record.release(record.slot(stretches[-1].out))
    return Recording(record, among)


def inference(  # noqa: PLR0913  what a run depends on
    spec: Spec,
    plan: Plan,
    attention: Sequence[str],
    kernels: Kernels | None,
    *,
    recorded: int = RECORDED,
    worst: bool = False,
) -> Recording:
    """Build with a KV cache for T tokens, prefill of T tokens, decode of the T-th; logits live until a phase ends."""
    record, among = Recorder(kernels), groups(spec, recorded)
    _build(record, spec, plan, among)
    for group in among:
        for layer, place in group.kinds:
            name, kept = _cache(spec, spec.layers[place].block, plan)
            record.segment("KV cache", layer)
            where = f"{spec.trunk}.{spec.layers_name}.{{}}.{name}"
            for tensor in kept:
                record.bind(tensor, record.hold(record.alloc(tensor, "kv_cache", "build", where=where)), needs=False)
    record.segment("inputs")
    passes = (("prefill", plan.seq), ("decode", 1))
    at = {name: setting(spec, plan, seq, training=False, worst=worst) for name, seq in passes}
    ids = {name: at[name].ids._replace(label=f"token IDs of {name}") for name, _ in passes}
    for tensor in ids.values():
        record.given(tensor, "inputs")
    for name, _ in passes:
        record.new_step()
        record.stage(name)
        record.name(at[name].ids, ids[name])
        if spec.unknown_ops:
            continue
        stretches = _trunk(spec, at[name], among, attention)
        stretches.append(_head(spec, at[name], None, _shared(stretches), last=plan.logits == "last"))
        _forward(record, stretches, at[name])
        record.release(record.slot(stretches[-1].out))
    return Recording(record, among)


def _cache(spec: Spec, block: Part, plan: Plan) -> tuple[str, tuple[Tensor, ...]]:
    """The attention's name, and what its layer has room for: T tokens of B sequences."""
    batch, seq = Dim("B", plan.batch), Dim("T", plan.seq)
    part = block.attention if isinstance(block, Block) else block
    if isinstance(part, MultiHeadAttention | LatentAttention | GatedDeltaNet):
        return part.name, part.cache(batch, seq, plan.kv_dtype)
    kept = remembered(spec, block)
    seen = seq if kept.window is None else Dim("W", min(seq.size, kept.window))
    dims = [*((batch, seen, *product) for product in kept.per_token), *((batch, *p) for p in kept.per_sequence)]
    states = [Tensor(f"state {n}", (batch, *product), "fp32") for n, product in enumerate(kept.in_fp32, 1)]
    return part.name, (*(Tensor(f"cache {n}", own, plan.kv_dtype) for n, own in enumerate(dims, 1)), *states)


# --- Build -----------------------------------------------------------------------------------------------------------


def _build(record: Recorder, spec: Spec, plan: Plan, among: tuple[Group, ...]) -> list[Parameter]:
    """Allocate the weights in the order in which the module makes them."""
    record.stage("build")
    parameters: list[Parameter] = []

    def allocate(row: Weight, layer: Home, label: str) -> None:
        record.segment(label, layer)
        tensor = Tensor(row.name.rpartition("{}.")[2], weight_dims(row), plan.precision, row.name)
        record.parameter(tensor, row.name.rpartition(".")[0])
        parameters.append(Parameter(tensor, layer, label))

    rows = [row for row in inventory(spec) if row.tied_to is None]
    n_before = next((index for index, row in enumerate(rows) if row.layers is not None), len(rows))
    for row in rows[:n_before]:
        allocate(row, None, "input")
    starts = list(accumulate((group.n_layers for group in spec.layers), initial=0))
    own: dict[int, list[Weight]] = {}
    for row in rows:
        if row.layers is not None:
            own.setdefault(starts.index(row.layers.start), []).append(row)
    for group in among:
        for layer, place in group.kinds:
            for row in own.get(place, ()):
                allocate(row, layer, "layer")
    for row in (row for row in rows[n_before:] if row.layers is None):
        allocate(row, None, "head")
    return _in_module_order(parameters)


def _in_module_order(parameters: list[Parameter]) -> list[Parameter]:
    """As `module.parameters()` lists them: a module's own ones first, then its children as they were attached."""
    first: dict[str, int] = {}
    keys = []
    for number, (tensor, layer, _) in enumerate(parameters):
        *modules, _name = tensor.name.format(layer).split(".")
        paths = [".".join(modules[: n + 1]) for n in range(len(modules))]
        keys.append((*((1, first.setdefault(path, number)) for path in paths), (0, number)))
    return [parameters[number] for number in sorted(range(len(parameters)), key=keys.__getitem__)]


def weight_dims(row: Weight) -> Product:
    """The dims of a tensor; slices side by side are one dim, which reads as their sum."""
    if len(row.slices) == 1:
        return row.slices[0].product
    others = [dim for axis, dims in enumerate(row.slices[0].axes) if axis != row.axis for dim in dims]
    along = Formula.of(part.axes[row.axis] for part in row.slices)
    return (Dim(f"({along.letters})", along.value), *others)


# --- The stretches of a pass -----------------------------------------------------------------------------------------


def _trunk(spec: Spec, at: Setting, among: tuple[Group, ...], attention: Sequence[str]) -> list[Stretch]:
    """The input stage and the layers."""
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


def _head(spec: Spec, at: Setting, targets: Tensor | None, shared: Sequence[Tensor], *, last: bool = False) -> Stretch:
    """Final norm, projection, unembedding (of the `last` position alone, or of all), and in training the loss."""
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
    rows += spec.unembedding.ops(at.within(spec.unembedding.name), x, table)
    logits = rows[-1].output
    if targets is None:
        rows.drop(x)
        return Stretch("head", None, tuple(rows), logits)
    rows += cross_entropy(at, logits, targets)
    rows.drop(x)
    return Stretch("head", None, tuple(rows), result(rows))


def _shared(stretches: list[Stretch]) -> tuple[Tensor, ...]:
    """What the first layer made for all of them, which ends with the trunk."""
    rows = [op for stretch in stretches for op in stretch.rows]
    made = [access.tensor for op in rows if op.shared for access in op.writes]
    dropped = {tensor for op in rows for tensor in op.drops}
    return tuple(tensor for tensor in made if tensor not in dropped)


def _gradients(record: Recorder, parameters: Sequence[Parameter]) -> None:
    """Where no op is known, what every backward pass leaves: a gradient of each weight, from the last to the first."""
    for tensor, layer, label in reversed(parameters):
        record.segment(label, layer)
        record.give_gradient(tensor)


# --- Running them ----------------------------------------------------------------------------------------------------


def _forward(record: Recorder, stretches: list[Stretch], at: Setting) -> list[list[Op]]:
    """Run each stretch; for each, the rows that autograd has recorded."""
    kept: list[list[Op]] = []
    for number, stretch in enumerate(stretches):
        carried = record.slot(stretches[number - 1].out) if number else None
        record.segment(stretch.label, stretch.layer)
        if carried is not None:
            record.bind(at.x, carried, needs=at.training)
        kept.append([op for op in stretch.rows if record.run(op, training=at.training)])
    return kept


def _backward(record: Recorder, stretches: list[Stretch], kept: list[list[Op]], at: Setting) -> None:
    """The rows in reverse, the gradient of each stretch's input handed to the one before."""
    seed = record.seed(stretches[-1].out)
    handed: Buffered | None = None
    for number in reversed(range(len(stretches))):
        stretch = stretches[number]
        record.segment(stretch.label, stretch.layer)
        if handed is not None:
            record.push_gradient(stretch.out, handed)
        for op in reversed(kept[number]):
            record.reverse(op)
        handed = record.pop_gradient(at.x) if number else None
    record.segment("head")
    record.release(seed)
