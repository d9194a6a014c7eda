"""How fast `gptcalc memory` answers in process, without torch, beside what any replay of as many events must do.

    python benchmarks/memory.py [MODEL] [ROUNDS]

The model is GPT-3 175B where none is named: training at batch 1 and 2,048 tokens, and inference. The yardstick
allocates and frees as many times as the recorded run does: it sets and removes an entry of a dict, adds two integers
and compares them. Rounds are interleaved and medians compared, so that a noisy machine slows both sides alike; CPU time
is what the goal speaks of, since others may use the machine.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from gptcalc.catalog import resolve
from gptcalc.ledger.memory import ModeName, memory, record
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.tape.kernels import CudaKernels, target, torch_version

GOAL_MS = 100
PLAN = Plan(batch=1, seq=2048)
MODES: tuple[ModeName, ...] = ("training", "inference")


class Seconds(NamedTuple):
    """A run on both clocks."""

    cpu: float
    wall: float


def timed(run: Callable[[], object]) -> Seconds:
    """Run once."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def n_events(mode: ModeName, spec: Spec) -> int:
    """Allocations and frees that are replayed, over all layers."""
    recording = record(mode, spec, PLAN, CudaKernels(target(PLAN.target), torch_version(PLAN.torch)))
    runs = [run for stage in recording.record.stages for run in recording.runs(stage)]
    return sum(event.times * run.times for run in runs for event in run.events)


def yardstick(events: int) -> int:
    """What cannot be left out of a replay."""
    alive: dict[int, int] = {}
    now = most = 0
    for event in range(events // 2):
        alive[event] = event
        now += event
        if now > most:  # noqa: PLR1730  a call takes longer
            most = now
        now -= alive.pop(event)
    return most


def main() -> None:
    """Print the medians, the ratios, and whether the goal is met."""
    name = sys.argv[1] if len(sys.argv) > 1 else "gpt3-175b"
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 15
    spec = resolve(name, {}).spec
    print(
        f"memory of {name}, {PLAN.batch} × {PLAN.seq:,} tokens, in process; goal: each under {GOAL_MS} ms of CPU time"
    )
    for mode in MODES:
        events = n_events(mode, spec)
        runs: dict[str, Callable[[], object]] = {
            "memory": lambda mode=mode: memory(spec, PLAN, (mode,)),  # type: ignore[misc]
            "yardstick": lambda events=events: yardstick(events),  # type: ignore[misc]
        }
        samples: dict[str, list[Seconds]] = {key: [] for key in runs}
        for _ in range(rounds):
            for key, run in runs.items():
                samples[key].append(timed(run))
        cpu = {key: statistics.median(sample.cpu for sample in found) for key, found in samples.items()}
        wall = statistics.median(sample.wall for sample in samples["memory"])
        met = "met" if cpu["memory"] * 1000 < GOAL_MS else "NOT met"
        print(
            f"  {mode:<10}{cpu['memory'] * 1000:7.1f} ms CPU {wall * 1000:7.1f} ms wall  {events:>7,} events"
            f"  {cpu['memory'] / cpu['yardstick']:5.1f} × the yardstick  goal {met}"
        )
    if "torch" in sys.modules:
        raise SystemExit("torch was imported")
    print("  torch was not imported")


if __name__ == "__main__":
    main()
