"""Which object of a file is the model: the only one that looks like a config, or the one that is named."""

from collections.abc import Iterable, Mapping

from gptcalc.errors import InvalidValueError, UnknownNameError, UnreadableFileError, plain
from gptcalc.reading.dialects import NANOGPT_NAMES, dialect_of
from gptcalc.reading.nested import text_key
from gptcalc.reading.python import UNKNOWN_KEYS, Found
from gptcalc.reading.record import Unread, bounded

#: More configs than this in one file are not compared with each other.
MOST_CONFIGS = 200
#: What `gptcalc count --format json` says of a model beside its fields.
ABOUT = frozenset("name title source estimated family changed followed defaults parts".split())
#: Two of these fields without a `model_type` are still a config, which lacks it.
SIZES = frozenset("hidden_size num_hidden_layers n_embd n_layer d_model n_layers num_attention_heads".split())


def is_config(fields: Mapping[str, object]) -> bool:
    """Whether an object looks like a model's hyperparameters."""
    return bool(
        "model_type" in fields or text_key(fields) or len(SIZES & fields.keys()) > 1 or dialect_of(fields) is not None
    )


def from_tables(fields: Mapping[str, object], name: str, where: str) -> tuple[Mapping[str, object], str]:
    """The config in a JSON or TOML file's object, and its name: itself, a count's model, or the table that is named."""
    counted = fields.get("model")
    if not name and isinstance(counted, Mapping) and "parts" in counted:
        fields = counted
    if "parts" in fields and "model_type" in fields:
        return {key: value for key, value in fields.items() if key not in ABOUT}, ""
    if not name and is_config(fields):
        return fields, ""
    tables = {key: _inner(value) for key, value in fields.items() if isinstance(value, Mapping)}
    found = [Found(key, table, 0) for key, table in tables.items() if is_config(table) or key == name]
    if not found and not name:
        return fields, ""
    chosen = _one(found, name, where)
    return chosen.fields, chosen.name


def from_python(found: list[Found], name: str, where: str) -> tuple[Mapping[str, object], str, bool]:
    """The config among a Python file's dictionaries and classes, its name, and whether it is the file's assignments."""
    *named, assigned = found
    inside = [
        Found(f"{one.name}.{key}", value, one.line)
        for one in named[: MOST_CONFIGS * 10]
        if not is_config(one.fields)
        for key, value in list(one.fields.items())[:MOST_CONFIGS]
        if isinstance(value, Mapping)
    ]
    likely = [one for one in (*named, *inside) if is_config(one.fields) or (name and one.name == name)]
    if not likely and not name and NANOGPT_NAMES & assigned.fields.keys():
        return assigned.fields, "", True
    if not likely and not name:
        names = list(dict.fromkeys(plain(one.name) for one in named if one.name))
        read = f"; read {', '.join(names[:6])}" if names else ""
        raise UnreadableFileError(
            f"{where}: no dictionary or class in it has a model's sizes as literals{read}; allowed: nanoGPT's names,"
            " LLMs-from-scratch's, or Hugging Face's with model_type"
        )
    chosen = _one(likely, name, where)
    if UNKNOWN_KEYS in chosen.fields:
        value = chosen.fields[UNKNOWN_KEYS]
        line = value.line if isinstance(value, Unread) else chosen.line
        raise InvalidValueError(
            f"{where}: {plain(chosen.name) or 'the dictionary'}: line {line} puts into it what only running the file"
            " could tell; write the fields out"
        )
    return chosen.fields, chosen.name, False


def _one(found: list[Found], name: str, where: str) -> Found:
    """The only config, or the one of that name; equal ones are one."""
    if len(found) > MOST_CONFIGS:
        raise UnreadableFileError(
            f"{where}: more than {MOST_CONFIGS} configs in one file; allowed: one, or one that is named"
        )
    if name and name not in {one.name for one in found}:
        raise UnknownNameError.near(f"{where}: config", name, _names(found))
    different: list[Found] = []
    for one in found:
        bounded(one.fields, where)
        if name in ("", one.name) and not any(one[:2] == other[:2] for other in different):
            different.append(one)
    if len(different) == 1:
        return different[0]
    names = _names(different)
    if len(names) == 1:
        lines = ", ".join(str(one.line) for one in different[:8])
        raise InvalidValueError(f"{where}: {plain(names[0])} has different values at lines {lines}; leave one of them")
    listed = ", ".join(plain(one) for one in names[:8]) + (", …" if len(names) > 8 else "")
    raise InvalidValueError(f"{where}: {len(names)} configs: {listed}; name one: {where}:{plain(names[0])}")


def _names(found: Iterable[Found]) -> list[str]:
    return list(dict.fromkeys(one.name for one in found))


def _inner(table: Mapping[str, object]) -> Mapping[str, object]:
    """The hyperparameters in a table of a preset file, or the table itself."""
    inner = table.get("hyperparameters")
    return inner if isinstance(inner, Mapping) else table
