"""The embedding stage by itself: the tables that turn token IDs into vectors, and the vectors."""

from fractions import Fraction
from typing import Literal, NamedTuple

from gptcalc.formula import Dim, Formula
from gptcalc.inventory import Slice, part_weights
from gptcalc.ledger.components import COMPONENTS
from gptcalc.ledger.parameters import Totals, parameters
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.units import bytes_of

#: The dtypes in which the stage's bytes are given.
DTYPES = ("fp32", "bf16", "fp16")
#: What components of the parameter ledger are called in the stage.
LABELS = {
    "embedding": "token table",
    "embedding_proj": "projection of token rows",
    "norm_weight": "norm weight",
    "norm_bias": "norm bias",
    "positions": "position table",
}


class StageLine(NamedTuple):
    """A table, or the vectors that come out; `formula` is its elements."""

    key: str
    label: str
    kind: Literal["weights", "activations"]
    component: str
    formula: Formula
    why: str
    source: str

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return self.formula.value

    def bytes_in(self, dtype: str) -> int:
        """What they take in a dtype."""
        return bytes_of(self.elements, dtype)


class EmbeddingStage(NamedTuple):
    """Tables first, activations last; `model` are the totals of the model that the stage belongs to."""

    spec: Spec
    plan: Plan
    lines: tuple[StageLine, ...]
    model: Totals

    @property
    def parameters(self) -> int:
        """The elements of the tables."""
        return sum(line.elements for line in self.lines if line.kind == "weights")

    @property
    def share(self) -> Fraction:
        """The part of the model's stored parameters that the tables are."""
        return Fraction(self.parameters, self.model.stored)

    def bytes_in(self, dtype: str, kind: str | None = None) -> int:
        """Bytes of all lines, or of one kind."""
        return sum(line.bytes_in(dtype) for line in self.lines if kind in (None, line.kind))


def embedding_stage(spec: Spec, plan: Plan) -> EmbeddingStage:
    """The stage of `spec` for `plan.batch` sequences of `plan.seq` tokens."""
    parts = (spec.embedding, spec.embedding_projection, spec.embedding_norm, spec.positions)
    rows = [row for part in parts for row in part_weights(part, spec)]
    lines = [_stored(row.slices[0]) for row in rows]
    vectors = Formula.of([(Dim("B", plan.batch), Dim("T", plan.seq), Dim("D", spec.d_model))])
    why = "one vector of width D for each of T tokens in each of B sequences: what the first block reads"
    lines.append(
        StageLine("activations", "activations", "activations", "input", vectors, why, "Vaswani et al. 2017, §3.4")
    )
    return EmbeddingStage(spec, plan, tuple(lines), parameters(spec).totals)


def _stored(held: Slice) -> StageLine:
    """A tensor of the stage."""
    component = COMPONENTS[held.component]
    label, formula = LABELS[held.component], Formula.of([held.product])
    return StageLine(held.component, label, "weights", held.component, formula, component.why, component.source)
