"""Compare: models side by side, row by row: what differs, what each stores, what each takes, and in which ratio.

A row holds one value for each model, in their order; `None` where a model has no such thing.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import NamedTuple

from gptcalc.catalog import Resolved
from gptcalc.ledger.alive import KINDS
from gptcalc.ledger.cache import cache
from gptcalc.ledger.components import COMPONENTS, GROUPS
from gptcalc.ledger.memory import Memory, Mode
from gptcalc.ledger.parameters import Parameters, Totals


class Compared(NamedTuple):
    """One of the models: `name` is its own among them; `refused` says why there is no `memory` that was asked for."""

    name: str
    model: Resolved
    parameters: Parameters
    memory: Memory | None = None
    refused: str = ""


class Fields(NamedTuple):
    """A hyperparameter under gptcalc's own name, with the models' values; `MISSING` where one has no such field."""

    key: str
    values: tuple[object, ...]


class Amounts(NamedTuple):
    """An amount of each model, in `unit`."""

    key: str
    label: str
    unit: str
    amounts: tuple[int | None, ...]

    @property
    def ratios(self) -> tuple[Fraction | None, ...]:
        """Each amount over the first; none where either is missing or the first is nothing."""
        first = self.amounts[0]
        return tuple(Fraction(amount, first) if first and amount is not None else None for amount in self.amounts)


class Missing:
    """What stands for the value of a field that a family does not have."""

    def __repr__(self) -> str:
        """As it is printed."""
        return "—"


MISSING = Missing()


def named(models: Sequence[Resolved]) -> tuple[str, ...]:
    """A name of its own for each model: its preset's or its file's, its changes, a number where it stands twice."""
    names: list[str] = []
    for model in models:
        own = model.preset.name if model.preset else model.title
        changes = ",".join(f"{key}={change.now}" for key, change in model.changed.items())
        name = f"{own}:{changes}" if changes else own
        times = sum(other == name or other.startswith(f"{name} #") for other in names)
        names.append(f"{name} #{times + 1}" if times else name)
    return tuple(names)


def hyperparameters(models: Sequence[Compared]) -> tuple[Fields, ...]:
    """Every field that any of the models has, in the order of the first that has it, under gptcalc's own names."""
    found = [_fields(each.model) for each in models]
    keys = dict.fromkeys(key for fields in found for key in fields)
    return tuple(Fields(key, tuple(fields.get(key, MISSING) for fields in found)) for key in keys)


def _fields(model: Resolved) -> Mapping[str, object]:
    """A model's fields; those of rotations only where it has them."""
    fields: dict[str, object] = {"model_type": model.family.model_type, **model.family.resolved()}
    if isinstance(kind := fields.get("positions"), str) and kind != "rotary":
        return {key: value for key, value in fields.items() if not key.startswith("rope_")}
    return fields


def differ(fields: Fields) -> bool:
    """Whether the models have not all the same value; true is not 1, and no value is as good as no field."""
    plain = [None if value is MISSING else value for value in fields.values]
    first, *others = [(type(value), value) for value in plain]
    return any(other != first for other in others)


def by_component(models: Sequence[Compared]) -> tuple[Amounts, ...]:
    """What each model stores, a row for each component that any has; of a tied tensor nothing."""
    return _parts(models, {key: key for key in COMPONENTS}, lambda key: COMPONENTS[key].label, "key")


def by_group(models: Sequence[Compared]) -> tuple[Amounts, ...]:
    """The same by the rows of the printed table."""
    return _parts(models, {group: group for group in GROUPS}, str, "group")


def _parts(
    models: Sequence[Compared], keys: Mapping[str, str], label: Callable[[str], str], attribute: str
) -> tuple[Amounts, ...]:
    found: list[dict[str, int]] = [{} for _ in models]
    for each, amounts in zip(models, found, strict=True):
        for line in each.parameters.lines:
            key = str(getattr(line, attribute))
            amounts[key] = amounts.get(key, 0) + line.stored
    return tuple(
        Amounts(key, label(key), "parameters", tuple(amounts.get(key) for amounts in found))
        for key in keys
        if any(key in amounts for amounts in found)
    )


def tied(each: Compared, group: str) -> bool:
    """Whether what a model has of `group` is another tensor's storage."""
    return any(line.tied for line in each.parameters.lines if line.group == group)


def totals(models: Sequence[Compared]) -> tuple[Amounts, ...]:
    """The four totals, and what the KV cache takes for each token."""
    found = [each.parameters.totals._asdict() for each in models]
    rows = [Amounts(key, key, "parameters", tuple(each[key] for each in found)) for key in Totals._fields]
    kept = tuple(cache(each.model.spec).bytes_per_token for each in models)
    return (*rows, Amounts("kv_bytes_per_token", "KV bytes a token", "bytes", kept))


def memory(models: Sequence[Compared]) -> tuple[Amounts, ...]:
    """The sequence; the peak of each mode in bytes requested, and what of it are weights, states, cache, all else."""
    lengths = tuple(each.memory.plan.seq if each.memory else None for each in models)
    rows = [Amounts("seq", "sequence", "tokens", lengths)]
    names = dict.fromkeys(mode.name for each in models if each.memory for mode in each.memory.modes)
    for name in names:
        modes = [_mode(each, name) for each in models]
        rows.append(_bytes(f"{name}.peak", f"{name}: peak", modes, lambda mode: mode.totals.requested))
        rows += _of_kinds(name, modes)
        rows.append(_bytes(f"{name}.reserved", "reserved, at most", modes, lambda mode: mode.totals.reserved))
    return tuple(rows)


def _mode(each: Compared, name: str) -> Mode | None:
    modes = each.memory.modes if each.memory else ()
    return next((mode for mode in modes if mode.name == name), None)


#: The kinds of tensors that have a row of their own; what else is alive at the peak stands in one.
KIND_LABELS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "kv_cache": "KV cache",
}


def _of_kinds(name: str, modes: Sequence[Mode | None]) -> Iterator[Amounts]:
    for kind, label in KIND_LABELS.items():
        row = _bytes(f"{name}.{kind}", label, modes, partial(_sum, kinds=(kind,)))
        if any(row.amounts):
            yield row
    yield _bytes(f"{name}.other", "all else", modes, partial(_sum, kinds=set(KINDS) - set(KIND_LABELS)))


def _sum(mode: Mode, kinds: Collection[str]) -> int:
    return sum(line.amount for line in mode.lines if line.kind in kinds)


def _bytes(key: str, label: str, modes: Sequence[Mode | None], amount: Callable[[Mode], int]) -> Amounts:
    return Amounts(key, label, "bytes", tuple(amount(mode) if mode else None for mode in modes))
