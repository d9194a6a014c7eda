"""The largest number that still does, and the largest batch or length that fits a device."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from gptcalc.allocator import Figures
from gptcalc.errors import InvalidValueError
from gptcalc.ledger.fit import Fit, Room, fit
from gptcalc.ledger.memory import ModeName
from gptcalc.ledger.totals import Totals
from gptcalc.plan import Plan
from gptcalc.spec import MOST, Spec

#: What may be sought: a field of `Plan`.
What = Literal["batch", "seq"]


def largest(does: Callable[[int], bool], most: int, hint: int = 1) -> int | None:
    """A number from 1 to `most` that `does` while the next one does not, or `most`; `None` where not even 1 does.

    Near the limit, what the allocator holds may fall where more is asked for, so that there may be several such
    numbers; this is the first that is met from the `hint`, in steps that double, and then by halves.
    """
    good, bad = 0, most + 1
    at, step = min(max(hint, 1), most), 1
    while bad - good > 1:
        if does(at):
            good = at
            at = min(good + step, most) if bad > most else (good + bad) // 2
        else:
            bad = at
            at = max(bad - step, 1) if not good else (good + bad) // 2
        step *= 2
    return good or None


class Tried(NamedTuple):
    """A plan with that batch or length: what it takes, and whether that fits."""

    number: int
    totals: Figures
    fit: Fit


class Solved(NamedTuple):
    """The largest number that fits, and the next one, which does not.

    `largest` is None where not even 1 fits: then `beyond` is 1. `beyond` is None where there is no next number: the
    model has no position for it, or torch no kernel.
    """

    largest: Tried | None
    beyond: Tried | None


class Search:
    """The largest batch or length of a plan that fits a room. What was found out for one room helps with the next."""

    def __init__(self, totals: Totals | None = None) -> None:
        """`totals` may be shared with others that ask for figures."""
        self.totals = totals or Totals()

    def __call__(self, spec: Spec, plan: Plan, mode: ModeName, room: Room, what: What = "batch") -> Solved:
        """Solve for `what`, all else being as the plan says; its `target` is the caller's to set for the room.

        Raises `InvalidValueError` where not even a plan with 1 runs.
        """

        def tried(number: int) -> Tried:
            totals = self.totals(spec, plan.model_copy(update={what: number}), mode)
            return Tried(number, totals, fit(totals, room))

        def fits(number: int) -> bool:
            try:
                return tried(number).fit.fits
            except InvalidValueError:
                if number == 1:
                    raise
                return False

        most = most_of(spec, what)
        found = largest(fits, most)
        after = (found or 0) + 1
        try:
            beyond = None if after > most else tried(after)
        except InvalidValueError:
            beyond = None
        return Solved(None if found is None else tried(found), beyond)


def most_of(spec: Spec, what: What) -> int:
    """The largest number that a plan may have: where positions are learned, a sequence has no more than there are."""
    if what == "seq" and spec.positions is not None and spec.positions.kind == "learned":
        return spec.n_ctx
    return MOST
