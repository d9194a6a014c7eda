"""Pickles read as plain data: whatever they hold beside it is refused before it is done."""

from __future__ import annotations

import builtins
import collections
import contextlib
import datetime as dt
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcalc.errors import UnreadableFileError
from gptcalc.reading import pickles
from gptcalc.reading.pickles import read_plain

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 200), 1 << 200)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner, inner, inner) | st.tuples(inner)
    ),
    max_leaves=30,
)


class Calls:
    """An object that its pickle would make by a call."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.made = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        """What pickle asks."""
        return self.made


#: What a pickle must not do.
MALICIOUS = {
    "a shell": Calls(os.system, "touch {path}"),
    "an evaluation": Calls(builtins.eval, "open({path!r}, 'w')"),
    "an attribute": Calls(getattr, "", "join"),
    "an import": Calls(__import__, "antigravity"),
    "a process": Calls(subprocess.check_output, ["touch", "{path}"]),
    "a class": dt.date(2024, 1, 2),
    "an ordered dictionary": collections.OrderedDict(a=1),
    "a set": {1, 2},
    "a complex number": 1j,
    "a function": len,
    "a bytearray": bytearray(b"abc"),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@given(value=PLAIN)
def test_plain_values_are_read_as_pickle_reads_them(protocol: int, value: object) -> None:
    """Whatever the protocol: every kind of number, text, bytes, container, and values that are shared."""
    if protocol == 2 and _has_bytes(value):
        value = None
    raw = pickle.dumps([value, {"again": value}, value], protocol)
    found = read_plain(raw, "x")
    expected = pickle.loads(raw)  # noqa: S301  made here
    assert found == expected
    assert repr(found) == repr(expected)
    assert read_plain(pickletools.optimize(raw), "x") == found


def _has_bytes(value: object) -> bool:
    """Bytes are calls in protocol 2."""
    if isinstance(value, dict):
        return any(map(_has_bytes, value.values()))
    return isinstance(value, bytes) or (isinstance(value, list | tuple) and any(map(_has_bytes, value)))


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("value", MALICIOUS.values(), ids=MALICIOUS.keys())
def test_whatever_is_more_than_data_is_refused_and_not_done(
    value: object, protocol: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The opcode is named, and nothing was imported, called or written."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a class was looked up")

    raw = pickle.dumps({"segments": [value]}, protocol)
    monkeypatch.setattr(pickle, "loads", never)
    monkeypatch.setattr(builtins, "__import__", _only_pickletools(builtins.__import__))
    with pytest.raises(
        UnreadableFileError, match=r"^x\.pickle: not a record that can be read: it has the opcode [A-Z]"
    ):
        read_plain(raw, "x.pickle")
    monkeypatch.undo()
    assert not list(tmp_path_factory.getbasetemp().glob("**/{path}"))


def _only_pickletools(real: Callable[..., Any]) -> Callable[..., Any]:
    def importer(name: str, *rest: Any) -> Any:
        assert name in ("pickletools", "_pytest", "pickle", "codecs", "io", "re", "sys"), name
        return real(name, *rest)

    return importer


@pytest.mark.parametrize(
    "body",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02ios\nsystem\n.",
        b"\x80\x02(K\x01o.",
        b"\x80\x02K\x01K\x02\x81.",
        b"\x80\x04K\x01K\x02K\x03\x92.",
        b"\x80\x02K\x01K\x02b.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02\x83\x01\x00.",
        b"\x80\x02\x84\x01\x00\x00\x00.",
        b"\x80\x02Pname\n.",
        b"\x80\x02K\x01Q.",
        b"\x80\x05\x97.",
        b"\x80\x05K\x01\x98.",
        b"\x80\x04\x8f.",
        b"\x80\x02I9\n.",
        b"\x80\x02K\x012.",
        b"\x80\x02\xff.",
    ],
    ids=str,
)
def test_every_opcode_that_makes_more_is_refused(body: bytes) -> None:
    """GLOBAL, STACK_GLOBAL, INST, OBJ, NEWOBJ, NEWOBJ_EX, BUILD, EXT, PERSID, BINPERSID, buffers, sets, lines, DUP."""
    with pytest.raises(UnreadableFileError, match="opcode"):
        read_plain(body, "x")


@pytest.mark.parametrize(
    "body",
    [
        b"\x80\x02",
        b"\x80",
        b"\x80\x02.",
        b"\x80\x02K",
        b"\x80\x02]",
        b"\x80\x02h\x07.",
        b"\x80\x02q\x01.",
        b"\x80\x02e.",
        b"\x80\x02(e.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02}NK\x02s.",
        b"\x80\x02](K\x01K\x02u.",
        b"\x80\x02N(K\x01K\x02u.",
        b"\x80\x02}K\x01a.",
        b"\x80\x02\x86.",
        b"\x80\x02X\xff\xff\xff\xffabc.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x80\x04\x8c\x02\xff\xfe.",
        b"\x80\x02\x8b\xff\xff\xff\xff" + b"\1" * 50,
        b"\x80\x02\x8a\xff" + b"\1" * 255 + b".",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02G\x00\x00.",
    ],
    ids=str,
)
def test_a_broken_pickle_is_one_error(body: bytes) -> None:
    """Cut off, out of order, with lengths that are not there, integers of many bytes: no other exception leaves."""
    with pytest.raises(UnreadableFileError, match=r"^x: "):
        read_plain(body, "x")


@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """No other exception, whatever stands there."""
    for head in (b"\x80\x04", b"\x80\x02}(", b"\x80\x04](K\x01"):
        with contextlib.suppress(UnreadableFileError):
            read_plain(head + data, "x")


def test_a_cut_pickle_is_refused_wherever_it_is_cut() -> None:
    """At no length is the start of a record taken for the whole."""
    raw = pickle.dumps({"a": [1, (2.5, "é", b"x", 1 << 70)], "b": {"c": None}}, 4)
    for length in range(len(raw)):
        with pytest.raises(UnreadableFileError):
            read_plain(raw[:length], "x")


def test_bombs_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """High slots of the memo, deep nests, shared containers of 2^60 leaves, endless programs: all is bounded."""
    start = time.monotonic()
    memo = b"\x80\x02" + b"".join(b"]r" + struct.pack("<I", 0xFFFFFFFF - n) for n in range(1000)) + b"."
    assert read_plain(memo, "x") == []
    deep = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    assert isinstance(read_plain(deep, "x"), list)
    shared = b"\x80\x02]" + b"".join(b"q\x00](h\x00h\x00e" for _ in range(60)) + b"."
    assert isinstance(read_plain(shared, "x"), list)
    itself = b"\x80\x02]q\x00h\x00a."
    found = read_plain(itself, "x")
    assert isinstance(found, list)
    assert found[0] is found
    assert time.monotonic() - start < 20
    monkeypatch.setattr(pickles, "MOST_STEPS", 1000)
    with pytest.raises(UnreadableFileError, match="1,000 steps"):
        read_plain(b"\x80\x02" + b"N" * 5000 + b".", "x")
    monkeypatch.undo()
    monkeypatch.setattr(pickles, "MOST_CONTAINERS", 100)
    with pytest.raises(UnreadableFileError, match="100 containers"):
        read_plain(b"\x80\x02" + b"]" * 5000 + b".", "x")


def test_keys_are_strings_or_small_numbers() -> None:
    """Integers that collide would make a dictionary slow; small ones are few."""
    assert read_plain(pickle.dumps({1: 2}), "x") == {1: 2}
    for key in (1 << 31, -1, 1.5, (1,), None, True):
        with pytest.raises(UnreadableFileError, match="a key that is no string"):
            read_plain(pickle.dumps({key: 2}), "x")


def test_reading_needs_no_pickle() -> None:
    """Python's own reader is not there to be called: a record is read in a process that has none."""
    code = (
        "import sys; sys.modules['pickle'] = sys.modules['_pickle'] = None\n"
        "from gptcalc.reading.pickles import read_plain\n"
        "print(read_plain(b'\\x80\\x02}.', 'x'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{}\n", "")
