"""The report of a benchmark, from profiles made up with known times and faults.

`python tests/report/test_bench.py` writes the golden files anew.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from itertools import pairwise
from math import nan, pi, sqrt
from pathlib import Path
from statistics import median, quantiles, stdev
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import profiles
from support import DATA

from gptcalc.cli.output import ASCII
from gptcalc.ledger.timing import MARKS, compare, timing
from gptcalc.report import terminal
from gptcalc.report.bench import bench_document
from gptcalc.report.bench_against import comparison_document, comparison_json
from gptcalc.report.bench_data import bench_json
from gptcalc.report.document import Document, Table
from gptcalc.report.formats import Format, render
from gptcalc.report.plain import render_html
from gptcalc.report.roofline import HEIGHT, Series, draw
from gptcalc.report.schema import json_schema
from gptcalc.stats import T_975, trend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gptcalc.ledger.profile import Profile

WIDTHS = ("60", "80", "200", None)
WHICH = ("h200", "cpu", "everything", "against")
FOLDER = DATA / "goldens"
GOLDENS = [("h200", "60"), ("h200", "80"), ("h200", "200"), ("h200", None), ("cpu", "80"), ("against", "80")]
COPY_BYTES = 2 << 30


def slower() -> Profile:
    """The H200 with another torch, on which one kernel is 10 % slower and one 10 % faster."""
    before = profiles.h200()
    points = list(before.points)
    for index, factor in ((2, 1.1), (5, 0.9)):
        cold = points[index].measured["cold"]
        restarts = tuple(tuple(round(factor * sample) for sample in restart) for restart in cold.restarts)
        records = {**points[index].measured, "cold": cold.model_copy(update={"restarts": restarts})}
        points[index] = points[index].model_copy(update={"measured": records})
    software = before.software.model_copy(update={"torch": "2.14.0"})
    return before.model_copy(update={"points": tuple(points[:-1]), "software": software})


def document(which: str) -> Document:
    """The document of a made-up run, or of a comparison of two."""
    if which == "against":
        return comparison_document(compare(profiles.h200(), slower()), 0.05)
    return bench_document(timing(getattr(profiles, which)()))


def answer(which: str) -> dict[str, Any]:
    """The same as JSON reads it."""

    def build() -> Mapping[str, object]:
        if which == "against":
            return comparison_json(compare(profiles.h200(), slower()), 0.05)
        return bench_json(timing(getattr(profiles, which)()))

    found: dict[str, Any] = json.loads(render(Format.JSON, lambda: document(which), build))
    return found


def printed(which: str, width: str | None, chosen: Format = Format.TABLE) -> str:
    """The report as a terminal of that width gets it, or a pipe."""
    before = os.environ.pop("COLUMNS", None), terminal._is_terminal
    terminal._is_terminal = lambda: False
    os.environ.update({"COLUMNS": width} if width else {})
    try:
        return render(chosen, lambda: document(which), lambda: answer(which))
    finally:
        os.environ.pop("COLUMNS", None)
        os.environ.update({"COLUMNS": before[0]} if before[0] else {})
        terminal._is_terminal = before[1]


def table(found: Document, title: str) -> Table:
    """The table whose title starts so."""
    return next(one for one in found.tables if one.title.startswith(title))


def records(found: Table) -> list[dict[str, Any]]:
    """The rows of a table by column."""
    return [dict(zip([column.key for column in found.columns], row, strict=True)) for row in found.rows]


@pytest.mark.parametrize("which", WHICH)
def test_json_is_as_its_schema_says(which: str) -> None:
    """What is printed validates against the schema of its command."""
    jsonschema.validate(answer(which), json_schema("bench-against" if which == "against" else "bench"))


def test_every_number_follows_from_the_raw_samples() -> None:
    """Median, interval, IQR, n and bandwidth are what the samples in the same line give by hand."""
    lines = answer("h200")["lines"]

    assert len(lines) == 30
    for line in lines:
        samples = [sample for restart in line["samples_ns"] for sample in restart]
        medians = [median(restart) for restart in line["samples_ns"]]
        assert len(line["samples_ns"]) == line["restarts"]
        assert line["n"] == len(samples)
        assert line["amount"] == pytest.approx(median(medians), abs=0.5)
        half = 2.7765 * max(stdev(medians[:5]), stdev(medians)) * sqrt(pi / len(medians))
        ordered = sorted(set(samples))
        half = max(half, min(after - before for before, after in pairwise(ordered)) / 2)
        drifting = medians if trend(medians) else []
        assert line["low_ns"] == pytest.approx(min([median(medians) - half, *drifting]), abs=1)
        assert line["high_ns"] == pytest.approx(max([median(medians) + half, *drifting]), abs=1)
        quarters = quantiles(samples, method="inclusive")
        assert line["iqr_ns"] == pytest.approx(quarters[2] - quarters[0], abs=1)
        assert line["bytes_per_second"] == pytest.approx(line["bytes"] / median(medians) * 1e9, abs=1)


def test_shares_are_of_the_copy_and_of_the_datasheet() -> None:
    """The copy is the ceiling, the empty kernel the floor, and 4,800 GB/s the published bandwidth of an H200."""
    found = answer("h200")
    copy, empty = found["lines"][:2]

    assert found["ceiling"]["bytes_per_second"] == copy["bytes_per_second"]
    assert found["ceiling"]["share_of_datasheet"] == pytest.approx(copy["bytes_per_second"] / 4.8e12)
    assert found["floor_ns"] == empty["amount"]
    assert found["datasheet"]["bytes_per_second"] == 4.8e12
    assert empty["share_of_ceiling"] is empty["share_of_datasheet"] is None
    for line in (copy, *found["lines"][2:]):
        rate = line["bytes_per_second"]
        assert line["share_of_ceiling"] == pytest.approx(rate / copy["bytes_per_second"], rel=1e-6)
        assert line["share_of_datasheet"] == pytest.approx(rate / 4.8e12, rel=1e-6)


def test_bytes_are_itemised() -> None:
    """The terms of a line add up to its bytes, in JSON and, with `--explain`, in a table with each term's formula."""
    for line in answer("h200")["lines"]:
        assert sum(term["bytes"] for term in line["must_move"]) == line["bytes"]
        if line["torch_moves"]:
            assert sum(term["bytes"] for term in line["torch_moves"]) == line["torch_bytes"]
        assert line["formula"] == " + ".join(term["formula"] for term in line["must_move"])
    read = timing(profiles.h200())
    table = bench_document(read, explain=True).tables[-1]
    largest = max(
        (result for result in read.results if result.point.case == "layernorm.forward"), key=lambda r: r.bytes
    )
    rows = [dict(zip([column.key for column in table.columns], row, strict=True)) for row in table.rows]
    wanted = [(term.label, term.formula, term.bytes) for term in largest.point.must_move]
    shown = [(row["what"], row["formula"], row["bytes"]) for row in rows]
    assert any(shown[at : at + len(wanted)] == wanted for at in range(len(shown)))
    assert table.title not in [other.title for other in document("h200").tables]


