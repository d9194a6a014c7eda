"""A request of `memory` as data: kept in a plan file, read from one, laid over another.

A plan file is TOML or JSON: `schema`, a `model` (a preset, a path, or a table of its fields), its `overrides`, the
`settings` of the run, what is shown (`view`), and `defaulted`: which of the settings nobody gave. A file that gptcalc
wrote holds every setting, so that the defaults of a later release change nothing.
"""

import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from gptcalc.catalog import find_preset, resolve
from gptcalc.errors import GptcalcError, InvalidValueError, OutputError, UnknownNameError, plain, shown
from gptcalc.files import write_atomically
from gptcalc.ledger.asked import MODES, QUESTIONS, SETTINGS, SOLVED, Asked, Spelled, UselessError, settle
from gptcalc.plan import Plan
from gptcalc.reading.files import can_be_file, read_mapping, read_table
from gptcalc.spec import Spec

SCHEMA = "gptcalc.plan/1"
FORMS = "a plan file in TOML or JSON (name.toml, name.json)"
KEYS = ("schema", "model", "overrides", "settings", "view", "defaulted")
#: What a plan may say of the report, and its default.
VIEW: Mapping[str, int | bool] = MappingProxyType({"depth": 1, "timeline": False, "explain": False})
#: The fields that no other command has.
OWN = ("scope", *QUESTIONS)
#: What a plan may say of the run: the settings, and the fields that no other command has.
RUN = (*SETTINGS, *OWN)
#: TOML has no null: the word stands for it, as in presets.
NULL = "null"
_NOTHING: Mapping[str, object] = MappingProxyType({})

Model = str | os.PathLike[str] | Mapping[str, object] | None


class Request(NamedTuple):
    """What was asked of `memory`: a model, what is changed of it, settings of a run, what is shown.

    `defaults` are settings that a plan file holds but nobody gave: what is typed moves them as it moves any default.
    `file` is the plan file; `typed` are the settings that were typed over it, `left` those of it that these let go.
    """

    model: Model = None
    overrides: Mapping[str, object] = _NOTHING
    settings: Asked = _NOTHING
    view: Mapping[str, object] = _NOTHING
    defaults: Asked = _NOTHING
    file: str = ""
    typed: frozenset[str] = frozenset()
    left: tuple[str, ...] = ()

    @property
    def asked(self) -> dict[str, object]:
        """Every setting with its value."""
        return {**self.defaults, **self.settings}

    def spelled(self, otherwise: Spelled) -> Callable[[str], str]:
        """How errors call a setting: as it was typed, or where it stands in the file."""
        ours = {*self.defaults, *self.settings} - self.typed if self.file else ()
        return lambda field: f"{self.file}: {field}" if field in ours else otherwise(field)

    def notes(self) -> tuple[str, ...]:
        """What is to be said of the plan file."""
        if not self.file:
            return ()
        left = f"; left out, since the run has no use for it: {', '.join(self.left)}" if self.left else ""
        return (f"plan: {self.file}{left}",)

    def over(self, base: "Request", spelled: Spelled = str) -> "Request":
        """What this request says, and where it is silent, `base`: another model comes without the base's overrides.

        Settings of `base` that have no use beside those typed are let go. Its defaults stay, but for those that are
        others now.
        """
        model, overrides = self.model, self.overrides
        if model is None:
            model, overrides = base.model, _changed(base, self.overrides)
        gone, overrides = self._giving_way(base, model, overrides)
        given = {field: value for field, value in base.settings.items() if field not in (*self.settings, *gone)}
        kept = {field: value for field, value in base.defaults.items() if field not in (*self.settings, *gone)}
        file, typed = base.file or self.file, frozenset(self.settings)
        settings, view = {**given, **self.settings}, {**base.view, **self.view}
        spec = resolve(model, overrides).spec
        found = Request(model, overrides, settings, view, file=file, typed=typed)
        found, left = _without_useless(spec, found, spelled)
        if kept:
            before = values(resolve(base.model, base.overrides).spec, base.settings)
            after = values(spec, found.settings)
            same = {field: value for field, value in kept.items() if before.get(field) == after.get(field)}
            found = found._replace(defaults=_fitting(spec, found.settings, same))
        return found._replace(left=(*(field for field in gone if field not in base.defaults), *left))

    def _giving_way(
        self, base: "Request", model: Model, overrides: Mapping[str, object]
    ) -> tuple[list[str], Mapping[str, object]]:
        """What of `base` a typed question solves for, or its question where that is typed; the overrides left."""
        names = resolve(model, {}).family.names()
        solved = SOLVED.get(str(self.settings.get("max", base.settings.get("max"))).strip().lower(), "")
        gone = [name for name in overrides if solved in names.get(name, ())]
        is_typed = solved in self.settings or any(name in gone for name in self.overrides)
        if "max" not in self.settings:
            return ["max"] if is_typed else [], overrides
        if is_typed:
            return [], overrides
        rest = {name: value for name, value in overrides.items() if name not in gone}
        return [*gone, *([solved] if solved in base.asked else [])], rest

    def without_questions(self) -> "Request":
        """The run alone, for commands that ask nothing else: on the device's kernels, where it names one."""
        if not any(field in self.settings for field in QUESTIONS):
            return self
        target = settle(resolve(self.model, self.overrides).spec, self.asked, self.spelled(str)).plan.target
        settings = {field: value for field, value in self.settings.items() if field not in QUESTIONS}
        own = {} if "gpu" not in self.settings or "target" in self.defaults else {"target": target}
        return self._replace(settings={**own, **settings})


