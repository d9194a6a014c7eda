"""Find a model: by preset name, alias or path; apply overrides; say what followed from them.

Presets are TOML files, one a family of models, with what was claimed about them in a file of its own. A name is looked
up in a generated index of names, and its table alone is cut out of its file and parsed, however many there are.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator

from gptcalc import installed
from gptcalc.errors import GptcalcError, InvalidValueError, UnknownNameError, nearest, plain, shown
from gptcalc.families import find_family, implied_fields, is_known, model_types
from gptcalc.families.family import BIASES, IRRELEVANT, PLAIN, REFUSED, UNCOUNTED, Family
from gptcalc.spec import Record, Spec

if TYPE_CHECKING:
    from gptcalc.families.guess import Guess
    from gptcalc.reading.record import ModelFields

#: The model that overrides alone speak of.
DEFAULT_MODEL = "gpt2-small"
#: More unknown fields than this share one note.
MOST_UNKNOWN = 4


class Reading(Record):
    """Another way to count, under which a claim may come out: an expression, other hyperparameters, or both.

    `expr` is evaluated instead of the claim's `of`; `model` is another preset, `set` overrides of hyperparameters.
    `error` marks a mistake, which explains a number without making it right.
    """

    label: str
    expr: str | None = None
    model: str | None = None
    set: dict[str, Any] = {}
    error: bool = False


class Claim(Record):
    """A number that somebody published about a model.

    `text` is the number as printed (`117M`, `175,181,291,520`), or `value` a formula of it; `of` is the expression that
    it claims to be, evaluated over the model's dims, totals and components. `readings` are other ways to count it.
    """

    text: str
    of: str
    source: str
    what: str = ""
    value: str | None = None
    readings: tuple[Reading, ...] = ()
    note: str = ""


def _published(fields: dict[str, Any]) -> Mapping[str, Any]:
    """Hyperparameters as published: TOML has no null, so that the word stands for it."""
    return MappingProxyType({key: None if value == "null" else value for key, value in fields.items()})


class Preset(Record):
    """A published model: hyperparameters under Hugging Face's names, where they come from, what was claimed of it."""

    name: str
    family: str
    title: str
    source: str
    aliases: tuple[str, ...] = ()
    estimated: str = ""
    see: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    hyperparameters: Annotated[Mapping[str, Any], AfterValidator(_published)]

    @property
    def model_type(self) -> str:
        """The family that reads it, as transformers calls it."""
        return str(self.hyperparameters["model_type"])

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What was published about it; read only when it is asked for."""
        return _claims(self.family).get(self.name, ())


class Change(NamedTuple):
    """A field that is not what the base model has."""

    was: object
    now: object


class Resolved(NamedTuple):
    """A model ready to be counted, with everything that its header says.

    `huggingface` are its fields as transformers would read them; `changed` (asked for), `followed` (from what was
    asked) and `defaults` (of the family, where a file is silent) map gptcalc's field names to values.
    """

    name: str
    title: str
    family: Family
    spec: Spec
    huggingface: Mapping[str, object]
    preset: Preset | None = None
    changed: Mapping[str, Change] = MappingProxyType({})
    followed: Mapping[str, Change] = MappingProxyType({})
    defaults: Mapping[str, object] = MappingProxyType({})
    estimated: str = ""
    notes: tuple[str, ...] = ()


def beyond_transformers(model: Resolved) -> str:
    """Why no config of the transformers class gives this model; empty where one does."""
    family = type(model.family)
    known = {key: value for key, value in model.huggingface.items() if key in family.names()}
    try:
        plain = family.load(family.given(family.translate(known, model.name)), model.name)
        if plain.spec() == model.spec:
            return ""
    except GptcalcError as error:
        return f"no transformers config gives this model ({error})"
    ours, theirs = model.family.resolved(), plain.resolved()
    differing = ", ".join(f"{key} = {ours[key]}" for key in ours if ours[key] != theirs[key])
    return f"no transformers config has {differing}"


@cache
def _claims(stem: str) -> dict[str, tuple[Claim, ...]]:
    path = installed.presets("claims") / f"{stem}.toml"
    tables = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: tuple(Claim(**claim) for claim in claims) for name, claims in tables.items()}


@cache
def _index() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Every preset, family by family: its name, the stem of its file, its aliases."""
    lines = installed.presets("index.txt").read_text(encoding="utf-8").splitlines()
    entries = (line.split() for line in lines if not line.startswith("#"))
    return {name: (stem, tuple(aliases)) for stem, name, *aliases in entries}


@cache
def _by_name() -> dict[str, str]:
    """The preset that each name and alias means, in lower case."""
    return {spelled.lower(): name for name, (_, aliases) in _index().items() for spelled in (name, *aliases)}


@cache
def _text(stem: str) -> str:
    return "\n" + (installed.presets("models") / f"{stem}.toml").read_text(encoding="utf-8")


