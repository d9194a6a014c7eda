"""How fast `gptcalc count` starts and counts, as ratios to a script measured alongside it.

    python benchmarks/count.py [ROUNDS]

Cold start is compared with a script that does no more than import typer, make one pydantic model and print one rich
table: what any command of this kind must pay. Rounds are interleaved, and medians compared, so that a noisy machine
slows both sides alike. The first round is not counted: it writes the bytecode that an installed package has.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from gptcalc.catalog import resolve
from gptcalc.ledger.parameters import parameters

BASELINE = """
import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

class Model(BaseModel):
    width: int

table = Table("name", "width")
table.add_row("gpt3-175b", str(Model(width=12288).width))
Console().print(table)
"""
COLD = {
    "baseline": [sys.executable, "-c", BASELINE],
    "count gpt3-175b": [sys.executable, "-m", "gptcalc", "count", "gpt3-175b"],
    "count gpt3-175b --format json": [sys.executable, "-m", "gptcalc", "count", "gpt3-175b", "--format", "json"],
}
GOAL_RATIO = 1.25
GOAL_US = 300


def cold_start(rounds: int) -> dict[str, float]:
    """Median seconds of each command, measured in turn."""
    samples: dict[str, list[float]] = {name: [] for name in COLD}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(rounds + 1):
        for name, command in COLD.items():
            start = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=environment)
            samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in samples.items()}


def in_process(layers: int, repeats: int = 2000) -> float:
    """Median microseconds of one count of a preset that is already loaded."""
    spec = resolve("gpt3-175b", {"n_layers": layers}).spec
    times = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        parameters(spec)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def main() -> None:
    """Print the table."""
    medians = cold_start(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
    print(f"cold start, goal at most {GOAL_RATIO} x baseline")
    for name, seconds in medians.items():
        print(f"  {name:<32}{seconds * 1000:8.1f} ms  {seconds / medians['baseline']:5.2f} x")
    print(f"one count in process, goal under {GOAL_US} us at any depth")
    for layers in (1, 96, 100_000):
        print(f"  {layers:>7,} layers {in_process(layers):8.1f} us")


if __name__ == "__main__":
    main()
