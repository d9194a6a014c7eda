"""Everything that can be wrong with a request, as one tree.

    GptcalcError                 exit code 2, printed as one or two lines
    ├── UnknownNameError         a preset, field, choice or family that does not exist
    ├── InvalidValueError        a value that no model can have
    ├── UnreadableFileError      a file that is missing, empty, binary or of another form
    ├── MissingDependencyError   torch (or another extra) is needed and not installed
    └── OutputError              the answer cannot be written

Where torch users expect `ValueError` or `IndexError`, `gptcalc.modules` raises children that are both.
A message says what was read, what is allowed and the nearest match.
"""

from collections.abc import Iterable
from typing import Self


class GptcalcError(Exception):
    """A request that cannot be answered; its text is meant for the user."""


class UnknownNameError(GptcalcError):
    """A name that is not among those allowed."""

    @classmethod
    def near(
        cls, what: str, read: str, allowed: Iterable[str], advice: str = "", listed: Iterable[str] | None = None
    ) -> Self:
        """Say what was read, the nearest allowed names, or those to be `listed` where none is near."""
        matches = nearest(read, allowed := list(allowed))
        names = sorted(set(allowed if listed is None else listed))
        if matches:
            hint = f"nearest: {', '.join(matches)}"
        elif len(names) <= LISTED_AT_MOST:
            hint = f"allowed: {', '.join(names)}"
        else:
            hint = f"{len(names)} names are allowed"
        return cls(f"{what}: read {shown(read)}; {hint}{'; ' + advice if advice else ''}")


class InvalidValueError(GptcalcError):
    """A value outside what is allowed."""


class UnreadableFileError(GptcalcError):
    """A file that cannot be read as what it should be."""


class MissingDependencyError(GptcalcError):
    """An optional dependency that this command needs."""


class OutputError(GptcalcError):
    """An answer that has nowhere to go."""


#: A list of allowed names longer than this is replaced by the nearest ones.
LISTED_AT_MOST = 32
#: Longer input is cut where it is quoted back: an error stays one or two lines.
QUOTED_AT_MOST = 60
#: A path may be longer, since it is read as a whole.
PRINTED_AT_MOST = 300


def shown(value: object) -> str:
    """`value` as it is quoted in an error: short, on one line, strings in quotes."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= QUOTED_AT_MOST else f"{text[:QUOTED_AT_MOST]}… ({len(text)} characters)"


def plain(text: str) -> str:
    """A name or path as it is printed: as it stands where it is printable and short, else quoted."""
    return text if text.isprintable() and len(text) <= PRINTED_AT_MOST else shown(text)


def nearest(read: str, allowed: Iterable[str], most: int = 4) -> list[str]:
    """The allowed names most like `read`, best first."""
    from difflib import get_close_matches

    by_key = {name.lower(): name for name in allowed}
    key = read.lower()[:QUOTED_AT_MOST]
    close = get_close_matches(key, by_key, n=most, cutoff=0.5)
    starts = [name for name in by_key if key and name.startswith(key) and name not in close]
    return [by_key[name] for name in (close + starts)[:most]]
