"""A benchmark in words: the machine and the run above the numbers, and below them what they mean and what to do."""

from collections.abc import Iterator

from gptcalc.ledger.profile import Device, Profile, Software
from gptcalc.ledger.timing import MARKS, TARGET, Timing
from gptcalc.report.bench_points import OWN, Layout, flat, in_order, moves_more, percent, when
from gptcalc.units import format_bandwidth, format_bytes

NEXT = (
    "Next: --save FILE keeps every sample; --against FILE compares; --backend eager,compile sets both side by side;"
    " a sweep such as --d-model 256:16384:x2 fits t0 + bytes/bandwidth; --explain says what the bytes are made of."
)
#: What the numbers leave out, by kind of device: a CPU is its own host.
NOT_IN_THESE = {
    "cpu": "Not in these numbers: what only a first call does (compilation, tuning). In them: the few to tens of µs"
    " that Python, torch's dispatcher and autograd take for each run, which rule the smallest shapes.",
    "gpu": "Not in these numbers: gaps between kernels while the host launches, allocation, autograd's own work, and"
    " what only a first call does (compilation, tuning).",
}
#: More processes than this for each core, before a run on a CPU began, and its numbers are theirs too.
BUSY = 0.3
#: A line that misses a point by more than this is no model of the kernel.
POOR_FIT = 0.10


def bench_heading(timing: Timing, shape: Layout) -> Iterator[str]:
    """The machine, its state, the run, and what all rows share."""
    profile, gpu = timing.profile, timing.gpu
    yield " · ".join(_device_words(profile.device))
    yield " · ".join(_software_words(profile.software))
    if profile.clocks:
        yield "clocks while sampling: " + " · ".join(
            _clock_words(name, seen, most)
            for name, seen, most in (
                ("SM", profile.clocks.sm, profile.device.max_clock_mhz),
                ("memory", profile.clocks.memory, profile.device.memory_clock_mhz),
            )
        )
    if gpu:
        reached = f"; the copy reaches {percent(timing.ceiling / gpu.bandwidth)}" if timing.ceiling else ""
        yield f"datasheet: {gpu.name}, {format_bandwidth(gpu.bandwidth)}{reached}"
    done = len(profile.points)
    missing = "" if done == profile.asked else ": the rest was not reached"
    yield f"{when(profile)} · {done} of {profile.asked} points{missing} · {profile.command}"
    yield _trust(timing)
    if shape.constants:
        yield f"everywhere: {' · '.join(shape.constants)}"


def _clock_words(name: str, seen: tuple[int, int], most: int | None) -> str:
    low, high = seen
    return f"{name} {f'{low:,}–' if low < high else ''}{high:,}{f' of {most:,}' if most else ''} MHz"


def _trust(timing: Timing) -> str:
    """How much of the report to believe, in one line."""
    known = sum(result.time.width <= TARGET for result in timing.results)
    marked = sum(bool(result.marks) for result in timing.results)
    without = len(timing.problems)
    return (
        f"{known} of {len(timing.results)} numbers are known to ±{percent(TARGET / 2, 2)}; {marked or 'none'} marked"
        + (f"; {without} {'points have' if without > 1 else 'point has'} no number" if without else "")
    )


def _device_words(device: Device) -> Iterator[str]:
    if device.driver:
        yield f"{'macOS' if device.kind == 'mps' else 'driver'} {device.driver}"
    if device.memory_bytes:
        yield f"{format_bytes(device.memory_bytes)} memory"
    cache = {"cuda": "L2", "cpu": "last cache", "mps": "cache"}[device.kind]
    yield f"{cache} {format_bytes(device.cache_bytes)}{'' if device.cache_known else ' assumed (nobody says)'}"
    if device.units:
        yield f"{device.units} {'cores' if device.kind == 'cpu' else 'SMs'}"
    if device.threads:
        yield f"{device.threads} {'thread' if device.threads == 1 else 'threads'}"
    if device.capability:
        yield f"capability {device.capability}"


def _software_words(software: Software) -> Iterator[str]:
    yield f"gptcalc {software.gptcalc}"
    yield f"torch {software.torch}"
    yield from [f"CUDA {software.cuda}"] if software.cuda else []
    yield from [f"Triton {software.triton}"] if software.triton else []
    yield f"Python {software.python}"
    yield software.system


