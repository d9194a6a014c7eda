"""`gptcalc bench` as a document: every number with what it is worth, backends side by side, fits, the roofline."""

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from math import inf
from textwrap import wrap

from gptcalc.errors import plain
from gptcalc.ledger.profile import Point
from gptcalc.ledger.timing import Duel, Fit, Result, Timing
from gptcalc.report.bench_data import (
    bench_data,
    predictions,
    result_key,
    share_of_ceiling,
    share_of_datasheet,
)
from gptcalc.report.bench_points import OWN, Layout, flat, in_order, layout, moves_more, percent, place, point_table
from gptcalc.report.bench_words import bench_heading, bench_notes
from gptcalc.report.document import Column, Document, Drawing, Table, Value
from gptcalc.report.roofline import Series, draw
from gptcalc.units import format_bandwidth, format_bytes, format_duration, format_fixed, format_significant

_NUMBERS = (
    Column("state", "state"),
    Column("median", "median", "amount"),
    Column("marks", ""),
    Column("interval", "±", "amount", drop=2),
    Column("bandwidth", "GB/s", "amount", drop=3),
    Column("ceiling", "ceiling", "amount", drop=1),
    Column("bar", "", "bar", drop=6),
    Column("datasheet", "datasheet", "amount", drop=7),
    Column("bytes", "must move", "amount", drop=4),
    Column("torch", "torch moves", "amount", drop=9),
    Column("predicted", "predicted", "amount", drop=11),
    Column("residual", "off by", "amount", drop=5),
    Column("iqr", "IQR", "amount", drop=8),
    Column("n", "n", "amount", drop=10),
    Column("stopped", "stopped", drop=12),
)
_DUELS = (
    Column("state", "state"),
    Column("eager", "eager", "amount", drop=3),
    Column("compile", "compile", "amount", drop=2),
    Column("winner", "faster"),
    Column("by", "by", "amount"),
    Column("interval", "at 95%", "amount", drop=1),
    Column("eager_ceiling", "eager/ceiling", "amount", drop=5),
    Column("compile_ceiling", "compile/ceiling", "amount", drop=4),
)
_FITS = (
    Column("state", "state"),
    Column("start", "t0", "amount"),
    Column("bandwidth", "GB/s", "amount"),
    Column("ceiling", "ceiling", "amount", drop=2),
    Column("residual", "off at most", "amount", drop=1),
    Column("points", "points", "count", drop=3),
)


def bench_document(timing: Timing, *, explain: bool = False) -> Document:
    """A row for each number, then what follows from them; what is doubtful stands in the notes with its remedy.

    `explain` adds what the bytes are made of.
    """
    shape = layout(timing.profile.points)
    tables = [_number_table(timing, shape)]
    tables += [_duel_table(timing, shape)] if timing.duels else []
    tables += [_fit_table(timing, shape)] if timing.fits else []
    tables += [_problem_table(timing, shape)] if timing.problems else []
    tables += [_bytes_table(timing, shape)] if explain else []
    return Document(
        title=_title(timing),
        heading=tuple(bench_heading(timing, shape)),
        tables=tuple(tables),
        notes=tuple(bench_notes(timing)),
        data=lambda: bench_data(timing),
        drawings=tuple(_drawings(timing)),
    )


def _title(timing: Timing) -> str:
    found = [f"copies at {format_bandwidth(timing.ceiling)}"] if timing.ceiling else []
    found += [f"launches in {format_duration(timing.floor)}"] if timing.floor else []
    if not found:
        found = [f"{len(timing.results)} numbers" if timing.results else "nothing measured yet"]
    return f"{plain(timing.profile.device.name)}: {', '.join(found)}"


def _number_table(timing: Timing, shape: Layout) -> Table:
    predicted = predictions(timing)
    rows = [(result.point, _cells(timing, result, predicted.get(result_key(result)))) for result in in_order(timing)]
    return point_table("", shape, _NUMBERS, rows)


def _cells(timing: Timing, result: Result, predicted: tuple[float, float] | None) -> tuple[Value, ...]:
    """One row of `_NUMBERS`."""
    measured, time, rate = result.measured, result.time, result.bandwidth
    ceiling, datasheet = share_of_ceiling(timing, rate), share_of_datasheet(timing, rate)
    if result.point.case == "empty":
        ceiling, datasheet = None, None  # it is there to move nothing
    return (
        result.state,
        format_duration(time.estimate),
        "".join(mark.sign for mark in result.marks),
        percent(max(time.high - time.estimate, time.estimate - time.low) / time.estimate, 2),
        None if result.point.case == "empty" else _gigabytes(timing, rate),
        _percent(ceiling),
        None if ceiling is None else Fraction(min(ceiling, 1)),
        _percent(datasheet),
        format_bytes(result.bytes),
        format_bytes(result.torch_bytes) if moves_more(result) else None,
        format_duration(predicted[0]) if predicted else None,
        percent(predicted[1], signed=True) if predicted else None,
        percent(result.iqr / time.estimate),
        _times([len(samples) for samples in measured.restarts]),
        None if measured.stopped == "precise" else measured.stopped,
    )


def _gigabytes(timing: Timing, rate: float) -> str:
    """GB/s with as many decimals as the device's speed asks for, the same in all rows."""
    text = format_fixed(Fraction(rate / 1e9), 0 if (timing.ceiling or 0) >= 1e12 else 1)
    return text if text.strip("0.") else format_significant(rate / 1e9, 2)


def _percent(share: float | None) -> str | None:
    return None if share is None else percent(share)