def _changed(base: Request, overrides: Mapping[str, object]) -> Mapping[str, object]:
    """The overrides of both, those of the base giving way, whichever names they have."""
    if not base.overrides or not overrides:
        return base.overrides or overrides
    model = resolve(base.model, {})
    return model.family.translate(base.overrides, base.file or model.name) | model.family.translate(
        overrides, model.name
    )


def _without_useless(spec: Spec, request: Request, spelled: Spelled) -> tuple[Request, list[str]]:
    """The request without what its own settings have no use for, and the names of that; what was typed stays."""
    left: list[str] = []
    while True:
        try:
            _settled(spec, request.settings, request.spelled(spelled))
        except UselessError as error:
            if error.field in request.typed or error.field not in request.settings:
                raise
            left.append(error.field)
            settings = {field: value for field, value in request.settings.items() if field != error.field}
            request = request._replace(settings=settings)
        else:
            return request, left


def _fitting(spec: Spec, settings: Asked, defaults: Asked) -> dict[str, object]:
    """The defaults that have a use beside the settings, and agree with them."""
    kept: dict[str, object] = {}
    for field, value in defaults.items():
        try:
            _settled(spec, {**settings, **kept, field: value})
        except InvalidValueError:
            continue
        kept[field] = value
    return kept


def _settled(spec: Spec, asked: Asked, spelled: Spelled = str) -> tuple[Plan, str]:
    """The plan, and the mode. How long a sequence may be is asked when all is known."""
    settled = settle(spec, {field: value for field, value in asked.items() if field != "seq"}, spelled)
    modes = {modes: mode for mode, modes in MODES.items()}
    return settled.plan, modes.get(settled.modes, "")


def values(spec: Spec, asked: Asked) -> dict[str, object]:
    """Every setting that has a value of its own in a plan, with that value."""
    plan, mode = _settled(spec, asked)
    found: dict[str, object] = {"mode": mode} if mode else {}
    found |= {field: getattr(plan, field) for field in SETTINGS if field in Plan.model_fields}
    if asked.get("seq") is not None:
        found["seq"] = asked["seq"]
    return {field: found[field] for field in SETTINGS if field in found}


# --- Reading ---------------------------------------------------------------------------------------------------------


def read_plan(path: str | os.PathLike[str]) -> Request:
    """The request that a plan file holds. Raises `GptcalcError` for whatever else the file is, in bounded time."""
    file = Path(path)
    table = read_table(file, FORMS)
    return from_table(table, plain(str(file)), file.parent, null=NULL if file.suffix == ".toml" else None)


