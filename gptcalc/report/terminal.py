"""A document for people: tables that never cut a number, which rich colours.

On a terminal the table takes its width: long formulas wrap, then whole columns go, and a note says which. Elsewhere it
is as wide as it needs to be.
"""

import io
import os
import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import zip_longest
from textwrap import wrap

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from gptcalc.report.document import DRAWING_WIDTH, Column, Document, Table, Value, bar, cell

GAP = 2
BAR_WIDTH, BAR_MINIMUM = 16, 4
FOLD_MINIMUM = 12


def render(document: Document) -> str:
    """The whole document as text, coloured where the terminal takes colours."""
    limit = terminal_width()
    width = limit or natural_width(document)
    target = io.StringIO()
    console = Console(
        file=target,
        width=width,
        force_terminal=_is_terminal(),
        highlight=False,
        emoji=False,
        markup=False,
        soft_wrap=limit is None,
    )
    console.print(Text(document.title, style="bold"))
    for line in document.heading:
        console.print(Text(line))
    for table in document.tables:
        _print_table(console, table, width)
    for drawing in document.drawings:
        console.print()
        console.print(Text(drawing.title, style="bold"))
        console.print(Text("\n".join(drawing.draw(limit or DRAWING_WIDTH))), soft_wrap=True)
    if document.notes:
        console.print()
        console.print(Text("\n".join(document.notes), style="dim"))
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines()) + "\n"


