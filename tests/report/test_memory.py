"""The report of `gptcalc memory`, from ledgers made up in `memories.py`: every form of it, at every width.

`python tests/report/test_memory.py` writes the golden files anew.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from math import prod
from pathlib import Path
from typing import Any

import jsonschema
import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import memories
from support import DATA

from gptcalc import api
from gptcalc.catalog import resolve
from gptcalc.cli.output import ASCII
from gptcalc.ledger.alive import BY_OP, Kind
from gptcalc.ledger.asked import settle
from gptcalc.ledger.memory import Memory, Mode, Point
from gptcalc.ledger.reasons import op_words
from gptcalc.report import terminal
from gptcalc.report.formats import Format, render
from gptcalc.report.memory_data import elsewhere
from gptcalc.report.plain import render_html
from gptcalc.report.schema import json_schema
from gptcalc.report.timeline import HEIGHT, KINDS, LABEL, draw

WIDTHS = ("60", "80", "200", None)
FOLDER = DATA / "goldens"
GPT2 = {"batch": 8}
GOLDENS = [
    *(("gpt2", width) for width in WIDTHS),
    ("gpt2-inference", "80"),
    ("gpt2-depth3", "200"),
    ("gpt2-large-embedding", "60"),
    ("gpt2-large-embedding", "80"),
]
#: Bytes that the study of activations measured for GPT-2 Small, bf16, B=8, T=1,024.
WEIGHTS, LOGITS = 248_879_616, 1_646_821_376


def report(
    model: str = "gpt2", depth: int = 1, asked: dict[str, object] | None = None, **fields: Any
) -> api.MemoryReport:
    """A report on a ledger that was made up."""
    resolved = resolve(model, fields)
    plan, modes, defaulted = settle(resolved.spec, GPT2 if asked is None else asked)
    return api.MemoryReport(resolved, memories.engine(resolved.spec, plan, modes), depth, defaulted, "gptcalc memory")


def golden(which: str) -> tuple[api.MemoryReport, dict[str, bool]]:
    """What a golden file shows, and the flags with which."""
    if which == "gpt2-large-embedding":
        return api.memory("gpt2-large", batch=8, scope="embedding"), {"explain": True}
    if which == "gpt2-inference":
        return report(asked={"mode": "inference", "kv_dtype": "fp32", "logits": "all"}), {"explain": True}
    return report(depth=3 if which == "gpt2-depth3" else 1), {"timeline": which == "gpt2"}


def printed(found: api.MemoryReport, width: str | None, chosen: Format = Format.TABLE, **flags: bool) -> str:
    """The report as a terminal of that width gets it, or a pipe."""
    before = os.environ.pop("COLUMNS", None), terminal._is_terminal
    terminal._is_terminal = lambda: False
    os.environ.update({"COLUMNS": width} if width else {})
    try:
        return render(chosen, lambda: found.document(**flags), found.to_dict)
    finally:
        os.environ.pop("COLUMNS", None)
        os.environ.update({"COLUMNS": before[0]} if before[0] else {})
        terminal._is_terminal = before[1]


def amount(text: str) -> int:
    """A number as printed."""
    return int(text.replace(",", ""))


def changed(found: api.MemoryReport, **fields: Any) -> api.MemoryReport:
    """The report with its first mode changed."""
    assert isinstance(found.answer, Memory)
    first, *rest = found.answer.modes
    return found._replace(answer=found.answer._replace(modes=(first._replace(**fields), *rest)))


@pytest.mark.parametrize(("which", "width"), GOLDENS)
def test_a_report_is_printed_as_it_was(which: str, width: str | None) -> None:
    """The output equals the golden file."""
    found, flags = golden(which)

    assert (FOLDER / f"memory-{which}.{width or 'pipe'}.txt").read_text(encoding="utf-8") == printed(
        found, width, **flags
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_the_printed_table_adds_up_at_any_width(width: str | None) -> None:
    """The lines of a kind add up to its row, the kinds to the bytes requested, which stand in the title too."""
    found = report()
    text = printed(found, width)
    tables = re.findall(r"(?:^|\n)alive at the peak.*?\n(.*?)\nrequested +([\d,]+)", text, re.DOTALL)

    assert len(tables) == 2
    for (body, total), mode in zip(tables, found.modes, strict=True):
        kinds: list[list[int]] = []
        for line in body.splitlines():
            numbers = re.search(r" {2}([\d,]+)(?: +[\d.,]+ (?:B|[KMGT]iB))?(?: +[\d.]+%.*)?$", line)
            if numbers and line.startswith("  "):
                kinds[-1].append(amount(numbers[1]))
            elif numbers:
                kinds.append([amount(numbers[1])])
        assert all(kind == sum(lines) for kind, *lines in kinds)
        assert sum(kind for kind, *_ in kinds) == amount(total) == mode.totals.requested
        assert f"({total} bytes requested)" in " ".join(text.split())


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("model", ["gpt2", "gpt3-175b", "llama-3-8b", "mixtral-8x7b"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_depth_fits_and_no_number_is_cut(width: str | None, model: str, depth: int) -> None:
    """No line is wider than the terminal, and the bytes of every row stand in it with all their digits."""
    found = report(model, depth)
    text = printed(found, width, explain=True, timeline=True)

    assert "…" not in text
    for mode in found.modes:
        shown = [row.amount for row in (mode.lines if depth == 1 else mode.held) if "bias" not in row.component]
        shown += [mode.totals.requested, mode.totals.allocated, mode.totals.reserved, mode.tokens, *mode.device]
        if depth in (1, 3):
            for size in shown if depth == 3 else shown[-6:]:
                assert f"{size:,}" in text
    if width:
        assert max(map(len, text.splitlines())) <= int(width)


def test_sizes_of_gpt2_small() -> None:
    """The fakes have GPT-2 Small's real weights, AdamW's two states of each and three logits in fp32."""
    mode = report().training
    kinds = {kind: sum(line.amount for line in mode.lines if line.kind == kind) for kind in KINDS}

    assert (kinds["weights"], kinds["optimizer"], kinds["logits"]) == (WEIGHTS, 2 * WEIGHTS, 3 * LOGITS)
    assert max(point.requested for point in mode.timeline) == mode.totals.requested


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("asked", [{}, {"mode": "training"}, {"mode": "inference", "logits": "all"}], ids=str)
def test_json_is_as_its_schema_says_and_adds_up(depth: int, asked: dict[str, object]) -> None:
    """It validates, has a key for each mode asked for and no other, and its lines sum to the bytes requested."""
    found = report(depth=depth, asked=asked)
    answer = json.loads(printed(found, None, Format.JSON))

    jsonschema.Draft202012Validator(json_schema("memory")).validate(answer)
    assert answer["schema"] == "gptcalc.memory/1"
    assert {"training", "inference"} & set(answer) == {mode.name for mode in found.modes}
    for mode in found.modes:
        got = answer[mode.name]
        assert sum(line["amount"] for line in got["lines"]) == got["totals"]["requested"] == mode.totals.requested
        assert sum(line["tensors"] for line in got["lines"]) == sum(held.tensors for held in mode.held)
        assert got["totals"]["phase"] == mode.phase
        assert list(got["phases"]) == [phase.name for phase in mode.phases]
        assert got["device_range"] == {"low": mode.device[0], "high": mode.device[1]}
        assert got["persistent"] == mode.persistent._asdict()
        assert all(point["requested"] == sum(point["alive"].values()) for point in got["timeline"])
        assert len({line["key"] for line in got["lines"]}) == len(got["lines"])
        assert all(("op" in line) == (depth > 1 or line["kind"] in BY_OP) for line in got["lines"])


def test_each_figure_is_its_own_maximum() -> None:
    """A total is the greatest of its phases, figure by figure, wherever that phase is."""
    for mode in json.loads(printed(report(), None, Format.JSON)).items():
        if mode[0] in ("training", "inference"):
            for figure in ("requested", "rounded", "allocated", "reserved"):
                assert mode[1]["totals"][figure] == max(phase[figure] for phase in mode[1]["phases"].values())


def test_depth_two_puts_equal_tensors_of_one_op_together() -> None:
    """Two rows that differ in nothing but their place are one, with the sum of their formulas and tensors."""
    found = report(depth=2, asked={"mode": "training"})
    mode = found.training
    twice = changed(found, held=(*mode.held, mode.held[0]._replace(key="elsewhere")))
    lines = twice.to_dict()["training"]["lines"]

    assert len(lines) == len(mode.held)
    assert lines[0]["amount"] == 2 * mode.held[0].amount
    assert lines[0]["formula"] == "4×V×D"
    assert lines[0]["tensors"] == 2


def test_depth_three_has_op_dtype_formula_and_numbers_of_every_tensor() -> None:
    """In a pipe nothing is dropped: each tensor's row has all of it."""
    found = report(depth=3, asked={"mode": "training", **GPT2})
    lines = printed(found, None).splitlines()

    for held in found.training.held:
        wanted = [held.label, held.key, op_words(held.op), held.dtype, held.formula.letters, held.formula.numbers]
        assert any(all(word in line for word in [*wanted, f"{held.amount:,}"]) for line in lines), held.key
    assert not any("no room" in line for line in lines)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_csv_has_one_record_a_line_with_its_mode(depth: int) -> None:
    """Read back, the amounts of each mode add up to its bytes requested."""
    found = report(depth=depth)
    records = list(csv.DictReader(io.StringIO(printed(found, None, Format.CSV))))

    for mode in found.modes:
        own = [record for record in records if record["mode"] == mode.name]
        assert sum(int(record["amount"]) for record in own) == mode.totals.requested
        assert sum(float(record["share"]) for record in own) == pytest.approx(1)
    assert len({(record["mode"], record["key"]) for record in records}) == len(records)


