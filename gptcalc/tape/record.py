"""Running a tape as PyTorch would: what is allocated and freed, in order.

References are counted as Python and autograd count them: a value lives while a variable, a kept tensor or a gradient
buffer holds its storage. Gradients that meet are added into the first that arrived, if nothing else holds it and it is
no view; otherwise into a new tensor (`InputBuffer::accumulate`, `can_accumulate_inplace`, torch/csrc/autograd). Once
all that a pass has for a weight have met, the sum becomes its `.grad`, or is added into that in place, where there is
one (`AccumulateGrad`, accumulate_grad.h); a hook may add it to a main gradient instead.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from gptcalc.tape.backward import differentiable, gradient, gradients
from gptcalc.tape.rows import Checkpoint, Op, Tensor, Turn

#: For whom a value is kept that rows are run again with; what they are follows.
CHECKPOINT = "checkpoint of the"
#: Global, or the number of a layer.
Home = int | None

#: A product that sees x as a matrix before it transposes the weight: backwards, the weight's gradient comes first.
VIEWS_FIRST = "aten::addmm"


class Kernels(Protocol):
    """What no op shows: buffers that kernels take for themselves."""

    def kept(self, op: Op) -> tuple[Tensor, ...]:
        """What a thread takes when it first runs such an op, and keeps."""

    def buffers(self, op: Op) -> tuple[Tensor, ...]:
        """What the kernel of `op` takes after its outputs, and gives back."""


class Slot:
    """A storage: what it is, who made it, where it is at home, how many hold it; which ops autograd keeps it for.

    Those in `again` have it from when they were run again, in the backward pass. One that was made in a
    `turn` stands for as many storages as there are numbers in it.
    """

    __slots__ = ("again", "bytes", "home", "index", "keepers", "kind", "op", "refs", "tensor", "turn", "where")

    def __init__(  # noqa: PLR0913, PLR0917  a plain record, made often
        self, tensor: Tensor, kind: str, op: str, where: str, home: Home, index: int, turn: Turn | None = None
    ) -> None:
        """Nobody holds it yet."""
        self.tensor, self.kind, self.op, self.where = tensor, kind, op, where
        self.home, self.index, self.turn = home, index, turn
        self.bytes = tensor.bytes
        self.refs = 0
        self.keepers: list[str] = []
        self.again: list[str] = []

    def of(self, number: int) -> "Slot":
        """That of one number of the turn, under its name."""
        if self.turn is None:
            return self
        label = self.tensor.label.replace(str(self.turn), self.turn.name(number))
        found = Slot(
            self.tensor._replace(label=label), self.kind, self.op, self.where, self.home, self.index, self.turn
        )
        found.refs, found.keepers, found.again = self.refs, self.keepers, self.again
        return found


class Event(NamedTuple):
    """A storage is allocated, or freed, by `op`; of a slot made in a turn `times` storages, if it has ended."""

    slot: Slot
    alloc: bool
    op: str
    times: int = 1


class Segment(NamedTuple):
    """The events of one stretch: a layer's, or one outside the layers; or of a turn in it."""

    label: str
    layer: Home
    events: list[Event]
    turn: Turn | None = None


class Stage(NamedTuple):
    """A phase: its segments in order."""

    name: str
    segments: list[Segment]


class Buffered(NamedTuple):
    """A gradient on its way: into a `viewed` one no other is added in place."""

    slot: Slot
    viewed: bool


