"""How fast `gptcalc fit` fills its grid in process, without torch, and that each of its numbers is the largest.

    python benchmarks/fit.py [MODEL ...] [--rounds N] [--presets [EVERY]] [--processes N]

The grid is that of each model on the GPUs that most people have, in seven ways: GPT-2 small, GPT-3 175B and Llama 3.1
8B where none is named. The yardstick sets and removes an entry of a dict, adds two integers and compares them, as often
as one training step of the model with one sequence allocates and frees; rounds are interleaved and medians compared,
so that a noisy machine slows both sides alike. CPU time is what the goal speaks of, since others may use the machine.
Then every number is asked of the engine anew, as `gptcalc memory` answers, at the number and at the next one.

With `--presets` the grids of all presets (of every so manieth) are filled by some processes, by the clock.
"""

import argparse
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from memory import yardstick

from gptcalc.catalog import preset_names, resolve
from gptcalc.ledger.fit import fit, rooms
from gptcalc.ledger.grid import Grid, Wish, by_gpu
from gptcalc.ledger.memory import memory, record
from gptcalc.ledger.solve import most_of
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.tape.kernels import CudaKernels, target, torch_version

MODELS = ("gpt2-small", "gpt3-175b", "llama-3.1-8b")
GOAL_S, GOAL_ALL_S = 2, 60


def grid(name: str) -> Grid:
    """What is measured, from the model's name on."""
    return by_gpu(resolve(name, {}), rooms(("common",)), Wish())


def n_events(spec: Spec) -> int:
    """Allocations and frees of two steps of training."""
    plan = Plan(seq=min(1024, spec.n_ctx))
    recording = record("training", spec, plan, CudaKernels(target(plan.target), torch_version(plan.torch)))
    runs = [run for stage in recording.record.stages for run in recording.runs(stage)]
    return sum(event.times * run.times for run in runs for event in run.events)


def cpu(run: object, *arguments: object) -> float:
    """CPU time of a call, in seconds."""
    start = time.process_time()
    run(*arguments)  # type: ignore[operator]
    return time.process_time() - start


def checked(found: Grid) -> int:
    """How many figures of `memory` say that a number fits, or that the next does not; an error where one does not."""
    count = 0
    for row in found.rows:
        for cell in row.cells:
            numbers = [(cell.value, True), ((cell.value or 0) + 1, False)]
            for number, fits in numbers:
                if cell.plan is None or number is None or number > most_of(row.model.spec, found.what):
                    continue
                totals = memory(row.model.spec, cell.plan.model_copy(update={found.what: number}), (cell.way.mode,))
                if fit(totals.modes[0].totals, row.room).fits is not fits:
                    raise SystemExit(f"{row.model.name} on {row.room.name}, {cell.way.key}: {number} is wrong")
                count += 1
    return count


def of_one(name: str, rounds: int, *, check: bool) -> None:
    """Print one model's medians."""
    spec, samples = resolve(name, {}).spec, [list[float](), list[float]()]
    events = n_events(spec)
    for _ in range(rounds):
        samples[0].append(cpu(grid, name))
        samples[1].append(cpu(yardstick, events))
    seconds, yard = map(statistics.median, samples)
    found = grid(name)
    cells = sum(cell.plan is not None for row in found.rows for cell in row.cells)
    met = "met" if seconds < GOAL_S else "NOT met"
    said = f", {checked(found):,} figures checked" if check else ""
    print(
        f"  {name:<16}{seconds:7.2f} s CPU  {cells:>4} cells  {seconds / cells * 1000:6.1f} ms a cell"
        f"  {seconds / yard / cells:6.1f} × the yardstick a cell  goal {met}{said}",
        flush=True,
    )


def seconds_of(name: str) -> tuple[str, float]:
    """CPU time of a model's grid, in a process of its own."""
    return name, cpu(grid, name)


def of_all(every: int, processes: int) -> None:
    """Print how long all take by the clock."""
    names, start = preset_names()[::every], time.perf_counter()
    with ProcessPoolExecutor(processes) as pool:
        found = dict(pool.map(seconds_of, names))
    wall = (time.perf_counter() - start) * every
    slowest = max(found, key=found.__getitem__)
    met = "met" if wall < GOAL_ALL_S else "NOT met"
    print(
        f"  {len(names)} presets on {processes} processes: {wall:.0f} s by the clock{' for all' if every > 1 else ''},"
        f" {sum(found.values()) * every:.0f} s CPU; the slowest, {slowest}, takes {found[slowest]:.2f} s; goal {met}"
    )


def main() -> None:
    """Print the medians, the ratios, and whether the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--presets", type=int, nargs="?", const=1, default=0, metavar="EVERY")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--no-check", action="store_true")
    asked = parser.parse_args()
    print(f"grid of a model on {len(rooms(('common',)))} GPUs, in process; goal: each under {GOAL_S} s of CPU time")
    for name in asked.models:
        of_one(name, asked.rounds, check=not asked.no_check)
    if asked.presets:
        print(f"grids of all presets; goal: under {GOAL_ALL_S} s on two cores")
        of_all(asked.presets, asked.processes)
    if "torch" in sys.modules:
        raise SystemExit("torch was imported")
    print("  torch was not imported")


if __name__ == "__main__":
    main()
