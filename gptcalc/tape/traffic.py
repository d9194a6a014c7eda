"""Two folds over a tape: the bytes that go through memory."""

from collections import Counter
from typing import NamedTuple

from gptcalc.formula import Formula, product_size
from gptcalc.tape.rows import Access, Tape, Tensor, all_of


class Traffic(NamedTuple):
    """One term of the bytes that go through memory."""

    label: str
    formula: Formula

    @property
    def bytes(self) -> int:
        """The exact number."""
        return self.formula.value


def must_move(tape: Tape) -> tuple[Traffic, ...]:
    """What any implementation moves: each tensor that no op here made, read once; each result, written once."""
    made = {access.tensor for op in tape.ops for access in op.writes}
    given: dict[Tensor, Access] = {}
    for access in (access for op in tape.ops for access in op.reads if access.tensor not in made):
        known = given.get(access.tensor, access)
        given[access.tensor] = max(known, access, key=lambda one: product_size(one.touched))
    reads = [Traffic(f"read {access.label}", access.formula()) for access in given.values()]
    writes = [Traffic(f"write {result.label}", all_of(result).formula()) for result in tape.results if result in made]
    return (*reads, *writes)


def moves(tape: Tape) -> tuple[Traffic, ...]:
    """What torch's eager kernels on CUDA move: every access of every op, and what they read and write again.

    An upper bound: what one op writes and the next one reads is counted twice, though a small tensor stays in cache.
    """
    counts = Counter(
        (f"{op.name.removeprefix('aten::')}: {verb} {access.label}", access)
        for op in tape.ops
        for verb, accesses in (("read", op.reads), ("write", op.writes), ("again", op.again))
        for access in accesses
    )
    return tuple(Traffic(label, access.formula(count)) for (label, access), count in counts.items())


def reasons(tape: Tape) -> str:
    """Why the kernels move more than they must, each reason once."""
    return " ".join(dict.fromkeys(op.why for op in tape.ops if op.why))
