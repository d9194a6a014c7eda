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
#: Option names that are not simply the field's.
SPELLED = {"n_vocab": "--vocab", "n_ctx": "--context"}


def complete_preset(incomplete: str) -> list[str]:
    """Preset names for the shell."""
    return [name for name in preset_names() if name.startswith(incomplete.lower())]


def parse_value(text: str) -> object:
    """`text` as a whole number, a fraction, true, false, null or a string."""
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
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

    rest = [
        part
        for name, part in signature(command, eval_str=True).parameters.items()
        if name not in ("model", "overrides")
    ]
    shared = [Parameter(name, Parameter.KEYWORD_ONLY, **option) for name, option in _MODEL_OPTIONS.items()]
    wrapper.__signature__ = Signature([*shared, *rest])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {part.name: part.annotation for part in [*shared, *rest]}
    return wrapper


def _overrides(given: dict[str, Any]) -> dict[str, object]:
    """The fields to change, from options and from `--set`; a field named twice is an error."""
    pairs = list(given.pop("set_"))
    changes: dict[str, object] = {}
    for name, value in given.items():
        if value is not None:
            changes[name] = parse_value(value) if isinstance(value, str) else value
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise InvalidValueError(f"--set: read {shown(pair)}; allowed: KEY=VALUE, as in --set n_layer=6")
        if key in changes:
            raise InvalidValueError(f"--set: read {shown(pair)}, but {key} is given already; give it once")
        changes[key] = parse_value(text.strip())
    return changes


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
                help="A preset or alias ('gptcalc presets'), or a path to a config.json or TOML file."
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
        help="learned, sinusoidal, rotary or none.",
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
