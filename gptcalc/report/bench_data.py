"""`gptcalc bench` as JSON and as the records of csv."""

from typing_extensions import TypedDict

from gptcalc.ledger.profile import Moved, Point
from gptcalc.ledger.timing import Duel, Fit, Result, Timing
from gptcalc.report.bench_points import in_order, point_key
from gptcalc.report.bench_words import bench_notes
from gptcalc.report.document import Column, Table, Value


class CeilingJSON(TypedDict):
    """What the device reached in a large copy."""

    bytes_per_second: int
    share_of_datasheet: float | None


class DatasheetJSON(TypedDict):
    """What its maker publishes."""

    name: str
    bytes_per_second: int
    source: str


class MovedJSON(TypedDict):
    """One term of the bytes that a kernel moves; `formula` in dims, with the bytes of an element as coefficient."""

    label: str
    formula: str
    bytes: int


class BenchLineJSON(TypedDict):
    """One number: `amount` is the median; `low_ns` and `high_ns` say where a second run finds it at 95 %.

    `samples_ns` has every sample, restart by restart. Shares are 1 at the limit. Null where it is not known.
    """

    key: str
    label: str
    case: str
    state: str
    dtype: str
    backend: str
    shape: dict[str, int]
    amount: int
    unit: str
    low_ns: int
    high_ns: int
    iqr_ns: int
    n: int
    restarts: int
    rejected: int
    stopped: str
    bytes: int
    formula: str
    must_move: list[MovedJSON]
    torch_bytes: int
    torch_moves: list[MovedJSON]
    torch_why: str
    bytes_per_second: int
    share_of_ceiling: float | None
    share_of_datasheet: float | None
    predicted_ns: int | None
    residual: float | None
    checked: str
    marks: list[str]
    samples_ns: list[list[int]]


class FitJSON(TypedDict):
    """`t0 + bytes/bandwidth` over the lines in `keys`; the residuals, in their order, are predicted/measured − 1."""

    case: str
    dtype: str
    backend: str
    state: str
    t0_ns: int
    bytes_per_second: int
    share_of_ceiling: float | None
    keys: list[str]
    residuals: list[float]


class DuelJSON(TypedDict):
    """Two backends on the same work; `speedup` is eager's time over the compiled one's, with its 95 % interval."""

    eager: str
    compile: str
    speedup: float
    low: float
    high: float
    winner: str


class ProblemJSON(TypedDict):
    """A point without a number, and why."""

    key: str
    kind: str
    text: str


class BenchJSON(TypedDict):
    """What `gptcalc bench --format json` prints."""

    schema: str
    command: str
    started: str
    device: dict[str, str | int | bool | None]
    software: dict[str, str | None]
    clocks: dict[str, list[int]] | None
    load: float | None
    ceiling: CeilingJSON | None
    floor_ns: int | None
    datasheet: DatasheetJSON | None
    asked: int
    lines: list[BenchLineJSON]
    fits: list[FitJSON]
    backends: list[DuelJSON]
    problems: list[ProblemJSON]
    notes: list[str]


def bench_json(timing: Timing) -> BenchJSON:
    """The run as a dictionary of plain values."""
    profile, gpu, clocks = timing.profile, timing.gpu, timing.profile.clocks
    ceiling: CeilingJSON | None = None
    datasheet: DatasheetJSON | None = None
    if timing.ceiling:
        ceiling = {
            "bytes_per_second": round(timing.ceiling),
            "share_of_datasheet": timing.ceiling / gpu.bandwidth if gpu else None,
        }
    if gpu:
        datasheet = {"name": gpu.name, "bytes_per_second": gpu.bandwidth, "source": "; ".join(gpu.sources)}
    return {
        "schema": "gptcalc.bench/1",
        "command": profile.command,
        "started": profile.started,
        "device": profile.device.model_dump(),
        "software": profile.software.model_dump(),
        "clocks": {"sm": list(clocks.sm), "memory": list(clocks.memory)} if clocks else None,
        "ceiling": ceiling,
        "floor_ns": None if timing.floor is None else round(timing.floor),
        "datasheet": datasheet,
        "load": profile.load,
        "asked": profile.asked,
        "lines": bench_lines(timing),
        "fits": [_fit_json(timing, fit) for fit in timing.fits],
        "backends": [_duel_json(duel) for duel in timing.duels],
        "problems": [_problem_json(point) for point in timing.problems],
        "notes": list(bench_notes(timing)),
    }


def bench_lines(timing: Timing) -> list[BenchLineJSON]:
    """Every number in the order of reports."""
    predicted = predictions(timing)
    return [_line(timing, result, predicted.get(result_key(result))) for result in in_order(timing)]


