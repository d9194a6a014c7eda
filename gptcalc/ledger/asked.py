"""What was asked of `memory`, checked completely at the door: values, choices, and options that contradict each other.

`asked` maps fields to values; what is missing or `None` was not asked. `spelled` turns a field into what the user typed
(`--seq` on the command line, `seq` in Python), so that errors speak of that.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, get_args

from gptcalc.errors import InvalidValueError, UnknownNameError, shown
from gptcalc.plan import AttentionChoice, Logits, OptimizerImpl, OptimizerName, Plan, Precision
from gptcalc.spec import MOST, Spec

if TYPE_CHECKING:
    from gptcalc.ledger.memory import ModeName

Asked = Mapping[str, object]
Spelled = Callable[[str], str]

#: What `mode` may be, and the modes that it asks for.
MODES: "Mapping[str, tuple[ModeName, ...]]" = MappingProxyType(
    {"training": ("training",), "inference": ("inference",), "both": ("training", "inference")}
)
#: The fields that take a name, and the names.
CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "mode": tuple(MODES),
        "precision": get_args(Precision),
        "optimizer": get_args(OptimizerName),
        "optimizer_impl": get_args(OptimizerImpl),
        "attention": get_args(AttentionChoice),
        "kv_dtype": get_args(Precision),
        "logits": get_args(Logits),
        "implementation": ("reference",),
        "scope": ("model", "embedding"),
    }
)
#: Every setting of a run of the whole model.
SETTINGS = (
    *("mode", "precision", "attention", "implementation", "optimizer", "optimizer_impl", "kv_dtype", "logits"),
    *("batch", "seq", "momentum", "dropout", "target", "torch", "expandable_segments"),
)
#: What only one of the modes has, and what the embedding stage by itself has.
TRAINING = ("optimizer", "optimizer_impl", "momentum", "dropout")
INFERENCE = ("kv_dtype", "logits")
EMBEDDING = ("batch", "seq", "precision", "implementation", "scope")
#: The fields of the model that `dropout` sets.
DROPOUTS = ("embedding_dropout", "attention_dropout", "residual_dropout")
#: The sequence that nobody asked for, where the context is longer.
SEQ = 1024


class Settled(NamedTuple):
    """The plan, the modes to answer for (none where the embedding stage is asked for), and what was not asked."""

    plan: Plan
    modes: "tuple[ModeName, ...]"
    defaulted: tuple[str, ...]


def settle(spec: Spec, asked: Asked, spelled: Spelled = str) -> Settled:
    """The plan of a request about `spec`."""
    given = {field: value for field, value in asked.items() if value is not None}
    names = {field: _choice(field, value, spelled) for field, value in given.items() if field in CHOICES}
    mode, scope = names.get("mode", "both"), names.get("scope", "model")
    _must_agree(given, names, spelled)
    fields: dict[str, object] = {
        field: names[field] for field in CHOICES if field in names and field in Plan.model_fields
    }
    fields["kv_dtype"] = names.get("kv_dtype", names.get("precision", "bf16"))
    fields |= {field: check(given[field], spelled(field)) for field, check in _VALUES.items() if field in given}
    fields["seq"] = _seq(spec, given.get("seq"), spelled)
    plan = Plan.model_validate(fields)
    if scope == "embedding":
        return Settled(plan, (), tuple(field for field in EMBEDDING[:3] if field not in given))
    return Settled(plan, MODES[mode], tuple(_defaulted(given, mode)))


def with_dropout(overrides: Mapping[str, object], asked: Asked, spelled: Spelled = str) -> dict[str, object]:
    """The model's overrides, with `dropout` put where it belongs."""
    rate = asked.get("dropout")
    if rate is None:
        return dict(overrides)
    dropout = _number(rate)
    if dropout is None or not 0 <= dropout < 1:
        raise InvalidValueError(f"{spelled('dropout')}: read {shown(rate)}; allowed: a number from 0 to below 1")
    for field in DROPOUTS:
        if field in overrides:
            raise InvalidValueError(
                f"{spelled('dropout')}: read {shown(rate)}, but {field} is given already; give it once"
            )
    return {**overrides, **dict.fromkeys(DROPOUTS, dropout)}


