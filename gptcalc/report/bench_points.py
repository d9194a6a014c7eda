"""Rows of a benchmark's tables: which kernel at which shape, and what tells it from its neighbours."""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple, Self

from gptcalc.ledger.profile import Point, Profile
from gptcalc.ledger.timing import Fit, Result, Timing
from gptcalc.report.document import Column, Table, Value
from gptcalc.units import format_fixed

#: The cases that measure the device itself: they have neither a shape nor variants.
OWN = ("copy", "empty")
#: The share of the longest time that t0 is at most where a fit knows a bandwidth.
FLAT = 0.9


class Trait(NamedTuple):
    """What may tell two points of a case and shape apart: a column where points differ in it, else a word above all.

    `of` is `None` for points to which it does not matter.
    """

    column: Column
    of: Callable[[Point], Value]
    said: str


class Layout(NamedTuple):
    """What the tables of one report need as columns; `constants` are the words for what all points share.

    In `sections` a case has a line of its own above its shapes; else each row bears its whole name.
    """

    shapes: bool
    traits: tuple[Trait, ...]
    constants: tuple[str, ...]
    sections: bool = True

    def without(self, *keys: str) -> Self:
        """For rows that do not differ in some of the traits."""
        return self._replace(traits=tuple(trait for trait in self.traits if trait.column.key not in keys))


TRAITS = (
    Trait(Column("dtype", "dtype"), lambda point: None if point.case in OWN else point.dtype, "{}"),
    Trait(Column("backend", "backend"), lambda point: None if point.case in OWN else point.backend, "{}"),
    Trait(
        Column("n_vocab", "V", "count", drop=22),
        lambda point: point.shape.n_vocab if "embedding" in point.case else None,
        "V={:,}",
    ),
    Trait(
        Column("n_ctx", "C", "count", drop=21),
        lambda point: point.shape.n_ctx if "gpt_embedding" in point.case else None,
        "C={:,}",
    ),
    Trait(
        Column("seq", "T", "count", drop=20),
        lambda point: point.shape.seq if "gpt_embedding" in point.case else None,
        "T={:,}",
    ),
)


def layout(points: Sequence[Point]) -> Layout:
    """Columns for what differs, words for what does not."""
    shapes = list(dict.fromkeys(shape_text(point) for point in points if point.case not in OWN))
    constants = [f"{shapes[0]} (rows × width)"] if len(shapes) == 1 else []
    shown = []
    for trait in TRAITS:
        values = list(dict.fromkeys(value for point in points if (value := trait.of(point)) is not None))
        if len(values) == 1:
            constants.append(trait.said.format(values[0]))
        elif values:
            shown.append(trait)
    return Layout(len(shapes) > 1, tuple(shown), tuple(constants))


def place(points: Iterable[Point]) -> Callable[[Point], tuple[int, ...]]:
    """The order of reports: cases and dtypes as they were asked for, shapes by size, eager before compiled."""
    asked = list(points)
    cases = list(dict.fromkeys(point.case for point in asked))
    dtypes = list(dict.fromkeys(point.dtype for point in asked))

    def key(point: Point) -> tuple[int, ...]:
        shape = point.shape
        sizes = (shape.rows, shape.d_model, shape.n_vocab, shape.n_ctx, shape.seq)
        return cases.index(point.case), *sizes, dtypes.index(point.dtype), int(point.backend != "eager")

    return key


def shape_text(point: Point) -> str:
    """Rows and width as the table has them: `8,192 × 768`."""
    return f"{point.shape.rows:,} × {point.shape.d_model:,}"


def point_key(point: Point) -> str:
    """What names the point in json and csv: `layernorm.forward/8192x768/fp32/eager`, with V, C, T where they matter."""
    sizes = [f"{trait.column.title}{trait.of(point)}" for trait in TRAITS[2:] if trait.of(point) is not None]
    shape = ",".join([f"{point.shape.rows}x{point.shape.d_model}", *sizes])
    return f"{point.case}/{shape}/{point.dtype}/{point.backend}"


def point_table(
    title: str,
    shape: Layout,
    columns: Sequence[Column],
    rows: Iterable[tuple[Point, tuple[Value, ...]]],
) -> Table:
    """A table of points: names stand where they change, and columns in which nothing stands are left out."""
    lines: list[tuple[Value, ...]] = []
    last = ("", "")
    for point, cells in rows:
        here = (point.case, shape_text(point) if shape.shapes and point.case not in OWN else "")
        if shape.sections and here[1] and here[0] != last[0]:
            lines.append((here[0], *(None,) * (len(shape.traits) + len(cells))))
        label = "" if shape.sections and here == last else _label(*here, sections=shape.sections)
        lines.append((label, *(trait.of(point) for trait in shape.traits), *cells))
        last = here
    names = Column("case", "case, rows × width" if shape.shapes else "case", folded=True)
    return _without_empty(Table(title, (names, *(trait.column for trait in shape.traits), *columns), tuple(lines)))


def _label(case: str, shape: str, *, sections: bool) -> str:
    if not sections:
        return f"{case} {shape.replace(' ', '')}".rstrip()  # breaks between the two where there is no room
    return f"  {shape}" if shape else case


def when(profile: Profile) -> str:
    """The moment at which a run was started."""
    return profile.started.replace("T", " ").replace("+00:00", " UTC")


def _without_empty(table: Table) -> Table:
    kept = [index for index in range(len(table.columns)) if any(row[index] not in (None, "") for row in table.rows)]
    rows = tuple(tuple(row[index] for index in kept) for row in table.rows)
    return table._replace(columns=tuple(table.columns[index] for index in kept), rows=rows)


def percent(share: float, digits: int = 1, *, signed: bool = False) -> str:
    """A share in percent: `86.3%`, `+1.2%`."""
    text = format_fixed(Fraction(share) * 100, digits)
    plus = signed and share > 0 and text.strip("0.")
    return f"{'+' if plus else ''}{text}%"


def in_order(timing: Timing) -> list[Result]:
    """The results in the order of reports, cold before warm."""
    key = place(timing.profile.points)
    return sorted(timing.results, key=lambda result: (key(result.point), result.state))


def flat(fit: Fit) -> bool:
    """Whether time hardly grows over the sweep, so that its slope, and the bandwidth, say nothing."""
    return fit.start_ns > FLAT * max(result.time.estimate for result in fit.results)


def moves_more(result: Result) -> bool:
    """Whether torch's own kernel ran, and moves more than it must."""
    return result.point.backend == "eager" and result.torch_bytes > result.bytes
