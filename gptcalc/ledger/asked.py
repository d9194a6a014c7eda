"""What was asked of `memory`, checked completely at the door: values, choices, and options that contradict each other.

`asked` maps fields to values; what is missing or `None` was not asked. `spelled` turns a field into what the user typed
(`--seq` on the command line, `seq` in Python), so that errors speak of that.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from gptcalc.errors import InvalidValueError, UnknownNameError, shown
from gptcalc.plan import (
    AttentionChoice,
    Checkpointing,
    Dtype,
    GradDtype,
    Implementation,
    Logits,
    MasterDtype,
    OptimizerImpl,
    OptimizerName,
    Plan,
    Precision,
    weight_dtype,
)
from gptcalc.spec import MOST, Spec

if TYPE_CHECKING:
    from gptcalc.ledger.memory import ModeName

Asked = Mapping[str, object]
Spelled = Callable[[str], str]


class Setting(NamedTuple):
    """A setting of a run: one row of `SETTINGS` is all that it takes beside its field in `Plan` and `gptcalc.memory`.

    `help` is what its option says; a flag may have an `other` name, which says no. It takes one of `names`, or what
    `check` lets through; neither: it is handled by itself below. `used_in` is the one mode that has a use for it.
    `kind` is what the command line reads: a name, a number, a word (`metavar` says which), or a flag. `told` says
    whether the heading names it where nobody gave it.
    """

    help: str
    names: tuple[str, ...] = ()
    check: Callable[[object, str], object] | None = None
    used_in: Literal["", "training", "inference"] = ""
    kind: Literal["name", "number", "word", "flag"] = "name"
    metavar: str = "NAME"
    told: bool = True
    other: str = ""


#: What `mode` may be, and the modes that it asks for.
MODES: "Mapping[str, tuple[ModeName, ...]]" = MappingProxyType(
    {"training": ("training",), "inference": ("inference",), "both": ("training", "inference")}
)
#: The names of the field `scope`, which no other command has.
SCOPES = ("model", "embedding")
#: What is asked about a run, and is no setting of it: where it must fit, and what is solved for. `memory` alone has it.
QUESTIONS = ("gpu", "budget", "max")
#: What `max` may be, and the setting, or the field of the model, that it solves for.
SOLVED: Mapping[str, str] = MappingProxyType(
    {"batch": "batch", "seq": "seq", "layers": "n_layers", "d-model": "d_model"}
)
#: What the embedding stage by itself has.
EMBEDDING = ("batch", "seq", "precision", "implementation", "scope")
#: The fields of the model that `dropout` sets.
DROPOUTS = ("embedding_dropout", "attention_dropout", "residual_dropout")
#: Micro-batches of a step.
MOST_MICRO_BATCHES = 1_000_000
#: The sequence that nobody asked for, where the context is longer.
SEQ = 1024


class UselessError(InvalidValueError):
    """A setting that another one has no use for: `field` is its name."""

    def __init__(self, message: str, field: str = "") -> None:
        """Keep the name beside the message."""
        super().__init__(message)
        self.field = field


class Settled(NamedTuple):
    """The plan, the modes to answer for (none where the embedding stage is asked for), and what was not asked."""

    plan: Plan
    modes: "tuple[ModeName, ...]"
    defaulted: tuple[str, ...]


def settle(spec: Spec, asked: Asked, spelled: Spelled = str) -> Settled:
    """The plan of a request about `spec`."""
    given = {field: value for field, value in asked.items() if value is not None}
    names = {field: _choice(field, value, spelled) for field, value in given.items() if field in _NAMES}
    if names.get("implementation") == "transformers":
        names = _of_transformers(names, spelled)
    mode, scope = names.get("mode", "both"), names.get("scope", "model")
    _must_agree(given, names, spelled)
    solved_for(given, spelled)
    fields: dict[str, object] = {field: name for field, name in names.items() if field in Plan.model_fields}
    fields["kv_dtype"] = names.get("kv_dtype", names.get("precision", "bf16").removeprefix("autocast-"))
    checks = {field: setting.check for field, setting in SETTINGS.items() if field in given}
    fields |= {field: check(given[field], spelled(field)) for field, check in checks.items() if check is not None}
    fields["seq"] = _seq(spec, given.get("seq"), spelled)
    fields.setdefault("optimizer_impl", _unasked_impl(names.get("optimizer", "adamw")))
    if "gpu" in given and (own := _target_of(given["gpu"], spelled("gpu"))) is not None:
        fields.setdefault("target", own)
    plan = Plan.model_validate(fields)
    _must_fit(plan, spelled)
    _needed(plan, spelled)
    if scope == "embedding":
        return Settled(plan, (), tuple(field for field in EMBEDDING[:3] if field not in given))
    defaulted = [
        field
        for field, setting in SETTINGS.items()
        if setting.told and field not in given and (mode == "both" or setting.used_in in ("", mode))
        if not (field == "target" and "target" in fields)
    ]
    return Settled(plan, MODES[mode], tuple(defaulted))


def _must_fit(plan: Plan, spelled: Spelled) -> None:
    """Refuse more chunks than tokens, and what of transformers' code is not modelled."""
    tokens = plan.batch * plan.seq
    if plan.chunked_loss > tokens:
        raise InvalidValueError(
            f"{spelled('chunked_loss')}: read {plan.chunked_loss:,}; allowed: from 1 to {tokens:,}, the tokens of a"
            f" step ({plan.batch:,} × {plan.seq:,})"
        )
    if plan.implementation == "reference":
        return
    for field, read, allowed in (
        ("checkpointing", "selective", "none or full"),
        ("chunked_loss", plan.chunked_loss if plan.chunked_loss > 1 else None, "1"),
    ):
        if getattr(plan, field) == read:
            raise InvalidValueError(
                f"{spelled(field)}: read {read}, which transformers' classes do not have; allowed: {allowed}, or"
                f" {spelled('implementation')} reference"
            )


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
    unheard_of = {field: others for field, others in _optimizer_settings(given).items() if optimizer not in others}
    rules = [
        ("scope", "model", [field for field in given if field not in EMBEDDING] if scope == "embedding" else []),
        ("mode", "training or both", _only("training") if mode == "inference" else ()),
        ("mode", "inference or both", _only("inference") if mode == "training" else ()),
        *(("optimizer", " or ".join(others), (field,)) for field, others in unheard_of.items()),
    ]
    for what, allowed, unheard in rules:
        for field in unheard:
            if field in given:
                has = names.get(what, optimizer)
                raise UselessError(
                    f"memory: read {spelled(field)} with {spelled(what)} {has}, which has no use for it; allowed:"
                    f" {spelled(what)} {allowed}, or no {spelled(field)}",
                    field,
                )