def changed(which: str, **fields: Any) -> tuple[str, ...]:
    """The notes of a made-up run some of whose fields are others."""
    return bench_document(timing(getattr(profiles, which)().model_copy(update=fields))).notes


def test_a_busy_machine_is_told() -> None:
    """Where others computed before a run on a CPU, all its numbers are doubted; where the machine was idle, none is."""
    assert any(note.startswith("Others compute here: 99.5 processes") for note in changed("cpu", load=99.5))
    assert not any(note.startswith("Others") for note in changed("cpu", load=0.1))


def test_unwatched_clocks_are_told() -> None:
    """A GPU whose clocks nobody reads may have been throttled, and how to have them read is said."""
    assert any("gptcalc[bench]" in note for note in changed("h200", clocks=None))
    assert not any("Nobody watched" in note for note in [*changed("h200"), *changed("cpu", clocks=None)])


def test_numbers_that_were_not_taken_are_told() -> None:
    """A kernel without a cold number, and one that was stopped before its time, are counted with the reason."""
    points = list(profiles.cpu().points)
    last = points[-1]
    warm = last.measured["warm"].model_copy(update={"stopped": "interrupted"})
    points[-1] = last.model_copy(update={"measured": {"warm": warm}})
    notes = changed("cpu", points=tuple(points))
    assert any(note.startswith("No cold number for 1 of") and "outruns the cache" in note for note in notes)
    assert any(note.startswith("stopped, interrupted: 1 of") for note in notes)


