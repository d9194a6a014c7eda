"""A whole check of one model: every witness that can be heard."""

from collections.abc import Callable, Sequence

from gptcalc.catalog import Resolved
from gptcalc.errors import InvalidValueError, UnknownNameError
from gptcalc.installed import need_torch
from gptcalc.inventory import Weight, inventory
from gptcalc.ledger.evidence import Check, Evidence
from gptcalc.ledger.memory import ModeName
from gptcalc.plan import Plan
from gptcalc.witness.hub import transformers_class
from gptcalc.witness.memory import MEMORY_WITNESSES
from gptcalc.witness.reference import reference

__all__ = ["MEMORY_WITNESSES", "TRANSFORMERS", "WITNESSES", "check", "check_memory"]

#: A witness of parameters, and of memory where settings of a run are given.
TRANSFORMERS = "transformers"
Rows = tuple[Weight, ...]

#: Every witness by name, in the order in which they are heard.
WITNESSES: dict[str, Callable[[Resolved, Rows], Evidence]] = {
    "reference": reference,
    "transformers": transformers_class,
}


def check(model: Resolved, witness: str | None = None, rows: Rows | None = None) -> Check:
    """Put the inventory of `model` (or `rows` in its place) before one witness, or before all of parameters."""
    if witness is not None and witness not in WITNESSES:
        raise UnknownNameError.near("witness", str(witness), dict.fromkeys([*WITNESSES, *MEMORY_WITNESSES]))
    rows = inventory(model.spec) if rows is None else rows
    heard = WITNESSES.values() if witness is None else [WITNESSES[witness]]
    return Check(model, tuple(look(model, rows) for look in heard))


def check_memory(model: Resolved, witness: str, plan: Plan, modes: Sequence[ModeName]) -> Check:
    """Put what `model` takes under `plan` before a witness of memory."""
    need_torch()
    if model.spec.unknown_ops:
        raise InvalidValueError(
            f"check: read witness {witness!r} for {model.name}, of which the ops of {', '.join(model.spec.unknown_ops)}"
            " are not modelled; allowed: a model whose ops are known"
        )
    return Check(model, MEMORY_WITNESSES[witness](model, plan, modes))
