"""What witnesses say, as records: PyTorch makes them (`gptcalc.witness`), reports show them."""

from typing import NamedTuple

from gptcalc.catalog import Resolved


class Finding(NamedTuple):
    """One disagreement: the inventory says `expected`, the module has `found`."""

    kind: str
    name: str
    expected: str
    found: str


class Evidence(NamedTuple):
    """What a witness saw; `skipped` says why it could not look.

    A witness of parameters counts `tensors` and what they store; one of memory the tensors or events that it saw, and
    the `bytes` of them that are alive at once.
    """

    witness: str
    subject: str
    tensors: int = 0
    stored: int = 0
    findings: tuple[Finding, ...] = ()
    skipped: str = ""
    bytes: int = 0


class Check(NamedTuple):
    """The inventory of a model before its witnesses."""

    model: Resolved
    evidence: tuple[Evidence, ...]

    @property
    def agrees(self) -> bool:
        """Whether no witness disagreed, and one at least was heard."""
        heard = [seen for seen in self.evidence if not seen.skipped]
        return bool(heard) and not any(seen.findings for seen in heard)
