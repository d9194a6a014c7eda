"""`gptcalc memory --versus`: two plans against each other, figure by figure and line by line."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator
from support import gptcalc

from gptcalc import api
from gptcalc.cli.app import run
from gptcalc.errors import InvalidValueError
from gptcalc.report.plain import render_markdown
from gptcalc.report.schema import json_schema

if TYPE_CHECKING:
    from pathlib import Path

TOY = ["gpt2", "--n-layers", "2", "--d-model", "24", "--n-heads", "3", "--vocab", "67", "--context", "32"]
SECONDS = [
    "--attention math",
    "--optimizer sgd --precision fp32",
    "--mode inference",
    "--n-layers 3 --set activation_function=relu",
    "--batch 4 --seq 7 --no-bias",
    "",
]
#: What is in the quotes -> what the error must say.
WRONG = {
    "option that is none": ("--attentoin math", ["--attentoin", "--attention"]),
    "value that is none": ("--attention maths", ["--attention", "'maths'", "math"]),
    "number that is none": ("--batch 0", ["--batch", "read 0"]),
    "model that is none": ("gtp2", ["'gtp2'", "gpt2"]),
    "override that is none": ("--set n_layerz=2", ["n_layerz"]),
    "two that disagree": ("--optimizer adamw --momentum 0.9", ["--momentum", "--optimizer"]),
    "open quotes": ('--batch "3', ["not a command line", "No closing quotation"]),
    "value missing": ("--batch", ["--batch", "requires"]),
    "help": ("--help", ["--help"]),
    "another format": ("--format json", ["--format"]),
    "plan that is not there": ("--plan no.toml", ["no.toml", "no such file"]),
    "too long": ("--batch " + "9" * 4000, ["--batch"]),
}


def answered(capsys: pytest.CaptureFixture[str], second: str, *arguments: str) -> dict[str, Any]:
    """What the command prints as JSON."""
    code = run(["memory", *TOY, *arguments, "--versus", second, "--format", "json"])
    shown = capsys.readouterr()
    assert (code, shown.err) == (0, "")
    found: dict[str, Any] = json.loads(shown.out)
    return found


def alone(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What one plan alone takes, as JSON."""
    assert run(["memory", *TOY, *arguments, "--format", "json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("depth", ["1", "2", "3"])
@pytest.mark.parametrize("second", SECONDS)
def test_lines_add_up_to_both_totals_and_their_difference(
    capsys: pytest.CaptureFixture[str], second: str, depth: str
) -> None:
    """At every depth each side's lines are its requested peak; what is on one side alone is added or gone."""
    found = answered(capsys, second, "--depth", depth)
    assert [*Draft202012Validator(json_schema("memory-versus")).iter_errors(found)] == []

    for mode in ("training", "inference"):
        lines, total = found[mode]["lines"], found[mode]["totals"]["requested"]
        for side in ("first", "second"):
            assert sum(line[side] or 0 for line in lines) == (total[side] or 0)
        assert sum(line["difference"] for line in lines) == total["difference"]
        for line in lines:
            states = {(True, False): "added", (False, True): "gone"}
            state = states.get((line["first"] is None, line["second"] is None))
            assert line["state"] == state or (state is None and line["state"] in ("same", "changed"))
            assert (line["state"] == "same") == (line["difference"] == 0 and state is None)


def test_each_side_is_what_its_plan_takes_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """All figures of totals and phases are those of two runs of the command."""
    second = ["--attention", "math", "--n-layers", "3"]
    found = answered(capsys, " ".join(second), "--batch", "3")
    first = alone(capsys, "--batch", "3")
    typed = [word for word in TOY if word not in ("--n-layers", "2")]
    assert run(["memory", *typed, "--batch", "3", *second, "--format", "json"]) == 0
    other = json.loads(capsys.readouterr().out)

    for mode in ("training", "inference"):
        for side, answer in (("first", first), ("second", other)):
            for figure in ("requested", "rounded", "allocated", "reserved"):
                assert found[mode]["totals"][figure][side] == answer[mode]["totals"][figure]
                assert found[mode]["persistent"][figure][side] == answer[mode]["persistent"][figure]
                for phase, figures in answer[mode]["phases"].items():
                    assert found[mode]["phases"][phase][figure][side] == figures[figure]


def test_what_differs_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Settings, hyperparameters, modes and the model, with both values; nothing else."""
    found = answered(capsys, "--optimizer sgd --n-layers 4 --mode training")
    assert {row["key"]: (row["first"], row["second"]) for row in found["differs"]} == {
        "n_layers": (2, 4),
        "optimizer": ("adamw", "sgd"),
        "mode": ("training and inference", "training"),
    }
    assert found["inference"]["totals"]["requested"]["second"] is None
    assert answered(capsys, "")["differs"] == []
    other = answered(capsys, "distilgpt2 --seq 8 --batch 1", "--seq", "8")
    assert {"model", "n_vocab", "d_model"} <= {row["key"] for row in other["differs"]}


def test_a_plan_file_may_be_either_side(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`--plan a --versus '--plan b'` sets two files against each other."""
    for name, batch in (("a", "2"), ("b", "3")):
        assert run(["memory", *TOY, "--batch", batch, "--save-plan", str(tmp_path / f"{name}.toml")]) == 0
    capsys.readouterr()
    line = ["memory", "--plan", str(tmp_path / "a.toml"), "--versus", f"--plan '{tmp_path / 'b.toml'}'", "-f", "json"]
    assert run(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differs"] == [{"key": "batch", "first": 2, "second": 3}]


@pytest.mark.parametrize(("second", "said"), WRONG.values(), ids=WRONG.keys())
def test_errors_speak_of_what_is_in_the_quotes(
    capsys: pytest.CaptureFixture[str], second: str, said: list[str]
) -> None:
    """One clear line with the quoted text before it, exit code 2."""
    code = run(["memory", *TOY, "--versus", second])
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    assert "--versus '" in shown.err
    assert len(shown.err.splitlines()) == 1
    assert len(shown.err) < 500
    assert "bug" not in shown.err
    for words in said:
        assert words in shown.err


@pytest.mark.parametrize(
    "others", [["--scope", "embedding"], ["--timeline"], ["--explain"], ["--save-plan", "x.toml"]], ids=str
)
def test_what_has_no_use_beside_it_is_refused(capsys: pytest.CaptureFixture[str], others: list[str]) -> None:
    """A drawing, reasons, the embedding stage, a file to write: of one plan; an error in the first is the first's."""
    assert run(["memory", *TOY, *others, "--versus", "--batch 2"]) == 2
    assert others[0] in capsys.readouterr().err
    assert run(["memory", *TOY, "--batch", "0", "--versus", "--batch 2"]) == 2
    assert "--versus" not in capsys.readouterr().err


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_terminal_of_any_width_has_both_amounts_and_the_difference(width: int) -> None:
    """Every column of numbers is there, none is cut, and no line is longer than the terminal."""
    typed = ["memory", "gpt2", "--batch", "8", "--mode", "training", "--versus", "--attention math --d-model 1024"]
    text = gptcalc(*typed, COLUMNS=str(width)).stdout
    assert max(map(len, text.splitlines())) <= width
    for number in ("8,359,079,720", "24,795,351,048", "+16,436,271,328", "−452,984,832"):
        assert number in text
    assert "no room" not in text or width == 80
    assert "—" in text


def test_a_pipe_csv_and_markdown_have_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    """In csv one record a figure or line; the lines add up to the totals there too."""
    typed = ["memory", *TOY, "--mode", "training", "--versus", "--attention math"]
    found = answered(capsys, "--attention math", "--mode", "training")["training"]
    assert run([*typed, "--format", "csv"]) == 0
    records = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    lines = [record for record in records if record["section"] == "lines"]
    assert len(lines) == len(found["lines"])
    total = next(record for record in records if (record["section"], record["key"]) == ("totals", "requested"))
    for side in ("first", "second", "difference"):
        assert sum(int(line[side] or 0) for line in lines) == int(total[side]) == found["totals"]["requested"][side]
    assert any(record["key"] == "backward.reserved" for record in records)

    assert run(typed) == 0
    text = capsys.readouterr().out
    table = next(part for part in text.split("\n\n") if part.startswith("alive at the peak"))
    rows = [re.sub("[,+]", "", line).replace("−", "-") for line in table.splitlines() if line.startswith("  ")]
    columns = zip(*map(_numbers, rows), strict=True)
    sums = [sum(0 if number == "—" else int(number) for number in column) for column in columns]
    assert sums == list(found["totals"]["requested"].values())
    assert run([*typed, "--format", "markdown"]) == 0
    assert f"{total['second']}" in capsys.readouterr().out.replace(",", "")


def _numbers(row: str) -> list[str]:
    """First, second and difference of a row."""
    found = re.search(r" ([\d—]+) +([\d—]+) +(-?\d+)(?: |$)", row)
    assert found, row
    return list(found.groups())


def test_python_sets_two_reports_against_each_other() -> None:
    """`first.versus(second)` is the same answer; the stage by itself has no lines to compare."""
    first, second = (api.memory("gpt2", n_layers=2, n_vocab=67, batch=2, precision=name) for name in ("bf16", "fp32"))
    found = first.versus(second)
    total = found.modes[0].total()
    assert (total.first, total.second) == (first.training.totals.requested, second.training.totals.requested)
    assert found.to_dict()["differs"][0] == {"key": "precision", "first": "bf16", "second": "fp32"}
    assert f"+{total.difference:,} bytes requested" in render_markdown(found.document())
    assert "<table>" in found._repr_html_()
    with pytest.raises(InvalidValueError, match="scope embedding"):
        first.versus(api.memory("gpt2", scope="embedding")).to_dict()
