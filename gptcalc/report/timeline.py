"""A step as text: what is alive (y) over the stretches of the step in their order (x), one letter for each kind.

A column is one stretch, or the highest of several where there are more than columns, so that no peak is lost.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import ceil
from typing import NamedTuple

from gptcalc.ledger.alive import Kind
from gptcalc.ledger.memory import Point
from gptcalc.units import format_bytes

HEIGHT = 14
#: Wider drawings say no more.
WIDEST = 200
#: Room for `1023.99 GiB`.
LABEL = 11
NARROWEST = 8

#: What each kind is called, and its letter, from the bottom of the drawing to its top.
KINDS: dict[Kind, tuple[str, str]] = {
    "weights": ("W", "weights"),
    "weight_copies": ("C", "autocast's copies of weights"),
    "gradients": ("G", "gradients"),
    "optimizer": ("O", "optimizer states"),
    "kv_cache": ("K", "KV cache"),
    "inputs": ("I", "inputs"),
    "activations": ("A", "activations"),
    "logits": ("L", "logits and loss"),
    "temporary": ("T", "temporaries"),
    "workspace": ("S", "workspaces"),
}


class Stretch(NamedTuple):
    """The columns of one phase: for each the point that it shows."""

    name: str
    columns: tuple[Point, ...]


def draw(points: Sequence[Point], width: int) -> list[str]:
    """The lines of the drawing, none longer than `width`: the peak's mark, plot, axis, phases, legend."""
    if not points:
        return []
    room = max(min(width, WIDEST) - LABEL - 2, NARROWEST)
    stretches = list(_stretches(points, room))
    columns = [point for stretch in stretches for point in stretch.columns]
    peak = max(points, key=lambda point: point.requested)
    heights = [_heights(point, max(peak.requested, 1)) for point in columns]
    ticks = {HEIGHT - 1: peak.requested, HEIGHT // 2 - 1: peak.requested // 2}
    plot = [
        f"{format_bytes(ticks[row]) if row in ticks else '':>{LABEL}} |{_row(heights, row)}".rstrip()
        for row in reversed(range(HEIGHT))
    ]
    mark = _mark(peak, columns.index(peak), room)
    axis = f"{'0':>{LABEL}} +{'-' * len(columns)}"
    return [f"{'':{LABEL}}  {mark}", *plot, axis, f"{'':{LABEL}}  {_names(stretches)}", "", *_legend(points, width)]


def _stretches(points: Sequence[Point], room: int) -> Iterator[Stretch]:
    """The phases in order, each with columns for its name where there is room, the rest by the number of points."""
    phases: list[tuple[str, list[Point]]] = []
    for point in points:
        if not phases or phases[-1][0] != point.phase:
            phases.append((point.phase, []))
        phases[-1][1].append(point)
    if len(phases) > room:
        yield Stretch("", tuple(_highest(points, room)))
        return
    least = [len(name) + 1 for name, _ in phases]
    if sum(least) > room:
        least = [1] * len(phases)
    for (name, own), size in zip(phases, _shared([len(own) for _, own in phases], least, room), strict=True):
        yield Stretch(name, tuple(_highest(own, size)))


def _shared(weights: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """`room` cells shared by weight, at least so many to each."""
    sizes = list(least)
    for _ in range(room - sum(least)):
        index = max(range(len(sizes)), key=lambda one: weights[one] / sizes[one])
        sizes[index] += 1
    return sizes


def _highest(points: Sequence[Point], size: int) -> Iterator[Point]:
    """`size` columns for the points: each is the highest of those that fall into it."""
    for column in range(size):
        first = column * len(points) // size
        last = max((column + 1) * len(points) // size, first + 1)
        yield max(points[first:last], key=lambda point: point.requested)


def _heights(point: Point, peak: int) -> list[tuple[int, str]]:
    """Up to which row each kind reaches, from the bottom."""
    found, total = [], 0
    for kind, (letter, _) in KINDS.items():
        total += point.alive.get(kind, 0)
        found.append(((2 * total * HEIGHT + peak) // (2 * peak), letter))
    return found


def _row(heights: Iterable[list[tuple[int, str]]], row: int) -> str:
    return "".join(next((letter for height, letter in column if height > row), " ") for column in heights)


def _mark(peak: Point, column: int, room: int) -> str:
    """A `v` above the peak's column, and beside it what is there; words go where there is room for them."""
    where = f"{peak.phase}: {peak.label}"
    texts = [f"{format_bytes(peak.requested)}, {where}", f"{format_bytes(peak.requested)}", ""]
    for text in texts:
        if column + 2 + len(text) <= room:
            return f"{'':{column}}v {text}".rstrip()
        if len(text) + 1 <= column:
            return f"{text:>{column - 1}} v"
    return f"{'':{column}}v"


def _names(stretches: Iterable[Stretch]) -> str:
    """Each phase's name below its first column, after a bar."""
    cells = (f"|{stretch.name}" if len(stretch.name) < len(stretch.columns) else "|" for stretch in stretches)
    sizes = [len(stretch.columns) for stretch in stretches]
    return "".join(f"{cell:{size}}" for cell, size in zip(cells, sizes, strict=True)).rstrip()


def _legend(points: Sequence[Point], width: int) -> list[str]:
    """Letters, names and the most that a kind ever takes, in as many columns as there is room for."""
    most = {kind: max(point.alive.get(kind, 0) for point in points) for kind in KINDS}
    names = [
        f"{letter} {name}, at most {format_bytes(most[kind])}" for kind, (letter, name) in KINDS.items() if most[kind]
    ]
    if not names:
        return []
    size = max(map(len, names)) + 3
    n_lines = ceil(len(names) / max(min(width, WIDEST) // size, 1))
    rows = [names[line::n_lines] for line in range(n_lines)]
    return ["".join(f"{name:{size}}" for name in row).rstrip() for row in rows]
