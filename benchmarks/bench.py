"""How far `gptcalc bench` agrees with other stopwatches, in one run, and a second run with the first.

python benchmarks/bench.py                    agreement, on the GPU where there is one, else on the CPU
python benchmarks/bench.py FIRST SECOND       two saved runs: how many numbers of the second lie in the first's interval

On a CPU, warm medians against `torch.utils.benchmark` alone. On a GPU, cold medians against `triton.testing.do_bench`
for kernels over 50 µs, and the copy ceiling against a plain large copy. Ours and theirs take turns.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.utils.benchmark import Timer

from gptcalc.bench.cases import prepare
from gptcalc.bench.device import Machine, choose_device
from gptcalc.bench.plan import Job
from gptcalc.ledger.profile import Shape, load
from gptcalc.ledger.timing import compare as pairs

GOAL = 0.03
ROUNDS = 15
ROUND_S = 0.1
SLOW_ENOUGH_NS = 50_000
CASES = ("embedding.forward", "embedding.backward", "layernorm.forward", "layernorm.backward", "rmsnorm.forward")
SHAPES = ((1024, 768), (8192, 768), (2048, 4096))


def main() -> None:
    """Print ratios, and how many meet the goal."""
    if len(sys.argv) == 3:
        twice(Path(sys.argv[1]), Path(sys.argv[2]))
        return
    machine = Machine(choose_device("auto"))
    print(f"{machine.device.name}: ours over theirs, median of {ROUNDS} rounds in turn; goal: within {GOAL:.0%}")
    ratios = [compare(machine, case, rows, width) for case in CASES for rows, width in SHAPES]
    if machine.kind == "cuda":
        ratios.append(compare(machine, "copy", 1, 1))
    known = [ratio for ratio in ratios if ratio is not None]
    print(f"{sum(abs(ratio - 1) <= GOAL for ratio in known)} of {len(known)} within {GOAL:.0%}")


def compare(machine: Machine, case: str, rows: int, width: int) -> float | None:
    """Time one kernel both ways, in turn."""
    shape = Shape(rows=rows, d_model=width, n_vocab=50257, n_ctx=1024, seq=1024)
    device = machine.device
    work = prepare(Job(case, "fp32", "eager", shape), device.kind, cache_bytes=device.cache_bytes, units=device.units)
    work.check()
    state = "cold" if device.kind == "cuda" else "warm"
    stopwatch = machine.stopwatch
    ours, theirs = [], []
    for _ in range(ROUNDS):
        sets = work.sets(stopwatch.sets_needed(state, sum(term.bytes for term in work.must_move)) or 1)
        ours.append(median(stopwatch.collect(sets, state, ROUND_S).samples))
        theirs.append(plain_copy() if case == "copy" else OTHER[device.kind](sets[0], machine))
    ratio = median(one / other for one, other in zip(ours, theirs, strict=True))
    name = f"{case} {rows} x {width}"
    if device.kind == "cuda" and median(theirs) < SLOW_ENOUGH_NS:
        print(f"  {name:<34}{median(ours) / 1e3:10.1f} µs{ratio:8.3f}  (under 50 µs: not compared)")
        return None
    print(f"  {name:<34}{median(ours) / 1e3:10.1f} µs{ratio:8.3f}")
    return ratio


def torch_timer(run: Callable[[], object], machine: Machine) -> float:
    """`torch.utils.benchmark` alone, in nanoseconds."""
    timer = Timer("run()", globals={"run": run}, num_threads=machine.device.threads)
    return float(timer.blocked_autorange(min_run_time=ROUND_S).median * 1e9)


def do_bench(run: Callable[[], object], machine: Machine) -> float:  # noqa: ARG001  as torch_timer
    """Triton's, in nanoseconds: it zeroes 256 MB before each run."""
    from triton.testing import do_bench as measure

    return float(measure(run, warmup=25, rep=1000 * ROUND_S, return_mode="median") * 1e6)


def plain_copy() -> float:
    """A copy of 1 GiB between plain events, in nanoseconds."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(20):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e6)
    return median(times)


OTHER = {"cpu": torch_timer, "cuda": do_bench}


def twice(first: Path, second: Path) -> None:
    """How many numbers of the second run lie in the interval that the first one quotes."""
    changes = pairs(load(first), load(second)).changes
    outside = [c for c in changes if not c.before.time.low <= c.after.time.estimate <= c.before.time.high]
    share = 1 - len(outside) / len(changes)
    print(f"{len(changes) - len(outside)} of {len(changes)} numbers ({share:.1%}) lie in the first interval; goal: 95%")
    for change in outside:
        point = change.before.point
        name = f"{point.case} {point.shape.rows}x{point.shape.d_model} {point.dtype} {point.backend}"
        print(f"  {name} {change.before.state}: {change.ratio.estimate - 1:+.2%}, ±{change.before.time.width / 2:.2%}")


if __name__ == "__main__":
    main()
