"""A training step and an inference run as scripts: what a user's loop does, recorded from the parts' tapes.

Training, with everything that a variable holds; N is the number of micro-batches, 1 where nothing else was asked for:

    for micro_batch in range(N):
        loss = model(ids, targets).loss / N      # nothing is divided by one; the logits are not kept
        loss.backward()
    ...                                          # `ledger.update`
    optimizer.zero_grad()                        # gradients become None
    del loss

Where outputs are kept, `out = model(ids, targets)` comes first, and neither `out` nor `loss` is deleted.
"""

from collections.abc import Sequence
from itertools import accumulate

from gptcalc.formula import Dim, Formula, Product
from gptcalc.inventory import Weight, inventory
from gptcalc.ledger.cache import remembered
from gptcalc.ledger.passes import (
    RECORDED,
    Stretch,
    backward,
    code,
    forward,
    groups,
    head,
    recomputed,
    setting,
    shared_by_layers,
    trunk,
)
from gptcalc.ledger.scaler import Scaler
from gptcalc.ledger.update import Update, micro_batches
from gptcalc.optimizers import Optimizer, Parameter
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.block import Block
from gptcalc.parts.delta import GatedDeltaNet
from gptcalc.parts.latent import LatentAttention
from gptcalc.plan import Plan
from gptcalc.spec import Part, Spec
from gptcalc.tape.record import Home, Kernels, Recorder, Slot
from gptcalc.tape.replay import Group, Recording
from gptcalc.tape.rows import Op, Setting, Tensor, over_number, result

#: Micro-batches of a step that are recorded.
RECORDED_BATCHES = 2


def training(  # noqa: PLR0913  what a step depends on
    spec: Spec,
    plan: Plan,
    attention: Sequence[str],
    optimizer: Optimizer,
    kernels: Kernels | None,
    *,
    n_steps: int = 2,
    recorded: int = RECORDED,
    recorded_batches: int = RECORDED_BATCHES,
    worst: bool = False,
) -> Recording:
    """Build, then `n_steps` steps of forward, backward, optimizer, end; `attention` names each group's kernel.

    Of the micro-batches of a step the first `recorded_batches` are recorded: each one after the first finds the same
    gradients and the same loss, and does the same. Mixtures are routed evenly, or so that most is alive (`worst`).
    """
    record, among = Recorder(kernels), groups(spec, recorded)
    recording = Recording(record, among)
    at = setting(spec, plan, plan.seq, training=True, worst=worst)
    parameters = _build(record, spec, plan, among)
    update = Update(recording, plan, optimizer, parameters)
    own = code(spec, plan)
    targets = at.ids if own is not None else at.ids._replace(label="targets")  # transformers' loss shifts labels itself
    for tensor in (*(() if own is None else own.buffers(spec, at)), *dict.fromkeys((at.ids, targets))):
        record.given(tensor, "inputs")
    update.build()
    stretches: list[Stretch] = []
    if not spec.unknown_ops:
        stretches = _training_stretches(spec, plan, at, targets, trunk(spec, at, among, attention, own))
    held = _Variables(record)
    for _ in range(n_steps):
        for number in micro_batches(plan, recorded_batches):
            record.new_pass()
            record.stage(f"forward{number}")
            kept = forward(record, stretches, at)
            run = _loss(record, stretches, kept, plan, held)
            record.stage(f"backward{number}")
            if run and update.scaler is not None:
                _scaled_backward(record, run, kept, at, update.scaler)
            elif run:
                backward(record, run, kept, at)
            else:
                _gradients(record, parameters)
        record.stage("optimizer")
        update.step()
        record.stage("end")
        update.let_go()
        record.segment("end")
        if not plan.keep_outputs:
            held.bind("loss")
    return recording


class _Variables:
    """What the loop's variables hold from one micro-batch to the next."""

    def __init__(self, record: Recorder) -> None:
        """No variable is bound."""
        self.record = record
        self._held: dict[str, list[Slot]] = {}

    def bind(self, name: str, *values: Tensor) -> None:
        """`name` is bound to these values, and what it held until now is let go."""
        before, self._held[name] = self._held.get(name, []), [self.record.slot(value) for value in values]
        for slot in before:
            self.record.release(slot)