def terminal_width() -> int | None:
    """Columns of the terminal, or as `COLUMNS` says; `None` where the output goes elsewhere."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    return os.get_terminal_size(sys.stdout.fileno()).columns or None if _is_terminal() else None


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def natural_width(document: Document) -> int:
    """The width at which nothing wraps."""
    return max([1, *(sum(_natural(t, i) for i in range(len(t.columns))) + _gaps(t.columns) for t in document.tables)])


def _gaps(columns: tuple[Column, ...]) -> int:
    return GAP * max(len(columns) - 1, 0)


def _texts(table: Table, index: int) -> list[str]:
    kind = table.columns[index].kind
    return [cell(row[index], kind) for row in (*table.rows, *table.footer)]


def _natural(table: Table, index: int) -> int:
    column = table.columns[index]
    if column.kind == "bar":
        return BAR_WIDTH
    return max(map(cell_len, [column.title, *_texts(table, index)]))


def _minimum(table: Table, index: int) -> int:
    column = table.columns[index]
    if column.kind == "bar":
        return BAR_MINIMUM
    if not column.wraps:
        return _natural(table, index)
    words = (
        len(_hang(text)) + cell_len(word)
        for text in [column.title, *_texts(table, index)]
        for word in re.split(r" |(?<=\w-)(?=\w)", text)
    )
    return max([min(column.least, _natural(table, index)), *words])


def _hang(text: str) -> str:
    """What stands before the second line of a cell: twice the margin that sets the first one under its group."""
    return " " * 2 * (len(text) - len(text.lstrip()))


def fit(table: Table, width: int) -> tuple[list[int], dict[int, int]]:
    """The indices of the columns that stay, and the width of each."""
    kept = list(range(len(table.columns)))
    least = {index: _minimum(table, index) for index in kept}

    def spare() -> int:
        return width - sum(least[index] for index in kept) - _gaps(tuple(table.columns[index] for index in kept))

    while spare() < 0 and any(table.columns[index].drop for index in kept):
        kept.remove(max(kept, key=lambda index: table.columns[index].drop))
    for index in (index for index in kept if table.columns[index].folded):
        least[index] = max(min(least[index], FOLD_MINIMUM), least[index] + min(spare(), 0))
    widths = {index: least[index] for index in kept}
    wanted = {index: _natural(table, index) for index in kept}
    bars = [index for index in kept if table.columns[index].kind == "bar"]
    left = spare()
    for group in ([index for index in kept if index not in bars], bars):
        while left > 0 and (short := [index for index in group if widths[index] < wanted[index]]):
            for index in short[:left]:
                widths[index] += 1
                left -= 1
    return kept, widths


def blocks(table: Table, width: int) -> Iterator[Table]:
    """The table itself where it fits; else as many tables below each other as it takes to drop no block of columns."""
    numbers = list(dict.fromkeys(column.block for column in table.columns if column.block))
    while numbers:
        count = len(numbers)
        while count > 1 and not _fits(_only(table, numbers[:count]), width):
            count -= 1
        yield _only(table, numbers[:count])
        numbers = numbers[count:]


def _only(table: Table, numbers: list[int]) -> Table:
    """The table with some of its blocks."""
    kept = [index for index, column in enumerate(table.columns) if column.block in (0, *numbers)]

    def cut(rows: tuple[tuple[Value, ...], ...]) -> tuple[tuple[Value, ...], ...]:
        return tuple(tuple(row[index] for index in kept) for row in rows)

    return table._replace(
        columns=tuple(table.columns[index] for index in kept), rows=cut(table.rows), footer=cut(table.footer)
    )


def _fits(table: Table, width: int) -> bool:
    """Whether the columns that are never dropped have room."""
    kept = [index for index, column in enumerate(table.columns) if not column.drop]
    return sum(_minimum(table, index) for index in kept) + _gaps(tuple(table.columns[i] for i in kept)) <= width


def _print_table(console: Console, table: Table, width: int) -> None:
    if any(column.block for column in table.columns):
        first, *others = blocks(table, width)
        _print_one(console, first, width)
        for other in others:
            _print_one(console, other._replace(title=""), width)
    else:
        _print_one(console, table, width)


def _print_one(console: Console, table: Table, width: int) -> None:
    kept, widths = fit(table, width)
    columns, sizes = [table.columns[index] for index in kept], [widths[index] for index in kept]
    lines = _wrapped(table.title, width, "bold")
    if any(column.title for column in columns):
        lines += _row_lines(columns, [column.title for column in columns], sizes, "dim")
    for rows, style in ((table.rows, ""), (table.footer, "bold")):
        for row in rows:
            cells = [_text(table, row, index, widths[index]) for index in kept]
            lines += _row_lines(columns, cells, sizes, style)
    dropped = [column.title or column.key for index, column in enumerate(table.columns) if index not in kept]
    if dropped:
        lines += _wrapped(f"(no room at this width for: {', '.join(dropped)})", width, "dim")
    console.print()
    console.print(Text("\n").join(lines), soft_wrap=True)


def _wrapped(text: str, width: int, style: str) -> list[Text]:
    return [Text(line, style=style) for line in wrap(text, width)]


def _text(table: Table, row: tuple[Value, ...], index: int, width: int) -> str:
    column, value = table.columns[index], row[index]
    if column.kind != "bar":
        return cell(value, column.kind)
    largest = max((share for other in table.rows if isinstance(share := other[index], Fraction)), default=Fraction(0))
    return bar(value / largest if isinstance(value, Fraction) and largest else Fraction(0), width)


def _row_lines(columns: list[Column], cells: list[str], widths: list[int], style: str) -> Iterator[Text]:
    """The lines of one row: cells that wrap go on below themselves."""
    wrapped = [
        wrap(text, width, subsequent_indent=_hang(text))
        if (column.wraps or column.folded) and cell_len(text) > width
        else [text]
        for column, text, width in zip(columns, cells, widths, strict=True)
    ]
    for parts in zip_longest(*wrapped, fillvalue=""):
        line = Text(style=style)
        for place, (column, part, width) in enumerate(zip(columns, parts, widths, strict=True)):
            space = " " * (width - cell_len(part))
            line.append(" " * GAP if place else "")
            line.append(
                f"{space}{part}" if column.right else f"{part}{space}", "cyan" if column.kind == "bar" else None
            )
        yield line
