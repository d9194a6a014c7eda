"""Open a file, or take a mapping, and say which model it describes."""

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from gptcalc.errors import InvalidValueError, UnreadableFileError, nearest, plain, shown
from gptcalc.reading.record import ModelFields, Unread, bounded, numbers_from_words

#: A config is a few kilobytes; anything much larger is some other file.
MOST_BYTES = 10 * 2**20
#: Parsing TOML takes some seconds for each megabyte.
MOST_TOML_BYTES = 2**20
#: What a file may end in to be taken for a config wherever it is.
ENDINGS = (".json", ".toml", ".py")
FORMS = "a config in JSON, TOML or Python"

#: First bytes of files that are no text, and what they are.
BINARY = {
    b"GGUF": "a GGUF file",
    b"PK\x03\x04": "a zip archive (or PyTorch's weights)",
    b"\x80\x02": "a pickle (or PyTorch's weights)",
    b"\x80\x04": "a pickle",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}
#: First characters of texts that are no config.
TEXT = {
    "version https://git-lfs": "a Git LFS pointer: fetch the file itself",
    "<!doctype": "a web page",
    "<html": "a web page",
}
#: A key that some other JSON file has, and what that file is.
OTHER = {
    "weight_map": "the index of sharded weights",
    "peft_type": "an adapter's config",
    "base_model_name_or_path": "an adapter's config",
    "added_tokens_decoder": "a tokenizer's config",
    "tokenizer_class": "a tokenizer's config",
    "added_tokens": "a tokenizer",
    "image_processor_type": "an image processor's config",
    "feature_extractor_type": "a feature extractor's config",
    "processor_class": "a processor's config",
    "_class_name": "a diffusion model's config",
    "_from_model_config": "generation settings",
    "nbformat": "a notebook: put the dictionary into a .py file",
    "do_sample": "generation settings",
    "max_new_tokens": "generation settings",
}