def has_questions(asked: Asked) -> bool:
    """Whether more is asked than what a run takes."""
    return any(asked.get(field) is not None for field in QUESTIONS)


def solved_for(asked: Asked, spelled: Spelled = str) -> str:
    """What is asked to be as large as fits. Raises where that is given, or where nothing says what it must fit."""
    given = {field for field, value in asked.items() if value is not None}
    if "max" not in given:
        return ""
    what = _choice("max", asked["max"], spelled)
    if not given & {"gpu", "budget"}:
        raise InvalidValueError(
            f"memory: read {spelled('max')} {what} without a limit; allowed with {spelled('gpu')} NAME or"
            f" {spelled('budget')} SIZE"
        )
    if SOLVED[what] in given:
        raise solved_twice(what, SOLVED[what], spelled)
    return what


def solved_twice(what: str, field: str, spelled: Spelled) -> UselessError:
    """The error of a question for the largest of what is given."""
    return UselessError(
        f"memory: read {spelled(field)} with {spelled('max')} {what}, which solves for it; allowed: one of them", "max"
    )


def _target_of(gpu: object, what: str) -> str | None:
    """The target of a device, asked once of each."""
    from gptcalc.ledger.fit import room

    return _target_of_name(gpu, what) if isinstance(gpu, str) else room(gpu, what).target


@cache
def _target_of_name(gpu: str, what: str) -> str | None:
    from gptcalc.ledger.fit import room

    return room(gpu, what).target


