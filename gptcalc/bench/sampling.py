"""When to measure again and when to stop. Opens no torch, and no clock of its own: tests run it on a fake one.

A number is sampled in several restarts: fresh inputs at fresh addresses, while other kernels run in between. The first
`LEAST_RESTARTS` say how much restarts differ; more are taken until the interval that `gptcalc.stats.repeatable` quotes
is narrow, or the time is spent.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from gptcalc.ledger.profile import Measured, Stop
from gptcalc.ledger.timing import TARGET
from gptcalc.stats import LEAST_RESTARTS, repeatable

#: A restart samples for this share of the time, and never longer than so many seconds: more time is more restarts.
SHARE = 1 / 20
LONGEST_S = 0.1


class Batch(NamedTuple):
    """Samples of one restart, in nanoseconds, and how many more were thrown out because the clock was throttled."""

    samples: tuple[int, ...]
    rejected: int


class Collect(Protocol):
    """Runs a kernel for about so many seconds; one sample at least, unless all were thrown out."""

    def __call__(self, seconds: float) -> Batch:
        """Sample."""
        ...


class Sampler:
    """The samples of one number, and whether it needs more."""

    def __init__(self, budget_s: float, now: Callable[[], float]) -> None:
        """`budget_s` seconds of `now` for all restarts, what is set up for them included."""
        self.budget_s, self.now = budget_s, now
        self.spent_s = 0.0
        self.restarts: list[tuple[int, ...]] = []
        self.rejected = 0
        self.stopped: Stop | None = None

    @property
    def slice_s(self) -> float:
        """How long one restart samples."""
        return min(self.budget_s * SHARE, LONGEST_S)

    def restart(self, collect: Collect, started: float) -> None:
        """Take one restart's samples, which began to be set up at `started`, and decide whether it was the last."""
        batch = collect(self.slice_s)
        self.rejected += batch.rejected
        if batch.samples:
            self.restarts.append(batch.samples)
        self.spent_s += self.now() - started
        self.stopped = self._decide()

    def _decide(self) -> Stop | None:
        taken = len(self.restarts)
        # A further restart would take as long as these did.
        over = self.spent_s + self.spent_s / max(taken, 1) > self.budget_s
        if taken < LEAST_RESTARTS:
            # Two say how much they differ; a device that is throttled all the time never gets there.
            hopeless = self.rejected and self.spent_s >= 2 * self.budget_s
            return "budget" if over and (taken >= 2 or hopeless) else None
        if repeatable(self.restarts).width <= TARGET:
            return "precise"
        return "budget" if over else None

    def interrupt(self) -> None:
        """Take no further samples."""
        self.stopped = self.stopped or "interrupted"

    @property
    def measured(self) -> Measured | None:
        """The record; `None` where there are not two restarts."""
        if self.stopped is None or len(self.restarts) < 2:
            return None
        return Measured(
            restarts=tuple(self.restarts),
            rejected=self.rejected,
            stopped=self.stopped,
        )