def _table(stem: str, name: str) -> dict[str, Any]:
    """The table of one preset, cut out of its file: to parse a long file whole takes milliseconds."""
    text = _text(stem)
    key = name if name.replace("-", "").isalnum() else f'"{name}"'
    start = text.index(f"\n[{key}]\n") + 1
    end = text.find("\n[", start)
    while end >= 0 and text.startswith(f"[{key}.", end + 1):
        end = text.find("\n[", end + 1)
    table: dict[str, Any] = tomllib.loads(text[start : end if end >= 0 else None])[name]
    return table


@cache
def _preset(stem: str, name: str) -> Preset:
    return Preset(name=name, family=stem, **_table(stem, name))


def presets() -> Iterator[Preset]:
    """Every preset, family by family."""
    return (_preset(stem, name) for name, (stem, _) in _index().items())


def search_presets(family: str | None = None, text: str | None = None) -> list[Preset]:
    """The presets of a family (that file or `model_type`), and of these the ones that have every word of `text`.

    Names, titles, aliases, model types and sources are searched, in any case of letters.
    """
    found = list(presets())
    if family is not None:
        kinds = {preset.name: (preset.family, _kind(preset.model_type)) for preset in found}
        found = [preset for preset in found if _kind(family) in kinds[preset.name]]
        if not found:
            raise UnknownNameError.near("family of presets", family, {kind for pair in kinds.values() for kind in pair})
    if text is not None:
        allowed = [name for preset in found for name in (preset.name, *preset.aliases)]
        found = [preset for preset in found if all(word in _said(preset) for word in text.lower().split())]
        if not found:
            what = "preset with these words" if family is None else f"preset of {plain(family)} with these words"
            raise UnknownNameError.near(what, text, allowed, "'gptcalc presets' lists all")
    return found


def _kind(name: str) -> str:
    return name.lower().replace("_", "-")


def _said(preset: Preset) -> str:
    words = (preset.name, preset.title, *preset.aliases, preset.model_type, preset.source)
    return "\n".join(words).lower()


def preset_families() -> list[str]:
    """The files of presets, each a family of models."""
    return list(dict.fromkeys(stem for stem, _ in _index().values()))


def preset_names() -> list[str]:
    """Every name and alias that a preset answers to."""
    return [spelled for name, (_, aliases) in _index().items() for spelled in (name, *aliases)]


@cache
def find_preset(name: str) -> Preset | None:
    """The preset of that name or alias, in any case of letters."""
    own = _by_name().get(name.lower())
    return None if own is None else _preset(_index()[own][0], own)


def need_preset(name: str) -> Preset:
    """The preset of that name, or an error with the nearest names."""
    preset = find_preset(name)
    if preset is None:
        raise UnknownNameError.near("preset", name, preset_names(), "'gptcalc presets' lists all")
    return preset


def resolve(model: str | os.PathLike[str] | Mapping[str, object] | None, overrides: Mapping[str, object]) -> Resolved:
    """The model behind a name, a path or a config mapping, with `overrides` (either kind of field name) applied."""
    base = _base(DEFAULT_MODEL if model is None else model)
    return _overridden(base, overrides) if overrides else base


def _base(model: str | os.PathLike[str] | Mapping[str, object]) -> Resolved:
    if isinstance(model, Mapping):
        from gptcalc.reading.files import read_mapping

        return _from_read(read_mapping(model, "config"))
    if not isinstance(model, str | os.PathLike):
        raise InvalidValueError(f"model: read {shown(model)}; allowed: a preset's name, a path, or a mapping of fields")
    path = None if isinstance(model, str) and find_preset(model) else _path_of(model)
    if path is None:
        return _from_preset(str(model))
    from gptcalc.reading.files import read_model

    return _from_read(read_model(path))


def _from_read(read: "ModelFields") -> Resolved:
    """A model from a file or mapping, with what reading had to say."""
    model = _from_config(read.fields, read.name, strict=read.strict)
    return model._replace(notes=(*read.notes, *model.notes))


def _path_of(name: str | os.PathLike[str]) -> Path | None:
    """The file that a name means, where it can mean one: an existing path, or anything with a config's ending."""
    from gptcalc.reading.files import can_be_file

    path = Path(name)
    try:
        if name and path.is_dir():
            return path / "config.json"
        return path if isinstance(name, os.PathLike) or can_be_file(str(name)) or (name and path.exists()) else None
    except (OSError, ValueError):
        return path if can_be_file(str(name)) else None


@cache
def _from_preset(name: str) -> Resolved:
    preset = need_preset(name)
    base = _from_config(preset.hyperparameters, preset.name, strict=True)
    return base._replace(title=preset.title, preset=preset, defaults={}, notes=preset.notes)


