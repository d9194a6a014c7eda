"""What would make a run fit, as words, as tables and as JSON."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from typing_extensions import TypedDict

from gptcalc.allocator import Figures
from gptcalc.ledger.asked import SETTINGS
from gptcalc.report.document import Column, Table, Value
from gptcalc.units import format_bytes, format_count, format_signed

if TYPE_CHECKING:
    from gptcalc.ledger.changes import Change, Settings, Suggestions
    from gptcalc.ledger.fit import Range, Room

#: Pairs that the table shows; JSON has all.
MOST_SHOWN = 8
#: What a cost is called in the table.
COSTS = {"nothing": "nothing", "time": "time", "quality": "quality"}
_COLUMNS = (
    Column("options", "change", wraps=True, least=20),
    Column("cost", "costs", block=1),
    Column("needed", "needs at most", "count", block=1, drop=2),
    Column("left", "surely left", "count", block=1),
    Column("size", "", "amount", block=1, drop=1),
    Column("note", "what it does", wraps=True, least=30, block=2),
)


class SpanJSON(TypedDict):
    """Bytes: at least, and at most."""

    low: int
    high: int


class SuggestedFiguresJSON(TypedDict):
    """Bytes in torch's words."""

    requested: int
    rounded: int
    allocated: int
    reserved: int


class SuggestedFitJSON(TypedDict):
    """A mode with the change, in one room; of a budget `gpu` is null."""

    mode: str
    gpu: str | None
    figures: SuggestedFiguresJSON
    needed: SpanJSON
    margin: SpanJSON
    verdict: str
    fits: bool


class ChangeJSON(TypedDict):
    """Settings to ask for in place of those there are, the same as `options` to type, and what that costs.

    `cost` is nothing, time or quality; `alters` says what is not the same with it, `notes` what it does. `mode`,
    `needed`, `margin` and `verdict` are those of the tightest of `fits`.
    """

    settings: dict[str, object]
    options: str
    cost: str
    alters: list[str]
    notes: list[str]
    mode: str
    needed: SpanJSON
    margin: SpanJSON
    verdict: str
    fits: list[SuggestedFitJSON]


class LargerJSON(TypedDict):
    """A device by name."""

    gpu: str
    title: str
    capacity: int


class ChangesJSON(TypedDict):
    """What would make a run fit: `pairs` where there are no `singles`, more changes `together` where no pair does.

    Where nothing does, `closest` comes closest; or the weights alone, `weights` bytes of 16 bits each, are too large.
    `larger` is the smallest NVIDIA GPU on which the run fits as it is.
    """

    singles: list[ChangeJSON]
    pairs: list[ChangeJSON]
    together: ChangeJSON | None
    closest: ChangeJSON | None
    weights: int | None
    larger: LargerJSON | None


def options(settings: "Settings") -> str:
    """Settings as they are typed."""
    return " ".join(_option(field, value) for field, value in settings.items())


def _option(field: str, value: object) -> str:
    name = field
    if SETTINGS[field].kind == "flag":
        name = field if value else SETTINGS[field].other or f"no_{field}"
        return f"--{name.replace('_', '-')}"
    number = f"{value:g}" if isinstance(value, float) else value
    return f"--{name.replace('_', '-')} {number}"


# --- As JSON ---------------------------------------------------------------------------------------------------------


def changes_json(found: "Suggestions") -> ChangesJSON:
    """Every change as plain values; integers stay integers."""
    return {
        "singles": [_change_json(change) for change in found.singles],
        "pairs": [_change_json(change) for change in found.pairs],
        "together": None if found.together is None else _change_json(found.together),
        "closest": None if found.closest is None else _change_json(found.closest),
        "weights": found.weights,
        "larger": None if found.larger is None else _larger_json(found.larger),
    }


