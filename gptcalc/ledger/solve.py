"""The largest number that still does, and the largest batch or length that fits a device."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from gptcalc.allocator import Figures
from gptcalc.errors import InvalidValueError
from gptcalc.ledger.fit import Fit, Room, fit, most_reserved
from gptcalc.ledger.memory import ModeName
from gptcalc.ledger.totals import Course, Totals, What
from gptcalc.plan import Plan
from gptcalc.spec import MOST, Spec

#: How many hints are followed that turn out to be wrong.
HINTS = 4


def largest(does: Callable[[int], bool], most: int, hint: int | Callable[[], int] = 1) -> int | None:
    """A number from 1 to `most` that `does` while the next one does not, or `most`; `None` where not even 1 does.

    Near the limit, what the allocator holds may fall where more is asked for, so that there may be several such
    numbers; this is the first that is met from the `hint`, in steps that double, and then by halves. A hint that is
    asked for may change with what has been found.
    """
    good, bad, step, hints = 0, most + 1, 1, HINTS
    while bad - good > 1:
        at = hint if isinstance(hint, int) else hint()
        if hints and good < at < bad:
            hints -= 1
        else:
            middle = (good + bad) // 2
            at = max(bad - step, middle) if at >= bad else min(good + step, middle)
            step *= 2
        if does(at):
            good = at
        else:
            bad = at
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

    def __call__(  # noqa: PLR0913  what is sought, where, and from where on
        self,
        spec: Spec,
        plan: Plan,
        mode: ModeName,
        room: Room,
        what: What = "batch",
        *,
        least: int = 1,
        beyond: bool = True,
    ) -> Solved:
        """Solve for `what`, all else being as the plan says; its `target` is the caller's to set for the room.

        `least` is the least that can be asked for. Without `beyond` the next number is known not to fit, but not how
        much it takes, which is quicker. The answer does not depend on what was asked before. Raises
        `InvalidValueError` where not even the least runs.
        """
        course, most = self.totals.course(spec, plan, mode, what), most_of(spec, what)
        limit, seen = most_reserved(room), list[_Seen]()

        def fits(place: int) -> bool:
            number = least - 1 + place
            try:
                figures = course.within(number, limit)
            except InvalidValueError:
                if number == least:
                    raise
                return False
            if figures is not None:
                seen.append(_Seen(number, figures.reserved))
            return figures is not None

        def tried(number: int) -> Tried:
            totals = course(number)
            return Tried(number, totals, fit(totals, room))

        place = largest(fits, most - least + 1, lambda: _hint(course, limit, seen, (least, most)) - least + 1)
        found, after = least - 1 + (place or 0), None
        if found < most and (beyond or place is None):
            with suppress(InvalidValueError):
                after = tried(found + 1)
        return Solved(None if place is None else tried(found), after)


class _Seen(NamedTuple):
    """With that batch or length so much is held."""

    number: int
    held: int


#: A number that is tried before anything is known, and from where on a power of four is asked for how much is held.
FIRST, ANCHORED = 8, 16
#: How many secants lead to a hint at most; a step by less than this part of a number is the last.
SECANTS, NEAR = 4, 50


def _hint(course: Course, limit: int, seen: Sequence[_Seen], allowed: tuple[int, int]) -> int:
    """A number with which about `limit` bytes are held, of those that are allowed.

    What is asked for at once is quickly found. About as much more is held of it as with the number that was seen last,
    or with a power of four, which may serve other limits too.
    """
    fewest, most = allowed
    try:
        if not seen:
            start = max(FIRST, fewest) if course.states < limit else fewest
            near = _where(course, limit, min(start, most), allowed)
            if near < ANCHORED:
                return near
            anchor = max(1 << (near.bit_length() - 1) // 2 * 2, fewest)
            seen = [_Seen(anchor, course(anchor).reserved)]
        number, held = seen[-1]
        return _where(course, limit * course.at_least(number) // held, number, allowed)
    except InvalidValueError:
        return fewest


def _where(course: Course, wanted: int, start: int, allowed: tuple[int, int]) -> int:
    """Where so much is asked for at once: a secant leads from two numbers to the next."""
    fewest, most = allowed
    before, below = start, course.at_least(start)
    number = max(min(start * wanted // below, most), fewest)
    for _ in range(SECANTS):
        if number == before or (above := course.at_least(number)) == below:
            break
        guess = number + (wanted - above) * (number - before) // (above - below)
        before, below, number = number, above, max(min(guess, most), fewest)
        if abs(number - before) <= 1 + before // NEAR:
            break
    return number


def most_of(spec: Spec, what: What) -> int:
    """The largest number that a plan may have: where positions are learned, a sequence has no more than there are."""
    if what == "seq" and spec.positions is not None and spec.positions.kind == "learned":
        return spec.n_ctx
    return MOST
