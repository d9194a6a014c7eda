"""The inventory: one row for each tensor of a model, and what folds over the rows.

A `Weight` is a tensor of the stack's module, or the same tensor of every layer in a group (`layers`). A fused tensor
(GPT-2's `c_attn`) is one row with a slice for each component; components fold slices, tensors fold rows.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from gptcalc.formula import Dim, Product, product_size
from gptcalc.spec import Part, Spec

Role = Literal["lookup", "matmul", "bias", "norm"]


class Slice(NamedTuple):
    """The share of a tensor that belongs to one component; each axis is a product of dims."""

    component: str
    axes: tuple[Product, ...]

    @property
    def product(self) -> Product:
        """All dims of the slice, multiplied: its number of elements."""
        return tuple(dim for axis in self.axes for dim in axis)


class Weight(NamedTuple):
    """A tensor: `slices` lie side by side along `axis`.

    `layers` numbers the copies, one a layer, and stands for `{}` in `name`. `tied_to` names the tensor whose storage
    this one uses. Of the experts' tensors one token uses `active[0]` in `active[1]`. `source`
    says who defined it, where that differs from what is usual for its component.
    """

    name: str
    role: Role
    slices: tuple[Slice, ...]
    axis: int = 0
    layers: range | None = None
    tied_to: str | None = None
    active: tuple[int, int] = (1, 1)
    source: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape as torch prints it."""
        shape = [product_size(axis) for axis in self.slices[0].axes]
        shape[self.axis] = sum(product_size(part.axes[self.axis]) for part in self.slices)
        return tuple(shape)

    @property
    def elements(self) -> int:
        """Elements of one copy, whether or not the storage is its own."""
        return sum(product_size(part.product) for part in self.slices)

    @property
    def is_matrix(self) -> bool:
        """Whether the popular breakdown counts it: tables and matrices, positions excluded."""
        return self.role in ("matmul", "lookup") and self.slices[0].component != "positions"

    @property
    def copies(self) -> Product:
        """The layers as a dim, or nothing outside the layers."""
        return () if self.layers is None else (Dim("L", len(self.layers)),)


class Tensor(NamedTuple):
    """One tensor of the built module: a row under its full name."""

    name: str
    weight: Weight


class Weighted(Part):
    """A part that lists its weights."""

    @abstractmethod
    def weights(self, spec: Spec) -> Iterator[Weight]:
        """The part's tensors, named from the part's own module downwards."""


def part_weights(part: Part | None, spec: Spec, prefix: str = "") -> Iterator[Weight]:
    """The rows of `part` with their names below `prefix`."""
    if part is None:
        return
    if not isinstance(part, Weighted):
        raise TypeError(f"part {part.kind!r} lists no weights")
    path = f"{prefix}{part.name}." if part.name else prefix
    for weight in part.weights(spec):
        yield weight._replace(name=path + weight.name)


def inventory(spec: Spec) -> tuple[Weight, ...]:
    """Every row of the model, input first. Layers are folded: one row stands for all of a group."""
    trunk = f"{spec.trunk}."
    before = (spec.embedding, spec.embedding_projection, spec.embedding_norm, spec.positions)
    rows = [weight for part in before for weight in part_weights(part, spec, trunk)]
    first, prefix = 0, f"{trunk}{spec.layers_name}.{{}}."
    listed: dict[int, tuple[Weight, ...]] = {}  # layers that take turns are few objects
    for group in spec.layers:
        layers = range(first, first + group.n_layers)
        if id(group.block) not in listed:
            listed[id(group.block)] = tuple(part_weights(group.block, spec, prefix))
        rows += [weight._replace(layers=layers) for weight in listed[id(group.block)]]
        first = layers.stop
    rows += part_weights(spec.final_norm, spec, trunk)
    rows += part_weights(spec.output_projection, spec, trunk)
    rows += part_weights(spec.unembedding, spec)
    return tuple(rows)


def expand(rows: Sequence[Weight]) -> Iterator[Tensor]:
    """Every tensor by its full name, in the order in which the module holds them."""
    first = 0
    while first < len(rows):
        layers = rows[first].layers
        last = first + 1
        while last < len(rows) and rows[last].layers == layers:
            last += 1
        for layer in [None] if layers is None else layers:
            yield from (Tensor(row.name if layer is None else row.name.format(layer), row) for row in rows[first:last])
        first = last


def linear(
    name: str,
    outputs: Sequence[tuple[str, Product]],
    inputs: Product,
    *,
    bias: bool,
    transposed: bool = False,
) -> Iterator[Weight]:
    """A linear layer: weight (out, in) as `nn.Linear` keeps it, or (in, out) `transposed` as GPT-2's `Conv1D` does.

    `outputs` are the components that the layer computes at once, in the order of their rows.
    """
    slices = tuple(Slice(key, (inputs, rows) if transposed else (rows, inputs)) for key, rows in outputs)
    yield Weight(f"{name}.weight", "matmul", slices, axis=int(transposed))
    if bias:
        yield Weight(f"{name}.bias", "bias", tuple(Slice(f"{key}_bias", (rows,)) for key, rows in outputs))
