"""How the input learns where it stands: a table, or sinusoids that store nothing."""

from collections.abc import Iterator
from typing import Literal

from gptcalc.formula import Dim
from gptcalc.inventory import Slice, Weight, Weighted
from gptcalc.spec import Record, Spec


class LearnedPositions(Weighted):
    """A row of width D for each of C positions (Radford et al. 2018, §4.1)."""

    kind: Literal["learned"] = "learned"

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """The position table (C, D)."""
        table = ((Dim("C", spec.n_ctx),), (Dim("D", spec.d_model),))
        yield Weight("weight", "lookup", (Slice("positions", table),))


class SinusoidalPositions(Weighted):
    """Fixed sinusoids of any length (Vaswani et al. 2017, §3.5): no parameters."""

    kind: Literal["sinusoidal"] = "sinusoidal"

    def weights(self, spec: Spec) -> Iterator[Weight]:  # noqa: ARG002  the signature is every part's
        """Nothing is stored."""
        yield from ()


class Rotary(Record):
    """Rotations of query and key inside attention (Su et al. 2021): no parameters.

    `fraction` of the head size is rotated; `scaling` names a long-context rule, `None` the plain angles.
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: str | None = None