class Recorder:
    """What has been allocated so far, by phase and segment."""

    def __init__(self, kernels: Kernels | None) -> None:
        """Nothing yet; without `kernels` only what a caller of the ops sees is recorded."""
        self.stages: list[Stage] = []
        self.kernels = kernels
        self._kept: set[str] = set()
        self._values: dict[Home, dict[Tensor, Slot]] = {None: {}}
        self._parameters: dict[str, Slot] = {}
        self._needs: dict[Home, set[Tensor]] = {None: set()}
        self._grads: dict[tuple[Home, Tensor | str], Buffered] = {}
        self._uses: Counter[str] = Counter()
        self._held_grads: dict[str, Slot] = {}
        self._main_grads: dict[str, Slot] = {}
        #: What a hook does as soon as a parameter of that name has its whole gradient.
        self.hook: Callable[[str], None] | None = None
        self._indices: dict[tuple[bool, Turn | None, Tensor, str, str, int], int] = {}
        self._seen: Counter[tuple[Home, Tensor, str]] = Counter()
        self._layer: Home = None
        self._turn: Turn | None = None
        self._where = ""

    # --- Phases and storages ---

    def stage(self, name: str) -> None:
        """A phase begins, outside the layers."""
        self.stages.append(Stage(name, []))
        self.segment(name)

    def segment(self, label: str, layer: Home = None, turn: Turn | None = None) -> None:
        """A stretch begins, or goes on: in `layer`, or outside the layers."""
        self._layer, self._turn = layer, turn
        segments = self.stages[-1].segments
        if not segments or (segments[-1].label, segments[-1].layer, segments[-1].turn) != (label, layer, turn):
            segments.append(Segment(label, layer, [], turn))

    def _go_on(self, op: Op) -> None:
        """The stretch goes on with an op, in its turn."""
        if op.turn != self._turn:
            now = self.stages[-1].segments[-1]
            self.segment(now.label, now.layer, op.turn)

    @property
    def n_indices(self) -> int:
        """How many kinds of storages there are."""
        return len(self._indices)

    def new_pass(self) -> None:
        """A forward pass begins: nothing needs a gradient yet."""
        self._needs = {None: set()}
        self._uses.clear()

    def alloc(self, tensor: Tensor, kind: str, op: str, *, shared: bool = False, where: str | None = None) -> Slot:
        """A new storage, held by nobody; at home in the current layer unless `shared`, made by the module `where`."""
        home, turn = (None, None) if shared else (self._layer, self._turn)
        self._seen[home, tensor, kind] += 1
        key = (home is None, turn, tensor, kind, op, self._seen[home, tensor, kind])
        index = self._indices.setdefault(key, len(self._indices))
        slot = Slot(tensor, kind, op, self._where if where is None else where, home, index, turn)
        if slot.bytes:
            self._events.append(Event(slot, alloc=True, op=op, times=self._times(slot)))
        return slot

    def _times(self, slot: Slot) -> int:
        """How many storages a slot's event is of. What one of many in a turn has is its own, or all would have it."""
        if slot.turn == self._turn:
            return 1
        if self._turn is not None and (slot.turn is not None or len(self._turn.numbers) > 1):
            whose = slot.turn or "all"
            raise RuntimeError(f"{slot.tensor.label} of {whose} is allocated or freed for each of {self._turn.numbers}")
        return 1 if slot.turn is None else len(slot.turn.numbers)

    def hold(self, slot: Slot) -> Slot:
        """One more holds it."""
        slot.refs += 1
        return slot

    def release(self, slot: Slot) -> None:
        """One less holds it; the last one frees it."""
        slot.refs -= 1
        if slot.refs < 0:
            raise RuntimeError(f"{slot.tensor.label} is released more often than it is held")
        if not slot.refs and slot.bytes:
            self._events.append(Event(slot, alloc=False, op=self._op, times=self._times(slot)))

    @property
    def _events(self) -> list[Event]:
        return self.stages[-1].segments[-1].events

    @property
    def _op(self) -> str:
        return self._events[-1].op if self._events else ""

    # --- Values ---

    def parameter(self, tensor: Tensor, where: str) -> Slot:
        """A weight is built; its name is unique, with the layer's number where it is in one."""
        self._where = where
        slot = self.hold(self.alloc(tensor, "weights", "build"))
        self._parameters[self._named(tensor.name)] = slot
        return slot

    def given(self, tensor: Tensor, kind: str, op: str = "given") -> Slot:
        """An input that the caller holds, or has had made by an op."""
        self._where = ""
        slot = self._values[None][tensor] = self.hold(self.alloc(tensor, kind, op, shared=True))
        return slot

    def bind(self, tensor: Tensor, slot: Slot, *, needs: bool) -> None:
        """In the current layer, `tensor` is the name of `slot`."""
        self._values.setdefault(self._layer, {})[tensor] = slot
        if needs:
            self._needs.setdefault(self._layer, set()).add(tensor)

    def name(self, tensor: Tensor, other: Tensor) -> None:
        """Outside the layers, `tensor` is from now on what `other` is."""
        self._values[None][tensor] = self._values[None][other]

    def slot(self, tensor: Tensor) -> Slot:
        """The storage of a value, of this layer or shared."""
        owner = tensor.owner
        if owner.name:
            return self._parameters[self._named(owner.name)]
        own = self._values.get(self._layer, {})
        return own[owner] if owner in own else self._values[None][owner]

    def _named(self, name: str) -> str:
        return name.format(self._layer) if "{}" in name else name

    # --- Forward ---

    def run(self, op: Op, *, training: bool, keeps: bool = True, again: bool = False) -> bool:
        """Run a row; whether autograd has recorded it. The caller gets the first output, views, and those `handed`.

        Within a checkpoint autograd records it and `keeps` nothing, until in the backward pass it runs `again`.
        """
        self._go_on(op)
        self._where = op.where
        for tensor in (access.tensor for access in op.writes):
            if tensor.base is None:
                kind = "logits" if op.where == "loss" or _scores(tensor) else "temporary"
                kind = "weight_copies" if tensor.copy_of else kind
                slot = self.alloc(tensor, kind, op.name, shared=op.shared)
                self._values.setdefault(None if op.shared else self._layer, {})[tensor] = slot
            self.hold(self.slot(tensor))
        self._take(op, "backward" if again else "forward")
        recorded = training and not op.unrecorded
        needs = recorded and any(self._differentiates(access.tensor) for access in op.reads)
        if needs:
            known = self._needs.setdefault(self._layer, set())
            known |= {access.tensor for access in op.writes if differentiable(access.tensor)}
            if not again:
                self._uses.update(self._weights(op))
            if keeps:
                self.keep(op.saves, op.name, again=again)
        self.release_all((*_beside(op), *op.drops))
        return needs

    def keep(self, tensors: Iterable[Tensor], op: str, *, again: bool = False) -> None:
        """Autograd keeps tensors for an op."""
        for tensor in tensors:
            slot = self.hold(self.slot(tensor))
            (slot.again if again else slot.keepers).append(op)

    def again(self, rows: Sequence[Op], checkpoint: Checkpoint, recorded: Iterable[Op]) -> None:
        """Run rows anew, in the backward pass, up to the last tensor that autograd keeps of them (`early_stop`).

        A row that keeps but its inputs is not run itself if it is the last one: they are saved before its kernel runs.
        What layers share is there already. Then the function's own references end.
        """
        held: Counter[Tensor] = Counter(checkpoint.keeps)
        self.hold_all(held)
        shared = {access.tensor for op in rows if op.shared for access in op.writes}
        savers = {id(op) for op in recorded if op.saves}
        last = max(number for number, op in enumerate(rows) if id(op) in savers)
        for number, op in enumerate(rows[: last + 1]):
            if number == last and not {access.tensor for access in op.writes} & set(op.saves):
                self.keep(op.saves, op.name, again=True)
                break
            drops = tuple(tensor for tensor in op.drops if tensor not in shared)
            if op.shared:
                self.release_all(drops)
            else:
                self.run(op._replace(drops=drops), training=True, again=True)
                held += Counter(access.tensor for access in op.writes)
                held -= Counter(_beside(op))
            held -= Counter(drops)
        self.release_all(held.elements())

    def enter(self, checkpoint: Checkpoint) -> None:
        """Rows under a checkpoint begin: autograd keeps what they are called with, a function what else they need."""
        reason = f"{CHECKPOINT} {checkpoint.name.partition(',')[0]}"
        self.keep(checkpoint.keeps, reason)
        self.keep(checkpoint.holds, reason, again=True)

    def hold_all(self, tensors: Iterable[Tensor]) -> None:
        """One more holds each."""
        for tensor in tensors:
            self.hold(self.slot(tensor))

    def release_all(self, tensors: Iterable[Tensor]) -> None:
        """One less holds each."""
        for tensor in tensors:
            self.release(self.slot(tensor))

    def _weights(self, op: Op) -> list[str]:
        """The parameters that an op reads, as often as it does: edges of autograd's graph."""
        return [self._named(access.tensor.name) for access in op.reads if access.tensor.name]

    def _differentiates(self, tensor: Tensor) -> bool:
        if tensor.name:
            return True
        return tensor in self._needs.get(self._layer, ()) or tensor in self._needs[None]

    def _take(self, op: Op, thread: str) -> None:
        """What the kernel takes for itself and gives back, and what its thread takes once and keeps."""
        if self.kernels is None:
            return
        for tensor in self.kernels.kept(op):
            kept = tensor._replace(label=f"{tensor.label} ({thread})")
            if kept.label not in self._kept:
                self._kept.add(kept.label)
                self.hold(self.alloc(kept, "workspace", op.name, shared=True))
        taken = [self.hold(self.alloc(tensor, "workspace", op.name)) for tensor in self.kernels.buffers(op)]
        for slot in taken:
            self.release(slot)

    def kernel(self, op: Op) -> None:
        """An op that is in no tape (an optimizer's) runs: what its kernel takes for itself."""
        self._take(op, "backward" if self.stages[-1].name.startswith("backward") else "forward")

    # --- Backward ---

    def seed(self, tensor: Tensor) -> Slot:
        """The gradient of the loss, one, which the engine holds until the end."""
        slot = self.hold(self.alloc(gradient(tensor), "temporary", "aten::ones_like"))
        self._grads[self._layer, tensor] = Buffered(self.hold(slot), viewed=False)
        return slot

    def pop_gradient(self, tensor: Tensor) -> Buffered:
        """The gradient of a layer's input, to hand it to the layer before."""
        return self._grads.pop((self._layer, tensor))

    def push_gradient(self, tensor: Tensor, found: Buffered) -> None:
        """The gradient of a layer's output."""
        self._grads[self._layer, tensor] = found

    def reached(self, op: Op) -> bool:
        """Whether a gradient of what the row wrote has arrived, so that its backward rule runs."""
        return any((self._layer, access.tensor) in self._grads for access in op.writes)

    def reverse(self, op: Op, ends: Sequence[Tensor] = ()) -> None:
        """Run the backward rule of a row that autograd has recorded; with what it kept `ends` what a checkpoint did."""
        self._go_on(op)
        taken = {
            access.tensor: found
            for access in op.writes
            if (found := self._grads.pop((self._layer, access.tensor), None)) is not None
        }
        if not taken:
            self._let_go(op)
            self.release_all(ends)
            self._arrived(op)
            return
        self._where = op.where
        local = {gradient(tensor): found.slot for tensor, found in taken.items()}
        viewed = {gradient(tensor) for tensor, found in taken.items() if found.viewed}
        needs = frozenset(access.tensor for access in op.reads if self._differentiates(access.tensor))
        rows, grads, fitted = gradients(op, {tensor: gradient(tensor) for tensor in taken}, needs)
        targets = {grad.owner: tensor for tensor, grad in grads.items()}
        made: list[Slot] = []
        self._run_rule(rows, local, targets, made)
        if op.checkpoint is not None:  # what was computed again has no other owner than the rule
            self._let_go(op)
        self._run_rule(fitted, local, targets, made)
        for grad in grads.values():
            self.hold(local[grad.owner])
        for slot in (*made, *(found.slot for found in taken.values())):
            self.release(slot)
        if op.checkpoint is None:
            self._let_go(op)
        self.release_all(ends)
        # A weight that is read as it is gets its gradient at once, one that is transposed when its view's turn is.
        waits = op.name == VIEWS_FIRST or any(tensor.name and tensor not in op.viewed for tensor in grads)
        late = [tensor for tensor in grads if waits and tensor in op.viewed and not tensor.name]
        for tensor in (tensor for tensor in grads if tensor not in late):
            self._accumulate(tensor, Buffered(local[grads[tensor].owner], _is_view(grads[tensor], viewed)))
        self._arrived(op, grads)
        for tensor in late:
            self._accumulate(tensor, Buffered(local[grads[tensor].owner], _is_view(grads[tensor], viewed)))

    def _run_rule(
        self, rows: Sequence[Op], local: dict[Tensor, Slot], targets: dict[Tensor, Tensor], made: list[Slot]
    ) -> None:
        """Allocate what the rows of a rule write: slots that are `made`, each held once."""
        for row in rows:
            for tensor in (access.tensor for access in row.writes):
                target = targets.get(tensor)
                kind = self._fresh(target) if target is not None else "temporary"
                if kind == "temporary" and _scores(tensor):
                    kind = "logits"
                local[tensor] = self.hold(self.alloc(tensor, kind, row.name))
                made.append(local[tensor])
            self._take(row, "backward")
            for tensor in row.drops:
                self.release(local[tensor])
                made.remove(local[tensor])

    def _let_go(self, op: Op) -> None:
        """Autograd lets go of what it kept for a row."""
        self.release_all(op.saves)

    def _accumulate(self, tensor: Tensor, new: Buffered) -> None:
        key = self._key(tensor)
        if tensor.name and new.slot.kind == "temporary":  # that of what was computed of a weight is handed on to it
            new.slot.kind, new.slot.tensor = self._fresh(tensor), gradient(tensor)
        old = self._grads.get(key)
        if old is None:
            self._grads[key] = new
        elif old.slot.refs == 1 and not old.viewed:
            self.release(new.slot)
        else:
            total = gradient(tensor)._replace(label=f"sum of gradients of {tensor.label}")
            self._grads[key] = Buffered(self.hold(self.alloc(total, self._fresh(tensor), "aten::add")), viewed=False)
            self.release(old.slot)
            self.release(new.slot)

    def _key(self, tensor: Tensor) -> tuple[Home, Tensor | str]:
        if tensor.name:
            return (None, self._named(tensor.name))
        shared = tensor in self._values[None] and tensor not in self._values.get(self._layer, {})
        return (None if shared else self._layer, tensor)

    # --- Gradients of parameters ---

    def _fresh(self, tensor: Tensor) -> str:
        """The kind of a gradient that a pass makes: a temporary, unless it is to be a parameter's `.grad`."""
        name = self._named(tensor.name)
        return "gradients" if name and name not in self._held_grads and name not in self._main_grads else "temporary"

    def _arrived(self, op: Op, sent: Iterable[Tensor] = ()) -> None:
        """An op has sent the gradients of the parameters that it reads, in its rule's order.

        Those that wait for no other are complete.
        """
        order = [self._named(tensor.name) for tensor in sent if tensor.name]
        for name in sorted(self._weights(op), key=lambda name: order.index(name) if name in order else len(order)):
            self._uses[name] -= 1
            if not self._uses[name] and (found := self._grads.pop((None, name), None)) is not None:
                self._complete(name, found.slot)

    def _complete(self, name: str, slot: Slot) -> None:
        """What a pass has for a parameter becomes its `.grad`, or is added in place to what there is."""
        if name in self._held_grads or name in self._main_grads:
            self.release(slot)
        else:
            self._held_grads[name] = slot
        if self.hook is not None:
            with self._aside():
                self.hook(name)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """What is done within may belong to other stretches; afterwards this one goes on."""
        now, where = self.stages[-1].segments[-1], self._where
        yield
        self.segment(now.label, now.layer, now.turn)
        self._where = where

    def give_gradient(self, tensor: Tensor) -> None:
        """A parameter of the current layer gets its gradient, whatever op makes it."""
        slot = self.hold(self.alloc(gradient(tensor), self._fresh(tensor), "backward"))
        self._complete(self._named(tensor.name), slot)

    def main_gradient(self, tensor: Tensor, dtype: str) -> None:
        """A parameter of the current layer gets a buffer, into which each of its gradients is added and then let go."""
        main = tensor._replace(label=f"main gradient of {tensor.label}", dtype=dtype)
        self._main_grads[self._named(tensor.name)] = self.hold(self.alloc(main, "gradients", "build"))

    def has_gradient(self, name: str, layer: Home) -> bool:
        """Whether a parameter has a gradient; what no op differentiates has none."""
        named = name if layer is None else name.format(layer)
        return named in self._held_grads or named in self._main_grads

    def parameter_gradient(self, name: str) -> Slot | None:
        """The `.grad` of a parameter of the current layer, which has none from now on."""
        return self._held_grads.pop(self._named(name), None)


def _is_view(grad: Tensor, viewed: set[Tensor]) -> bool:
    """Whether a gradient, or what it is made of, is a view."""
    return grad.base is not None or grad in viewed


def _beside(op: Op) -> list[Tensor]:
    """What an op makes and its caller does not get: outputs after the first that are no views."""
    others = (access.tensor for access in op.writes[1:])
    return [tensor for tensor in others if tensor.base is None and tensor not in op.handed]


def _scores(tensor: Tensor) -> bool:
    """Whether it is of the logits' size."""
    return not (tensor.name or tensor.copy_of) and any(dim.letter == "V" for dim in tensor.dims)