def test_nothing_of_a_file_reaches_the_terminal_raw() -> None:
    """A device's name with control characters is quoted, and an empty run says that it is empty."""
    run = profiles.cpu()
    evil = run.model_copy(update={"device": run.device.model_copy(update={"name": "a\x1b[31m\nb"})})
    assert "\x1b" not in bench_document(timing(evil)).title
    assert "nothing measured yet" in bench_document(timing(run.model_copy(update={"points": ()}))).title


def test_keys_name_one_line_each() -> None:
    """A key has case, sizes, dtype, backend and state, and no two lines share one."""
    keys = [line["key"] for line in answer("everything")["lines"]]

    assert len(set(keys)) == len(keys) == 98
    assert "gpt_embedding.forward/512x16384,V151936,C4096,T512/bf16/compile/warm" in keys
    assert "layernorm.forward/8192x256/fp32/eager/cold" in [line["key"] for line in answer("h200")["lines"]]


def test_a_fit_finds_t0_and_bandwidth_and_predicts_each_point() -> None:
    """Of kernels made as 2,600 ns + bytes / 3,900 GB/s the fit says so, and its lines show it beside the median."""
    found = answer("h200")
    lines = {line["key"]: line for line in found["lines"]}
    fit = found["fits"][0]

    assert (fit["case"], fit["backend"], fit["state"]) == ("layernorm.forward", "eager", "cold")
    assert fit["t0_ns"] == pytest.approx(2600, rel=0.02)
    assert fit["bytes_per_second"] == pytest.approx(3.9e12, rel=0.01)
    assert len(found["fits"]) == 6
    for one in found["fits"]:
        for key, residual in zip(one["keys"], one["residuals"], strict=True):
            line = lines[key]
            assert line["predicted_ns"] == pytest.approx(
                one["t0_ns"] + line["bytes"] / one["bytes_per_second"] * 1e9, abs=1.1
            )
            assert line["residual"] == residual == pytest.approx(line["predicted_ns"] / line["amount"] - 1, abs=3e-4)
    assert lines["copy/1x1/fp32/eager/cold"]["predicted_ns"] is None


def test_backends_are_held_against_each_other() -> None:
    """The speedup is the ratio of the two lines' medians, with Welch's interval, and the winner lies outside it."""
    found = answer("h200")
    lines = {line["key"]: line for line in found["lines"]}

    assert len(found["backends"]) == 10
    for duel in found["backends"]:
        medians = [[median(restart) for restart in lines[duel[side]]["samples_ns"]] for side in ("compile", "eager")]
        parts = [pi / 2 * (stdev(values) / median(values)) ** 2 / len(values) for values in medians]
        degrees = sum(parts) ** 2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, medians, strict=True))
        speedup = median(medians[1]) / median(medians[0])
        half = T_975[int(degrees) - 1] * sqrt(sum(parts)) * speedup
        assert duel["speedup"] == pytest.approx(speedup)
        assert (duel["low"], duel["high"]) == pytest.approx((speedup - half, speedup + half))
        assert duel["winner"] == "compile"