def _change_json(change: "Change") -> ChangeJSON:
    fits: list[SuggestedFitJSON] = [
        {
            "mode": outcome.mode,
            "gpu": None if outcome.fit.room.budgeted else outcome.fit.room.name,
            "figures": _figures_json(outcome.figures),
            "needed": _span(outcome.fit.needed),
            "margin": _span(outcome.fit.margin),
            "verdict": outcome.fit.verdict,
            "fits": outcome.fit.fits,
        }
        for outcome in change.outcomes
    ]
    tightest = fits[change.outcomes.index(change.tightest)]
    return {
        "settings": dict(change.settings),
        "options": options(change.settings),
        "cost": change.cost,
        "alters": list(change.alters),
        "notes": list(change.notes),
        "mode": tightest["mode"],
        "needed": tightest["needed"],
        "margin": tightest["margin"],
        "verdict": tightest["verdict"],
        "fits": fits,
    }


def _figures_json(figures: Figures) -> SuggestedFiguresJSON:
    return {
        "requested": figures.requested,
        "rounded": figures.rounded,
        "allocated": figures.allocated,
        "reserved": figures.reserved,
    }


def _span(found: "Range") -> SpanJSON:
    return {"low": found.low, "high": found.high}


def _larger_json(room: "Room") -> LargerJSON:
    return {"gpu": room.name, "title": room.title, "capacity": room.capacity}


# --- As a document ---------------------------------------------------------------------------------------------------


def changes_tables(found: "Suggestions") -> Iterator[Table]:
    """The changes, the cheapest first; or what comes closest."""
    if found.singles:
        yield _table("What would make it fit, each by itself", found.singles)
    if found.pairs:
        yield _table("No single change is enough; pairs that are", found.pairs[:MOST_SHOWN])
    if found.together is not None:
        yield _table("No pair of changes is enough; all of these are", [found.together])
    if found.closest is not None:
        yield _table("Nothing makes it fit; what comes closest", [found.closest])


def _table(title: str, changes: "Sequence[Change]") -> Table:
    return Table(title, _COLUMNS, tuple(_row(change) for change in changes))


def _row(change: "Change") -> tuple[Value, ...]:
    fit = change.tightest.fit
    left, sign = fit.margin.low, "−" if fit.margin.low < 0 else ""
    size = f"{sign}{format_bytes(abs(left))}"
    typed = options(change.settings) or "as it is"
    return typed, COSTS[change.cost], fit.needed.high, format_signed(left), size, _note(change)


def _note(change: "Change") -> str:
    """What it does, and what is other after it."""
    does = "; and ".join(change.notes) or "no change takes less"
    return f"{does}. Alters: {'; '.join(change.alters)}" if change.alters else does


def changes_notes(found: "Suggestions", rooms: "Sequence[Room]") -> Iterator[str]:
    """What the tables do not say: what lacks, and where the run would fit as it is."""
    from gptcalc.ledger.changes import SMALLEST

    if found.singles or found.pairs or found.together:
        yield (
            "Each change was asked of the engine: with its options added the exit code is 0; a number is the limit,"
            " its next step does not fit. Costs: nothing (same numbers, same speed), time, or quality (alters what is"
            " learned or answered)."
        )
    if len(found.pairs) > MOST_SHOWN:
        yield f"{format_count(len(found.pairs) - MOST_SHOWN)} more pairs are in --format json."
    if found.closest is not None:
        outcome = found.closest.tightest
        yield f"Even so {outcome.mode} lacks {format_bytes(-outcome.fit.margin.low)} {_in(outcome.fit.room)}."
    if found.weights is not None:
        room = min(rooms, key=lambda each: each.usable.low)
        yield (
            f"No change makes it fit: the weights alone take {format_bytes(found.weights)} in {SMALLEST},"
            f" and there are {format_bytes(room.usable.low)} {_in(room)}."
        )
    if found.larger is not None:
        room = found.larger
        yield (
            f"As it is the run fits {_in(room)} ({format_bytes(room.capacity)}, --gpu {room.name}): no smaller NVIDIA"
            " GPU is sure to hold it."
        )
    elif not any(room.budgeted for room in rooms):
        yield "As it is no single NVIDIA GPU of 'gptcalc gpus' holds it: several that share a model are not modelled."


def _in(room: "Room") -> str:
    if room.budgeted or room.source == "given":
        return f"in {room.title}"
    return f"on the {room.title}"
