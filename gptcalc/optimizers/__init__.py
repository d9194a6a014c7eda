"""Optimizers: the states that each keeps for a weight, and what a step allocates, by implementation.

A new optimizer is one class in a file here, and its line in `OPTIMIZERS` and in `plan.OptimizerName`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from gptcalc.errors import InvalidValueError
from gptcalc.optimizers.adafactor import Adafactor
from gptcalc.optimizers.adam import Adam
from gptcalc.optimizers.adam8bit import Adam8bit
from gptcalc.optimizers.base import Optimizer, Parameter
from gptcalc.optimizers.muon import Muon
from gptcalc.optimizers.sgd import SGD
from gptcalc.plan import Plan

__all__ = ["OPTIMIZERS", "Known", "Optimizer", "Parameter", "optimizer"]


class Known(NamedTuple):
    """An optimizer: what it is called, its class, and where its source is."""

    title: str
    kind: type[Optimizer]
    source: str


OPTIMIZERS: Mapping[str, Known] = MappingProxyType(
    {
        "adamw": Known("AdamW", Adam, "torch/optim/adam.py"),
        "adam": Known("Adam", Adam, "torch/optim/adam.py"),
        "sgd": Known("SGD", SGD, "torch/optim/sgd.py"),
        "adafactor": Known("Adafactor", Adafactor, "torch/optim/_adafactor.py"),
        "muon": Known("Muon for the layers' matrices, AdamW for the rest", Muon, "torch/optim/_muon.py, adam.py"),
        "adamw8bit": Known(
            "8-bit AdamW of bitsandbytes", Adam8bit, "bitsandbytes/optim/optimizer.py; source-derived: no run"
        ),
    }
)


def optimizer(plan: Plan, torch: tuple[int, int]) -> Optimizer:
    """The optimizer that a plan names, or an error that says which pairs the release of torch has."""
    name, impl, kind = plan.optimizer, plan.optimizer_impl, OPTIMIZERS[plan.optimizer].kind
    for setting, others in SETTINGS.items():
        if getattr(plan, setting) and name not in others:
            raise InvalidValueError(
                f"{setting}: read {getattr(plan, setting)} with {name}; allowed with {', '.join(others)}"
            )
    allowed = [key for key, version in kind.since.items() if version <= torch]
    if not allowed:
        first = min(kind.since.values())
        raise InvalidValueError(
            f"optimizer: torch {torch[0]}.{torch[1]} has no {name}; allowed: torch {first[0]}.{first[1]} and later, or"
            f" another optimizer"
        )
    if impl not in allowed:
        raise InvalidValueError(
            f"optimizer implementation: torch {torch[0]}.{torch[1]} has no {impl} {name}; allowed: {', '.join(allowed)}"
        )
    return kind.of(plan)


#: The optimizers that have a use for a setting which not all have.
SETTINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        setting: tuple(name for name, known in OPTIMIZERS.items() if setting in known.kind.hears)
        for setting in ("momentum", "amsgrad")
    }
)
