"""Published numbers against the truth: each claim computed, judged, and its difference itemised.

A verdict is never stored: it follows from the claimed number and the model. In this order:

- `exact`: the number is the quantity that it claims to be.
- `rounds`: the quantity, rounded half up to the digits printed, prints as claimed.
- `convention differs`: another legitimate way to count (a reading of the claim, or digits cut off instead of rounded)
  yields the number.
- `wrong`: nothing legitimate yields it. A reading marked `error` may still reproduce the mistake.

Trailing zeros of a number that carries a unit or a `~` may be digits or mere places: `1,320M` is 1,316M to the ten.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Literal, NamedTuple

from gptcalc.catalog import Claim, Preset, Reading, Resolved, resolve
from gptcalc.errors import InvalidValueError, shown
from gptcalc.ledger.components import COMPONENTS, GROUPS
from gptcalc.ledger.expression import evaluate
from gptcalc.ledger.parameters import EMBEDDINGS, parameters
from gptcalc.units import GIB, KIB, MIB, TIB, bytes_of

#: A whole number where it is one; else an exact fraction.
Amount = int | Fraction
Verdict = Literal["exact", "rounds", "convention differs", "wrong"]
#: How a value prints as the number claimed.
Match = Literal["exact", "rounding", "truncation"]

VERDICTS: tuple[Verdict, ...] = ("exact", "rounds", "convention differs", "wrong")

#: What a unit multiplies by; words and symbols of one size stand together.
UNITS = {
    **dict.fromkeys(("K", "KB", "thousand"), 10**3),
    **dict.fromkeys(("M", "MB", "million"), 10**6),
    **dict.fromkeys(("B", "GB", "billion"), 10**9),
    **dict.fromkeys(("T", "TB", "trillion"), 10**12),
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "TiB": TIB,
}
_UNIT = "|".join(sorted(UNITS, key=len, reverse=True))
_NUMBER = re.compile(
    rf"(?P<about>[~≈]?)\s*(?P<whole>\d[\d,]*)(?:\.(?P<decimals>\d+))?(?:[eE](?P<power>[+-]?\d{{1,2}}))?"
    rf"(?:\s*(?P<unit>{_UNIT}))?(?:\s.*)?"
)
_TOTALS = ("stored", "matrices", "active", "non_embedding")
_CUT = "digits cut off instead of rounded"


class Printed(NamedTuple):
    """A number as printed: its value, and the places to which it may have been rounded, finest first."""

    value: Fraction
    places: tuple[Fraction, ...] = ()

    def match(self, value: Fraction) -> Match | None:
        """How `value` prints as this number, if it does."""
        if value == self.value:
            return "exact"
        if any(floor(value / place + Fraction(1, 2)) * place == self.value for place in self.places):
            return "rounding"
        if any(floor(value / place) * place == self.value for place in self.places):
            return "truncation"
        return None


class Term(NamedTuple):
    """A part of the difference between the number claimed and the one computed."""

    label: str
    amount: Amount


@dataclass(frozen=True, slots=True)
class Judgement:
    """A claim with its verdict. `claimed` − `computed` is the sum of `terms`; `reading` is what explains it."""

    model: str
    claim: Claim
    claimed: Amount
    computed: Amount
    verdict: Verdict
    reading: str
    terms: tuple[Term, ...]


def _plain(amount: Amount) -> Amount:
    return int(amount) if amount.denominator == 1 else amount


def printed(text: str) -> Printed:
    """The number in a claim's text: `175,181,291,520`, `~39.4M`, `355 years`, `3.14E+23 FLOPs`, `12.9B active`."""
    found = _NUMBER.fullmatch(text.strip())
    if not found:
        raise InvalidValueError(f"claim: read {shown(text)}; allowed: a number and a unit ({', '.join(UNITS)})")
    whole, decimals = found["whole"].replace(",", ""), found["decimals"] or ""
    scale = Fraction(UNITS[found["unit"]] if found["unit"] else 1) * Fraction(10) ** int(found["power"] or 0)
    place = scale / 10 ** len(decimals)
    loose = not decimals and (found["unit"] or found["about"])
    zeros = len(whole) - len(whole.rstrip("0")) if loose else 0
    return Printed(int(whole + decimals) * place, tuple(place * 10**power for power in range(zeros + 1)))


class Counted(NamedTuple):
    """What a component adds to each total; `tied` is a tied unembedding's size."""

    stored: int = 0
    matrices: int = 0
    active: int = 0
    tied: int = 0