def test_the_winner_is_printed_as_so_many_times_as_fast() -> None:
    """Where eager wins, its lead is printed as a factor above 1, and the interval around it."""
    rows = [row for row in records(table(document("everything"), "Backends")) if row["state"]]
    eager = [row for row in rows if row["winner"] == "eager"]

    assert eager
    for row in eager:
        low, high = map(float, row["interval"].split("–"))
        assert 1 < low <= float(row["by"].removesuffix("×")) <= high


def test_a_lead_without_an_upper_end_is_over_something() -> None:
    """Where eager's lead could be endless, no interval is made up."""
    read = timing(profiles.h200())
    duel = read.duels[0]
    hopeless = duel._replace(speedup=duel.speedup._replace(estimate=0.4, low=-0.1, high=0.8))
    rows = records(table(bench_document(read._replace(duels=(hopeless,))), "Backends"))

    assert (rows[-1]["winner"], rows[-1]["by"], rows[-1]["interval"]) == ("eager", "2.500×", "over 1.250")


@pytest.mark.parametrize("which", WHICH)
def test_csv_has_the_numbers_of_json(which: str) -> None:
    """One record a number with every digit, in the order of JSON, and one for each point that has none."""
    found = list(csv.DictReader(io.StringIO(printed(which, None, Format.CSV))))
    expected = answer(which)
    lines = expected["changes" if which == "against" else "lines"]
    problems = expected.get("problems", [])
    exact = ("before_ns", "after_ns") if which == "against" else ("n", "bytes", "low_ns", "bytes_per_second")

    assert [record["key"] for record in found] == [line["key"] for line in [*lines, *problems]]
    for column in exact:
        assert sum(int(record[column] or 0) for record in found) == sum(line[column] for line in lines)
    if which != "against":
        assert [int(r["median_ns"]) for r in found if r["median_ns"]] == [line["amount"] for line in lines]
        assert [float(r["share_of_ceiling"] or "nan") for r in found if r["n"]] == pytest.approx(
            [line["share_of_ceiling"] or nan for line in lines], nan_ok=True
        )
        assert [record["problem"] for record in found if record["problem"]] == [
            f"{problem['kind']}: {problem['text']}" for problem in problems
        ]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", WHICH)
def test_the_table_is_complete_and_aligned_at_any_width(which: str, width: str | None) -> None:
    """Every number is there in order, under each other to the last digit; nothing is cut or wider than the terminal."""
    text = printed(which, width)
    expected = answer(which)
    block = re.split(r"\n\n+", text)[1]
    found = document(which)
    key = "change" if which == "against" else "median"
    cells = [row[key] for row in records(found.tables[0]) if row[key]]
    rows = [line for line in block.splitlines() if re.search(r"  (cold|warm)  ", line)]

    assert len(cells) == len(expected["changes" if which == "against" else "lines"])
    ends = set()
    assert len(rows) == len(cells)
    for row, cell in zip(rows, cells, strict=True):
        ends.add(row.index(cell) + len(cell))
    assert len(ends) == 1
    assert "…" not in text
    assert not re.search(r"[+−]0\.0+%", text)
    if width:
        assert max(map(len, text.splitlines())) <= int(width)


def test_nothing_is_dropped_in_a_pipe() -> None:
    """Without a terminal every column is there."""
    text = printed("h200", None)
    header = next(line for line in text.splitlines() if line.startswith("case, rows × width"))

    assert "no room" not in text
    assert header.split()[4:] == (
        "backend state median ± GB/s ceiling datasheet must move torch moves predicted off by IQR n stopped".split()
    )


def test_what_all_rows_share_stands_above_them() -> None:
    """One shape, dtype and backend are words in the heading; what differs is a column."""
    cpu, gpu = document("cpu"), document("h200")

    assert "everywhere: 8,192 × 768 (rows × width) · fp32 · eager · V=50,257" in cpu.heading
    assert not {"dtype", "backend", "n_vocab", "datasheet"} & {column.key for column in cpu.tables[0].columns}
    assert "everywhere: fp32" in gpu.heading
    assert "backend" in {column.key for column in gpu.tables[0].columns}
    assert "seq" in {column.key for column in document("everything").tables[0].columns}


