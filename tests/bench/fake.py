"""Kernels on a fake clock, whose times are drawn from known distributions."""

from collections.abc import Callable
from random import Random

from gptcalc.bench.sampling import Batch, Sampler
from gptcalc.ledger.profile import Measured

Draw = Callable[[Random], float]

TRUE_NS = 1_000_000
BUDGET_S = 0.3


def gauss(share: float) -> Draw:
    """Around 1, with this standard deviation."""
    return lambda rng: 1 + rng.gauss(0, share)


class FakeKernel:
    """Takes `TRUE_NS` × a factor of its restart × a factor of the sample, to a tick, plus a drift by the time."""

    #: Nanoseconds between two readings that the clock can tell apart.
    tick = 1
    drift_per_s = 0.0
    #: The share of samples at half the clock, which the clock reader sees.
    throttled = 0.0

    def __init__(self, seed: int | Random, restart: Draw, noise: Draw) -> None:
        """`seed` draws everything."""
        self.rng = seed if isinstance(seed, Random) else Random(seed)
        self.restart, self.noise = restart, noise
        self.clock = 0.0

    def having(self, **traits: float) -> "FakeKernel":
        """The same kernel with other traits."""
        vars(self).update(traits)
        return self

    def now(self) -> float:
        """Seconds on the fake clock."""
        return self.clock

    def begin(self) -> Callable[[float], Batch]:
        """A restart."""
        factor = self.restart(self.rng)

        def collect(seconds: float) -> Batch:
            end, samples, rejected = self.clock + seconds, [], 0
            while self.clock < end:
                time = TRUE_NS * factor * self.noise(self.rng) * (1 + self.drift_per_s * self.clock)
                slow = self.rng.random() < self.throttled
                sample = max(round(time * (2 if slow else 1) / self.tick) * self.tick, 1)
                self.clock += sample / 1e9
                if slow:
                    rejected += 1
                else:
                    samples.append(sample)
            return Batch(tuple(samples), rejected)

        return collect


def measure(kernel: FakeKernel, budget_s: float = BUDGET_S) -> Measured:
    """Sample a kernel as a run does."""
    sampler = Sampler(budget_s, kernel.now)
    while sampler.stopped is None:
        started = kernel.now()
        sampler.restart(kernel.begin(), started)
    assert sampler.measured
    return sampler.measured
