"""What a report says, before it has a form: headings, tables of raw values, notes."""

from collections.abc import Callable
from fractions import Fraction
from typing import Literal, NamedTuple

from gptcalc.units import format_count, format_fixed

Kind = Literal["text", "amount", "count", "share", "bar"]
Value = str | int | Fraction | None


class Column(NamedTuple):
    """A column by the kind of its values; printers know kinds only. An `amount` is text that has its unit with it.

    `wraps` lets long cells break at spaces, down to a width of `least`. Where a terminal is too narrow, columns go in
    the order of `drop`, highest first; 0 is never dropped. Then names break at any letter in columns that are `folded`.
    Columns with a `block` need not be dropped: those of one number stay together, below the others if there is no room
    beside them, with the columns of no block (0) before them again.
    """

    key: str
    title: str
    kind: Kind = "text"
    wraps: bool = False
    least: int = 0
    drop: int = 0
    folded: bool = False
    block: int = 0

    @property
    def right(self) -> bool:
        """Whether numbers stand under each other."""
        return self.kind not in ("text", "bar")


class Table(NamedTuple):
    """Rows of raw values under columns; `footer` rows are totals of the others."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    footer: tuple[tuple[Value, ...], ...] = ()


class Drawing(NamedTuple):
    """A picture in characters: `draw` gives its lines, none longer than the width that it is given."""

    title: str
    draw: Callable[[int], list[str]]


class Document(NamedTuple):
    """A whole report. `data` makes the table that csv prints: one record a line, no totals, no drawings."""

    title: str
    heading: tuple[str, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    data: Callable[[], Table]
    drawings: tuple[Drawing, ...] = ()


#: Of a drawing where there is no terminal.
DRAWING_WIDTH = 80
BLOCKS = " ▏▎▍▌▋▊▉█"


def cell(value: Value, kind: Kind) -> str:
    """A value as text by its kind; bars are drawn by the printer, which knows the width."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if kind == "share":
        return f"{format_fixed(Fraction(value) * 100, 2)}%"
    return format_count(int(value))


def bar(share: Fraction, width: int) -> str:
    """`share` of `width` cells, to an eighth of a cell; anything above nothing is seen."""
    eighths = min(int(share * width * 8 + Fraction(1, 2)), width * 8)
    eighths = max(eighths, 1) if share > 0 else 0
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (BLOCKS[rest] if rest else "")
