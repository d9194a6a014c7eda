"""A roofline as text: what each kernel achieves (y) over the bytes that it must move (x), both logarithmic.

The usual x is FLOPs a byte (Williams et al. 2009). The kernels here do at most a few FLOPs a byte, far left of the
ridge where arithmetic would limit them, so that the roof over bytes says more: few bytes are over before the next
kernel can start, many go at the speed of memory.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, floor, log2, log10
from string import ascii_letters
from typing import NamedTuple

from gptcalc.units import format_bytes, format_significant

HEIGHT = 14
#: Wider drawings say no more.
WIDEST = 100
LABEL = 7


class Series(NamedTuple):
    """Points (bytes, bytes per second) that share a letter."""

    name: str
    points: tuple[tuple[int, float], ...]


class Scale(NamedTuple):
    """Where a value lies on `size` cells between two logarithms."""

    low: float
    high: float
    size: int

    def cell(self, value: float) -> int:
        """The cell, the nearest one for what lies outside."""
        place = (log2(value) - self.low) / (self.high - self.low) * (self.size - 1)
        return min(max(round(place), 0), self.size - 1)

    def value(self, cell: int) -> float:
        """The value in the middle of a cell."""
        return float(2 ** (self.low + cell * (self.high - self.low) / (self.size - 1)))


def roof(amount: float, ceiling: float, floor_ns: float | None) -> float:
    """The bytes per second that `amount` bytes can reach at most: one launch, and the speed of memory."""
    return min(ceiling, amount / floor_ns * 1e9) if floor_ns else ceiling


def draw(series: Sequence[Series], ceiling: float, floor_ns: float | None, width: int) -> list[str]:
    """The lines of the drawing, none longer than `width`: plot, axis, legend."""
    across, up = _scales(series, ceiling, floor_ns, min(width, WIDEST) - LABEL - 2)
    grid = [[" "] * across.size for _ in range(up.size)]
    for column in range(across.size):
        height = roof(across.value(column), ceiling, floor_ns)
        if log2(height) >= up.low:
            grid[up.cell(height)][column] = "·"
    hidden = _put_letters(grid, series, across, up)
    ticks = _ticks(up, ceiling)
    plot = [f"{ticks.get(row, ''):>{LABEL}} |{''.join(grid[row]).rstrip()}" for row in reversed(range(up.size))]
    axis = [f"{'':{LABEL}} +{'-' * across.size}", f"{'':{LABEL}}  {_axis(across)}"]
    behind = [f"({hidden} more behind these)"] if hidden else []
    return [f"{'GB/s':>{LABEL}}", *plot, *axis, "", *_legend(series, width), *behind]


def _scales(series: Sequence[Series], ceiling: float, floor_ns: float | None, width: int) -> tuple[Scale, Scale]:
    """Room for all points and for the roof's bend, and upwards for a factor of 5 at least."""
    points = [point for one in series for point in one.points]
    amounts = [amount for amount, _ in points] + ([ceiling * floor_ns / 1e9] if floor_ns else [])
    rates = [rate for _, rate in points] + [ceiling]
    high = log2(max(rates)) + 0.2
    return (
        Scale(floor(log2(min(amounts))) - 1, ceil(log2(max(amounts))) + 1, width),
        Scale(min(log2(min(rates)) - 0.2, high - log2(5)), high, HEIGHT),
    )


def _put_letters(grid: list[list[str]], series: Sequence[Series], across: Scale, up: Scale) -> int:
    """Put each point where it belongs, or up to two cells beside it; return for how many there was no room."""
    hidden = 0
    for letter, one in zip(ascii_letters, series, strict=False):
        for amount, rate in one.points:
            row, column = grid[up.cell(rate)], across.cell(amount)
            beside = (column, column + 1, column - 1, column + 2, column - 2)
            free = [cell for cell in beside if 0 <= cell < across.size and row[cell] in (" ", "·", letter)]
            if free:
                row[free[0]] = letter
            else:
                hidden += 1
    return hidden


def _ticks(up: Scale, ceiling: float) -> Mapping[int, str]:
    """The ceiling, and powers of ten where they are not too near to it."""
    powers = range(ceil(up.low * log10(2)), floor(up.high * log10(2)) + 1)
    marks = {up.cell(10.0**power): format_significant(10.0**power / 1e9, 1) for power in powers}
    top = up.cell(ceiling)
    return {row: text for row, text in marks.items() if abs(row - top) > 1} | {top: format_significant(ceiling / 1e9)}


def _axis(across: Scale) -> str:
    """Sizes under the axis, as many as fit, by equal factors."""
    line = ""
    for power in range(ceil(across.low), floor(across.high) + 1, max(2, ceil((across.high - across.low) / 6))):
        text, column = format_bytes(2**power).replace(".00", ""), across.cell(2**power)
        start = max(0, min(column - len(text) // 2, across.size - len(text)))
        if not line or start > len(line) + 1:
            line = f"{line:{start}}{text}"
    return line


def _legend(series: Iterable[Series], width: int) -> list[str]:
    """Letters and names, in as many columns as there is room for."""
    names = [f"{letter} {one.name}" for letter, one in zip(ascii_letters, series, strict=False)]
    size = max(map(len, names)) + 3
    per_line = max(min(width, WIDEST) // size, 1)
    n_lines = ceil(len(names) / per_line)
    rows = [names[line::n_lines] for line in range(n_lines)]
    return ["".join(f"{name:{size}}" for name in row).rstrip() for row in rows]
