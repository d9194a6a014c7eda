"""What a benchmark of one device found: the raw record, and its file.

A profile holds what was measured and nothing that can be computed from it: every sample, the bytes that each kernel
moves, and the machine. `gptcalc.ledger.timing` makes medians, intervals and bandwidths of it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator

from gptcalc.errors import UnreadableFileError, plain, shown
from gptcalc.files import write_atomically
from gptcalc.spec import Record

#: Version of the file; a reader refuses any other.
SCHEMA: Literal["gptcalc.profile/1"] = "gptcalc.profile/1"

#: `cold`: the inputs are in no cache. `warm`: they are where the last run left them.
State = Literal["cold", "warm"]
#: `eager` runs torch's own kernels, `compile` those that torch.compile writes.
Backend = Literal["eager", "compile"]
DeviceKind = Literal["cuda", "cpu", "mps"]
#: Why sampling ended: the interval is narrow, the time was spent, or the run was stopped.
Stop = Literal["precise", "budget", "interrupted"]

Nanoseconds = Annotated[int, Field(strict=True, ge=1, le=10**18)]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Positive = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
Text = Annotated[str, Field(max_length=10_000)]


class Device(Record):
    """The device and the machine around it; sizes in bytes, clocks in MHz, `None` where nobody says.

    `cache_bytes` is the last cache before memory (L2 of a GPU, L3 of a CPU), `units` its SMs or cores. `threads` is
    what torch computes with on a CPU. `fingerprint` tells two cards of one name apart.
    """

    kind: DeviceKind
    name: Text
    driver: Text | None = None
    memory_bytes: Count | None = None
    cache_bytes: Count
    cache_known: bool = True
    units: Count | None = None
    capability: Text | None = None
    threads: Count | None = None
    max_clock_mhz: Count | None = None
    memory_clock_mhz: Count | None = None
    fingerprint: Text | None = None


class Software(Record):
    """The versions that made the kernels."""

    gptcalc: Text
    torch: Text
    cuda: Text | None = None
    triton: Text | None = None
    python: Text
    system: Text


class Shape(Record):
    """What a kernel works on: M rows (tokens) of width D; V token rows and C positions where a table is read.

    Of M rows, T are one sequence: M = B·T.
    """

    rows: Positive
    d_model: Positive
    n_vocab: Positive
    n_ctx: Positive
    seq: Positive


class Moved(Record):
    """One term of the bytes that a kernel moves; `formula` in dims, with the bytes of an element as coefficient."""

    label: Text
    formula: Text
    bytes: Count


class Measured(Record):
    """Every sample of one number, in nanoseconds, in the order in which they were taken, restart by restart.

    `rejected` samples were thrown out because the clock was throttled.
    """

    restarts: Annotated[tuple[Annotated[tuple[Nanoseconds, ...], Field(min_length=1)], ...], Field(min_length=2)]
    rejected: Count
    stopped: Stop


class Problem(Record):
    """Why a point has no number: too little memory, a wrong result, a backend that fails, or nothing but throttling."""

    kind: Literal["memory", "wrong", "backend", "throttled"]
    text: Text


class Point(Record):
    """One kernel at one shape, dtype and backend.

    `must_move` are the bytes that any implementation moves: inputs once, results once. `torch_moves` is what torch's
    eager kernels move on this device, with the reason, where that is more. `checked` says what the float64 reference
    found before anything was timed. `problem` is why there is no number.
    """

    case: Text
    dtype: Text
    backend: Backend
    shape: Shape
    must_move: tuple[Moved, ...] = ()
    torch_moves: tuple[Moved, ...] = ()
    torch_why: Text = ""
    checked: Text = ""
    measured: dict[State, Measured] = {}
    problem: Problem | None = None

    @model_validator(mode="after")
    def _number_or_problem(self) -> Self:
        if bool(self.measured) is bool(self.problem):
            raise ValueError("a point has numbers, or a problem")
        return self

    @property
    def is_final(self) -> bool:
        """Whether it has its numbers, and was not stopped before their time."""
        return bool(self.measured) and all(record.stopped != "interrupted" for record in self.measured.values())

    @property
    def key(self) -> tuple[str, str, str, Shape]:
        """What tells this point from every other of a profile."""
        return self.case, self.dtype, self.backend, self.shape


class Clocks(Record):
    """The lowest and the highest SM and memory clock in MHz that were seen while samples were taken."""

    sm: tuple[Count, Count]
    memory: tuple[Count, Count]


class Profile(Record):
    """A run of `gptcalc bench`, which may be resumed: `asked` points, of which those in `points` are done.

    `started` is UTC in ISO 8601; `command` is what was typed. `load` is how many processes already wanted a core of the
    machine when the run began, a minute's mean.
    """

    schema_: Literal["gptcalc.profile/1"] = Field(default=SCHEMA, alias="schema")
    command: Text
    started: Annotated[str, Field(max_length=40)]
    device: Device
    software: Software
    clocks: Clocks | None = None
    load: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    asked: Count
    points: tuple[Point, ...]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len({point.key for point in self.points}) < len(self.points):
            raise ValueError("a point stands in it twice")
        if len(self.points) > self.asked:
            raise ValueError(f"{len(self.points)} points of {self.asked}")
        return self


#: Not what tells two machines apart: the memory that the system reports differs from run to run.
NOT_COMPARED = ("memory_bytes",)


class Difference(NamedTuple):
    """A field of the `device` or the `software` that two runs do not share; `None` where one does not know it."""

    what: str
    field: str
    then: object
    now: object


def differences(then: Profile, now: Profile) -> Iterator[Difference]:
    """All in which the machine or its software is another one."""
    for what in ("device", "software"):
        before, after = getattr(then, what), getattr(now, what)
        for field in type(before).model_fields:
            old, new = getattr(before, field), getattr(after, field)
            if old != new and field not in NOT_COMPARED:
                yield Difference(what, field, old, new)


def save(profile: Profile, path: Path) -> None:
    """Write the profile: after this the file is whole, and before it the old one was. Raises `OutputError`."""
    write_atomically(path, profile.model_dump_json(by_alias=True) + "\n")


def load(path: Path) -> Profile:
    """Read and check a profile. Raises `UnreadableFileError` where the file is missing, damaged, or not a profile."""
    what = plain(str(path))
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
    except FileNotFoundError:
        raise UnreadableFileError(f"{what}: no such file; 'gptcalc bench --save {what}' makes one") from None
    except OSError as error:
        raise UnreadableFileError(f"{what}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UnreadableFileError(f"{what}: read a binary file; allowed: a profile of 'gptcalc bench --save'") from None
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(
            f"{what}: damaged: {str(error)[:120]}; a profile is written whole, so it was changed since"
        ) from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        read = f"schema {shown(schema)}" if isinstance(schema, str) else "no schema"
        raise UnreadableFileError(f"{what}: read {read}; allowed: {SCHEMA}, a file of 'gptcalc bench --save'")
    try:
        # Not `data`: its errors would speak of Python's tuples and instances, where the file has arrays and objects.
        return Profile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        read = "" if isinstance(first["input"], dict | list | Record) else f", read {shown(first['input'])}"
        raise UnreadableFileError(f"{what}: damaged: {where}: {first['msg']}{read}") from None
