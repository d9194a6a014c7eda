"""The options that many commands share: MODEL, its overrides, the format."""

import re
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer

from gptcalc.catalog import preset_names
from gptcalc.errors import InvalidValueError, shown
from gptcalc.report.formats import Format

FormatOption = Annotated[
    Format, typer.Option("--format", "-f", metavar="FORMAT", help="table, json, csv or markdown.", show_default=False)
]

#: The dims that have an option of their own, with its help.
DIMS = {
    "d_model": "Width of the residual stream (D).",
    "n_layers": "Layers (L).",
    "n_heads": "Query heads (N).",
    "n_kv_heads": "Key/value heads (K).",
    "d_head": "Head size (H).",
    "d_ff": "Width inside the MLP (F).",
    "n_vocab": "Vocabulary (V).",
    "n_ctx": "Context, rows of the position table (C).",
}
#: Options of a run whose values are numbers.
PLAN_NUMBERS = ("batch", "seq", "momentum", "dropout")
#: Option names that are not simply the field's.
SPELLED = {"n_vocab": "--vocab", "n_ctx": "--context"}


def complete_preset(incomplete: str) -> list[str]:
    """Preset names for the shell."""
    return [name for name in preset_names() if name.lower().startswith(incomplete.lower())]


def parse_value(text: str) -> object:
    """`text` as a whole number, a fraction, true, false, null, a list of such, or a string."""
    words = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    if text.startswith("[") and text.endswith("]"):
        items = text[1:-1].split(",") if text[1:-1].strip() else []
        return [parse_value(item.strip().strip("'\"")) for item in items]
    if re.fullmatch(r"[+-]?[0-9]{1,4000}", text):
        return int(text)
    if re.fullmatch(r"[+-]?([0-9]{1,300}\.?[0-9]{0,300}|\.[0-9]{1,300})(e[+-]?[0-9]{1,2})?", text, re.IGNORECASE):
        return float(text)
    return text