def test_the_heading_says_what_was_measured_on_what() -> None:
    """Device, cache and whether it is assumed, threads, versions, clocks, date, command, and how much of it is done."""
    gpu, cpu = "\n".join(document("h200").heading), "\n".join(document("cpu").heading)

    for text in ("driver 570.86.15", "L2 60.00 MiB ·", "132 SMs", "torch 2.13.0", "SM 1,755–1,980 of 1,980 MHz"):
        assert text in gpu
    for text in ("last cache 64.00 MiB assumed", "16 cores · 8 threads", "4 of 5 points: the rest was not reached"):
        assert text in cpu
    assert "2026-02-03 04:05:06 UTC · 17 of 17 points · gptcalc bench 'layernorm.*'" in gpu
    assert document("h200").title == "NVIDIA H200: copies at 4,306 GB/s, launches in 2.310 µs"


def test_shares_above_the_ceiling_do_not_shrink_the_other_bars() -> None:
    """A bar is full at the ceiling, whatever a cache does beyond it."""
    rows = {(row["state"], row["bandwidth"]): row["bar"] for row in records(document("h200").tables[0])}

    assert max(bar for bar in rows.values() if bar is not None) == 1
    assert rows["cold", "2,431"] == pytest.approx(0.565, abs=0.001)


def test_only_marks_that_are_there_are_explained() -> None:
    """Each mark of a row has its remedy below, with how many have it; a mark that no row has is not spoken of."""
    gpu, cpu = document("h200"), document("cpu")
    row = next(row for row in records(gpu.tables[0]) if row["stopped"] == "budget")

    assert row["marks"] == "~^"
    assert [note.split()[1] for note in gpu.notes[:4]] == ["noisy", "scattered", "throttled", "few"]
    assert "(1 of 30)" in gpu.notes[0]
    assert any("stopped, budget: 1 of 30" in note and "--time-budget" in note for note in gpu.notes)
    assert not [note for note in cpu.notes if any(note.startswith(f"{mark.sign} ") for mark in MARKS)]
    assert not [note for note in cpu.notes if note.startswith("stopped")]


def test_notes_say_what_words_mean_for_this_device() -> None:
    """What cold is differs between a GPU and a CPU; why torch moves more is told where it does; then what next."""
    gpu, cpu = "\n".join(document("h200").notes), "\n".join(document("cpu").notes)

    assert "L2 written over" in gpu
    assert "more inputs in turn than the last cache holds" in cpu
    assert "\nlayernorm.backward: torch's own kernels move more than must be moved. torch's norms sum" in gpu
    assert "reads a row twice" not in gpu  # where the compiled kernel ran, torch's did not
    assert "torch's own" not in cpu
    assert document("h200").notes[-1].startswith("Next: --save FILE")


def test_a_sweep_that_no_line_fits_is_called_so() -> None:
    """Where a line misses a point by more than a tenth, a note says not to predict with it."""
    read = timing(profiles.h200())
    fit = read.fits[0]
    poor = fit._replace(line=fit.line._replace(residuals=(0.0, -0.2, 0.0, 0.0, 0.0)))
    said = "misses a point by more than 10% in 1 of 1 sweeps"

    assert any(said in note for note in bench_document(read._replace(fits=(poor,))).notes)
    assert not any("misses" in note for note in bench_document(read).notes)


