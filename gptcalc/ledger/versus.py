"""Two plans against each other: every figure and every line of both, and by how much the second is more or less."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from gptcalc.allocator import Figures
from gptcalc.ledger.alive import KINDS, Held, Kind
from gptcalc.ledger.memory import Mode, ModeName

#: What became of a line.
State = Literal["added", "gone", "changed", "same"]


class Pair(NamedTuple):
    """An amount in bytes, first and second; `None` where that plan has no such thing."""

    key: str
    first: int | None
    second: int | None

    @property
    def difference(self) -> int:
        """By how much the second is more."""
        return (self.second or 0) - (self.first or 0)

    @property
    def state(self) -> State:
        """What became of it."""
        if self.first is None or self.second is None:
            return "added" if self.first is None else "gone"
        return "changed" if self.difference else "same"


class Line(NamedTuple):
    """What is alive at the peak of either plan, in the words of whichever has it, the second before the first."""

    held: Held
    pair: Pair

    @property
    def kind(self) -> Kind:
        """What it is for."""
        return self.held.kind


class Moments(NamedTuple):
    """When a plan's requested peak is: the phase, and the op."""

    phase: str
    moment: str


class Both(NamedTuple):
    """One mode of both plans. `lines` add up to the requested totals, on either side and in difference."""

    name: ModeName
    totals: tuple[Pair, ...]
    persistent: tuple[Pair, ...]
    phases: Mapping[str, tuple[Pair, ...]]
    moments: tuple[Moments | None, Moments | None]
    lines: tuple[Line, ...]

    def total(self, figure: str = "requested") -> Pair:
        """The pair of a figure at its peak."""
        return next(pair for pair in self.totals if pair.key == figure)


def versus(
    first: Sequence[Mode], second: Sequence[Mode], rows: tuple[Sequence[Sequence[Held]], Sequence[Sequence[Held]]]
) -> tuple[Both, ...]:
    """Every mode that either has; `rows` are the lines of each mode of each, at the depth that was asked for."""
    ours, theirs = ({mode.name: mode for mode in modes} for modes in (first, second))
    held = [
        {mode.name: lines for mode, lines in zip(modes, found, strict=True)}
        for modes, found in zip((first, second), rows, strict=True)
    ]
    names = [name for name in ("training", "inference") if name in ours or name in theirs]
    return tuple(
        _both(ours.get(name), theirs.get(name), (held[0].get(name, ()), held[1].get(name, ()))) for name in names
    )


def _both(first: Mode | None, second: Mode | None, rows: tuple[Sequence[Held], Sequence[Held]]) -> Both:
    some = first or second
    assert some is not None, "a mode of neither plan"  # noqa: S101  the caller's names are those of the modes
    phases = [{phase.name: phase.figures for phase in mode.phases} if mode else {} for mode in (first, second)]
    return Both(
        name=some.name,
        totals=_figures(first and first.totals, second and second.totals),
        persistent=_figures(first and first.persistent, second and second.persistent),
        phases={
            name: _figures(phases[0].get(name), phases[1].get(name)) for name in dict.fromkeys([*phases[0], *phases[1]])
        },
        moments=(first and Moments(first.phase, first.moment), second and Moments(second.phase, second.moment)),
        lines=tuple(_lines(*rows)),
    )


def _figures(first: Figures | None, second: Figures | None) -> tuple[Pair, ...]:
    return tuple(
        Pair(figure, first and getattr(first, figure), second and getattr(second, figure)) for figure in Figures._fields
    )


def _lines(first: Sequence[Held], second: Sequence[Held]) -> Iterator[Line]:
    """The lines of both by kind, those of the second where they stand in the first."""
    before, after = ({row.key: row for row in rows} for rows in (first, second))
    keys = dict.fromkeys([*before, *after])
    for key in sorted(keys, key=lambda key: KINDS.index((after.get(key) or before[key]).kind)):
        one, other = before.get(key), after.get(key)
        yield Line(other or before[key], Pair(key, one and one.amount, other and other.amount))
