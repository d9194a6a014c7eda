"""A whole check of one model: every witness that can be heard."""

from gptcalc.catalog import Resolved
from gptcalc.inventory import Weight, inventory
from gptcalc.ledger.evidence import Check
from gptcalc.witness.hub import transformers_class
from gptcalc.witness.reference import reference


def check(model: Resolved, rows: tuple[Weight, ...] | None = None) -> Check:
    """Put the inventory of `model` (or `rows` in its place) before the reference module and the transformers class."""
    rows = inventory(model.spec) if rows is None else rows
    return Check(model, (reference(model.spec, rows), transformers_class(model, rows)))