def test_markdown_has_every_table_and_the_drawings() -> None:
    """Each row of the document is a row of a pipe table, and each mode's step stands in a code block."""
    found = report()
    document = found.document(timeline=True)
    text = printed(found, None, Format.MARKDOWN, timeline=True)

    assert len([line for line in text.splitlines() if line.startswith("| ")]) == sum(
        len(table.rows) + len(table.footer) + 2 for table in document.tables
    )
    assert text.count("```text") == len(found.modes) == 2
    assert "<pre>" in render_html(document)


@pytest.mark.parametrize("width", ["60", "80"])
def test_a_narrow_terminal_says_which_columns_it_dropped(width: str) -> None:
    """Whole columns go, never digits, and a line says which."""
    assert "(no room at this width for: formula" in printed(report(), "60")
    assert "in numbers" in printed(report(), width)


def test_a_terminal_without_utf8_can_print_it() -> None:
    """Every character of the report has one of ASCII that stands for it."""
    assert printed(report(), "80", explain=True, timeline=True).translate(ASCII).isascii()


def test_the_title_says_how_much_and_when() -> None:
    """One mode's peak is the title; of two it has both sizes, and each section its own line."""
    both, one = report(), report(asked={"mode": "training", **GPT2})
    line = "7.47 GiB at the peak (8,024,313,344 bytes requested), in backward, at loss: _log_softmax_backward_data"

    assert one.document().title == f"GPT-2 Small, training: {line}"
    assert both.document().title == "GPT-2 Small at the peak: 7.47 GiB in training, 558.18 MiB in inference"
    assert both.document().tables[0].title == f"Training: {line}"
    assert report(n_layers=6).document().title.startswith("GPT-2 Small, changed at the peak")


