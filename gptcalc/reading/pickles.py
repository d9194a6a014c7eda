"""Pickles of plain data, read without pickle: dictionaries, lists, tuples, strings, bytes and numbers, nothing else.

A pickle is a program, and Python's own reader runs it: it imports what the program names and calls it. This one knows
the opcodes that build plain values. All others are refused by name, before anything is done. What it builds is bounded:
in steps, in containers, in the bytes of an integer; keys are strings, whose hashes nobody can foresee, or small
numbers, of which few share one; a slot of the memo costs what is in it, whatever its number.
"""

import struct
from typing import Any

from gptcalc.errors import UnreadableFileError

#: Steps of the program; a record of a million events has some ten million.
MOST_STEPS = 40_000_000
#: Dictionaries, lists and tuples.
MOST_CONTAINERS = 8_000_000
#: Bytes of an integer: an address has eight.
MOST_INTEGER_BYTES = 32
#: Numbers below it may be keys.
MOST_KEY = 1 << 31
ALLOWED = "allowed: dictionaries, lists, tuples, strings, bytes and numbers"

_FLOAT = struct.Struct(">d")


def is_pickle(start: bytes) -> bool:
    """Whether a file that begins so is a pickle of protocol 2 or later."""
    return len(start) > 1 and start[0] == 0x80 and start[1] <= 5


def read_plain(data: bytes, where: str) -> object:  # noqa: C901, PLR0912, PLR0915  a loop over opcodes, for speed
    """What a pickle holds. Raises `UnreadableFileError` where that is more than plain data, or not whole."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    place, end, containers = 0, len(data), 0

    def cut(n_bytes: int) -> bytes:
        nonlocal place
        start, place = place, place + n_bytes
        if place > end:
            raise _BrokenError("it ends in the middle of a value")
        return data[start:place]

    def from_mark() -> list[Any]:
        start = marks.pop()
        found = stack[start:]
        del stack[start:]
        return found

    try:
        for _ in range(MOST_STEPS):
            code = data[place]
            place += 1
            if code == 0x68:  # BINGET
                stack.append(memo[data[place]])
                place += 1
            elif code == 0x94:  # MEMOIZE
                memo[len(memo)] = stack[-1]
            elif code == 0x6A:  # LONG_BINGET
                stack.append(memo[int.from_bytes(cut(4), "little")])
            elif code == 0x8C:  # SHORT_BINUNICODE
                stack.append(cut(cut(1)[0]).decode("utf-8", "surrogatepass"))
            elif code == 0x4B:  # BININT1
                stack.append(data[place])
                place += 1
            elif code == 0x4D:  # BININT2
                stack.append(int.from_bytes(cut(2), "little"))
            elif code == 0x4A:  # BININT
                stack.append(int.from_bytes(cut(4), "little", signed=True))
            elif code == 0x8A:  # LONG1
                stack.append(_integer(cut(_few(cut(1)[0]))))
            elif code == 0x28:  # MARK
                marks.append(len(stack))
            elif code == 0x75:  # SETITEMS
                _put(stack, from_mark())
            elif code == 0x65:  # APPENDS
                found = from_mark()
                _list(stack).extend(found)
            elif code == 0x73:  # SETITEM
                value, key = stack.pop(), stack.pop()
                _put(stack, [key, value])
            elif code == 0x61:  # APPEND
                value = stack.pop()
                _list(stack).append(value)
            elif code in _EMPTY:  # EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE
                containers += 1
                stack.append(_EMPTY[code]())
            elif code in _CONSTANTS:  # NONE, NEWTRUE, NEWFALSE
                stack.append(_CONSTANTS[code])
            elif code in _TUPLES:  # TUPLE1, TUPLE2, TUPLE3
                containers, count = containers + 1, _TUPLES[code]
                stack[-count:] = [tuple(_last(stack, count))]
            elif code == 0x74:  # TUPLE
                containers += 1
                stack.append(tuple(from_mark()))
            elif code == 0x47:  # BINFLOAT
                stack.append(_FLOAT.unpack(cut(8))[0])
            elif code in _SIZED:  # BINUNICODE, BINUNICODE8, SHORT_BINBYTES, BINBYTES, BINBYTES8
                width, is_text = _SIZED[code]
                raw = cut(int.from_bytes(cut(width), "little"))
                stack.append(raw.decode("utf-8", "surrogatepass") if is_text else raw)
            elif code == 0x71:  # BINPUT
                memo[cut(1)[0]] = stack[-1]
            elif code == 0x72:  # LONG_BINPUT
                memo[int.from_bytes(cut(4), "little")] = stack[-1]
            elif code == 0x8B:  # LONG4
                stack.append(_integer(cut(_few(int.from_bytes(cut(4), "little")))))
            elif code == 0x95:  # FRAME
                cut(8)
            elif code == 0x80:  # PROTO
                cut(1)
            elif code == 0x2E:  # STOP
                return stack.pop()
            else:
                _refuse(code, place)
            if containers > MOST_CONTAINERS:
                _refuse_more()
    except _BrokenError as error:
        raise UnreadableFileError(f"{where}: not a record that can be read: {error}; {ALLOWED}") from None
    except (IndexError, KeyError, UnicodeDecodeError, struct.error):
        raise UnreadableFileError(f"{where}: not a pickle that is whole: broken at byte {place:,}") from None
    raise UnreadableFileError(f"{where}: more than {MOST_STEPS:,} steps; allowed: a record of fewer events")


class _BrokenError(Exception):
    """What is wrong, in words."""


_EMPTY: dict[int, type] = {0x7D: dict, 0x5D: list, 0x29: tuple}
_CONSTANTS: dict[int, bool | None] = {0x4E: None, 0x88: True, 0x89: False}
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
#: Opcodes of strings and bytes: how many bytes their length takes, and whether they are text.
_SIZED = {0x58: (4, True), 0x8D: (8, True), 0x43: (1, False), 0x42: (4, False), 0x8E: (8, False)}


def _refuse(code: int, place: int) -> None:
    raise _BrokenError(f"it has the opcode {_name(code)} at byte {place:,}")


def _refuse_more() -> None:
    raise _BrokenError(f"it has more than {MOST_CONTAINERS:,} containers")


def _last(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise _BrokenError("it takes more than it has")
    return stack[-count:]


def _few(n_bytes: int) -> int:
    if n_bytes > MOST_INTEGER_BYTES:
        raise _BrokenError(f"it has an integer of {n_bytes:,} bytes")
    return n_bytes


def _integer(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _list(stack: list[Any]) -> list[Any]:
    if type(stack[-1]) is not list:
        raise _BrokenError("it appends to what is no list")
    return stack[-1]


def _put(stack: list[Any], pairs: list[Any]) -> None:
    """Put keys and values, one after the other, into the dictionary on the stack."""
    target = stack[-1]
    if type(target) is not dict or len(pairs) % 2:
        raise _BrokenError("it sets items of what is no dictionary")
    for place in range(0, len(pairs), 2):
        key = pairs[place]
        if type(key) is not str and not (type(key) is int and 0 <= key < MOST_KEY):
            raise _BrokenError("it has a key that is no string")
        target[key] = pairs[place + 1]


def _name(code: int) -> str:
    """What Python calls an opcode."""
    import pickletools

    return next((known.name for known in pickletools.opcodes if known.code == chr(code)), f"0x{code:02x}")