def _optimizer_settings(given: Asked) -> Mapping[str, tuple[str, ...]]:
    """Of what was given, the settings for which some optimizers alone have a use, with their names."""
    from gptcalc.optimizers import SETTINGS

    return {field: names for field, names in SETTINGS.items() if field in given}


def _of_transformers(names: dict[str, str], spelled: Spelled) -> dict[str, str]:
    """Of transformers' code a training step is modelled, and nothing else: what was asked, with that mode."""
    for field, wrong, allowed in (("mode", ("inference", "both"), "training"), ("scope", ("embedding",), "model")):
        if (read := names.get(field)) in wrong:
            raise InvalidValueError(
                f"memory: read {spelled(field)} {read} with {spelled('implementation')} transformers, of which a"
                f" training step alone is modelled; allowed: {spelled(field)} {allowed}, or"
                f" {spelled('implementation')} reference"
            )
    return {**names, "mode": "training"}


def _needed(plan: Plan, spelled: Spelled) -> None:
    """Refuse what a step of this plan would have anyhow."""
    if plan.master_weights != "none" and weight_dtype(plan) == plan.master_weights:
        raise UselessError(
            f"{spelled('master_weights')}: read {plan.master_weights} with {spelled('precision')} {plan.precision},"
            f" where the weights are {plan.master_weights} already and need no copy; allowed: {spelled('precision')}"
            f" bf16 or fp16, or no {spelled('master_weights')}",
            "master_weights",
        )
    _one_by_one(plan, spelled)
    if plan.keep_outputs and plan.implementation != "reference":
        raise InvalidValueError(
            f"memory: read {spelled('keep_outputs')} with {spelled('implementation')} {plan.implementation}, whose"
            " output holds a KV cache too, which is not modelled in training; allowed: one of them"
        )
    if plan.zero_grads and plan.grad_dtype != "none":
        raise UselessError(
            f"memory: read {spelled('zero_grads')} with {spelled('grad_dtype')} {plan.grad_dtype}, whose buffers stay"
            " and are zeroed anyhow; allowed: one of them",
            "zero_grads",
        )


def _one_by_one(plan: Plan, spelled: Spelled) -> None:
    """Refuse what needs gradients longer than an optimizer in backward leaves them there."""
    needs = {
        "grad_clip": (plan.grad_clip > 0, "whose norm is that of all gradients at once"),
        "grad_accum": (plan.grad_accum > 1, "which adds the gradients of several backward passes up"),
        "zero_grads": (plan.zero_grads, "which keeps gradients"),
        "grad_dtype": (plan.grad_dtype != "none", "whose buffers keep gradients"),
        "precision": (plan.autocast == "fp16", "whose gradient scaler looks at all gradients before a step"),
        "master_weights": (plan.master_weights != "none", "which are updated after all gradients are there"),
    }
    for field, (asked, why) in needs.items():
        if plan.optimizer_in_backward and asked:
            raise InvalidValueError(
                f"memory: read {spelled('optimizer_in_backward')} with {spelled(field)}, {why}; allowed: one of them"
            )


def _only(mode: str) -> tuple[str, ...]:
    """The settings that this mode alone has a use for."""
    return tuple(field for field, setting in SETTINGS.items() if setting.used_in == mode)


def _unasked_impl(optimizer: str) -> str:
    """How an optimizer runs where nobody says it: foreach, if it can."""
    from gptcalc.optimizers import OPTIMIZERS

    return next(iter(OPTIMIZERS[optimizer].kind.since))


def _choice(field: str, value: object, spelled: Spelled) -> str:
    allowed = _NAMES[field]
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


def _norm(value: object, what: str) -> float:
    norm = _number(value)
    if norm is None or norm < 0:
        raise InvalidValueError(
            f"{what}: read {shown(value)}; allowed: the largest norm, above 0, or 0 for no clipping"
        )
    return norm


def _micro_batches(value: object, what: str) -> int:
    if type(value) is not int or not 1 <= value <= MOST_MICRO_BATCHES:
        raise InvalidValueError(
            f"{what}: read {shown(value)}; allowed: a whole number of micro-batches from 1 to {MOST_MICRO_BATCHES:,}"
        )
    return value


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


