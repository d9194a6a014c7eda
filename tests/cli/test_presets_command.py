"""`gptcalc presets`: the list by family and by words, and what the shell completes."""

from __future__ import annotations

import csv
import json

import pytest
from support import gptcalc

from gptcalc.catalog import find_preset, preset_names, search_presets
from gptcalc.cli.app import run
from gptcalc.cli.options import complete_family, complete_preset
from gptcalc.errors import UnknownNameError


def names(*arguments: str) -> list[str]:
    """The names that `gptcalc presets` lists, from its JSON."""
    printed = gptcalc("presets", *arguments, "--format", "json")
    assert printed.returncode == 0, printed.stderr
    return [entry["name"] for entry in json.loads(printed.stdout)["presets"]]


@pytest.mark.parametrize(
    ("family", "some", "others"),
    [
        ("gpt3", {"gpt3-175b", "gpt3-ada"}, {"gpt2-small", "cerebras-gpt-13b"}),
        ("gpt2", {"gpt2-xl", "gpt3-175b", "cerebras-gpt-13b", "nanogpt-124m"}, {"gpt1", "llama-13b"}),
        ("LLAMA", {"llama-3-8b", "tinyllama-1.1b", "codellama-34b"}, {"llama-4-scout", "mistral-7b-v0.1"}),
        ("gpt_neox", {"gpt-neox-20b", "pythia-160m"}, {"gpt-neo-125m"}),
        ("pythia", {"pythia-160m", "pythia-6.9b"}, {"gpt-neox-20b"}),
        ("qwen3-moe", {"qwen3-30b-a3b"}, {"qwen3-8b"}),
    ],
)
def test_a_family_is_a_file_or_a_model_type(family: str, some: set[str], others: set[str]) -> None:
    """A family is what the list calls one, or transformers' `model_type`, in either way of writing it."""
    found = {preset.name for preset in search_presets(family)}

    assert some <= found
    assert not others & found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("70b meta-llama", {"llama-2-70b", "llama-3.1-70b", "llama-3.3-70b"}),
        ("Touvron 2023A", {"llama-13b", "llama-30b", "llama-65b"}),
        ("deepseek r1", {"deepseek-v3"}),
        ("gpt_bigcode", {"starcoder"}),
        ("GPT-2 XL", {"gpt2-xl"}),
    ],
)
def test_a_search_finds_all_words(text: str, expected: set[str]) -> None:
    """Each word stands in a name, the title, the model type or the source, in any case of letters."""
    assert expected == {preset.name for preset in search_presets(text=text)}


def test_family_and_search_narrow_each_other() -> None:
    """Both together list what both list."""
    both = names("--family", "gpt2", "--search", "1.3b")

    assert both == ["cerebras-gpt-1.3b", "gpt3-xl", "gpt3-babbage-1.3b"]
    assert set(both) == set(names("--family", "gpt2")) & {preset.name for preset in search_presets(text="1.3b")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--family", "lama"], ["'lama'", "nearest: llama"]),
        (["--search", "gpt2-xxl"], ["'gpt2-xxl'", "nearest: gpt2-xl"]),
        (["--family", "gpt1", "--search", "llama"], ["gpt1", "'llama'", "openai-gpt"]),
        (["--search", "no such thing at all"], ["'gptcalc presets' lists all"]),
        (["--family", "gpt2", "show", "gpt2"], ["--family", "of the list"]),
    ],
    ids=" ".join,
)
def test_nothing_found_is_an_error(arguments: list[str], said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What no preset has is a wrong request, answered with what is near."""
    assert run(["presets", *arguments]) == 2
    captured = capsys.readouterr()

    assert captured.out == ""
    assert [word for word in said if word not in captured.err] == []


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_list_is_grouped_at_any_width(width: int) -> None:
    """Presets stand indented under their families, each on lines that fit, with name and count never cut."""
    lines = gptcalc("presets", "--family", "gpt2", COLUMNS=str(width)).stdout.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("name"))
    end = next(place for place in range(start, len(lines)) if not lines[place] or lines[place].startswith("(no room"))
    rows = lines[start + 1 : end]
    families = [row for row in rows if not row.startswith(" ")]

    assert families == ["cerebras-gpt", "gpt2", "gpt3", "llms-from-scratch", "nanogpt"]
    assert max(map(len, lines)) <= width
    assert {preset.name for preset in search_presets("gpt2")} <= {word for row in rows for word in row.split()}
    assert any("174,604,259,328" in row and "gpt3-175b" in row for row in rows)


def test_csv_has_a_record_for_each_preset() -> None:
    """The data has no group rows: each record names its family."""
    records = list(csv.DictReader(gptcalc("presets", "--family", "gpt2", "--format", "csv").stdout.splitlines()))

    assert [preset.name for preset in search_presets("gpt2")] == [
        row["name"].removesuffix(" (est.)") for row in records
    ]
    assert [preset.family for preset in search_presets("gpt2")] == [row["family"] for row in records]


def test_names_and_families_are_completed() -> None:
    """The shell completes names and aliases in any case of letters, and the families of the list."""
    assert "meta-llama/Llama-3.1-8B" in complete_preset("meta-llama/llama-3.1")
    assert complete_preset("gpt2-m") == ["gpt2-medium"]
    assert {"llama", "llama4"} <= set(complete_family("LLA"))
    assert all(find_preset(name) for name in preset_names())


def test_an_unknown_family_is_no_search() -> None:
    """The library says the same as the command line."""
    with pytest.raises(UnknownNameError, match="nearest: mistral, mixtral"):
        search_presets("mistrall")
