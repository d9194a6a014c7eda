"""A whole check of one model: every witness that can be heard."""

from collections.abc import Callable

from gptcalc.catalog import Resolved
from gptcalc.errors import UnknownNameError
from gptcalc.inventory import Weight, inventory
from gptcalc.ledger.evidence import Check, Evidence
from gptcalc.witness.hub import transformers_class
from gptcalc.witness.reference import reference

Rows = tuple[Weight, ...]

#: Every witness by name, in the order in which they are heard.
WITNESSES: dict[str, Callable[[Resolved, Rows], Evidence]] = {
    "reference": reference,
    "transformers": transformers_class,
}


def check(model: Resolved, witness: str | None = None, rows: Rows | None = None) -> Check:
    """Put the inventory of `model` (or `rows` in its place) before one witness, or before all."""
    if witness is not None and witness not in WITNESSES:
        raise UnknownNameError.near("witness", str(witness), WITNESSES)
    rows = inventory(model.spec) if rows is None else rows
    heard = WITNESSES.values() if witness is None else [WITNESSES[witness]]
    return Check(model, tuple(look(model, rows) for look in heard))