@dataclass(frozen=True, slots=True)
class Amounts:
    """A model's dims and counts, from which expressions take their names."""

    dims: dict[str, int]
    parts: dict[str, Counted]

    def names(self, counted: Collection[str] = tuple(COMPONENTS)) -> dict[str, int]:
        """Every name that an expression may use, with only the components in `counted` present."""
        parts = {key: self.parts.get(key, Counted()) if key in counted else Counted() for key in COMPONENTS}
        stored = sum(part.stored for part in parts.values())
        return {
            **self.dims,
            **{key: part.stored for key, part in parts.items()},
            "tied_unembedding": sum(part.tied for part in parts.values()),
            "stored": stored,
            "matrices": sum(part.matrices for part in parts.values()),
            "active": sum(part.active for part in parts.values()),
            "non_embedding": stored - sum(parts[key].stored for key in EMBEDDINGS),
            "fp32_bytes": bytes_of(stored, "fp32"),
            "bf16_bytes": bytes_of(stored, "bf16"),
        }


def amounts(model: Resolved) -> Amounts:
    """Dims and counts of a model. A letter that stands for several sizes in it (heads of two kinds) is no name.

    Layers of several kinds have counts of their own: `L` is that of all together.
    """
    ledger = parameters(model.spec)
    letters = [dim.letter for dim in ledger.dims]
    dims = {dim.letter: dim.size for dim in ledger.dims if letters.count(dim.letter) == 1}
    return Amounts(
        dims=dims | {"L": model.spec.n_layers},
        parts={
            line.key: Counted(line.stored, line.matrices, line.active, line.matrices if line.tied else 0)
            for line in ledger.lines
        },
    )


def judge_all(presets: Iterable[Preset]) -> tuple[Judgement, ...]:
    """Every claim of every preset, judged."""
    return tuple(judge(preset, claim) for preset in presets for claim in preset.claims)


def judge(preset: Preset, claim: Claim) -> Judgement:
    """The verdict on a claim about a preset, and the terms of its difference."""
    own = amounts(resolve(preset.name, {}))
    names = own.names()
    number = printed(claim.text) if claim.value is None else Printed(evaluate(claim.value, names))
    computed = evaluate(claim.of, names)

    def judgement(verdict: Verdict, reading: str, terms: Iterable[Term]) -> Judgement:
        found = tuple(Term(term.label, _plain(term.amount)) for term in terms if term.amount)
        return Judgement(preset.name, claim, _plain(number.value), _plain(computed), verdict, reading, found)

    rest = number.value - computed
    match = number.match(computed)
    if match in ("exact", "rounding"):
        return judgement("exact" if match == "exact" else "rounds", "", [Term("rounding", rest)])
    for reading in claim.readings:
        other = _under(preset, reading, own)
        value = evaluate(reading.expr or claim.of, other.names())
        if how := number.match(value):
            terms = [*_terms(claim, reading, own, other), Term(how, number.value - value)]
            label = f"{reading.label}; {_CUT}" if how == "truncation" else reading.label
            return judgement("wrong" if reading.error else "convention differs", label, terms)
    if match == "truncation":
        return judgement("convention differs", _CUT, [Term(match, rest)])
    return judgement("wrong", "", [Term("unexplained", rest)])


def _under(preset: Preset, reading: Reading, own: Amounts) -> Amounts:
    """The model that a reading speaks of: another preset, other hyperparameters, or the same."""
    if not reading.model and not reading.set:
        return own
    return amounts(resolve(reading.model or preset.name, reading.set))


def _terms(claim: Claim, reading: Reading, own: Amounts, other: Amounts) -> Iterator[Term]:
    """What lies between the claim's quantity and the reading's: by group of components, or the reading as a whole.

    Groups are put in one after the other, so that the terms add up whatever the two expressions are. What is left
    without any component comes from dims alone.
    """
    expr = reading.expr or claim.of
    if not (reading.model or reading.set or expr in _TOTALS):
        yield Term(reading.label, evaluate(expr, other.names()) - evaluate(claim.of, own.names()))
        return
    present: list[str] = []
    before = Fraction(0)
    for group in ("", *GROUPS):
        present += [key for key, component in COMPONENTS.items() if component.group == group]
        gap = evaluate(expr, other.names(present)) - evaluate(claim.of, own.names(present))
        yield Term(group or reading.label, gap - before)
        before = gap
