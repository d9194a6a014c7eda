"""`gptcalc claims` as a document and as JSON."""

from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction

from typing_extensions import TypedDict

from gptcalc.ledger.claims import VERDICTS, Judgement
from gptcalc.report.document import Column, Document, Table, Value
from gptcalc.units import format_fixed, format_scientific, format_signed

#: FLOPs of a training run print as papers print them; json and csv keep every digit.
LONG = 10**18


VERDICTS_SAY = (
    "exact: the very number; rounds: the computed number, rounded as printed; convention differs: another legitimate"
    " way to count gives it; wrong: none does. The difference is claimed − computed, and its terms add up to it."
)


class TermJSON(TypedDict):
    """A part of the difference; a whole number, or an exact fraction in a string (`1/3`)."""

    label: str
    amount: int | str


class JudgementJSON(TypedDict):
    """A claim, what it should say, its verdict, and the terms of `claimed` − `computed`."""

    model: str
    what: str
    text: str
    of: str
    claimed: int | str
    computed: int | str
    verdict: str
    reading: str
    terms: list[TermJSON]
    source: str
    note: str


class ClaimsJSON(TypedDict):
    """What `gptcalc claims --format json` prints."""

    schema: str
    verdicts: dict[str, int]
    claims: list[JudgementJSON]


def claims_json(judged: Sequence[Judgement]) -> ClaimsJSON:
    """The claims as a dictionary of plain values."""
    claims = [judgement_json(one) for one in judged]
    return {"schema": "gptcalc.claims/1", "verdicts": counts(judged), "claims": claims}


def judgement_json(judged: Judgement) -> JudgementJSON:
    """One claim as a dictionary of plain values."""
    return {
        "model": judged.model,
        "what": judged.claim.what,
        "text": judged.claim.text,
        "of": judged.claim.of,
        "claimed": _jsonable(judged.claimed),
        "computed": _jsonable(judged.computed),
        "verdict": judged.verdict,
        "reading": judged.reading,
        "terms": [{"label": term.label, "amount": _jsonable(term.amount)} for term in judged.terms],
        "source": judged.claim.source,
        "note": judged.claim.note,
    }


def counts(judged: Iterable[Judgement]) -> dict[str, int]:
    """Claims by verdict, every verdict named."""
    found = Counter(one.verdict for one in judged)
    return {verdict: found[verdict] for verdict in VERDICTS}


def claims_document(judged: Sequence[Judgement]) -> Document:
    """A row for each claim, and how many came out how."""
    summary = ", ".join(f"{number} {verdict}" for verdict, number in counts(judged).items())
    table = claims_table(judged)
    return Document(f"{len(judged)} claims: {summary}", (), (table,), (VERDICTS_SAY,), lambda: _data_table(judged))


def claims_table(judged: Sequence[Judgement], title: str = "") -> Table:
    """Claimed, computed, verdict, and the terms of the difference; the model where there are several."""
    columns = (
        Column("model", "model", drop=1),
        Column("what", "what is claimed", wraps=True),
        Column("text", "claimed", wraps=True),
        Column("computed", "computed", "count"),
        Column("verdict", "verdict", wraps=True),
        Column("difference", "the difference", wraps=True, least=20, drop=2),
        Column("source", "source", wraps=True, least=24, drop=3),
    )
    rows: list[tuple[Value, ...]] = [
        (one.model, one.claim.what, one.claim.text, _amount(one.computed), one.verdict, _terms(one), one.claim.source)
        for one in judged
    ]
    if len({one.model for one in judged}) > 1:
        return Table(title, columns, tuple(rows))
    return Table(title, columns[1:], tuple(row[1:] for row in rows))


def claim_notes(judged: Iterable[Judgement]) -> list[str]:
    """What the catalogue adds to single claims."""
    return [f"{one.claim.text} ({one.claim.what}): {one.claim.note}" for one in judged if one.claim.note]


def _terms(judged: Judgement) -> str:
    """The reading, and the terms with their signs."""
    terms = ", ".join(f"{_signed(term.amount)} {term.label}" for term in judged.terms if term.label != judged.reading)
    alone = [_signed(term.amount) for term in judged.terms if term.label == judged.reading]
    reading = " ".join([judged.reading, *alone])
    return ": ".join(part for part in (reading, terms) if part)


def _signed(amount: int | Fraction) -> str:
    if not -LONG < amount < LONG:
        return ("+" if amount > 0 else "") + format_scientific(int(amount))
    if isinstance(amount, int):
        return format_signed(amount)
    return ("+" if amount > 0 else "") + format_fixed(amount, 2)


def _amount(amount: int | Fraction) -> Value:
    if amount >= LONG:
        return format_scientific(int(amount))
    return amount if isinstance(amount, int) else format_fixed(amount, 2)


def _jsonable(amount: int | Fraction) -> int | str:
    return amount if isinstance(amount, int) else str(amount)


def _data_table(judged: Sequence[Judgement]) -> Table:
    keys = ("model", "what", "text", "claimed", "computed", "verdict", "difference", "source", "note")
    rows = tuple(
        (
            one.model,
            one.claim.what,
            one.claim.text,
            _jsonable(one.claimed),
            _jsonable(one.computed),
            one.verdict,
            _terms(one),
            one.claim.source,
            one.claim.note,
        )
        for one in judged
    )
    return Table("", tuple(Column(key, key) for key in keys), rows)