def from_table(
    table: Mapping[str, object], where: str, folder: Path | None = None, *, null: str | None = None
) -> Request:
    """The request of a plan as a mapping. A path in it is seen from `folder`; `null` is a word that means nothing."""
    if table.get("schema") != SCHEMA:
        raise InvalidValueError(
            f"{where}: schema: read {shown(table.get('schema'))}; allowed: {SCHEMA}, as the first line of a plan file"
        )
    for key in table:
        advice = f"it belongs into {'settings' if key in RUN else 'view'}" if key in (*RUN, *VIEW) else ""
        if key not in KEYS:
            raise UnknownNameError.near(f"{where}: key", str(key), KEYS, advice)
    settings = _part(table, "settings", where, RUN)
    defaulted = table.get("defaulted", [])
    if not isinstance(defaulted, list) or not all(isinstance(name, str) for name in defaulted):
        raise InvalidValueError(f"{where}: defaulted: read {shown(defaulted)}; allowed: a list of settings")
    for name in defaulted:
        if name not in settings:
            raise UnknownNameError.near(f"{where}: defaulted", name, settings, "these are its settings")
    given = {key: value for key, value in settings.items() if value is not None and key not in defaulted}
    defaults = {key: settings[key] for key in defaulted if settings[key] is not None}
    model = table.get("model")
    if isinstance(model, Mapping):
        model = _nulled(model, null)
        read_mapping(model, f"{where}: model")
    elif model is not None and not isinstance(model, str):
        raise InvalidValueError(
            f"{where}: model: read {shown(model)}; allowed: a preset's name, a path, or a table of fields"
        )
    overrides = _nulled(_part(table, "overrides", where, None), null)
    found = _from_folder(model, folder) if isinstance(model, str) else model
    return Request(found, overrides, given, _view(table, where), defaults, where)


def _part(table: Mapping[str, object], key: str, where: str, allowed: Iterable[str] | None) -> dict[str, object]:
    """A table of the file, with names among those allowed."""
    part = table.get(key, {})
    if not isinstance(part, Mapping):
        raise InvalidValueError(f"{where}: {key}: read {shown(part)}; allowed: a table")
    for name in part:
        if not isinstance(name, str) or (allowed is not None and name not in allowed):
            raise UnknownNameError.near(f"{where}: {key}", str(name), allowed or ())
    return dict(part)


def _view(table: Mapping[str, object], where: str) -> dict[str, object]:
    found = _part(table, "view", where, VIEW)
    for name, value in found.items():
        if type(value) is not type(VIEW[name]):
            words = "true or false" if isinstance(VIEW[name], bool) else "a whole number"
            raise InvalidValueError(f"{where}: {name}: read {shown(value)}; allowed: {words}")
    return found


def _nulled(fields: Mapping[str, object], null: str | None) -> dict[str, object]:
    """The fields with nothing for the word that means it, however deep."""

    def read(value: object) -> object:
        if isinstance(value, Mapping):
            return {key: read(one) for key, one in value.items()}
        if isinstance(value, list):
            return [read(one) for one in value]
        return None if null is not None and value == null else value

    return {key: read(value) for key, value in fields.items()}


def _from_folder(model: str, folder: Path | None) -> str:
    """A path as it is seen from the file's folder; a preset's name as it stands."""
    if folder is None or find_preset(model):
        return model
    path = folder / model
    try:
        is_path = can_be_file(model) or os.sep in model or path.exists()
    except (OSError, ValueError):
        is_path = False
    return str(path) if is_path else model


# --- As a command ----------------------------------------------------------------------------------------------------