def _must_agree(given: Asked, names: Mapping[str, str], spelled: Spelled) -> None:
    """Refuse what is given for nothing: it would look as if it had been heard."""
    scope, mode, optimizer = names.get("scope"), names.get("mode"), names.get("optimizer", "adamw")
    rules = [
        ("scope", "model", [field for field in given if field not in EMBEDDING] if scope == "embedding" else []),
        ("mode", "training or both", TRAINING if mode == "inference" else ()),
        ("mode", "inference or both", INFERENCE if mode == "training" else ()),
        ("optimizer", "sgd", () if optimizer == "sgd" else ("momentum",)),
    ]
    for what, allowed, unheard in rules:
        for field in unheard:
            if field in given:
                has = names.get(what, optimizer)
                raise InvalidValueError(
                    f"memory: read {spelled(field)} with {spelled(what)} {has}, which has no use for it; allowed:"
                    f" {spelled(what)} {allowed}, or no {spelled(field)}"
                )


def _choice(field: str, value: object, spelled: Spelled) -> str:
    allowed = CHOICES[field]
    name = value.strip().lower() if isinstance(value, str) else str(value)
    if name not in allowed:
        raise UnknownNameError.near(spelled(field), str(value), allowed)
    return name


def _seq(spec: Spec, value: object, spelled: Spelled) -> int:
    """The tokens of a sequence: as many as the model can have positions for."""
    if value is None:
        return min(spec.n_ctx, SEQ)
    seq = _size(value, spelled("seq"))
    if spec.positions is not None and spec.positions.kind == "learned" and seq > spec.n_ctx:
        raise InvalidValueError(
            f"{spelled('seq')}: read {seq:,}; allowed: at most {spec.n_ctx:,}, the model's context (n_ctx): its"
            " positions are learned, and it has no later one"
        )
    return seq


def _size(value: object, what: str) -> int:
    if type(value) is not int or not 1 <= value <= MOST:
        raise InvalidValueError(f"{what}: read {shown(value)}; allowed: a whole number from 1 to {MOST:,}")
    return value


def _number(value: object) -> float | None:
    """A finite number as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < MOST else None


def _momentum(value: object, what: str) -> float:
    momentum = _number(value)
    if momentum is None or momentum < 0:
        raise InvalidValueError(f"{what}: read {shown(value)}; allowed: a number from 0")
    return momentum


def _target(value: object, what: str) -> str:
    found = re.fullmatch(r"sm_?([0-9]{2,3})", str(value).strip().lower())
    if not found:
        raise InvalidValueError(
            f"{what}: read {shown(value)}; allowed: a compute capability, as in sm80 (A100) or sm90 (H100)"
        )
    return f"sm{found[1]}"


def _torch(value: object, what: str) -> str:
    text = value.strip() if isinstance(value, str) else ""  # of a fraction, 2.10 could not be told from 2.1
    found = re.fullmatch(r"([0-9]{1,2}\.[0-9]{1,3})(\.[0-9]{1,3})?", text)
    if not found:
        raise InvalidValueError(f"{what}: read {shown(value)}; allowed: a release of PyTorch as text, as in '2.13'")
    return found[1]


def _flag(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidValueError(f"{what}: read {shown(value)}; allowed: true or false")
    return value


_VALUES: Mapping[str, Callable[[object, str], object]] = MappingProxyType(
    {
        "batch": _size,
        "momentum": _momentum,
        "target": _target,
        "torch": _torch,
        "expandable_segments": _flag,
    }
)


def _defaulted(given: Mapping[str, object], mode: str) -> list[str]:
    """The fields that the answer depends on and that nobody gave."""
    unheard = {"training": INFERENCE, "inference": TRAINING}.get(mode, ())
    fields = ["batch", "seq", "precision", "optimizer", "optimizer_impl", "attention", "dropout", *INFERENCE]
    fields += ["implementation", "target", "torch"]
    return [field for field in fields if field not in given and field not in unheard]