def _from_config(config: Mapping[str, object], name: str, *, strict: bool = False) -> Resolved:
    """A model from fields as Hugging Face or gptcalc name them; `strict` refuses every field that no family reads."""
    for key in config:
        if not isinstance(key, str):
            raise InvalidValueError(f"{name}: read the field {shown(key)}; allowed: names in strings")
    family, guessed = _family_of(config, name)
    config = family.modern(implied_fields(config.get("model_type")) | dict(config))
    for key in REFUSED:
        if config.get(key):
            raise InvalidValueError(
                f"{name}: {key}: read {shown(config[key])}; allowed: false (no part models its weights)"
            )
    names = family.names()
    given = {key: value for key, value in config.items() if key != "model_type"}
    unread = [] if strict else [key for key in given if key not in names or _is_legacy(key, given, family)]
    own = family.given(family.translate({key: value for key, value in given.items() if key not in unread}, name))
    loaded = family.load(own, name)
    return Resolved(
        name=name,
        title=Path(name).parent.name or name if Path(name).name == "config.json" else Path(name).name,
        family=loaded,
        spec=loaded.spec(),
        huggingface=_with_fields(
            {
                key: value
                for key, value in config.items()
                if key in family.published() or key in family.nested or key not in family.model_fields
            },
            family,
            {key: own[key] for key in own if key in config and key not in family.published()},
        ),
        defaults={key: value for key, value in loaded.resolved().items() if key not in own and key not in UNCOUNTED},
        estimated=guessed.remark if guessed and guessed.by_fields else "",
        notes=(
            *([guessed.remark] if guessed and not guessed.by_fields else []),
            *_unread_notes({key: given[key] for key in unread}, family),
            *family.remarks(given),
        ),
    )


def _is_legacy(key: str, given: Mapping[str, object], family: type[Family]) -> bool:
    """Whether a field has its value from Hugging Face's name for it, as GPT-2's old `n_ctx` from `n_positions`."""
    return key not in family.huggingface and any(family.huggingface.get(other) == (key,) for other in given)


def _family_of(config: Mapping[str, object], name: str) -> "tuple[type[Family], Guess | None]":
    """The family of a config, and how it was found where its `model_type` has none."""
    model_type = config.get("model_type")
    if is_known(model_type):
        return find_family(model_type, name), None
    if model_type is None and not config.get("architectures"):
        raise InvalidValueError(
            f"{name}: model_type is missing; allowed: one of {len(model_types())} names, as gpt2, llama or qwen3"
        )
    from gptcalc.families.guess import guess

    found = guess(config, name)
    return found.family, found


def _unread_notes(unread: Mapping[str, object], family: type[Family]) -> Iterator[str]:
    """What to say of fields that the family does not read; nothing of those that change nothing."""
    plain_values = PLAIN | dict(family.plain)
    unknown = []
    for key, value in unread.items():
        if key == "quantization_config" and value:
            yield "quantization_config: the weights are counted as they are before they are quantized, bytes included"
        elif key in IRRELEVANT | family.ignored or key in REFUSED or key.startswith("_"):
            continue
        elif key not in plain_values:
            unknown.append(key)
        elif value not in plain_values[key]:
            read = f"{plain(key)} = {shown(value)}"
            yield f"{read} changes how the model computes, not what it stores; that is not modelled"
    if len(unknown) > MOST_UNKNOWN:
        named = ", ".join(plain(key) for key in unknown[:MOST_UNKNOWN])
        yield f"{named} and {len(unknown) - MOST_UNKNOWN} more are no fields of this family and were not read"
        return
    for key in unknown:
        near = nearest(key, family.names(), most=1)
        yield f"{plain(key)} is no field of this family and was not read" + (f" (nearest: {near[0]})" if near else "")


def _overridden(base: Resolved, overrides: Mapping[str, object]) -> Resolved:
    """The model with fields changed, and with what follows from them."""
    asked = base.family.translate(overrides, base.name)
    family = base.family.override(asked, base.name)
    was, now = base.family.resolved(), family.resolved()
    for key in asked:
        if (given := getattr(family, key, None)) is not None and key in now and given != now[key]:
            raise InvalidValueError(
                f"{base.name}: {key}: read {shown(given)}; allowed: {shown(now[key])}, which other fields give here"
            )
    different = {key: now[key] for key in now if key in asked or was[key] != now[key]}
    named = (*asked, *(BIASES if "bias" in asked and was["bias"] == now["bias"] else ()))
    changed = {key: Change(was[key], now[key]) for key in named if was[key] != now[key]}
    spec = family.spec()
    unused = f"{', '.join(changed)}: changed, but no part of this model reads it"
    return base._replace(
        family=family,
        spec=spec,
        huggingface=_with_fields(base.huggingface, family, different),
        changed=changed,
        followed={
            key: Change(was[key], now[key])
            for key in different
            if key not in (*named, *(BIASES if "bias" in asked else ()))
        },
        notes=(*base.notes, unused) if changed and spec == base.spec else base.notes,
    )


def _with_fields(
    config: Mapping[str, object], family: Family | type[Family], own: Mapping[str, object]
) -> Mapping[str, object]:
    """`config` with own fields written under the Hugging Face name that it uses, or the first that there is."""
    updated = dict(config)
    for name, value in own.items():
        keys = [key for key, fields in family.published().items() if name in fields]
        if keys:
            updated[next((key for key in keys if key in config), keys[0])] = value
    return MappingProxyType(updated)