def _times(samples: list[int]) -> str:
    """Restarts × samples of each: `5×20`, or `5×18–22`."""
    least, most = min(samples), max(samples)
    return f"{len(samples)}×{least:,}" + ("" if least == most else f"–{most:,}")


def _duel_table(timing: Timing, shape: Layout) -> Table:
    won = Counter(duel.winner for duel in timing.duels)
    title = f"Backends side by side: compile faster in {won['compile']}, eager in {won['eager']}"
    title += f", neither in {won['neither']}" if won["neither"] else ""
    key = place(timing.profile.points)
    duels = sorted(timing.duels, key=lambda duel: (key(duel.eager.point), duel.eager.state))
    rows = [(duel.eager.point, _duel_cells(timing, duel)) for duel in duels]
    return point_table(title, shape.without("backend"), _DUELS, rows)


def _duel_cells(timing: Timing, duel: Duel) -> tuple[Value, ...]:
    """One row of `_DUELS`: how many times as fast the faster one is."""
    estimate, low, high = duel.speedup
    if duel.winner == "eager":
        estimate, low, high = 1 / estimate, 1 / high, 1 / low if low > 0 else inf
    return (
        duel.eager.state,
        format_duration(duel.eager.time.estimate),
        format_duration(duel.compiled.time.estimate),
        duel.winner,
        f"{_factor(estimate)}×",
        f"over {_factor(low)}" if high == inf else f"{_factor(low)}–{_factor(high)}",
        _percent(share_of_ceiling(timing, duel.eager.bandwidth)),
        _percent(share_of_ceiling(timing, duel.compiled.bandwidth)),
    )


def _factor(value: float) -> str:
    return format_fixed(Fraction(value), 3)


def _fit_table(timing: Timing, shape: Layout) -> Table:
    rows = [(fit.results[0].point, _fit_cells(timing, fit)) for fit in timing.fits]
    alone = shape._replace(shapes=False).without("n_vocab", "n_ctx", "seq")
    return point_table("Fits over the sweep: time = t0 + bytes/bandwidth", alone, _FITS, rows)


def _fit_cells(timing: Timing, fit: Fit) -> tuple[Value, ...]:
    """One row of `_FITS`."""
    return (
        fit.state,
        format_duration(fit.start_ns) if fit.start_ns else "0 ns",
        None if flat(fit) else _gigabytes(timing, fit.bandwidth),
        None if flat(fit) else _percent(share_of_ceiling(timing, fit.bandwidth)),
        percent(max(fit.line.residuals, key=abs), signed=True),
        len(fit.results),
    )


def _problem_table(timing: Timing, shape: Layout) -> Table:
    columns = (Column("kind", "problem"), Column("why", "why there is no number", wraps=True, least=20))
    rows: list[tuple[Point, tuple[Value, ...]]] = [
        (point, (point.problem.kind, point.problem.text)) for point in timing.problems if point.problem
    ]
    return point_table("Without a number", shape, columns, rows)


def _bytes_table(timing: Timing, shape: Layout) -> Table:
    """Each term of the bytes of every kernel, at its largest shape."""
    points: dict[tuple[str, str], Point] = {}
    for result in sorted(timing.results, key=lambda result: result.bytes):
        if result.point.backend == "eager" or (result.point.case, result.point.dtype) not in points:
            points[result.point.case, result.point.dtype] = result.point
    order = place(timing.profile.points)
    columns = (
        Column("what", "", wraps=True),
        Column("formula", "formula"),
        Column("bytes", "bytes", "count", drop=1),
    )
    rows: list[tuple[Point, tuple[Value, ...]]] = []
    for point in sorted(points.values(), key=order):
        rows += [(point, (term.label, term.formula, term.bytes)) for term in point.must_move]
        rows += [(point, (f"torch: {term.label}", term.formula, term.bytes)) for term in point.torch_moves]
    title = "What must be moved (M rows, D width, V vocabulary, C context, T tokens of a sequence, U distinct IDs)"
    return point_table(title, shape.without("backend"), columns, rows)


def _drawings(timing: Timing) -> Iterator[Drawing]:
    """The cold numbers under the roof; the ceiling and the launch are the roof itself."""
    groups: dict[str, list[tuple[int, float]]] = {}
    for result in in_order(timing):
        point = result.point
        if result.state == "cold" and point.case not in OWN and result.bytes:
            name = f"{point.case} {point.dtype}{' compiled' if point.backend == 'compile' else ''}"
            groups.setdefault(name, []).append((result.bytes, result.bandwidth))
    ceiling, floor = timing.ceiling, timing.floor
    if groups and ceiling:
        series = [Series(name, tuple(points)) for name, points in groups.items()]
        yield Drawing(
            "Roofline: GB/s, cold, over the bytes that must be moved",
            lambda width: [*draw(series, ceiling, floor, width), "", *wrap(_why_this_roof(timing), width)],
        )


def _why_this_roof(timing: Timing) -> str:
    launch = f"bytes over a launch ({format_duration(timing.floor)}), then " if timing.floor else ""
    ridge = ""
    if timing.gpu and timing.ceiling and (peak := timing.gpu.peak("fp32")):
        ridge = f" of {format_significant(peak / timing.ceiling, 3)} (fp32 peak over the copy)"
    return (
        f"Roof (·): {launch}the copy's bandwidth. These kernels do at most a few FLOPs a byte, far left of the ridge"
        f"{ridge}, so that launches and memory limit them, not arithmetic."
    )
