"""The Python API, and what the command line calls: three lines for the common case.

>>> import gptcalc
>>> gptcalc.count("gpt2").totals.stored
124439808
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

from gptcalc.catalog import Resolved, resolve
from gptcalc.errors import GptcalcError, InvalidValueError, shown
from gptcalc.ledger.evidence import Check
from gptcalc.ledger.parameters import Line, Parameters, Totals, parameters
from gptcalc.report.count import count_document
from gptcalc.report.count_data import CountJSON, count_json
from gptcalc.report.document import Document


class Count(NamedTuple):
    """The parameters of one model: `totals`, `lines` that add up to them, and every form of the report."""

    model: Resolved
    parameters: Parameters
    depth: int = 1
    evidence: Check | None = None

    def __repr__(self) -> str:
        """The model and what it stores; everything else is in the fields."""
        return f"Count({self.model.name!r}, stored={self.totals.stored})"

    @property
    def totals(self) -> Totals:
        """The four totals: stored, matrices, active, non_embedding."""
        return self.parameters.totals

    @property
    def lines(self) -> tuple[Line, ...]:
        """One line for each component."""
        return self.parameters.lines

    def to_dict(self) -> CountJSON:
        """What `gptcalc count --format json` prints."""
        return count_json(self.model, self.parameters, self.depth, self.evidence)

    def document(self, *, explain: bool = False) -> Document:
        """The report before it has a format."""
        return count_document(self.model, self.parameters, self.depth, explain=explain, check=self.evidence)

    def _repr_html_(self) -> str:
        """Tables for a notebook."""
        from gptcalc.report.plain import render_html

        return render_html(self.document())


__all__ = ["Check", "Count", "GptcalcError", "check", "count"]

DEPTHS = (1, 2, 3)

#: A preset name or alias, a path to a config, or a mapping of its fields; nothing is `gpt2-small`.
Model = str | os.PathLike[str] | Mapping[str, object] | None


def count(model: Model = None, *, depth: int = 1, **overrides: object) -> Count:
    """Count the parameters of `model`.

    `overrides` are fields under gptcalc's names or Hugging Face's (`n_vocab=50304`, `n_layer=6`, `bias=False`).
    `depth` is the detail of `to_dict()`: 1 components, 2 layer groups, 3 tensors. Raises `GptcalcError`
    on a bad request.
    """
    if type(depth) is not int or depth not in DEPTHS:
        raise InvalidValueError(f"depth: read {shown(depth)}; allowed: 1 (components), 2 (layer groups), 3 (tensors)")
    resolved = resolve(model, overrides)
    return Count(resolved, parameters(resolved.spec), depth)


def check(model: Model = None, *, witness: str | None = None, **overrides: object) -> Check:
    """Compare the inventory of `model` with PyTorch: `.agrees`, and `.evidence` of each witness. Needs torch.

    `witness` names one to hear alone: `reference`, gptcalc's own modules, or `transformers`, the published class.
    """
    from gptcalc.witness.check import check as hear

    return hear(resolve(model, overrides), witness)
