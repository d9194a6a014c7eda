"""The largest number that still does."""

from collections.abc import Callable


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