def bench_notes(timing: Timing) -> Iterator[str]:
    """What to know before the numbers are used: what is doubtful and its remedy first, then what the words mean."""
    for mark in MARKS:
        found = sum(mark in result.marks for result in timing.results)
        if found:
            yield f"{mark.sign} {mark.name} ({found} of {len(timing.results)}): {mark.remedy}."
    yield from _machine_doubts(timing.profile)
    yield from _stopped(timing)
    yield from _not_taken(timing)
    yield from _poor_fits(timing)
    yield from _flat_fits(timing)
    yield (
        "±: a second run finds the median this near at 95%; it covers what differs between restarts (fresh inputs at"
        " fresh addresses), not only between the samples of one; what differs between two processes (compiled code, the"
        " layout of memory) is not in it. n is restarts × samples."
    )
    yield _states(timing)
    if timing.duels:
        yield (
            "by: how many times as fast the faster backend is, and within what at 95%; where neither surely is, eager's"
            " time over the compiled one's."
        )
    if any(not result.point.checked for result in timing.results if result.point.case not in OWN):
        yield "Some kernels have no record of a check against float64: their results may be wrong."
    yield (
        "GB/s counts what any implementation must move, over the median; the ceiling is that of a copy, which writes as"
        " much as it reads: what reads more than it writes, or finds its inputs in a cache, can pass 100%."
    )
    for case, why in _reasons(timing).items():
        yield f"{case}: torch's own kernels move more than must be moved. {why}"
    yield NOT_IN_THESE["cpu" if timing.profile.device.kind == "cpu" else "gpu"]
    yield NEXT


def _machine_doubts(profile: Profile) -> Iterator[str]:
    """What disturbs all numbers alike."""
    device = profile.device
    if profile.load is not None and profile.load > BUSY * (device.units or 1):
        yield (
            f"Others compute here: {profile.load:.1f} processes wanted the {device.units or 1} cores before the run."
            " Its numbers are theirs too: run it alone, or with fewer --threads."
        )
    if device.kind == "cuda" and profile.clocks is None:
        yield (
            "Nobody watched the clocks, so that throttled samples are in these numbers: nvidia-ml-py is missing"
            " (pip install 'gptcalc[bench]'), or the card does not answer it."
        )


def _not_taken(timing: Timing) -> Iterator[str]:
    """States that a kernel has no number for."""
    for state in ("cold", "warm"):
        missing = sum(bool(p.measured) and state not in p.measured for p in timing.profile.points if p.case not in OWN)
        if missing:
            why = {
                "cpu": "their inputs are so small that no reasonable number of sets outruns the cache",
                "cuda": "every sample was throttled",
                "mps": "the queue of this device cannot be held without touching the cache",
            }[timing.profile.device.kind]
            yield f"No {state} number for {missing} of {len(timing.profile.points)} points: {why}."


def _stopped(timing: Timing) -> Iterator[str]:
    stopped = sum(result.measured.stopped == "budget" for result in timing.results)
    interrupted = sum(result.measured.stopped == "interrupted" for result in timing.results)
    if interrupted:
        yield (
            f"stopped, interrupted: {interrupted} of {len(timing.results)} numbers have fewer restarts than they were"
            " given time for; the same command with --save measures them again."
        )
    if stopped:
        yield (
            f"stopped, budget: {stopped} of {len(timing.results)} numbers stopped when the time was up, before"
            f" ±{percent(TARGET / 2, 2)} was reached: raise --time-budget."
        )


def _poor_fits(timing: Timing) -> Iterator[str]:
    poor = [fit for fit in timing.fits if max(map(abs, fit.line.residuals)) > POOR_FIT]
    if poor:
        yield (
            f"t0 + bytes/bandwidth misses a point by more than {percent(POOR_FIT, 0)} in {len(poor)} of"
            f" {len(timing.fits)} sweeps: there time does not follow bytes alone (caches, or another kernel from some"
            " size on); predict from the nearest point instead."
        )


def _flat_fits(timing: Timing) -> Iterator[str]:
    n_flat = sum(map(flat, timing.fits))
    if n_flat:
        yield (
            f"In {n_flat} of {len(timing.fits)} sweeps time hardly grows with the bytes: there the fit knows t0 but no"
            " bandwidth; take larger sizes."
        )


def _states(timing: Timing) -> str:
    cold = {
        "cpu": "more inputs in turn than the last cache holds",
        "cuda": "inputs in turn, the L2 written over before each",
        "mps": "inputs in turn, the cache written over before each",
    }[timing.profile.device.kind]
    return (
        f"cold: {cold}, so that all comes from memory; warm: the same input again and again, from the cache as far as"
        " it fits. A kernel whose inputs were just written is somewhere between."
    )


def _reasons(timing: Timing) -> dict[str, str]:
    """Why torch moves more, by the cases it is true of; the table has the bytes."""
    found: dict[str, list[str]] = {}
    for result in in_order(timing):
        if moves_more(result) and result.point.torch_why:
            cases = found.setdefault(result.point.torch_why, [])
            cases += [] if result.point.case in cases else [result.point.case]
    return {", ".join(cases): why for why, cases in found.items()}
