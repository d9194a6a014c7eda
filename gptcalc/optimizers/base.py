"""What every optimizer is: the states that it keeps for a weight, and what a step takes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple, Self

from gptcalc.formula import Product
from gptcalc.plan import Plan
from gptcalc.tape.record import Home, Recorder, Slot
from gptcalc.tape.rows import Op, Tensor, whole

#: What stands in place of a module's path where an optimizer makes something.
WHERE = "optimizer"


class Parameter(NamedTuple):
    """A weight to be trained, in the order of `module.parameters()`; `axes` are its dims, axis by axis."""

    tensor: Tensor
    layer: Home
    label: str
    axes: tuple[Product, ...]

    def without(self, axis: int) -> Product:
        """The dims of what is left where an axis is reduced to one."""
        kept = list(self.axes)
        del kept[axis]
        return tuple(dim for dims in kept for dim in dims)


class Optimizer(ABC):
    """The states of the weights that have a gradient, made in the first step, and what each step takes."""

    #: The first release of torch with each implementation, the one that runs unasked first.
    since: ClassVar[dict[str, tuple[int, int]]]
    #: The settings of a plan that it has a use for.
    hears: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def of(cls, plan: Plan) -> Self:
        """As a plan asks for it."""

    def update(self, record: Recorder, parameters: Sequence[Parameter], *, first: bool) -> None:
        """`optimizer.step()`: the `first` one makes the states, before anything else."""
        if first:
            self.create(record, parameters)
        self.step(record, parameters)

    @abstractmethod
    def create(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """Allocate the states."""

    @abstractmethod
    def step(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """What a step allocates and frees."""


def state(  # noqa: PLR0913  what a tensor is
    record: Recorder, tensor: Tensor, name: str, op: str, *, dims: Product | None = None, dtype: str = ""
) -> Slot:
    """What is kept of a weight from the first step on: of its dims and dtype, where no others are given."""
    made = Tensor(
        f"{name} of {tensor.label}", tensor.dims if dims is None else dims, dtype or tensor.dtype, tensor.name
    )
    return record.hold(record.alloc(made, "optimizer", op, where=WHERE))


def temporary(  # noqa: PLR0913  what a tensor is
    record: Recorder, tensor: Tensor, op: str, *, dims: Product | None = None, dtype: str = "", what: str = ""
) -> Slot:
    """What a step takes for a weight: of its dims and dtype, where no others are given."""
    label = f"{what or op.removeprefix('aten::')} for {tensor.label}"
    made = Tensor(label, tensor.dims if dims is None else dims, dtype or tensor.dtype, tensor.name)
    return record.hold(record.alloc(made, "temporary", op, where=WHERE))


def number(record: Recorder, tensor: Tensor, op: str, *, dtype: str = "") -> Slot:
    """A temporary of one element."""
    return temporary(record, tensor, op, dims=(), dtype=dtype)


def product(tensor: Tensor) -> Op:
    """The product of matrices that made `tensor`, for what its kernel takes for itself."""
    return whole("aten::mm", (), tensor)


class Variables:
    """The local variables of a loop: each holds one storage, and lets go of it when it is assigned again."""

    def __init__(self, record: Recorder) -> None:
        """None is assigned yet."""
        self._record = record
        self._held: dict[str, Slot] = {}

    def assign(self, name: str, slot: Slot) -> Slot:
        """A storage that is held by one already goes over to the variable; what it held before is let go of."""
        before = self._held.get(name)
        self._held[name] = slot
        if before is not None:
            self._record.release(before)
        return slot

    def give_back(self, name: str) -> Slot:
        """The function returns what a variable holds; all others end."""
        given = self._held.pop(name)
        self.end()
        return given

    def end(self) -> None:
        """The function returns, in the stretch of the last weight."""
        for slot in self._held.values():
            self._record.release(slot)
        self._held.clear()


def each(record: Recorder, parameters: Sequence[Parameter]) -> Iterator[Parameter]:
    """Every weight, what follows belonging to its stretch."""
    for parameter in parameters:
        record.segment(parameter.label, parameter.layer)
        yield parameter


def let_go(record: Recorder, parameters: Sequence[Parameter], slots: Sequence[Slot]) -> None:
    """A list with a tensor of each weight ends: from the last to the first."""
    for (_, layer, label, _), slot in zip(reversed(parameters), reversed(slots), strict=True):
        record.segment(label, layer)
        record.release(slot)
