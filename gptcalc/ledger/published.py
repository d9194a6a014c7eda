"""Whose code runs: what is modelled of transformers, and what the heading says of it."""

from gptcalc.catalog import Resolved, beyond_transformers
from gptcalc.errors import InvalidValueError
from gptcalc.hf import MODULES, READ, REMARKS, code_of
from gptcalc.plan import Plan


def need_class(model: Resolved) -> None:
    """Refuse a model that no class of transformers runs, or whose class has not been read."""
    code_of(model.spec.family)
    if reason := beyond_transformers(model):
        raise InvalidValueError(
            f"implementation: read 'transformers' for {model.name}, but {reason}; allowed: reference, or a model that"
            " its class can be"
        )


def words(plan: Plan, family: str) -> str:
    """Whose code it is."""
    if plan.implementation == "reference":
        return "implementation reference (gptcalc's own module)"
    return f"implementation transformers {READ} (as read: {REMARKS[MODULES[family]]})"
