"""The options that many commands share: MODEL, its overrides, the format."""

import re
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.models import ArgumentInfo

from gptcalc.catalog import preset_families, preset_names
from gptcalc.errors import InvalidValueError, shown
from gptcalc.report.formats import Format

if TYPE_CHECKING:
    from gptcalc.ledger.asked import Setting

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
#: What a plan file says of a report, where a command has it.
VIEW = ("depth", "timeline", "explain")
#: Option names that are not simply the field's.
SPELLED = {"n_vocab": "--vocab", "n_ctx": "--context"}


def complete_preset(incomplete: str) -> list[str]:
    """Preset names for the shell."""
    return [name for name in preset_names() if name.lower().startswith(incomplete.lower())]


def complete_family(incomplete: str) -> list[str]:
    """Families of presets for the shell."""
    return [name for name in preset_families() if name.startswith(incomplete.lower())]


def complete_gpu(incomplete: str) -> list[str]:
    """GPU names for the shell, and `local`."""
    from gptcalc.gpus import gpu_names

    return [name for name in (*gpu_names(), "local") if name.startswith(incomplete.lower())]


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
    """Give a command the options of a run on one device; it receives what was asked as `plan`, a `Request`.

    A plan file gives what was not typed. The command's `model` and `overrides`, where it has them, are its too.
    """
    from gptcalc.ledger.asked import SETTINGS  # for the commands that have them alone
    from gptcalc.ledger.request import OWN, Request, read_plan

    own = signature(command, eval_str=True).parameters
    has_model, views = "model" in own, [name for name in VIEW if name in own]

    @wraps(command)
    def wrapper(**given: Any) -> None:
        asked = {name: value for name in SETTINGS if (value := given.pop(name)) is not None}
        asked |= {name: _number(value) for name, value in asked.items() if SETTINGS[name].kind == "number"}
        asked |= {name: value for name in OWN if (value := given.get(name, given.get(f"{name}_"))) is not None}
        view = {name: given[name] for name in views if given[name] is not None}
        model, overrides = (given["model"], given["overrides"]) if has_model else (None, {})
        typed, file = Request(model, overrides, asked, view, typed=frozenset(asked)), given.pop("plan_file")
        plan = typed if file is None else typed.over(read_plan(file), spelled)
        if "gpu" not in own:
            plan = plan.without_questions()
        if has_model:
            given |= {"model": plan.model, "overrides": plan.overrides}
        command(plan=plan, **given)

    _take(
        wrapper,
        command,
        {"plan_file": _PLAN_FILE, **{name: _plan_option(name, setting) for name, setting in SETTINGS.items()}},
        ("plan",),
    )
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
    parts = sorted([*shared, *rest], key=lambda part: not (part in rest and _is_argument(part)))
    wrapper.__signature__ = Signature(parts)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {part.name: part.annotation for part in parts}


def _is_argument(part: Parameter) -> bool:
    """Whether a parameter is no option: a command's own stand before MODEL."""
    return any(isinstance(one, ArgumentInfo) for one in getattr(part.annotation, "__metadata__", ()))


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


def _plan_option(field: str, setting: "Setting") -> dict[str, Any]:
    """The option of a setting."""
    panel = ": ".join(filter(None, ("The run", setting.used_in)))
    if setting.kind == "flag":
        names_of_both = f"{spelled(field)}/{spelled(setting.other or f'no_{field}')}"
        return _option(bool, names_of_both, help=setting.help, rich_help_panel=panel)
    names = setting.names
    return _option(
        str,
        spelled(field),
        metavar=setting.metavar,
        help=f"{', '.join(names)}: {setting.help}" if len(names) > 1 else setting.help,
        rich_help_panel=panel,
        autocompletion=lambda incomplete: [name for name in names if name.startswith(incomplete.lower())],
    )


def _option(annotation: Any, *names: str, **settings: Any) -> dict[str, Any]:
    return {"default": None, "annotation": Annotated[annotation | None, typer.Option(*names, **settings)]}


_PLAN_FILE = _option(
    str,
    "--plan",
    metavar="FILE",
    help="Options from a plan file, TOML or JSON; those that are typed win.",
    rich_help_panel="The run",
)

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
