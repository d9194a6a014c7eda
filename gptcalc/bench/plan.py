"""What is asked for: which kernels, at which shapes. Opens no torch."""

import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import product
from typing import NamedTuple

from gptcalc.errors import InvalidValueError, UnknownNameError, shown
from gptcalc.ledger.profile import Backend, Shape, State
from gptcalc.spec import MOST


class CaseInfo(NamedTuple):
    """A kernel that can be timed. `ceiling` cases measure the device itself: they have one shape and no backends."""

    what: str
    states: tuple[State, ...] = ("cold", "warm")
    ceiling: bool = False


#: Every case by name, in the order of reports; `gptcalc.bench.cases` has the kernels.
CASES = {
    "copy": CaseInfo("a large copy on the device: the bandwidth ceiling", ("cold",), ceiling=True),
    "empty": CaseInfo("a kernel for one element: the launch floor", ("warm",), ceiling=True),
    "embedding.forward": CaseInfo("rows of the token table, by ID"),
    "embedding.backward": CaseInfo("the dense gradient of the token table"),
    "layernorm.forward": CaseInfo("LayerNorm with weight and bias"),
    "layernorm.backward": CaseInfo("gradients of input, weight and bias"),
    "rmsnorm.forward": CaseInfo("RMSNorm with weight"),
    "rmsnorm.backward": CaseInfo("gradients of input and weight"),
    "gpt_embedding.forward": CaseInfo("the whole input stage: tokens, positions, their sum"),
    "gpt_embedding.backward": CaseInfo("gradients of both tables"),
}

DTYPES = ("fp32", "bf16", "fp16")
BACKENDS: tuple[Backend, ...] = ("eager", "compile")
#: More points than this is a typing error: at a second each they would take days.
MOST_POINTS = 20_000


class Job(NamedTuple):
    """One point to measure, named as `Point.key` names it."""

    case: str
    dtype: str
    backend: Backend
    shape: Shape


def chosen_cases(patterns: Sequence[str]) -> tuple[str, ...]:
    """The cases that match any of `patterns` (names or globs), in the order of reports; all where there is none."""
    found = set()
    for pattern in patterns or ("*",):
        matches = [name for name in CASES if fnmatchcase(name, pattern.lower())]
        if not matches:
            raise UnknownNameError.near("case", pattern, CASES, advice="globs work too: 'layernorm.*'")
        found.update(matches)
    return tuple(name for name in CASES if name in found)


def parse_axis(text: str, what: str) -> tuple[int, ...]:
    """Sizes in words: `768`, `1k,8k,64k` (k is 1,024), `256:16384:x2` (by factors), `256:1024:+256` (by steps).

    Each is given once, in the order given. Raises `InvalidValueError`.
    """
    sizes: dict[int, None] = {}
    for item in text.split(","):
        start, *rest = item.strip().split(":")
        if not rest:
            sizes[_size(start, text, what)] = None
        else:
            sizes.update(dict.fromkeys(_range(_size(start, text, what), rest, text, what)))
    return tuple(sizes)


def _range(start: int, rest: list[str], text: str, what: str) -> Iterator[int]:
    step = re.fullmatch(r"([x+])([0-9]{1,10})", rest[1].strip()) if len(rest) == 2 else None
    if not step or (factor := int(step[2])) < (2 if step[1] == "x" else 1):
        raise _wrong_axis(text, what)
    stop, size = _size(rest[0], text, what), start
    if stop < start:
        raise InvalidValueError(f"{what}: read {shown(text)}, which ends before it starts")
    if step[1] == "+" and (stop - start) // factor >= MOST_POINTS:
        raise InvalidValueError(f"{what}: read {shown(text)}; allowed: at most {MOST_POINTS:,} sizes")
    while size <= stop:
        yield size
        size = size * factor if step[1] == "x" else size + factor


def _size(text: str, whole: str, what: str) -> int:
    match = re.fullmatch(r"([0-9]{1,10})([kKmM]?)", text.strip())
    size = int(match[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20}[match[2].lower()] if match else 0
    if not 1 <= size <= MOST:
        raise _wrong_axis(whole, what)
    return size


def _wrong_axis(text: str, what: str) -> InvalidValueError:
    return InvalidValueError(
        f"{what}: read {shown(text)}; allowed: sizes from 1 to {MOST:,} as in 768, 1k,8k,64k (k is 1,024),"
        " 256:16384:x2 or 256:1024:+256"
    )


def sequence(rows: int, n_ctx: int) -> int:
    """T for M rows without a batch: the longest that divides M and fits into the context."""
    return next(seq for seq in range(min(rows, n_ctx), 0, -1) if rows % seq == 0)


def plan(
    cases: Iterable[str], shapes: Sequence[Shape], dtypes: Sequence[str], backends: Sequence[Backend]
) -> tuple[Job, ...]:
    """Every point: the device's own two first, each once, then cases × dtypes × shapes × backends.

    The ceiling and the floor are always measured, since all else is held against them.
    """
    jobs = [Job(name, "fp32", "eager", ONE) for name, info in CASES.items() if info.ceiling]
    kernels = [name for name in cases if not CASES[name].ceiling]
    n_points = len(kernels) * len(shapes) * len(dtypes) * len(backends)
    if n_points > MOST_POINTS:
        raise InvalidValueError(f"bench: read a sweep of {n_points:,} points; allowed: at most {MOST_POINTS:,}")
    jobs += [
        Job(case, dtype, backend, shape) for case, dtype, shape, backend in product(kernels, dtypes, shapes, backends)
    ]
    return tuple(jobs)


#: The shape of what has none.
ONE = Shape(rows=1, d_model=1, n_vocab=1, n_ctx=1, seq=1)