def predictions(timing: Timing) -> dict[str, tuple[float, float]]:
    """Where a fit has them, predicted nanoseconds and by how much they miss, by the key of the line."""
    return {
        result_key(result): (fit.start_ns + result.bytes / fit.line.rate, residual)
        for fit in timing.fits
        for result, residual in zip(fit.results, fit.line.residuals, strict=True)
    }


def result_key(result: Result) -> str:
    """What names the line in json and csv."""
    return f"{point_key(result.point)}/{result.state}"


def share_of_ceiling(timing: Timing, rate: float) -> float | None:
    """Bytes per second as a share of the copy's."""
    return rate / timing.ceiling if timing.ceiling else None


def share_of_datasheet(timing: Timing, rate: float) -> float | None:
    """Bytes per second as a share of what is published."""
    return rate / timing.gpu.bandwidth if timing.gpu else None


def _line(timing: Timing, result: Result, predicted: tuple[float, float] | None) -> BenchLineJSON:
    point, measured = result.point, result.measured
    compiled = " compiled" if point.backend == "compile" else ""
    idle = point.case == "empty"  # it is there to move nothing
    return {
        "key": result_key(result),
        "label": f"{point.case} {point.shape.rows} × {point.shape.d_model} {point.dtype}{compiled}, {result.state}",
        "case": point.case,
        "state": result.state,
        "dtype": point.dtype,
        "backend": point.backend,
        "shape": point.shape.model_dump(),
        "amount": round(result.time.estimate),
        "unit": "ns",
        "low_ns": round(result.time.low),
        "high_ns": round(result.time.high),
        "iqr_ns": round(result.iqr),
        "n": result.n,
        "restarts": len(measured.restarts),
        "rejected": measured.rejected,
        "stopped": measured.stopped,
        "bytes": result.bytes,
        "formula": " + ".join(term.formula for term in point.must_move),
        "must_move": _moved(point.must_move),
        "torch_bytes": result.torch_bytes,
        "torch_moves": _moved(point.torch_moves),
        "torch_why": point.torch_why,
        "bytes_per_second": round(result.bandwidth),
        "share_of_ceiling": None if idle else share_of_ceiling(timing, result.bandwidth),
        "share_of_datasheet": None if idle else share_of_datasheet(timing, result.bandwidth),
        "predicted_ns": round(predicted[0]) if predicted else None,
        "residual": predicted[1] if predicted else None,
        "checked": point.checked,
        "marks": [mark.name for mark in result.marks],
        "samples_ns": [list(samples) for samples in measured.restarts],
    }


def _moved(terms: tuple[Moved, ...]) -> list[MovedJSON]:
    return [{"label": term.label, "formula": term.formula, "bytes": term.bytes} for term in terms]


def _fit_json(timing: Timing, fit: Fit) -> FitJSON:
    return {
        "case": fit.case,
        "dtype": fit.dtype,
        "backend": fit.backend,
        "state": fit.state,
        "t0_ns": round(fit.start_ns),
        "bytes_per_second": round(fit.bandwidth),
        "share_of_ceiling": share_of_ceiling(timing, fit.bandwidth),
        "keys": [result_key(result) for result in fit.results],
        "residuals": list(fit.line.residuals),
    }


def _duel_json(duel: Duel) -> DuelJSON:
    return {
        "eager": result_key(duel.eager),
        "compile": result_key(duel.compiled),
        "speedup": duel.speedup.estimate,
        "low": duel.speedup.low,
        "high": duel.speedup.high,
        "winner": duel.winner,
    }


def _problem_json(point: Point) -> ProblemJSON:
    problem = point.problem
    return {
        "key": point_key(point),
        "kind": problem.kind if problem else "",
        "text": problem.text if problem else "",
    }


def bench_data(timing: Timing) -> Table:
    """A record for each number, and for each point that has none; samples stand in json."""
    left_out = ("label", "shape", "unit", "samples_ns", "marks", "must_move", "torch_moves")
    renamed = {"amount": "median_ns"}
    shape = ("rows", "d_model", "n_vocab", "n_ctx", "seq")
    keys = [key for key in BenchLineJSON.__annotations__ if key not in left_out]
    records: list[dict[str, object]] = [
        {**line, **line["shape"], "marks": ";".join(line["marks"])} for line in bench_lines(timing)
    ]
    for point in timing.problems:
        about = {"case": point.case, "dtype": point.dtype, "backend": point.backend, **point.shape.model_dump()}
        record = _problem_json(point)
        records.append({**about, "key": record["key"], "problem": f"{record['kind']}: {record['text']}"})
    names = (*keys[:5], *shape, *keys[5:], "marks", "problem")
    rows = tuple(tuple(raw(record.get(name)) for name in names) for record in records)
    return Table("", tuple(Column(renamed.get(name, name), renamed.get(name, name)) for name in names), rows)


def raw(value: object) -> Value:
    """A value as csv has it; a float with all digits that it has."""
    if isinstance(value, float):
        return repr(value)
    return value if value is None or isinstance(value, int) else str(value)
