"""`gptcalc fit`: the grid as a table, as JSON and CSV, its exit codes, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import shlex
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from support import gptcalc

from gptcalc import api
from gptcalc.cli.app import run
from gptcalc.cli.fit import _complete_gpus, _complete_max
from gptcalc.report.plain import render_markdown
from gptcalc.report.schema import json_schema

TOY = "gpt2:n_layers=2,d_model=64,n_heads=2,n_vocab=500"
#: What is typed -> what the error must say.
WRONG: dict[str, tuple[list[str], list[str]]] = {
    "a GPU that is none": (["gpt2", "--gpu", "rtx4099"], ["--gpu", "'rtx4099'", "rtx4090", "24GiB"]),
    "a device of nothing": (["gpt2", "--gpu", "0GiB"], ["--gpu", "'0GiB'", "more than nothing"]),
    "a model that is none": (["gtp2", "--gpu", "1GiB"], ["'gtp2'", "gpt2"]),
    "a question for the model": (["gpt2", "--max", "layers"], ["--max", "'layers'", "batch or seq", "gptcalc memory"]),
    "a question that is none": (["gpt2", "--max", "sequence"], ["--max", "'sequence'", "seq"]),
    "a batch that is solved for": (["gpt2", "--batch", "8"], ["--batch", "--max batch", "--max seq"]),
    "a length that is solved for": (["gpt2", "--max", "seq", "--seq", "8"], ["--seq", "--max seq", "--max batch"]),
    "an order that is none": (["gpt2", "--sort", "bf17"], ["--sort", "'bf17'", "bf16"]),
    "an order of models": (["gpt2", "--sort", "size"], ["--sort", "'size'", "memory"]),
    "a filter of one model": (["gpt2", "--family", "llama"], ["--family", "MODEL"]),
    "a family that is none": (["--gpu", "1GiB", "--family", "lama"], ["'lama'", "llama"]),
    "no length": (["gpt2", "--seq", "0"], ["--seq", "read 0"]),
    "a setting without use": (["gpt2", "--mode", "inference", "--optimizer", "sgd"], ["--optimizer", "--mode"]),
}


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what a command prints as JSON."""
    code = run(["fit", *arguments, "--format", "json"])
    shown = capsys.readouterr()
    assert shown.err == ""
    found: dict[str, Any] = json.loads(shown.out)
    assert [*Draft202012Validator(json_schema("fit")).iter_errors(found)] == []
    assert found["schema"] == "gptcalc.fit/1"
    return code, found


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_question_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: list[str]
) -> None:
    """It names what was read and what is allowed, exits with 2 and prints no answer."""
    code = run(["fit", *arguments])
    shown = capsys.readouterr()

    assert (code, shown.out) == (2, "")
    assert len(shown.err.splitlines()) == 1
    assert all(word in shown.err for word in said), shown.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([TOY, "--gpu", "1GiB"], 0),
        ([TOY, "gpt3-175b", "--gpu", "1GiB", "--mode", "inference"], 0),
        (["gpt3-175b", "--gpu", "rtx-4090", "--mode", "inference"], 1),
        (["--gpu", "0.7GiB", "--family", "gpt3", "--search", "175b", "--mode", "inference"], 1),
    ],
)
def test_the_exit_code_says_whether_anything_fits(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    """0 where something does, 1 where nothing does, in every format."""
    got, found = asked(capsys, *arguments)
    assert got == code == run(["fit", *arguments])
    assert "Next: gptcalc memory" in capsys.readouterr().out
    assert any(cell["value"] for cell in found["cells"]) == (code == 0)


def test_json_has_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    """Each GPU and way with its value, verdict and bytes, whole numbers; those that fit in no way too."""
    _, found = asked(capsys, TOY, "--gpu", "1GiB", "--gpu", "600MiB", "--gpu", "m4", "--gpu", "t4")
    ways = [way["key"] for way in found["ways"]]
    assert [gpu["name"] for gpu in found["gpus"]] == ["600MiB", "1GiB", "t4", "m4"]
    assert [(cell["gpu"], cell["way"]) for cell in found["cells"]] == [
        (gpu["name"], way) for gpu in found["gpus"] for way in ways
    ]
    for cell in found["cells"]:
        margin = cell["usable"]["low"] - cell["needed"]["high"]
        assert (cell["margin"]["low"], cell["value"] is not None) == (margin, margin >= 0)
        assert cell["verdict"] in (("fits", "probably fits") if margin >= 0 else ("may not fit", "does not fit"))
        assert (cell["verdict"] == "probably fits") == (cell["gpu"] == "m4")
        assert cell["at"] == (cell["value"] or 1)
        assert cell["settings"]["batch"] == cell["at"]
    assert {cell["value"] for cell in found["cells"] if cell["gpu"] == "600MiB"} == {None}
    assert found["closest"] == []


def test_where_nothing_fits_the_closest_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Which one it is, what it needs and what it lacks: in JSON and in words."""
    _, found = asked(capsys, "gpt3-175b", "--gpu", "rtx-4090", "--gpu", "80GiB", "--mode", "inference")
    closest = found["closest"][0]
    assert (closest["of"], closest["gpu"], closest["way"]) == ("gpt3-175b", "80GiB", "inference")
    assert closest["needed"] - closest["lacks"] == 80 << 30
    run(["fit", "gpt3-175b", "--gpu", "rtx-4090", "--gpu", "80GiB", "--mode", "inference"])
    text = capsys.readouterr().out
    assert "GPT-3 175B fits on none of 2 GPUs" in text
    assert "the closest is 80GiB, where inference of B=1 needs" in text
    assert "and lacks" in text


def test_csv_adds_up_to_json(capsys: pytest.CaptureFixture[str]) -> None:
    """One record a cell, with the same numbers."""
    arguments = [TOY, "gpt3-175b", "--gpu", "1GiB", "--gpu", "rtx-4090", "--checkpointing", "none"]
    _, found = asked(capsys, *arguments)
    assert run(["fit", *arguments, "--format", "csv"]) == 0
    records = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))

    assert len(records) == len(found["cells"]) == 2 * 2 * 4
    for record, cell in zip(records, found["cells"], strict=True):
        assert (record["model"], record["gpu"], record["way"]) == (cell["model"], cell["gpu"], cell["way"])
        assert record["value"] == ("" if cell["value"] is None else str(cell["value"]))
        assert int(record["usable_low"]) - int(record["needed_high"]) == int(record["margin_low"])
        assert int(record["margin_low"]) == cell["margin"]["low"]


def test_models_on_one_device(capsys: pytest.CaptureFixture[str]) -> None:
    """`--gpu` without a model asks for presets, the smallest first; those that fit in no way are summed up."""
    arguments = ["--gpu", "12GiB", "--family", "gpt2", "--mode", "training", "--precision", "bf16"]
    code, found = asked(capsys, *arguments)
    stored = [model["stored"] for model in found["models"]]
    assert (code, stored) == (0, sorted(stored))
    run(["fit", *arguments])
    text = capsys.readouterr().out
    none = {model["name"] for model in found["models"]} - {cell["model"] for cell in found["cells"] if cell["value"]}
    assert none
    assert all(f"\n{name} " not in text for name in none)
    assert "fit in no way, the smallest of them" in text or "1 model fits in no way" in text


def test_presets_of_a_search_without_a_device_are_a_table_each(capsys: pytest.CaptureFixture[str]) -> None:
    """Each on the common GPUs."""
    _, found = asked(capsys, "--search", "openai-gpt", "--mode", "inference", "--seq", "64")
    assert len(found["models"]) == 1
    assert len(found["gpus"]) > 10
    assert "--gpu all" in found["notes"][0]


def test_a_plan_file_gives_model_and_settings(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    """Its model and settings, but for what is solved for, and for the kernels, which are each device's own."""
    file = str(tmp_path / "run.toml")
    api.memory("gpt2", batch=4, seq=64, optimizer="sgd", n_layers=2, d_model=64, n_heads=2).save_plan(file)
    _, found = asked(capsys, "--plan", file, "--gpu", "t4")
    _, same = asked(capsys, "gpt2:n_layers=2,d_model=64,n_heads=2", "--seq", "64", "--optimizer", "sgd", "--gpu", "t4")
    assert [cell["value"] for cell in found["cells"]] == [cell["value"] for cell in same["cells"]]
    assert {cell["settings"]["target"] for cell in found["cells"]} == {"sm75"}


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("more", [[], ["--max", "seq"]])
def test_no_line_is_wider_than_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, more: list[str]
) -> None:
    """Columns that have no room stand below, each with its GPU; no number is cut or left out."""
    monkeypatch.setenv("COLUMNS", str(width))
    names = ["--gpu", "1GiB", "--gpu", "rtx-pro-6000-server"]
    model = f"{TOY},n_ctx=40000"
    assert run(["fit", model, "gpt3-175b", *names, *more]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    for cell in asked(capsys, model, *names, *more)[1]["cells"]:
        assert f"{cell['value']:,}" in text


def test_a_markdown_table_has_a_row_for_each_device() -> None:
    """With the marks that the notes explain."""
    text = render_markdown(
        api.fit(("gpt2", {"n_layers": 2, "d_model": 64, "n_heads": 2}), gpu=["2GiB", "m4"]).document()
    )
    assert "| 2GiB | 2.0 |" in text
    assert "| m4 | ~" in text
    assert "- ~: probably, for" not in text.partition("| m4")[0]


def test_names_are_completed() -> None:
    """GPUs, sizes of groups of them, and what is solved for."""
    assert "rtx-4090" in _complete_gpus("rtx-40")
    assert {"all", "common", "nvidia", "local"} <= set(_complete_gpus(""))
    assert _complete_max("s") == ["seq"]


def test_a_pipe_hears_nothing_of_the_progress() -> None:
    """Where nobody looks, stderr stays empty, and the command that JSON names runs again."""
    done = gptcalc("fit", "--gpu", "1GiB", "--search", "gpt2-small", "--mode", "inference", "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    again = gptcalc(*shlex.split(json.loads(done.stdout)["command"])[1:])
    assert again.stdout == done.stdout
