"""Parameters: what a model stores, by component, and the bridge between the ways to count it.

Four totals, always by these names: `stored`, unique parameters as `sum(p.numel())` counts them; `matrices`, the popular
breakdown: all matmul and lookup tensors without positions, a tied unembedding counted again; `active`, what one token
uses; `non_embedding`, stored less the token table, positions and an untied unembedding with its bias.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

from gptcalc.formula import Dim, Formula, Product, product_size
from gptcalc.inventory import Slice, Weight, inventory
from gptcalc.ledger.components import COMPONENTS, GROUPS
from gptcalc.spec import Spec
from gptcalc.units import bytes_of

#: Components outside the stack of layers, which `non_embedding` leaves out.
EMBEDDINGS = ("embedding", "positions", "unembedding", "lm_head_bias")


class Line(NamedTuple):
    """One row of the ledger: `stored` is its amount, 0 where the storage is another tensor's (`tied`)."""

    key: str
    label: str
    group: str
    products: tuple[Product, ...]
    stored: int
    matrices: int
    active: int
    why: str
    source: str
    tied: bool = False

    @property
    def formula(self) -> Formula:
        """The amount as a sum of products of dims; what a tied tensor would take."""
        return Formula.of(self.products)


class Totals(NamedTuple):
    """The four totals; the module's docstring defines them."""

    stored: int
    matrices: int
    active: int
    non_embedding: int


class Step(NamedTuple):
    """One step of the bridge from `matrices` to `stored`."""

    key: str
    label: str
    amount: int


class Rule(NamedTuple):
    """The rule of thumb 12·L·D² and its signed errors, as fractions of the totals that it is taken for."""

    value: int
    error_stored: Fraction
    error_non_embedding: Fraction


class Parameters(NamedTuple):
    """The ledger: lines that add up to `totals.stored` and `totals.matrices`."""

    spec: Spec
    rows: tuple[Weight, ...]
    lines: tuple[Line, ...]
    totals: Totals

    @property
    def bridge(self) -> tuple[Step, ...]:
        """What lies between `matrices` and `stored`: each group counted by only one of the two."""
        tied = sum(line.matrices for line in self.lines if line.tied)
        steps = [Step("tied", "tied unembedding, stored once", -tied)] if tied else []
        for group in GROUPS:
            outside = sum(line.stored - line.matrices for line in self.lines if line.group == group and not line.tied)
            if outside:
                steps.append(Step(group, group, outside))
        return tuple(steps)

    @property
    def routed(self) -> int:
        """Parameters of experts that a router picks from: each token uses some of them."""
        rows = (row for row in self.rows if row.active != (1, 1) and row.tied_to is None)
        return sum(row.elements * product_size(row.copies) for row in rows)

    @property
    def checkpoint_bytes(self) -> dict[str, int]:
        """Bytes of the stored parameters by dtype, without a file's header and buffers."""
        return {dtype: bytes_of(self.totals.stored, dtype) for dtype in ("fp32", "bf16")}

    @property
    def rule_of_thumb(self) -> Rule:
        """12·L·D² (Kaplan et al. 2020, §2.1): 4 D² for attention and 8 D² for an MLP of width 4·D in each layer."""
        value = 12 * self.spec.n_layers * self.spec.d_model**2
        stored, inner = self.totals.stored, self.totals.non_embedding
        return Rule(value, Fraction(value - stored, stored), Fraction(value - inner, inner))

    @property
    def dims(self) -> tuple[Dim, ...]:
        """Every dim of the model, each letter with its sizes, in the order of formulas."""
        seen = {Dim("D", self.spec.d_model), Dim("L", self.spec.n_layers), Dim("V", self.spec.n_vocab)}
        seen |= {Dim("C", self.spec.n_ctx)}
        seen |= {dim for row in self.rows for part in row.slices for dim in part.product}
        return tuple(
            sorted((dim for dim in seen if dim.letter.isalpha()), key=lambda dim: (_rank(dim.letter), dim.size))
        )


def parameters(spec: Spec) -> Parameters:
    """Count `spec`, one line for each component that it has."""
    rows = inventory(spec)
    pairs = [(part.component, row, part) for row in rows for part in row.slices]
    lines = tuple(fold(key, COMPONENTS[key].label, found) for key, found in _by_component(pairs))
    return Parameters(spec, rows, lines, _totals(lines))


def stored(spec: Spec) -> int:
    """The total alone: unique parameters, as the lines of `parameters` add up."""
    own = (row for row in inventory(spec) if row.tied_to is None)
    return sum(row.elements * product_size(row.copies) for row in own)


def _rank(letter: str) -> tuple[int, str]:
    """Where a dim stands among those of a model: the letters of every model first; Fe and Fs after F."""
    return ("LDNKHRFEVC".find(letter[0]) % len("LDNKHRFEVC?"), letter)


def _totals(lines: tuple[Line, ...]) -> Totals:
    stored = sum(line.stored for line in lines)
    outside = sum(line.stored for line in lines if line.key in EMBEDDINGS)
    return Totals(stored, sum(line.matrices for line in lines), sum(line.active for line in lines), stored - outside)


def _by_component(pairs: Iterable[tuple[str, Weight, Slice]]) -> Iterator[tuple[str, list[tuple[Weight, Slice]]]]:
    found: dict[str, list[tuple[Weight, Slice]]] = {}
    for key, row, part in pairs:
        found.setdefault(key, []).append((row, part))
    if nameless := found.keys() - COMPONENTS.keys():
        raise LookupError(f"components without a row in components.py: {', '.join(sorted(nameless))}")
    return ((key, found[key]) for key in COMPONENTS if key in found)


def fold(key: str, label: str, parts: list[tuple[Weight, Slice]], *, per_layer: bool = False) -> Line:
    """One line for slices of one component; `per_layer` leaves the number of layers out of its formula."""
    component = COMPONENTS[parts[0][1].component]
    tied = parts[0][0].tied_to is not None
    stored = matrices = active = 0
    for row, part in parts:
        amount = product_size(part.product + row.copies)
        if row.is_matrix:
            matrices += amount
        if row.tied_to is None:
            stored += amount
            used, of = row.active
            active += amount // of * used
    return Line(
        key=key,
        label=label,
        group=component.group,
        products=tuple(_products(parts, per_layer=per_layer)),
        stored=stored,
        matrices=matrices,
        active=active,
        why=f"{component.why}: the token table itself, stored once" if tied else component.why,
        source=parts[0][0].source or component.source,
        tied=tied,
    )


def _products(parts: list[tuple[Weight, Slice]], *, per_layer: bool) -> Iterator[Product]:
    """A product for each kind of slice; equal slices in several groups of layers have all these layers as one L."""
    layers: Counter[tuple[bool, str, Product, int]] = Counter()
    seen: Counter[tuple[str, range | None, Product]] = Counter()
    for row, part in parts:
        inside = row.layers is not None and not per_layer
        seen[row.name, row.layers, part.product] += 1
        place = (inside, row.name, part.product, seen[row.name, row.layers, part.product])
        layers[place] += len(row.layers) if inside and row.layers is not None else 1
    for (inside, _, product, _), count in layers.items():
        yield from [(Dim("L", count), *product)] if inside else [product] * count
