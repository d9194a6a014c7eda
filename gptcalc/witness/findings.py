"""Comparing the inventory with a module that was really built: names, shapes, ties, components, totals."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from gptcalc.formula import product_size
from gptcalc.inventory import Weight, expand
from gptcalc.ledger.evidence import Finding

if TYPE_CHECKING:
    from torch import Tensor


class Built(NamedTuple):
    """A module as the witness measures it, without the inventory's help.

    `tensors` are its parameters under every name that they have; `components` the elements of each component, a tied
    unembedding included; `active` what one token uses, where the module can tell.
    """

    tensors: Mapping[str, "Tensor"]
    components: Mapping[str, int]
    active: int | None


def stored_elements(tensors: Iterable["Tensor"]) -> int:
    """Unique parameters, each once however many names it has."""
    return sum({id(tensor): tensor.numel() for tensor in tensors}.values())


def compare(rows: Sequence[Weight], built: Built) -> tuple[Finding, ...]:
    """Every disagreement between the inventory and the module, tensors first."""
    return (*_tensors(rows, built), *_ties(rows, built), *_components(rows, built), *_totals(rows, built))


def _tensors(rows: Sequence[Weight], built: Built) -> Iterator[Finding]:
    expected = Counter(name for name, _ in expand(rows))
    for name, row in expand(rows):
        tensor = built.tensors.get(name)
        if tensor is None:
            yield Finding("missing", name, f"shape {row.shape}", "no such tensor")
        elif tuple(tensor.shape) != row.shape:
            yield Finding("shape", name, str(row.shape), str(tuple(tensor.shape)))
        elif (row.role in ("lookup", "matmul")) != _is_matrix(name, tensor):
            yield Finding("role", name, row.role, f"{tensor.ndim} axes")
    for name, times in expected.items():
        if times > 1:
            yield Finding("duplicate", name, f"listed {times} times", "one tensor")
    for name, tensor in built.tensors.items():
        if name not in expected:
            yield Finding("extra", name, "no such tensor", f"shape {tuple(tensor.shape)}")


def _is_matrix(name: str, tensor: "Tensor") -> bool:
    """Whether it has more than one axis; experts have a row of biases each, and norms may have one for each head."""
    own = name.rsplit(".", 2)[-2:]
    return tensor.ndim > 1 and not any(word in part for part in own for word in ("bias", "norm"))


def _ties(rows: Sequence[Weight], built: Built) -> Iterator[Finding]:
    first: dict[int, str] = {}
    shared = {name: first.setdefault(id(tensor), name) for name, tensor in built.tensors.items()}
    for name, row in expand(rows):
        owner = shared.get(name, name)
        if (row.tied_to or name) != owner:
            found = f"tied to {owner}" if owner != name else "storage of its own"
            yield Finding("tie", name, f"tied to {row.tied_to}" if row.tied_to else "storage of its own", found)


def _components(rows: Sequence[Weight], built: Built) -> Iterator[Finding]:
    expected: Counter[str] = Counter()
    for row in rows:
        for part in row.slices:
            expected[part.component] += product_size(part.product + row.copies)
    for key in sorted({*expected, *built.components}):
        found = built.components.get(key, 0)
        if expected[key] != found:
            yield Finding("component", key, f"{expected[key]:,}", f"{found:,}")


def _totals(rows: Sequence[Weight], built: Built) -> Iterator[Finding]:
    own = [(row, row.elements * product_size(row.copies)) for row in rows if row.tied_to is None]
    stored, found = sum(size for _, size in own), stored_elements(built.tensors.values())
    if stored != found:
        yield Finding("total", "stored", f"{stored:,}", f"{found:,}")
    active = sum(size // row.active[1] * row.active[0] for row, size in own)
    if built.active is not None and active != built.active:
        yield Finding("total", "active", f"{active:,}", f"{built.active:,}")
