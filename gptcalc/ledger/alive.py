"""What is alive at an instant: tensors by kind and component, each with its op, its formula and why it is there."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, cast, get_args

from gptcalc.formula import Dim, Formula, Product, ordered, product_size
from gptcalc.inventory import Slice, Weight, inventory, part_weights
from gptcalc.ledger.components import component_label
from gptcalc.ledger.reasons import KIND_REASONS, op_words, why
from gptcalc.optimizers.base import WHERE
from gptcalc.parts.block import Block
from gptcalc.spec import Part, Spec
from gptcalc.tape.record import Slot
from gptcalc.tape.replay import Place, Recording, alive_at, kind_of
from gptcalc.units import bytes_of

#: What a tensor is for, in the order in which tables list it.
Kind = Literal[
    "weights",
    "weight_copies",
    "gradients",
    "optimizer",
    "kv_cache",
    "inputs",
    "activations",
    "logits",
    "temporary",
    "workspace",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: Kinds of which a line says the op: what an op makes of its inputs, not what there is one of for each weight.
BY_OP: tuple[Kind, ...] = ("activations", "logits", "temporary")


class Held(NamedTuple):
    """Tensors alive at the peak that are listed in one row.

    Either equal ones: one, or one of each of several layers, which `op` made. Or a line that adds up all of a kind and
    component, in kinds `BY_OP` those by one `op`; else that is empty, and so is `dtype`. `formula` is the bytes of all.
    """

    key: str
    label: str
    kind: Kind
    component: str
    op: str
    dtype: str
    formula: Formula
    tensors: int
    why: str
    source: str

    @property
    def amount(self) -> int:
        """Bytes requested for all of them."""
        return self.formula.value


class _Alive(NamedTuple):
    """A storage with how many there are of it, and the inventory's row where it is a weight or of a weight's size."""

    slot: Slot
    kind: Kind
    tensors: int
    row: Weight | None

    @property
    def parts(self) -> tuple[Slice, ...]:
        """The components that it holds side by side."""
        row, dims = self.row, self.slot.tensor.dims
        return row.slices if row is not None and product_size(dims) == row.elements else ()


class Alive:
    """The tensors of a model that are alive at an instant of a run."""

    def __init__(self, spec: Spec, recording: Recording, place: Place, *, keeps: bool, optimizer: str = "") -> None:
        """`keeps` says whether autograd keeps values, as in training; in inference all of them are activations.

        `optimizer` is the source of its states.
        """
        self._optimizer = optimizer
        rows = {row.name: row for row in inventory(spec)}
        self.spec = spec
        self._components = components(spec)
        found = [
            _Alive(
                slot, kind_in(kind_of(slot), keeps=keeps), tensors, rows.get(slot.tensor.name or slot.tensor.copy_of)
            )
            for slot, tensors in alive_at(recording, place)
        ]
        self._found = sorted(found, key=lambda one: KINDS.index(one.kind))

    def held(self) -> Iterator[Held]:
        """Every kind of tensor, in the order of kinds."""
        seen: Counter[str] = Counter()
        layers = f"{self.spec.trunk}.{self.spec.layers_name}.{{}}."
        for one in self._found:
            slot, tensor = one.slot, one.slot.tensor
            path = tensor.name or f"{slot.where}.{tensor.label}".strip(".")
            if one.kind == "optimizer":
                path += f".{tensor.label.partition(' of ')[0]}"
            key = f"{one.kind}.{path.replace(layers, 'layers.')}"
            seen[key] += 1
            reason, source = self._why(one.kind, slot)
            yield Held(
                key=key if seen[key] == 1 else f"{key}#{seen[key]}",
                label=tensor.label,
                kind=one.kind,
                component=self._component(one),
                op=slot.op,
                dtype=tensor.dtype,
                formula=self._formula(one, [part.product for part in one.parts] or [tensor.dims]),
                tensors=one.tensors,
                why=reason,
                source=source,
            )

    def by_slot(self) -> dict[tuple[int, str], Held]:
        """The row of each kind of tensor, by its slot and label, which each number of a turn has its own of."""
        rows = zip(self._found, self.held(), strict=True)
        return {(one.slot.index, one.slot.tensor.label): held for one, held in rows}

    def lines(self) -> Iterator[Held]:
        """By kind and component, some kinds by op too; a fused weight is cut into the components that it holds."""
        groups: dict[tuple[Kind, str, str], list[tuple[Formula, _Alive]]] = {}
        for one in self._found:
            op = one.slot.op if one.kind in BY_OP else ""
            whole = (self._component(one), one.slot.tensor.dims)
            for component, product in [(part.component, part.product) for part in one.parts] or [whole]:
                groups.setdefault((one.kind, component, op), []).append((self._formula(one, [product]), one))
        order = list(dict.fromkeys((kind, component) for kind, component, _ in groups))
        for kind, component, op in sorted(groups, key=lambda group: order.index(group[:2])):
            found = groups[kind, component, op]
            label = component_label(component)
            reasons = [self._why(kind, one.slot) for _, one in found]
            yield Held(
                key=".".join(filter(None, (kind, component, op.removeprefix("aten::")))),
                label=f"{label}: {op_words(op)}" if op else label,
                kind=kind,
                component=component,
                op=op,
                dtype="",
                formula=Formula.sum(formula for formula, _ in found),
                tensors=sum(one.tensors for _, one in found),
                why="; ".join(dict.fromkeys(reason for reason, _ in reasons)) if op else KIND_REASONS[kind],
                source=reasons[0][1],
            )

    def _why(self, kind: Kind, slot: Slot) -> tuple[str, str]:
        reason, source = why(kind, slot)
        return reason, self._optimizer if slot.where == WHERE and self._optimizer else source

    def _component(self, one: _Alive) -> str:
        """A weight's component in the parameter ledger; else the part that the tensor's op belongs to."""
        if one.row is not None and len(one.row.slices) == 1:
            return one.row.slices[0].component
        path = one.slot.tensor.name or one.slot.tensor.copy_of or one.slot.where
        while path not in self._components:
            path = path.rpartition(".")[0]
        return self._components[path]

    def _formula(self, one: _Alive, products: Sequence[Product]) -> Formula:
        """The bytes of all copies of `products`."""
        each, n_layers = bytes_of(1, one.slot.tensor.dtype), self.spec.n_layers
        copies, among = ((Dim("L", n_layers),), 1) if one.tensors == n_layers > 1 else ((), one.tensors)
        return Formula.sum(Formula(((each * among, ordered((*copies, *product))),)) for product in products)


def kind_in(kind: str, *, keeps: bool) -> Kind:
    """The kind of a storage as it is reported: where autograd keeps nothing, every value is an activation."""
    return "activations" if kind == "temporary" and not keeps else cast(Kind, kind)


def components(spec: Spec) -> dict[str, str]:
    """What the module at each path is part of."""
    trunk, layers = spec.trunk, f"{spec.trunk}.{spec.layers_name}.{{}}"
    found = {"": "input", trunk: "residual stream", layers: "residual stream", "loss": "loss"}
    inside = {
        "embedding": (spec.embedding, spec.embedding_projection, spec.output_projection),
        "positions": (spec.positions,),
        "norms": (spec.embedding_norm, spec.final_norm),
    }
    for what, parts in inside.items():
        found |= {f"{trunk}.{part.name}": what for part in parts if part is not None}
    found[spec.unembedding.name] = "unembedding"
    for block in (group.block for group in spec.layers):
        if isinstance(block, Block):
            for part in block.parts:
                what = "attention" if part is block.attention else "MLP" if part is block.mlp else "norms"
                found |= {f"{layers}.{path}": what for path in _paths(block, part, spec)}
    return found


def _paths(block: Block, part: Part, spec: Spec) -> Iterator[str]:
    """Where a part of a block is; the weights of one without a name are in children of the block itself."""
    yield part.name or block.path_of(part)
    if not part.name:
        yield from (row.name.rpartition(".")[0] for row in part_weights(part, spec))