@pytest.mark.parametrize(
    ("asked", "fields", "said"),
    [
        ({}, {}, "bf16 weights, activations, gradients and optimizer states"),
        ({"precision": "fp32"}, {}, "fp32 weights, activations, gradients and optimizer states; KV cache in fp32"),
        ({"mode": "inference", "kv_dtype": "fp16"}, {}, "bf16 weights and activations; KV cache in fp16"),
        ({"optimizer": "sgd", "momentum": 0.9, "optimizer_impl": "fused"}, {}, "SGD (fused), momentum 0.9"),
        ({}, {}, "AdamW (foreach) · dropout 0.1"),
        ({}, {"attn_pdrop": 0.0}, "dropout embedding 0.1, attention 0, residual 0.1"),
        ({}, {}, "attention: flash, bf16 and a head size of 64, which flash takes"),
        ({"torch": "2.6", "target": "sm80", "expandable_segments": True}, {}, "sm80 · torch 2.6 · expandable segments"),
        ({"logits": "all"}, {}, "logits of all tokens"),
        ({"checkpointing": "full"}, {}, "checkpointing full: each block runs again in the backward pass"),
        ({"checkpointing": "selective"}, {}, "checkpointing selective: the core of attention runs again"),
        ({"chunked_loss": 1024}, {}, "loss in 1,024 chunks"),
        (
            {"grad_accum": 2000, "grad_clip": 0.5},
            {},
            "2,000 micro-batches a step; gradients are clipped to a norm of 0.5",
        ),
        (
            {"zero_grads": True, "keep_outputs": True},
            {},
            "gradients are zeroed, not set to None; logits and loss are kept",
        ),
        ({"master_weights": "fp32"}, {}, "bf16 weights, activations and gradients; fp32 optimizer states"),
        ({"grad_dtype": "fp32"}, {}, "gradients are added to fp32 buffers"),
        ({"batch": 3, "seq": 77}, {}, "C=1,024 · B=3 · T=77"),
        ({}, {"n_layer": 6}, "changed: n_layers 12 → 6"),
        (
            {"batch": 3, "mode": "training"},
            {},
            "by default: seq, precision, optimizer, optimizer-impl, attention, dropout",
        ),
    ],
    ids=str,
)
def test_the_heading_says_what_the_figures_speak_of(
    asked: dict[str, object], fields: dict[str, Any], said: str
) -> None:
    """Dims, precision, optimizer, dropout, attention, device, release, what was changed and what nobody gave."""
    assert any(said in line for line in report(asked=asked, **fields).document().heading)