def test_a_sweep_that_is_all_launch_has_no_bandwidth() -> None:
    """Where time does not grow with the bytes, the printed fit has t0 alone, and a note says what to do."""
    random = profiles.Random(0)
    points = [*profiles.device_points(random, 4301, 2310), *profiles.swept(random, "rmsnorm.forward", (9000, 1e6))]
    found = bench_document(timing(profiles.h200().model_copy(update={"points": tuple(points)})))
    row = records(table(found, "Fits"))[0]

    assert "bandwidth" not in row
    assert float(row["start"].removesuffix(" µs")) == pytest.approx(9, rel=0.01)
    assert any("In 2 of 2 sweeps time hardly grows" in note for note in found.notes)
    assert not any("hardly" in note for note in document("h200").notes)


def test_a_point_without_a_number_is_told_with_its_reason() -> None:
    """It has a row of its own, a place in the heading, and no row among the numbers."""
    found = document("h200")
    row = records(table(found, "Without a number"))[-1]

    assert row["kind"] == "memory"
    assert row["why"] == "needs 131.00 GiB of memory; 120.25 GiB are free"
    assert any("1 point has no number" in line for line in found.heading)
    assert answer("h200")["problems"][0]["key"] == "layernorm.backward/8192x4096/fp32/eager"


def test_a_run_that_was_resumed_reads_as_one() -> None:
    """Points that were measured last stand where they belong."""
    whole = profiles.h200()
    resumed = whole.model_copy(update={"points": (*whole.points[:4], *whole.points[6:], *whole.points[4:6])})

    assert [line["samples_ns"] for line in bench_json(timing(resumed))["lines"]] == [
        line["samples_ns"] for line in bench_json(timing(whole))["lines"]
    ]


def test_markdown_has_the_tables_and_the_drawing() -> None:
    """Every row of the document is a row of a pipe table, and the roofline stands in a code block."""
    text = printed("h200", None, Format.MARKDOWN)
    found = document("h200")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    drawing = text.split("```")[1].removeprefix("text\n")

    assert len(rows) == sum(len(one.rows) + 2 for one in found.tables)
    assert drawing.startswith("   GB/s\n")
    assert "a layernorm.forward fp32" in drawing


def test_html_has_the_drawing_as_it_is() -> None:
    """A notebook shows the roofline in fixed width."""
    assert "<pre>   GB/s" in render_html(document("h200"))


@pytest.mark.parametrize("which", WHICH)
def test_a_terminal_without_utf8_can_print_it(which: str) -> None:
    """Every character of the report has one of ASCII that stands for it."""
    assert printed(which, "80").translate(ASCII | str.maketrans({"±": "+-", "µ": "u"})).isascii()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_point_at_the_ceiling_is_on_the_roof_and_a_slow_one_below(width: int) -> None:
    """The roof is the copy's bandwidth from some size on, and bytes over a launch before it."""
    large, small = 1 << 28, 1 << 20
    points = {"fast": (large, 4e12), "slow": (large, 1e12), "small": (small, small / 2000 * 1e9)}
    lines = draw([Series(name, (point,)) for name, point in points.items()], 4e12, 2000, width)
    plot = lines[1 : HEIGHT + 1]
    row_of = {letter: next(i for i, line in enumerate(plot) if letter in line) for letter in "abc"}
    top = next(index for index, line in enumerate(plot) if line.startswith("  4,000 |"))
    heights = [
        next((row for row, line in enumerate(plot) if line[column : column + 1] in tuple("·ac")), HEIGHT)
        for column in range(9, plot[top].rindex("·") + 1)
    ]

    assert row_of["a"] == top < row_of["b"]
    assert top < row_of["c"] == heights[plot[row_of["c"]].index("c") - 9]
    assert heights == sorted(heights, reverse=True)
    assert heights.count(top) > width // 4 - 10
    assert max(map(len, lines)) <= width


def test_letters_move_aside_for_each_other_and_the_hidden_are_counted() -> None:
    """Points at one place stand side by side while there is room; how many do not is said."""
    same = [Series(f"kernel {index}", ((1 << 28, 2e12),)) for index in range(7)]
    lines = draw(same, 4e12, 2000, 80)
    row = next(line for line in lines if "a" in line)

    assert "".join(re.findall("[a-z]", row)) == "ecabd"
    assert lines[-1] == "(2 more behind these)"
    assert [line.split("   ")[0] for line in lines if line.startswith("a ")] == ["a kernel 0"]