def command_line(request: Request, changes: Mapping[str, object]) -> str:
    """What to type for the request with `changes` of settings and fields, `None` for those that are not to be given.

    Empty where it cannot be typed: of a model that is a mapping, or fields that are.
    """
    is_file = Path(request.file).suffix in (".toml", ".json")
    mode = changes.get("mode")
    settings = {field: value for field, value in request.asked.items() if field in request.typed or not is_file}
    settings = {
        field: value
        for field, value in {**settings, **changes}.items()
        if field in RUN and value is not None and (SETTINGS[field].used_in if field in SETTINGS else "") in ("", mode)
    }
    fields = {**request.overrides, **{field: value for field, value in changes.items() if field not in RUN}}
    if isinstance(request.model, Mapping) and not is_file:
        return ""
    words = ["gptcalc", "memory"]
    words += [str(request.model)] if request.model is not None and not isinstance(request.model, Mapping) else []
    words += ["--plan", request.file] if is_file else []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            return ""
        words += (
            [f"--{name.replace('_', '-')}", str(value)] if name in changes else ["--set", f"{name}={_typed(value)}"]
        )
    for field in (field for field in RUN if field in settings):
        words += _option(field, settings[field])
    return shlex.join(words)


def _option(field: str, value: object) -> list[str]:
    """A setting as it is typed."""
    name = field.replace("_", "-")
    if isinstance(value, bool):
        other = SETTINGS[field].other or f"no_{field}"
        return [f"--{name}" if value else f"--{other.replace('_', '-')}"]
    return [f"--{name}", str(value)]


def _typed(value: object) -> str:
    """A field's value behind `--set KEY=`."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_typed, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


# --- Writing ---------------------------------------------------------------------------------------------------------


def save_plan(path: str | os.PathLike[str], request: Request, *, version: str = "") -> None:
    """Write a request, every setting of it, whole or not at all. Raises `OutputError` where that cannot be."""
    file = Path(path)
    if file.suffix not in (".toml", ".json"):
        raise OutputError(f"{plain(str(file))}: read the ending {shown(file.suffix)}; allowed: {FORMS}")
    table = to_table(request)
    where = plain(str(file))
    if file.suffix == ".json":
        text = json.dumps(table, indent=2, ensure_ascii=False, default=lambda value: _unwritten(value, where)) + "\n"
    else:
        text = _toml(table, version, where)
    write_atomically(file, text)


def to_table(request: Request) -> dict[str, object]:
    """A plan as a mapping: `from_table` reads it. A preset has its name, any other model its fields."""
    base = resolve(request.model, {})
    fields = {"model_type": base.family.model_type, **base.family.resolved()}
    spec = resolve(request.model, request.overrides).spec
    found = values(spec, request.asked)
    defaults = {field: value for field, value in found.items() if field not in request.settings}
    kept = _fitting(spec, request.settings, defaults)
    whole = {**kept, **request.settings}
    settings = {field: whole[field] for field in RUN if field in whole}
    return {
        "schema": SCHEMA,
        "model": base.preset.name if base.preset else fields,
        "defaulted": [field for field in settings if field in kept],
        "overrides": dict(request.overrides),
        "settings": settings,
        "view": {**VIEW, **request.view},
    }


def _toml(table: Mapping[str, object], version: str, where: str) -> str:
    """A plan in TOML: what is no table first."""
    lines = [
        f"# A run of gptcalc {version}: gptcalc memory --plan FILE. Options that are typed win.".replace("  ", " ")
    ]
    tables = {key: value for key, value in table.items() if isinstance(value, Mapping) and value}
    for key, value in table.items():
        if isinstance(value, Mapping):
            continue
        if key == "defaulted":
            lines.append("# Settings that nobody gave: what is typed may move them.")
        lines.append(f"{key} = {_value(value, where)}")
    for key, fields in tables.items():
        lines += ["", f"[{key}]", *(f"{_key(name)} = {_value(value, where)}" for name, value in fields.items())]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("_", "").replace("-", "").isalnum() else _string(name)


def _string(text: str) -> str:
    """A basic string: what JSON escapes, TOML does, and delete besides."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: object, where: str) -> str:
    if value is None:
        return _string(NULL)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(one, where) for one in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(str(key))} = {_value(one, where)}' for key, one in value.items())}}}"
    raise _unwritten(value, where)


def _unwritten(value: object, where: str) -> GptcalcError:
    raise InvalidValueError(f"{where}: read {shown(value)}; allowed in a plan: numbers, words, lists and tables")