#: Every setting of a run of the whole model, in the order in which the heading and the help list them.
SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        "mode": Setting("what runs. (default: both)", tuple(MODES), told=False),
        "batch": Setting("Sequences on this device (B). (default: 1)", check=_size, kind="number", metavar="N"),
        "seq": Setting("Tokens of each (T). (default: the context, 1,024 at most)", kind="number", metavar="N"),
        "precision": Setting("the dtype of weights and activations. (default: bf16)", get_args(Precision)),
        "optimizer": Setting("the update. (default: adamw)", get_args(OptimizerName), used_in="training"),
        "optimizer_impl": Setting(
            "how it runs. (default: foreach; fused, which is all there is, for adamw8bit)",
            get_args(OptimizerImpl),
            used_in="training",
        ),
        "momentum": Setting(
            "With sgd. (default: 0)", check=_momentum, used_in="training", kind="number", metavar="X", told=False
        ),
        "amsgrad": Setting("With adamw or adam.", check=_flag, used_in="training", kind="flag", told=False),
        "optimizer_in_backward": Setting(
            "Each weight is updated in the backward pass, and its gradient let go.",
            check=_flag,
            used_in="training",
            kind="flag",
            told=False,
        ),
        "grad_accum": Setting(
            "Micro-batches of a step, each of B sequences. (default: 1)",
            check=_micro_batches,
            used_in="training",
            kind="number",
            metavar="N",
            told=False,
        ),
        "grad_clip": Setting(
            "Clip gradients to this norm. (default: 0, never)",
            check=_norm,
            used_in="training",
            kind="number",
            metavar="X",
            told=False,
        ),
        "zero_grads": Setting(
            "Gradients are zeroed and stay, or become None. (default: set-to-none)",
            check=_flag,
            used_in="training",
            kind="flag",
            other="set_to_none",
            told=False,
        ),
        "keep_outputs": Setting(
            "Logits and loss stay until the next ones are there.",
            check=_flag,
            used_in="training",
            kind="flag",
            told=False,
        ),
        "master_weights": Setting(
            "copies of the weights, which the optimizer updates. (default: none)",
            get_args(MasterDtype),
            used_in="training",
            told=False,
        ),
        "grad_dtype": Setting(
            "buffers, to which gradients are added. (default: none)",
            get_args(GradDtype),
            used_in="training",
            told=False,
        ),
        "attention": Setting("auto is what torch picks. (default: auto)", get_args(AttentionChoice)),
        "dropout": Setting(
            "All dropouts at once. (default: the model's own)", used_in="training", kind="number", metavar="P"
        ),
        "checkpointing": Setting(
            "what runs again in the backward pass. (default: none)",
            get_args(Checkpointing),
            used_in="training",
            told=False,
        ),
        "chunked_loss": Setting(
            "Chunks of the tokens that logits and loss are computed in, each again in the backward pass. (default: 1)",
            check=_size,
            used_in="training",
            kind="number",
            metavar="N",
            told=False,
        ),
        "kv_dtype": Setting(
            "the dtype of the KV cache. (default: the precision)", get_args(Dtype), used_in="inference"
        ),
        "logits": Setting(
            "the tokens of a prompt that are scored. (default: last)", get_args(Logits), used_in="inference"
        ),
        "implementation": Setting("Whose code. (default: reference, gptcalc's own module)", get_args(Implementation)),
        "target": Setting(
            "The device's compute capability. (default: sm90)", check=_target, kind="word", metavar="smXX"
        ),
        "torch": Setting("The release of PyTorch. (default: 2.13)", check=_torch, kind="word", metavar="X.Y"),
        "expandable_segments": Setting("As with PYTORCH_ALLOC_CONF.", check=_flag, kind="flag", told=False),
        "compile": Setting("Not modelled: says what is known of torch.compile.", check=_flag, kind="flag", told=False),
    }
)
#: The fields that take a name, and the names.
_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {field: setting.names for field, setting in SETTINGS.items() if setting.names}
    | {"scope": SCOPES, "max": tuple(SOLVED)}
)
