"""Models side by side: each is itself, all rows add up, nothing is lost at any width."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest
from support import DATA, gptcalc

import gptcalc as package
from gptcalc.cli.app import run
from gptcalc.cli.compare import parse_model
from gptcalc.errors import GptcalcError
from gptcalc.ledger import compare

MODELS = ("gpt3-175b", "llama-3-8b", "mixtral-8x7b", "gpt1")


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What `gptcalc compare` prints as JSON."""
    assert run(["compare", *arguments, "--format", "json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_components_of_each_model_are_what_it_stores() -> None:
    """By component and by group, each model's column adds up to its own count."""
    models = package.compare(*MODELS).models
    stored = [package.count(name).totals.stored for name in MODELS]

    for rows in (compare.by_component(models), compare.by_group(models)):
        for place, total in enumerate(stored):
            assert sum(row.amounts[place] or 0 for row in rows) == total
    assert compare.totals(models)[0].amounts == tuple(stored)


def test_a_model_is_once_itself() -> None:
    """Against itself no field differs and every ratio is 1."""
    models = package.compare("llama-3-8b", "llama-3-8b", memory=True).models

    assert not any(map(compare.differ, compare.hyperparameters(models)))
    rows = [*compare.by_component(models), *compare.totals(models), *compare.memory(models)]
    assert {ratio for row in rows for ratio in row.ratios} == {1}
    assert [each.name for each in models] == ["llama-3-8b", "llama-3-8b #2"]


def test_ratios_are_over_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    """Twice the layers hold twice the queries; none where the first has nothing."""
    rows = compare.by_component(package.compare("gpt2", ("gpt2", {"n_layers": 24}), "llama-3-8b").models)
    found = {row.key: row.ratios for row in rows}
    shown = {row["key"]: row["ratios"] for row in answered(capsys, "gpt2", "gpt2:n_layers=24")["components"]}

    assert found["attn_q"][:2] == (1, 2)
    assert found["positions"] == (1, 1, None)
    assert found["mlp_gate"] == (None, None, None)
    assert shown["attn_q"] == [1.0, 2.0]


def test_a_field_differs_where_one_of_many_does(capsys: pytest.CaptureFixture[str]) -> None:
    """Of three models the third has other layers."""
    rows = answered(capsys, "gpt2", "gpt2", "gpt2:n_layers=3")["hyperparameters"]

    assert rows == [{"key": "n_layers", "values": [12, 12, 3]}]


def test_what_differs_is_what_was_changed_and_what_followed() -> None:
    """Of two forms of one model, exactly the fields that its header says."""
    first, second = package.compare("gpt2", ("gpt2", {"d_model": 1024})).models
    different = {row.key for row in compare.hyperparameters((first, second)) if compare.differ(row)}

    assert different == {*second.model.changed, *second.model.followed}
    assert second.name == "gpt2-small:d_model=1024"


def test_a_field_that_only_some_have_is_a_dash_and_null(capsys: pytest.CaptureFixture[str]) -> None:
    """Experts are Mixtral's alone."""
    rows = {row["key"]: row["values"] for row in answered(capsys, "gpt2", "mixtral-8x7b")["hyperparameters"]}

    assert rows["n_experts"] == [None, 8]
    assert re.search(r"n_experts +— +8\n", gptcalc("compare", "gpt2", "mixtral-8x7b").stdout)


@pytest.mark.parametrize("width", ["40", "60", "80", "200", None])
def test_no_model_and_no_digit_is_lost_at_any_width(width: str | None) -> None:
    """Blocks stand below each other, and every amount of every model is there in full."""
    text = gptcalc("compare", *MODELS, COLUMNS=width).stdout
    models = package.compare(*MODELS).models

    for row in (*compare.by_group(models), *compare.totals(models)):
        for amount in row.amounts:
            assert not amount or f" {amount:,}" in text, row.key
    assert "…" not in text
    assert "no room" not in text
    if width:
        assert max(map(len, text.splitlines())) <= int(width)


def test_side_by_side_where_there_is_room() -> None:
    """At 200 columns every table is one."""
    text = gptcalc("compare", *MODELS, COLUMNS="200").stdout

    assert len(re.findall(r"^component ", text, re.MULTILINE)) == 1
    assert len(re.findall(r"^component ", gptcalc("compare", *MODELS, COLUMNS="60").stdout, re.MULTILINE)) > 1


def test_memory_is_that_of_the_memory_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Peaks are those of `gptcalc memory`, and the rows below a peak add up to it."""
    answer = answered(capsys, "gpt2", "gpt2-xl", "--batch", "2", "--seq", "64")
    rows = {row["key"]: row["amounts"] for row in answer["memory"]}
    for place, name in enumerate(("gpt2", "gpt2-xl")):
        report = package.memory(name, batch=2, seq=64)
        for mode in report.modes:
            assert rows[f"{mode.name}.peak"][place] == mode.totals.requested
            parts = [key for key in rows if key.startswith(mode.name) and not key.endswith(("peak", "reserved"))]
            assert sum(rows[key][place] for key in parts) == mode.totals.requested
    assert (answer["settings"]["batch"], rows["seq"]) == (2, [64, 64])


def test_memory_appears_only_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """A setting asks for it, and so does --memory; else there is none."""
    assert "memory" not in answered(capsys, "gpt2", "gpt1")
    assert "memory" in answered(capsys, "gpt2", "gpt1", "--memory", "--mode", "inference")
    assert "memory" in answered(capsys, "gpt2", "gpt1", "--mode", "inference")


def test_a_model_that_cannot_run_so_is_a_note_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """GPT-1 has 512 positions: its memory at 1,024 tokens is null with the reason, that of GPT-2 is there."""
    answer = answered(capsys, "gpt2", "gpt1", "--seq", "1024", "--mode", "inference")
    peak = next(row for row in answer["memory"] if row["key"] == "inference.peak")

    assert peak["amounts"][0] > 0
    assert peak["amounts"][1] is None
    assert "--seq: read 1,024" in answer["models"][1]["refused"]
    assert any("No memory of gpt1: --seq" in note for note in answer["notes"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gpt2"], ["read 1 model", "two or more"]),
        (["gpt2", "gtp2"], ["'gtp2'", "gpt2"]),
        (["gpt2", "gpt2:n_layer=0"], ["n_layers", "read 0"]),
        (["gpt2", "gpt2:layers=3"], ["'layers'", "n_layers"]),
        (["gpt2", "gpt2:n_layers=3,x"], ["'x'", "KEY=VALUE"]),
        (["gpt2", "gpt2:n_layers=3,n_layers=4"], ["n_layers twice"]),
        (["gpt2", "gpt1", "--batch", "0"], ["--batch", "read 0"]),
        (["gpt2", "gpt1", "--precision", "bf32"], ["--precision", "bf16"]),
    ],
)
def test_a_wrong_comparison_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: list[str]
) -> None:
    """What is wrong for all is an error, not an empty table."""
    code = run(["compare", *arguments])
    shown = capsys.readouterr()

    assert (code, shown.out) == (2, "")
    assert len(shown.err.splitlines()) == 1
    assert all(words in shown.err for words in said), shown.err


def test_python_names_an_unknown_setting() -> None:
    """`btach=8` is not taken for a model's field."""
    with pytest.raises(GptcalcError, match="batch"):
        package.compare("gpt2", "gpt1", btach=8)


def test_models_are_presets_aliases_and_paths_changed_or_not() -> None:
    """What stands behind a colon is changed only if it is a field."""
    path = DATA / "configs" / "openai-community__gpt2.json"

    assert parse_model("gpt2:n_layers=24,tied=false") == ("gpt2", {"n_layers": 24, "tied": False})
    assert parse_model("a:b/config.json") == ("a:b/config.json", {})
    assert parse_model(f"{path}:n_layers=2") == (str(path), {"n_layers": 2})
    first, second = package.compare("openai-community/gpt2", str(path)).models
    assert first.parameters.totals == second.parameters.totals
    assert second.name == path.name


def test_csv_has_a_column_for_each_model() -> None:
    """Read back, the components add up to the totals, model by model."""
    text = gptcalc("compare", *MODELS, "--format", "csv").stdout
    records = list(csv.DictReader(io.StringIO(text)))
    for name in MODELS:
        parts = [int(row[name] or 0) for row in records if row["section"] == "components"]
        stored = next(int(row[name]) for row in records if (row["section"], row["key"]) == ("totals", "stored"))
        assert sum(parts) == stored


def test_compare_json_validates(capsys: pytest.CaptureFixture[str]) -> None:
    """With memory, and with a model that has none."""
    jsonschema = pytest.importorskip("jsonschema")
    from gptcalc.report.schema import json_schema

    for extra in ([], ["--seq", "1024"]):
        answer = answered(capsys, "gpt2", "gpt1", "mixtral-8x7b:n_layers=2", *extra)
        jsonschema.Draft202012Validator(json_schema("compare")).validate(answer)
        assert answer["schema"] == "gptcalc.compare/1"