def test_modes_with_different_attention_say_so() -> None:
    """Each backend stands with the mode that has it."""
    found = changed(report(), attention=("math", "fp32 with fewer key heads"))
    lines = [line for line in found.document().heading if line.startswith("attention")]

    assert [line.split(",")[0] for line in lines] == ["attention in training: math", "attention in inference: flash"]


def test_a_figure_that_peaks_elsewhere_is_told() -> None:
    """Where reserved is greatest in another phase than requested, a note says where; where it is not, none does."""
    found = report()

    assert list(elsewhere(found.training)) == [
        "reserved is greatest in optimizer (9,098,055,168 bytes), requested in backward."
    ]
    assert list(elsewhere(found.inference)) == []
    assert any(note.startswith("Note: in training, reserved is greatest") for note in found.document().notes)


def test_a_sequence_beyond_the_context_is_told() -> None:
    """Rotary positions go on beyond what the model was made for; within it nothing is said."""
    long, short = report("llama-3-8b", asked={"seq": 16_384}), report("llama-3-8b", asked={"seq": 8192})
    said = "Note: T = 16,384 is beyond the context that the model was made for, 8,192: with rotary positions"

    assert any(note.startswith(said) for note in long.document().notes)
    assert any("16,384 is beyond" in note for note in long.to_dict()["notes"])
    assert not any("beyond the context" in note for note in short.document().notes)


def test_notes_of_a_mode_are_told_with_its_name() -> None:
    """A note of one mode names it, one that both have stands once."""
    found = changed(report(), notes=("only here.",))

    assert "Note: in training, only here." in found.document().notes
    found = report("mixtral-8x7b", asked={"mode": "training"})
    assert "Note: mixture: sized for balanced routing." in found.document().notes


def test_what_is_not_in_the_numbers_is_told_with_its_size() -> None:
    """The CUDA context and NCCL have sizes; the last note says what to try, less what is shown already."""
    notes = report().document().notes

    assert any("CUDA context" in note and "0.45 to 0.6 GiB" in note for note in notes)
    assert notes[-1].startswith("Next: --timeline draws the step, --depth 3")
    assert "--timeline" not in report().document(timeline=True).notes[-1]


def test_remedies_fit_the_peak() -> None:
    """Foreach's copies are blamed only where the peak is theirs, and all logits only where they were asked for."""
    foreach = changed(report(), phase="optimizer")

    assert "--optimizer-impl fused" in foreach.document().notes[-1]
    assert "--optimizer-impl fused" not in report().document().notes[-1]
    assert "--logits last" in report(asked={"logits": "all"}).document().notes[-1]