#: What JSON calls a value that is no object, and no number.
JSON_KINDS = {list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
#: A file with one of these keys is a model's config, whatever else stands in it.
MODEL = frozenset("model_type architectures text_config llm_config hidden_size n_embd emb_dim dim".split())


def read_model(path: Path) -> ModelFields:
    """The model that a file describes; `path.py:NAME` names one of several configs in it.

    Raises `GptcalcError` for whatever else the file is, in bounded time.
    """
    path, chosen = _split(path)
    where = plain(str(path))
    raw = _bytes(path, where)
    text = _text(raw, path, where)
    if path.suffix == ".py":
        return _python(text, chosen, where)
    if path.suffix == ".toml":
        return _mapped(_toml(text, where), chosen, where, strict=True)
    try:
        value = _json(text, where)
    except UnreadableFileError:
        if path.suffix == ".json":
            raise
        return _python(text, chosen, where)
    if not isinstance(value, Mapping):
        kind = JSON_KINDS.get(type(value), "a number")
        raise UnreadableFileError(f"{where}: read {kind}; allowed: an object of hyperparameters")
    return _mapped(value, chosen, where)


def read_table(path: Path, forms: str) -> Mapping[str, object]:
    """What stands in a file of TOML or JSON, by its ending; `forms` is what errors call such a file.

    Raises `GptcalcError` for whatever else the file is, in bounded time.
    """
    where = plain(str(path))
    if path.suffix not in (".toml", ".json"):
        raise UnreadableFileError(f"{where}: read the ending {shown(path.suffix)}; allowed: {forms}")
    text = _text(_bytes(path, where, forms), path, where, forms)
    value = _toml(text, where) if path.suffix == ".toml" else _json(text, where)
    if not isinstance(value, Mapping):
        kind = JSON_KINDS.get(type(value), "a number")
        raise UnreadableFileError(f"{where}: read {kind}; allowed: {forms}")
    bounded(value, where, forms)
    return value


def read_mapping(fields: Mapping[str, object], where: str) -> ModelFields:
    """The model that a mapping describes, as one that stands in a JSON file."""
    return _mapped(fields, "", where)


def can_be_file(name: str) -> bool:
    """Whether a name ends as a config's file does, or as `file.py:NAME`."""
    return Path(name).suffix in ENDINGS or Path(name.rpartition(":")[0]).suffix in ENDINGS


def _split(path: Path) -> tuple[Path, str]:
    """A path, and the name of the config in it that is meant."""
    head, _, name = str(path).rpartition(":")
    if not head or Path(head).suffix not in ENDINGS or _exists(path):
        return path, ""
    return Path(head), name


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def start_of(path: Path, where: str, n_bytes: int, near: Callable[[Path], str] = lambda _: "") -> bytes:
    """The first `n_bytes` of a file, or all of it; an `UnreadableFileError` where there is none, and what is `near`."""
    try:
        with path.open("rb") as file:
            return file.read(n_bytes)
    except FileNotFoundError:
        raise UnreadableFileError(f"{where}: no such file{near(path)}") from None
    except OSError as error:
        raise UnreadableFileError(f"{where}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UnreadableFileError(f"{where}: no file can have this name ({error})") from None


def _bytes(path: Path, where: str, forms: str = FORMS) -> bytes:
    raw = start_of(path, where, MOST_BYTES + 1, _near_file)
    kind = next((what for start, what in BINARY.items() if raw.startswith(start)), None)
    if kind is None and raw[8:10] == b'{"' and 0 < int.from_bytes(raw[:8], "little") < 2**32:
        kind = "a safetensors file"
    if kind:
        raise UnreadableFileError(f"{where}: not text that can be read: {kind}; allowed: {forms}, encoded as UTF-8")
    if len(raw) > MOST_BYTES:
        raise UnreadableFileError(f"{where}: more than 10 MiB; allowed: {forms}")
    return raw


def _text(raw: bytes, path: Path, where: str, forms: str = FORMS) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnreadableFileError(f"{where}: not text; allowed: {forms}, encoded as UTF-8") from None
    if "\0" in text:
        raise UnreadableFileError(f"{where}: not text (it has zero bytes); allowed: {forms}, encoded as UTF-8")
    if not text.strip():
        raise UnreadableFileError(f"{where}: the file is empty; allowed: {forms}")
    start = text[:60].lstrip().lower()
    kind = next((what for begin, what in TEXT.items() if start.startswith(begin)), None)
    if kind:
        raise UnreadableFileError(f"{where}: {kind}; allowed: {forms}")
    if path.suffix == ".toml" and len(raw) > MOST_TOML_BYTES:
        raise UnreadableFileError(f"{where}: more than 1 MiB of TOML; allowed: {forms}")
    return text


def _toml(text: str, where: str) -> Mapping[str, object]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(f"{where}: not TOML: {_first_line(error)}") from None


def _json(text: str, where: str) -> object:
    import json

    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(f"{where}: not JSON: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    said = (str(error).splitlines() or [type(error).__name__])[0]
    return said if len(said) < 200 else f"{said[:200]}…"


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object in which no key stands twice: which one is meant cannot be known."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} stands twice")
    return found


def _python(text: str, chosen: str, where: str) -> ModelFields:
    from gptcalc.reading.choice import from_python
    from gptcalc.reading.python import dictionaries

    fields, name, whole_file = from_python(dictionaries(text, where), chosen, where)
    bounded(fields, where)
    return _understood(fields, f"{where}:{plain(name)}" if name else where, strict=False, whole_file=whole_file)


def _mapped(fields: Mapping[str, object], chosen: str, where: str, *, strict: bool = False) -> ModelFields:
    """A mapping from a file or from Python, if it is a config."""
    from gptcalc.reading.choice import from_tables

    for key in fields:
        if not isinstance(key, str):
            raise InvalidValueError(f"{where}: read the field {shown(key)}; allowed: names in strings")
    _must_not_be_another(fields, where)
    bounded(fields, where)
    fields, name = from_tables(fields, chosen, where)
    return _understood(fields, f"{where}:{plain(name)}" if name else where, strict=strict, whole_file=False)


def _must_not_be_another(fields: Mapping[str, object], where: str) -> None:
    """Say what a JSON file is that is often mistaken for the config, as `generation_config.json`."""
    if MODEL & fields.keys():
        return
    kind = next((what for key, what in OTHER.items() if key in fields), None)
    if kind is None:
        return
    base = fields.get("base_model_name_or_path")
    of = f" of {shown(base)}: count that model" if isinstance(base, str) and base else ""
    raise UnreadableFileError(f"{where}: {kind}{of}; allowed: the model's own config.json")


def _understood(fields: Mapping[str, object], where: str, *, strict: bool, whole_file: bool) -> ModelFields:
    """The fields in Hugging Face's or gptcalc's names, whichever dialect they were in, and what to say of it."""
    from gptcalc.families import model_types
    from gptcalc.families.family import IRRELEVANT
    from gptcalc.reading.dialects import NANOGPT_TRAIN, dialect_of, translated
    from gptcalc.reading.nested import language_model

    notes: list[str] = []
    own, words = numbers_from_words(fields, IRRELEVANT)
    if words:
        notes.append(f"read as numbers or truth values: {', '.join(plain(word) for word in words[:8])}")
    dialect = NANOGPT_TRAIN if whole_file else dialect_of(own)
    if dialect is not None:
        done = translated(dialect, own, where, whole_file=whole_file)
        return ModelFields(where, done.fields, (*notes, done.note))
    known = model_types()
    own = {key: value for key, value in own.items() if not isinstance(value, Unread) or key not in IRRELEVANT}
    for key, value in own.items():
        if isinstance(value, Unread):
            raise InvalidValueError(
                f"{where}: {plain(key)} (line {value.line}): read an expression; allowed: a literal"
                " (the file is parsed, never run)"
            )
    text, said = language_model(own, where, known)
    inner, own_form = {"n_vocab", "d_head"} & text.keys(), not said
    return ModelFields(where, text, (*notes, *said), strict or bool(inner and own_form))


def _near_file(path: Path) -> str:
    """The file of the folder that may have been meant: by its name, or by what it ends in."""
    folder = path.parent
    try:
        names = sorted(entry.name for entry in folder.iterdir())[:1000]
    except OSError:
        return ""
    near = nearest(path.name, names, most=2) or [name for name in names if Path(name).suffix in ENDINGS][:2]
    return f"; nearest: {', '.join(plain(str(folder / name)) for name in near)}" if near else ""