def takes_model(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the argument MODEL and the override options; it receives them as `model` and `overrides`."""

    @wraps(command)
    def wrapper(**given: Any) -> None:
        own = {name: given.pop(name) for name in list(given) if name not in _MODEL_OPTIONS}
        command(model=given.pop("model"), overrides=_overrides(given), **own)

    _take(wrapper, command, _MODEL_OPTIONS, ("model", "overrides"))
    return wrapper


def takes_overrides(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the override options alone; it receives them as `overrides`."""
    options = {name: option for name, option in _MODEL_OPTIONS.items() if name != "model"}

    @wraps(command)
    def wrapper(**given: Any) -> None:
        own = {name: given.pop(name) for name in list(given) if name not in options}
        command(overrides=_overrides(given), **own)

    _take(wrapper, command, options, ("overrides",))
    return wrapper


def takes_plan(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a run on one device; it receives those that were given as `plan`."""
    options = _plan_options()

    @wraps(command)
    def wrapper(**given: Any) -> None:
        asked = {name: value for name in options if (value := given.pop(name)) is not None}
        numbers = {name: _number(asked[name]) for name in PLAN_NUMBERS if name in asked}
        command(plan=asked | numbers, **given)

    _take(wrapper, command, options, ("plan",))
    return wrapper


def _number(text: str) -> object:
    """`text` as it is parsed; `none` stays a word, since it was given."""
    value = parse_value(text)
    return text if value is None else value


def spelled(field: str) -> str:
    """The option of a field: `--optimizer-impl`."""
    return f"--{field.replace('_', '-')}"


def _take(
    wrapper: Callable[..., None],
    command: Callable[..., None],
    options: dict[str, dict[str, Any]],
    instead: tuple[str, ...],
) -> None:
    """Show typer a command's own parameters, with `options` in place of those that `instead` names."""
    own = signature(command, eval_str=True).parameters
    rest = [part for name, part in own.items() if name not in instead]
    shared = [Parameter(name, Parameter.KEYWORD_ONLY, **option) for name, option in options.items()]
    wrapper.__signature__ = Signature([*shared, *rest])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {part.name: part.annotation for part in [*shared, *rest]}


def _overrides(given: dict[str, Any]) -> dict[str, object]:
    """The fields to change, from options and from `--set`; a field named twice is an error."""
    pairs = list(given.pop("set_"))
    changes: dict[str, object] = {}
    for name, value in given.items():
        if value is not None:
            changes[name] = parse_value(value) if isinstance(value, str) else value
    for pair in pairs:
        key, value = parse_pair(pair, "--set")
        if key in changes:
            raise InvalidValueError(f"--set: read {shown(pair)}, but {key} is given already; give it once")
        changes[key] = value
    return changes


def parse_pair(pair: str, what: str) -> tuple[str, object]:
    """The field and the value of KEY=VALUE."""
    key, equals, text = pair.partition("=")
    key = key.strip().replace("-", "_")
    if not equals or not key:
        raise InvalidValueError(f"{what}: read {shown(pair)}; allowed: KEY=VALUE, as in n_layer=6")
    return key, parse_value(text.strip())


def _plan_options() -> dict[str, dict[str, Any]]:
    """The options of a run; built for the commands that have them, since the choices are imported."""
    from gptcalc.ledger.asked import CHOICES

    def option(field: str, text: str, panel: str, metavar: str = "NAME") -> dict[str, Any]:
        names = CHOICES.get(field, ())
        listed = f"{', '.join(names)}: " if len(names) > 1 else ""
        return _option(
            str,
            spelled(field),
            metavar=metavar,
            help=f"{listed}{text}",
            rich_help_panel=panel,
            autocompletion=lambda incomplete: [name for name in names if name.startswith(incomplete.lower())],
        )

    run, training, inference = "The run", "The run: training", "The run: inference"
    flag = typer.Option("--expandable-segments", help="As with PYTORCH_ALLOC_CONF.", rich_help_panel=run)
    return {
        "mode": option("mode", "what runs. (default: both)", run),
        "batch": option("batch", "Sequences on this device (B). (default: 1)", run, "N"),
        "seq": option("seq", "Tokens of each (T). (default: the context, 1,024 at most)", run, "N"),
        "precision": option("precision", "the dtype of weights and activations. (default: bf16)", run),
        "attention": option("attention", "auto is what torch picks. (default: auto)", run),
        "implementation": option("implementation", "Whose code. (default: reference, gptcalc's own module)", run),
        "target": option("target", "The device's compute capability. (default: sm90)", run, "smXX"),
        "torch": option("torch", "The release of PyTorch. (default: 2.13)", run, "X.Y"),
        "expandable_segments": {"default": None, "annotation": Annotated[bool | None, flag]},
        "optimizer": option("optimizer", "the update. (default: adamw)", training),
        "optimizer_impl": option("optimizer_impl", "how it runs. (default: foreach)", training),
        "momentum": option("momentum", "With sgd. (default: 0)", training, "X"),
        "dropout": option("dropout", "All dropouts at once. (default: the model's own)", training, "P"),
        "kv_dtype": option("kv_dtype", "the dtype of the KV cache. (default: the precision)", inference),
        "logits": option("logits", "the tokens of a prompt that are scored. (default: last)", inference),
    }


def _option(annotation: Any, *names: str, **settings: Any) -> dict[str, Any]:
    return {"default": None, "annotation": Annotated[annotation | None, typer.Option(*names, **settings)]}


_MODEL_OPTIONS: dict[str, dict[str, Any]] = {
    "model": {
        "default": None,
        "annotation": Annotated[
            str | None,
            typer.Argument(
                metavar="MODEL",
                autocompletion=complete_preset,
                help="A preset or alias ('gptcalc presets'), or a path: a config.json, its folder, TOML, or Python"
                " with a dictionary (file.py:NAME where it has several)."
                " (default: gpt2-small)",
                show_default=False,
            ),
        ],
    },
    **{
        name: _option(
            str,
            SPELLED.get(name, f"--{name.replace('_', '-')}"),
            metavar="N",
            help=text,
            rich_help_panel="Change the model",
        )
        for name, text in DIMS.items()
    },
    "tied": _option(bool, "--tied/--untied", help="One table for both ends.", rich_help_panel="Change the model"),
    "bias": _option(bool, "--bias/--no-bias", help="All linear and norm biases.", rich_help_panel="Change the model"),
    "positions": _option(
        str,
        "--positions",
        metavar="KIND",
        help="learned, sinusoidal, rotary, alibi or none.",
        rich_help_panel="Change the model",
    ),
    "set_": {
        "default": (),
        "annotation": Annotated[
            list[str],
            typer.Option(
                "--set",
                metavar="KEY=VALUE",
                help="Any other field, under Hugging Face's name or gptcalc's. May be repeated.",
                rich_help_panel="Change the model",
            ),
        ],
    },
}
