"""`gptcalc check` as a document and as JSON."""

from collections.abc import Sequence

from typing_extensions import TypedDict

from gptcalc.ledger.evidence import Check, Evidence
from gptcalc.report.document import Column, Document, Table, Value
from gptcalc.units import format_count

#: The witnesses of memory, whose amounts are bytes.
OF_MEMORY = ("saved-tensors", "trace", "cuda")
#: A broken row breaks every layer; the table shows the first of many.
SHOWN_FINDINGS = 20


class EvidenceJSON(TypedDict):
    """What one witness saw; `agrees` is null where it could not look (`skipped` says why)."""

    witness: str
    subject: str
    agrees: bool | None
    tensors: int
    stored: int
    bytes: int
    skipped: str
    findings: list[dict[str, str]]


class ModelCheckJSON(TypedDict):
    """All witnesses of one model."""

    name: str
    agrees: bool
    evidence: list[EvidenceJSON]


class CheckJSON(TypedDict):
    """What `gptcalc check --format json` prints."""

    schema: str
    agrees: bool
    models: list[ModelCheckJSON]


def check_json(checks: Sequence[Check]) -> CheckJSON:
    """The checks as a dictionary of plain values."""
    return {
        "schema": "gptcalc.check/1",
        "agrees": all(check.agrees for check in checks),
        "models": [model_check_json(check) for check in checks],
    }


def model_check_json(check: Check) -> ModelCheckJSON:
    """One model's check."""
    return {
        "name": check.model.name,
        "agrees": check.agrees,
        "evidence": [
            {
                "witness": seen.witness,
                "subject": seen.subject,
                "agrees": None if seen.skipped else not seen.findings,
                "tensors": seen.tensors,
                "stored": seen.stored,
                "bytes": seen.bytes,
                "skipped": seen.skipped,
                "findings": [finding._asdict() for finding in seen.findings],
            }
            for seen in check.evidence
        ],
    }


def check_document(checks: Sequence[Check]) -> Document:
    """A row for each witness of each model, then what disagreed."""
    agreeing = sum(check.agrees for check in checks)
    classes = sum(check.agrees and not any(seen.skipped for seen in check.evidence) for check in checks)
    title = f"{agreeing} of {len(checks)} models agree with PyTorch, {classes} of them before every witness"
    if len(checks) == 1:
        found = any(seen.findings for seen in checks[0].evidence)
        verdict = "agrees with PyTorch" if agreeing else "DISAGREES with PyTorch" if found else "not checked"
        verdict += "; family mapping not checked" if agreeing and not classes else ""
        title = f"{checks[0].model.title}: {verdict}"
    tables = [_evidence_table(checks), *_finding_tables(checks)]
    return Document(title, (), tuple(tables), tuple(check_reasons(checks)), lambda: _data_table(checks))


def evidence_tables(check: Check) -> tuple[Table, ...]:
    """The check as it is printed below a count."""
    return (_evidence_table([check]), *_finding_tables([check]))


def _verdict(seen: Evidence) -> str:
    if seen.skipped:
        return "not checked"
    return f"{len(seen.findings)} findings" if seen.findings else "agrees"


def _evidence_table(checks: Sequence[Check]) -> Table:
    rows: list[tuple[Value, ...]] = []
    of_memory = any(seen.witness in OF_MEMORY for check in checks for seen in check.evidence)
    for check in checks:
        for index, seen in enumerate(check.evidence):
            name = "" if index else check.model.name
            amount = None if seen.skipped else seen.bytes if of_memory else seen.stored
            tensors = None if seen.skipped else seen.tensors
            rows.append((name, seen.witness, _verdict(seen), tensors, amount, seen.subject))
    columns = (
        Column("model", "model", folded=True),
        Column("witness", "witness"),
        Column("verdict", "verdict"),
        Column("tensors", "seen" if of_memory else "tensors", "count", drop=1),
        Column("stored", "bytes at once" if of_memory else "parameters", "count"),
        Column("subject", "what ran" if of_memory else "built", wraps=of_memory, drop=2),
    )
    return Table("Against PyTorch", columns, tuple(rows))


def _finding_tables(checks: Sequence[Check]) -> list[Table]:
    columns = (
        Column("kind", "kind"),
        Column("name", "tensor, component or total", wraps=True, folded=True),
        Column("expected", "gptcalc says", wraps=True),
        Column("found", "PyTorch has", wraps=True),
    )
    tables = []
    for check in checks:
        for seen in check.evidence:
            if seen.findings:
                more = len(seen.findings) - SHOWN_FINDINGS
                title = f"{check.model.name} against {seen.witness}"
                title += (
                    f" (the first {SHOWN_FINDINGS}; {format_count(more)} more in --format json)" if more > 0 else ""
                )
                tables.append(Table(title, columns, tuple(seen.findings[:SHOWN_FINDINGS])))
    return tables


def check_reasons(checks: Sequence[Check]) -> list[str]:
    """Why a witness was not heard, each reason once with its models."""
    reasons: dict[str, list[str]] = {}
    for check in checks:
        for seen in check.evidence:
            if seen.skipped:
                reasons.setdefault(f"{seen.subject}: {seen.skipped}", []).append(check.model.name)
    return [f"Note: {reason} ({', '.join(names)})" for reason, names in reasons.items()]


def _data_table(checks: Sequence[Check]) -> Table:
    keys = ("model", "witness", "verdict", "tensors", "stored", "bytes", "subject", "skipped")
    rows = tuple(
        (check.model.name, seen.witness, _verdict(seen), *seen[2:4], seen.bytes, seen.subject, seen.skipped)
        for check in checks
        for seen in check.evidence
    )
    return Table("", tuple(Column(key, key) for key in keys), rows)