def test_explain_gives_why_and_source_of_every_line() -> None:
    """Each line of each mode has a row with its reason; without `--explain` there is no such table."""
    found = report()
    tables = [table for table in found.document(explain=True).tables if table.title.startswith("Why")]

    assert [table.title for table in tables] == ["Why, in training", "Why, in inference"]
    for table, mode in zip(tables, found.modes, strict=True):
        assert table.rows[0][0] == "the peak"
        assert [row[2:] for row in table.rows[1:]] == [(line.why, line.source) for line in mode.lines]
    assert not any(table.title.startswith("Why") for table in found.document().tables)


# The drawing.


def points(*heights: int, phase: str = "forward", kind: Kind = "activations") -> list[Point]:
    """Stretches with so many bytes each."""
    return [Point(phase, f"layer {n}", {kind: height}) for n, height in enumerate(heights)]


def plot(lines: list[str]) -> list[str]:
    """The cells of a drawing by column, from the bottom."""
    rows = [line[LABEL + 2 :] for line in lines[1 : HEIGHT + 1]]
    width = len(lines[HEIGHT + 1]) - LABEL - 2
    return ["".join(row.ljust(width)[column] for row in reversed(rows)).rstrip() for column in range(width)]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("model", ["gpt2", "gpt3-175b"])
def test_a_drawing_fits_and_marks_its_peak(model: str, width: int) -> None:
    """No line is too long, phases stand below in order, and the mark is above a full column of the highest stretch."""
    mode = report(model, asked={"mode": "training"}).training
    lines = draw(mode.timeline, width)
    columns = plot(lines)
    peak = max(mode.timeline, key=lambda point: point.requested)

    assert max(map(len, lines)) <= width
    assert re.fullmatch(r" +\|forward +\|backward +\|optimizer", lines[HEIGHT + 2])
    mark = lines[0].rstrip().rindex("v ") if lines[0].rstrip().endswith(peak.label) else len(lines[0].rstrip()) - 1
    assert lines[0][mark] == "v"
    assert len(columns[mark - LABEL - 2]) == HEIGHT == max(map(len, columns))
    assert f"{peak.phase}: {peak.label}" in lines[0]