def _loss(
    record: Recorder, stretches: list[Stretch], kept: list[list[Op]], plan: Plan, held: _Variables
) -> list[Stretch]:
    """After a forward pass: the variables are bound; of several micro-batches each loss is its share of the mean."""
    if not stretches:
        return []
    *before, last = stretches
    n = plan.grad_accum
    if plan.keep_outputs:
        held.bind("out", *last.beside, last.out)
    elif n == 1:
        held.bind("loss", last.out)
    if n == 1:
        return stretches
    share = over_number(last.out, "share of the loss")._replace(where="loss")
    share = share if plan.keep_outputs else share._replace(drops=(last.out,))
    kept[-1] += [op for op in (share,) if record.run(op, training=True)]
    held.bind("loss", share.output)
    return [*before, last._replace(out=share.output)]


def _scaled_backward(
    record: Recorder, stretches: list[Stretch], kept: list[list[Op]], at: Setting, scaler: Scaler
) -> None:
    """The loss is scaled, and let go when its backward pass is through."""
    *before, last = stretches
    scaled = scaler.scaled(last.out)
    record.segment(last.label)
    kept[-1] += [op for op in (scaled,) if record.run(op, training=True)]
    backward(record, [*before, last._replace(out=scaled.output)], kept, at)
    record.release(record.slot(scaled.output))


def _training_stretches(spec: Spec, plan: Plan, at: Setting, targets: Tensor, layers: list[Stretch]) -> list[Stretch]:
    """The trunk's stretches, under checkpoints where the plan says so, and the head.

    What layers of the reference share lives in an object that each block is given: a block that is to run again holds
    it. What transformers' share is the trunk's own, which lets it go when it returns.
    """
    shared, own = shared_by_layers(layers), code(spec, plan)
    if plan.checkpointing == "full":
        if own is None:
            layers, shared = recomputed(layers, at, shared), ()
        else:
            given = {"arguments": own.block_arguments(at), "keywords": own.block_keywords(at), "handed": shared}
            layers = recomputed(layers, at, **given)
    last = head(spec, at, targets, shared, chunks=plan.chunked_loss, own=own)
    if plan.keep_outputs and plan.chunked_loss == 1:
        last = last.keeping(result(op for op in last.rows if op.where == spec.unembedding.name))
    return [*layers, last]


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
        record.new_pass()
        record.stage(name)
        record.name(at[name].ids, ids[name])
        if spec.unknown_ops:
            continue
        stretches = trunk(spec, at[name], among, attention)
        stretches.append(head(spec, at[name], None, shared_by_layers(stretches), last=plan.logits == "last"))
        forward(record, stretches, at[name])
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
    made, parameters = code(spec, plan), list[Parameter]()

    def allocate(row: Weight, layer: Home, label: str) -> None:
        record.segment(label, layer)
        tensor = Tensor(row.name.rpartition("{}.")[2], weight_dims(row), plan.dtype, row.name)
        record.parameter(tensor, row.name.rpartition(".")[0])
        parameters.append(Parameter(tensor, layer, label, weight_axes(row)))

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
            for row in sorted(own.get(place, ()), key=lambda row: made.rank(row.name) if made else 0):
                allocate(row, layer, "layer")
    for row in (row for row in rows[n_before:] if row.layers is None):
        allocate(row, None, "head")
    return _in_module_order(parameters)


def _in_module_order(parameters: list[Parameter]) -> list[Parameter]:
    """As `module.parameters()` lists them: a module's own ones first, then its children as they were attached."""
    first: dict[str, int] = {}
    keys = []
    for number, (tensor, layer, *_) in enumerate(parameters):
        *modules, _name = tensor.name.format(layer).split(".")
        paths = [".".join(modules[: n + 1]) for n in range(len(modules))]
        keys.append((*((1, first.setdefault(path, number)) for path in paths), (0, number)))
    return [parameters[number] for number in sorted(range(len(parameters)), key=keys.__getitem__)]


def weight_dims(row: Weight) -> Product:
    """The dims of a tensor, all axes together."""
    return tuple(dim for axis in weight_axes(row) for dim in axis)


def weight_axes(row: Weight) -> tuple[Product, ...]:
    """The dims of a tensor, axis by axis; slices side by side are one dim, which reads as their sum."""
    axes = list(row.slices[0].axes)
    if len(row.slices) > 1:
        along = Formula.of(part.axes[row.axis] for part in row.slices)
        axes[row.axis] = (Dim(f"({along.letters})", along.value),)
    return tuple(axes)


def _gradients(record: Recorder, parameters: Sequence[Parameter]) -> None:
    """Where no op is known, what every backward pass leaves: a gradient of each weight, from the last to the first."""
    for tensor, layer, label, _ in reversed(parameters):
        record.segment(label, layer)
        record.give_gradient(tensor)
