"""What reading hands on, and what a file's text may hold."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from gptcalc.errors import InvalidValueError, UnreadableFileError, plain, shown

#: A config nests a few levels; more is some other file, or an attack.
MOST_LEVELS = 32
#: A config has some hundred values, lists by layer included; one of a classifier some thousand labels.
MOST_VALUES = 20_000
#: Larger integers are sizes of nothing, and take time to print.
MOST_BITS = 256

NUMBER = re.compile(r"[+-]?(\d{1,20}|(?=[\d.]+([eE]|$)|\d+[eE])\d{0,20}\.?\d{0,20}([eE][+-]?\d{1,3})?)")
TRUTH = {"true": True, "false": False}


class ModelFields(NamedTuple):
    """Fields of a model under Hugging Face's or gptcalc's names, with how they were read.

    `strict` where they are in gptcalc's own form, in which an unknown name is a slip.
    """

    name: str
    fields: Mapping[str, object]
    notes: tuple[str, ...] = ()
    strict: bool = False


class Unread(NamedTuple):
    """A value in a Python file that only running the file could tell."""

    line: int


def bounded(value: object, where: str, forms: str = "a model's config") -> None:
    """Refuse what nests too deep, is too long or holds integers of hundreds of digits, in bounded time."""
    level: list[tuple[str, object]] = [("", value)]
    seen = 0
    for _ in range(MOST_LEVELS):
        below: list[tuple[str, object]] = []
        for name, item in level:
            if isinstance(item, int) and item.bit_length() > MOST_BITS:
                raise InvalidValueError(f"{where}: {plain(name)}: read an integer of {item.bit_length():,} bits")
            if isinstance(item, Mapping):
                below.extend((f"{key}", child) for key, child in item.items())
            elif isinstance(item, list | tuple) and not isinstance(item, Unread):
                below.extend((name, child) for child in item)
            if seen + len(below) > MOST_VALUES:
                raise UnreadableFileError(f"{where}: more than {MOST_VALUES:,} values; allowed: {forms}")
        seen += len(below)
        level = below
        if not level:
            return
    raise UnreadableFileError(f"{where}: nested more than {MOST_LEVELS} levels deep; allowed: {forms}")


def numbers_from_words(fields: Mapping[str, object], silent: frozenset[str]) -> tuple[dict[str, object], list[str]]:
    """`fields` with numbers, true and false for the strings that spell them, and what was read so."""
    found: dict[str, object] = {}
    read: list[str] = []
    for key, value in fields.items():
        found[key] = value
        if key in silent or key in ("_name_or_path", "_commit_hash"):
            continue
        if isinstance(value, Mapping):
            found[key], inside = numbers_from_words(value, silent)
            read.extend(f"{key}.{name}" for name in inside)
        elif isinstance(value, str) and (number := _number(value)) is not None:
            found[key] = number
            read.append(f"{key} {shown(value)}")
    return found, read


def _number(text: str) -> float | bool | None:
    word = text.strip()
    if word.lower() in TRUTH:
        return TRUTH[word.lower()]
    if not word.isascii() or len(word) > 40 or not NUMBER.fullmatch(word) or not any(map(str.isdigit, word)):
        return None
    try:
        return int(word)
    except ValueError:
        return float(word)