def test_heights_are_proportional_and_kinds_are_stacked_in_order() -> None:
    """Half the peak is half the rows; weights lie at the bottom, then activations, then logits."""
    alive: dict[Kind, int] = {"logits": 500, "weights": 500, "activations": 400}
    columns = plot(draw([Point("forward", "all", alive), *points(700)], 60))

    assert columns[0] == "WWWWWAAAALLLLL"
    assert columns[-1] == "A" * (HEIGHT // 2)


def test_the_peak_is_seen_where_points_are_more_than_columns() -> None:
    """One high stretch among a thousand keeps its column, under the mark, and both of its neighbours are low."""
    heights = [100] * 1000
    heights[500] = 1400
    lines = draw(points(*heights), 60)
    columns = plot(lines)
    mark = lines[0].rindex("v") - LABEL - 2

    assert len(columns[mark]) == HEIGHT
    assert mark == 500 * 47 // 1000
    assert [len(column) for column in columns].count(1) == len(columns) - 1 == 46


def test_a_short_phase_has_room_for_its_name() -> None:
    """One stretch of an optimizer beside 500 others still has a column for each letter."""
    lines = draw([*points(*[5] * 500), *points(9, phase="optimizer")], 60)

    assert lines[HEIGHT + 2].endswith("|optimizer")


def test_many_phases_share_the_columns() -> None:
    """Micro-batches beyond any room for names are still drawn, and fit."""
    many = [point for n in range(40) for point in points(1, 5, phase=f"forward#{n}")]
    flood = [point for n in range(400) for point in points(1, 5, phase=f"forward#{n}")]

    for drawn in (many, flood):
        lines = draw(drawn, 60)
        assert max(map(len, lines)) <= 60
        assert max(len(column) for column in plot(lines)) == HEIGHT


def test_the_legend_names_only_what_is_drawn() -> None:
    """A letter with the most that its kind ever takes; kinds that never come are not spoken of."""
    lines = draw(points(1 << 30, 1 << 20), 80)

    assert lines[-1] == "A activations, at most 1.00 GiB"
    assert len({letter for letter, _ in KINDS.values()}) == len(KINDS)


def test_nothing_is_drawn_of_nothing() -> None:
    """No stretches make no lines, and a step that takes nothing no error."""
    assert draw([], 80) == []
    assert draw(points(0), 80)


# The embedding stage.


def stage(model: str = "gpt2-large", **asked: Any) -> api.MemoryReport:
    """The report on an embedding stage."""
    return api.memory(model, scope="embedding", **asked)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_embedding_stage_is_complete_at_any_width(width: str | None) -> None:
    """Tables and vectors in fp32 with every digit, the sum, and the share in the title."""
    text = printed(stage(batch=8), width)

    assert "65,639,680 parameters (65.64M), 8.48% of the model" in " ".join(text.split())
    for size in (257_315_840, 5_242_880, 41_943_040, 304_501_760):
        assert f"{size:,}" in text
    if width:
        assert max(map(len, text.splitlines())) <= int(width)


def test_the_embedding_stage_as_json_and_csv_adds_up() -> None:
    """Lines sum to `requested` in the plan's precision, and in each dtype to its own sum; csv has the same."""
    found = stage(batch=8, precision="fp32")
    answer = json.loads(printed(found, None, Format.JSON))
    records = list(csv.DictReader(io.StringIO(printed(found, None, Format.CSV))))
    part = answer["embedding"]

    jsonschema.Draft202012Validator(json_schema("memory")).validate(answer)
    assert sum(line["amount"] for line in part["lines"]) == part["totals"]["requested"] == 304_501_760
    for dtype, total in part["totals"]["bytes"].items():
        assert sum(line["bytes"][dtype] for line in part["lines"]) == total
        assert sum(int(record[dtype]) for record in records) == total
    for line in part["lines"]:
        assert prod(int(factor.replace(",", "")) for factor in line["numbers"].split("×")) == line["amount"]
    assert [line["formula"] for line in part["lines"]] == ["4×V×D", "4×C×D", "4×B×T×D"]
    assert part["parameters"] == 65_639_680
    assert "training" not in answer
    assert {"~65.1M": "wrong", "65,639,680": "exact"}.items() <= {
        claim["text"]: claim["verdict"] for claim in part["claims"]
    }.items()


def test_the_claims_about_a_stage_are_judged_in_its_notes() -> None:
    """The wrong row of the study notes is named with what explains it; a model without claims has no such note."""
    notes = stage().document().notes

    assert any("~65.1M" in note and "wrong (GPT-2 Small's position table, C×768)" in note for note in notes)
    assert not any(note.startswith("Claimed") for note in stage("llama-3-8b", n_vocab=1000).document().notes)


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "none"])
def test_positions_without_a_table_have_a_row_that_says_so(positions: str) -> None:
    """The printed table has the position table with nothing in it, and `--explain` says why."""
    document = stage("gpt2", positions=positions).document(explain=True)

    assert document.tables[0].rows[1] == (f"position table ({positions})", "–", "", 0, 0, 0, 0)
    assert document.tables[-1].rows[1][0] == f"position table ({positions})"


def test_modes_are_found_by_name() -> None:
    """A mode that was not asked for is an error that says so, not a missing attribute."""
    found = report(asked={"mode": "training"})

    assert isinstance(found.training, Mode)
    with pytest.raises(api.GptcalcError, match="inference: was not asked for"):
        _ = found.inference
    with pytest.raises(api.GptcalcError, match="embedding: was not asked for"):
        _ = found.embedding
    assert repr(found) == "MemoryReport('gpt2-small', training=1715068416)"


if __name__ == "__main__":
    for which_, width_ in GOLDENS:
        found_, flags_ = golden(which_)
        (FOLDER / f"memory-{which_}.{width_ or 'pipe'}.txt").write_text(
            printed(found_, width_, **flags_), encoding="utf-8"
        )