def test_every_kernel_is_drawn_at_any_width() -> None:
    """Each letter of the legend stands in the plot, cold numbers alone."""
    found = document("h200").drawings[0]

    for width in (60, 80, 200):
        plot = "\n".join(found.draw(width)[1 : HEIGHT + 1])
        assert [plot.count(letter) for letter in "abcd"] == [5, 5, 4, 0]
        assert not re.search("[a-z]", plot[: plot.index("4,306")])  # warm ones would be above the roof


def test_without_a_ceiling_there_is_no_roof() -> None:
    """A run that has no copy prints its numbers without shares and without a drawing."""
    whole = profiles.h200()
    read = timing(whole.model_copy(update={"points": whole.points[2:]}))
    found = bench_document(read)

    assert found.drawings == ()
    assert found.title == "NVIDIA H200: 28 numbers"
    assert "ceiling" not in {column.key for column in found.tables[0].columns}
    assert bench_json(read)["ceiling"] is None


def test_a_comparison_puts_the_worst_first() -> None:
    """What became slower by more than the threshold comes first and is called a regression."""
    found, expected = document("against"), answer("against")
    ratios = [change["ratio"] for change in expected["changes"]]
    rows = records(found.tables[0])

    assert ratios == sorted(ratios, reverse=True)
    assert rows[0]["case"] == "layernorm.forward 8,192×256"
    assert (rows[0]["change"], rows[0]["verdict"], rows[-1]["verdict"]) == ("+10.00%", "REGRESSED", "faster")
    assert expected["regressions"] == 1
    assert found.title == "1 slower, 1 faster, 28 the same; 1 regression beyond 5%"
    assert comparison_document(compare(profiles.h200(), slower()), 0.2).title.endswith("; no regression beyond 20%")


def test_a_comparison_is_loud_about_another_machine() -> None:
    """What differs of device and software is named before anything else, and nothing is said where nothing does."""
    other = profiles.h200().model_copy(
        update={"device": profiles.H200.model_copy(update={"driver": "580.1", "fingerprint": "fedcba987654"})}
    )
    found = comparison_document(compare(profiles.h200(), other), 0.05)

    assert found.heading[0] == (
        "NOT THE SAME MACHINE OR SOFTWARE: driver 570.86.15 → 580.1; card 0123456789ab → fedcba987654"
    )
    assert answer("against")["differs"] == ["torch 2.13.0 → 2.14.0"]
    same = comparison_document(compare(profiles.h200(), profiles.h200(3)), 0.05)
    assert not any("NOT THE SAME" in line for line in same.heading)


def test_a_comparison_counts_what_has_no_partner() -> None:
    """Numbers that only one of the runs has are told, not dropped in silence."""
    whole = profiles.h200()
    part = whole.model_copy(update={"points": whole.points[:5]})
    found = comparison_json(compare(whole, part), 0.05)

    assert (found["only_before"], found["only_after"], len(found["changes"])) == (22, 0, 8)
    assert comparison_document(compare(whole, part), 0.05).notes[-1] == (
        "Not compared: 22 numbers only before, 0 only after."
    )


@pytest.mark.parametrize(("which", "width"), GOLDENS)
def test_a_report_is_printed_as_it_was(which: str, width: str | None) -> None:
    """The output equals the golden file, letter by letter."""
    assert golden(which, width).read_text(encoding="utf-8") == printed(which, width)


def golden(which: str, width: str | None) -> Path:
    """The file of a golden report."""
    return FOLDER / f"bench-{which}.{width or 'pipe'}.txt"


if __name__ == "__main__":
    for which_, width_ in GOLDENS:
        golden(which_, width_).write_text(printed(which_, width_), encoding="utf-8")
