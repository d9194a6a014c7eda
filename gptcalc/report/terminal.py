"""A document for people: rich tables that never cut a number.

On a terminal the table takes its width: long formulas wrap, then whole columns go, and a note says which. Elsewhere it
is as wide as it needs to be.
"""

from __future__ import annotations

import io
import os
import sys
from fractions import Fraction

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table as RichTable
from rich.text import Text

from gptcalc.report.document import Column, Document, Table, bar, cell

GAP = 2
BAR_WIDTH, BAR_MINIMUM = 16, 4


def render(document: Document) -> str:
    """The whole document as text, coloured where the terminal takes colours."""
    limit = terminal_width()
    width = limit or natural_width(document)
    target = io.StringIO()
    console = Console(
        file=target,
        width=width,
        force_terminal=sys.stdout.isatty(),
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
    for note in document.notes:
        console.print(Text(note, style="dim"))
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines()) + "\n"


def terminal_width() -> int | None:
    """Columns of the terminal, or as `COLUMNS` says; `None` where the output goes elsewhere."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    return os.get_terminal_size(sys.stdout.fileno()).columns or None if sys.stdout.isatty() else None


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
    words = (word for text in [column.title, *_texts(table, index)] for word in text.split(" "))
    return max(map(cell_len, words))


def fit(table: Table, width: int) -> tuple[list[int], dict[int, int]]:
    """The indices of the columns that stay, and the width of each."""
    kept = list(range(len(table.columns)))
    least = {index: _minimum(table, index) for index in kept}

    def spare() -> int:
        return width - sum(least[index] for index in kept) - _gaps(tuple(table.columns[index] for index in kept))

    while spare() < 0 and any(table.columns[index].drop for index in kept):
        kept.remove(max(kept, key=lambda index: table.columns[index].drop))
    widths = {index: least[index] for index in kept}
    left = max(spare(), 0)
    for index in sorted(kept, key=lambda index: table.columns[index].kind == "bar"):
        more = min(left, _natural(table, index) - widths[index])
        widths[index] += more
        left -= more
    return kept, widths


def _print_table(console: Console, table: Table, width: int) -> None:
    kept, widths = fit(table, width)
    drawn = RichTable(box=None, padding=(0, GAP, 0, 0), pad_edge=False, show_header=any(c.title for c in table.columns))
    for index in kept:
        column = table.columns[index]
        justify: JustifyMethod = "right" if column.right else "left"
        drawn.add_column(column.title, justify=justify, width=widths[index], overflow="fold", header_style="dim")
    for row in table.rows:
        drawn.add_row(*(_drawn(table, row, index, widths[index]) for index in kept))
    for row in table.footer:
        drawn.add_row(*(_drawn(table, row, index, widths[index]) for index in kept), style="bold")
    console.print()
    if table.title:
        console.print(Text(table.title, style="bold"))
    console.print(drawn, soft_wrap=False)
    dropped = [column.title or column.key for index, column in enumerate(table.columns) if index not in kept]
    if dropped:
        console.print(Text(f"(no room at this width for: {', '.join(dropped)})", style="dim"))


def _drawn(table: Table, row: tuple[object, ...], index: int, width: int) -> Text:
    column, value = table.columns[index], row[index]
    if column.kind == "bar":
        largest = max(
            (share for other in table.rows if isinstance(share := other[index], Fraction)), default=Fraction(0)
        )
        share = value / largest if isinstance(value, Fraction) and largest else Fraction(0)
        return Text(bar(share, width), style="cyan")
    return Text(cell(value, column.kind) if isinstance(value, str | int | Fraction) else "")
