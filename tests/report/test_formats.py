"""Every format at every width: complete, aligned, and its numbers add up when they are read back."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from support import gptcalc

WIDTHS = ("60", "80", "200", None)
MODELS = ("gpt3-175b", "gpt2-small", "llama-3-8b", "mixtral-8x7b", "gpt1")
GPT3_ROWS = {
    "token embedding": 617_558_016,
    "positions": 25_165_824,
    "query": 14_495_514_624,
    "key": 14_495_514_624,
    "value": 14_495_514_624,
    "output projection": 14_495_514_624,
    "up-projection": 57_982_058_496,
    "down-projection": 57_982_058_496,
    "biases": 10_616_832,
    "norms": 4_743_168,
    "unembedding (tied)": 0,
}


def first_table(text: str) -> dict[str, int]:
    """Rows of the first table by label: the parameters are the last whole number before the share."""
    block = text.split("\n\n")[1]
    rows = {}
    for line in block.splitlines()[1:]:
        found = re.match(r"(\S.*?)\s{2,}.*?([\d,]+)(?:\s+[\d.]+%|\s*$)", line)
        if found:
            rows[found[1]] = int(found[2].replace(",", ""))
    return rows


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_of_gpt3_is_complete_in_its_order_at_any_width(width: str | None) -> None:
    """At 60, 80 and 200 columns and in a pipe: every row in order, no number cut, nothing wider than the terminal."""
    text = gptcalc("count", "gpt3-175b", COLUMNS=width).stdout
    rows = first_table(text)
    total = rows.pop("stored")

    assert rows == GPT3_ROWS
    assert list(rows) == list(GPT3_ROWS)
    assert total == sum(rows.values()) == 174_604_259_328
    assert "…" not in text
    if width:
        assert max(map(len, text.splitlines())) <= int(width)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("model", MODELS)
def test_tables_add_up_and_fit(model: str, width: str | None) -> None:
    """For every architecture: the rows that are printed add up to the total that is printed."""
    text = gptcalc("count", model, COLUMNS=width).stdout
    rows = first_table(text)

    assert rows.pop("stored") == sum(rows.values())
    assert len(rows) >= 11
    if width:
        assert max(map(len, text.splitlines())) <= int(width)


@pytest.mark.parametrize("depth", ["1", "2", "3"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_depth_fits_its_terminal(width: str | None, depth: str) -> None:
    """Layer groups and tensors are as complete as components."""
    text = gptcalc("count", "llama-3-8b", "--depth", depth, "--explain", COLUMNS=width).stdout

    assert "8,030,261,248" in text
    assert "…" not in text
    if width:
        assert max(map(len, text.splitlines())) <= int(width)


def test_the_bridge_is_printed_line_by_line() -> None:
    """From the popular breakdown to what is stored, each step with its sign."""
    text = gptcalc("count", "gpt3-175b").stdout
    bridge = text[text.index("From the popular breakdown") :].splitlines()[2:8]

    assert [" ".join(line.split()) for line in bridge] == [
        "matrices (the popular breakdown) 175,181,291,520",
        "− tied unembedding, stored once 617,558,016",
        "+ positions 25,165,824",
        "+ biases 10,616,832",
        "+ norms 4,743,168",
        "= stored 174,604,259,328",
    ]


def test_a_narrow_terminal_says_which_columns_it_dropped() -> None:
    """Whole columns go, never digits, and a line says which."""
    assert "no room at this width for: in numbers" in gptcalc("count", "gpt3-175b", COLUMNS="60").stdout


@pytest.mark.parametrize("depth", ["1", "2", "3"])
@pytest.mark.parametrize("model", MODELS)
def test_csv_and_json_read_back_to_the_same_numbers(model: str, depth: str) -> None:
    """Both have one record a line; both columns of amounts add up to their totals."""
    records = list(csv.DictReader(io.StringIO(gptcalc("count", model, "--depth", depth, "--format", "csv").stdout)))
    answer = json.loads(gptcalc("count", model, "--depth", depth, "--format", "json").stdout)

    assert [int(record["stored"]) for record in records] == [line["stored"] for line in answer["lines"]]
    assert sum(int(record["stored"]) for record in records) == answer["totals"]["stored"]
    assert sum(int(record["matrices"]) for record in records) == answer["totals"]["matrices"]
    assert [record["key"] for record in records] == [line["key"] for line in answer["lines"]]
    assert len({record["key"] for record in records}) == len(records)


def test_markdown_reads_back() -> None:
    """The pipe table has the rows of the printed one, and the total in bold."""
    text = gptcalc("count", "gpt3-175b", "--format", "markdown").stdout
    cells = [
        [cell.strip(" *") for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    rows = {row[0]: int(row[3].replace(",", "")) for row in cells[2:14]}

    assert rows.pop("stored") == sum(rows.values())
    assert rows == GPT3_ROWS


def test_colours_are_for_terminals_only() -> None:
    """A pipe gets no escape codes, with or without NO_COLOR."""
    assert "\x1b" not in gptcalc("count", "gpt2").stdout
    assert gptcalc("count", "gpt2", NO_COLOR="1").stdout == gptcalc("count", "gpt2").stdout


@pytest.mark.parametrize("columns", ["60", "80"])
@pytest.mark.parametrize("no_color", [None, "1"])
def test_a_real_terminal_gets_the_same_words(columns: str, no_color: str | None) -> None:
    """On a pseudo-terminal of that size: coloured unless NO_COLOR, and otherwise as COLUMNS prints it."""
    import fcntl
    import os
    import pty
    import struct
    import subprocess
    import sys
    import termios

    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, int(columns), 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color"} | ({"NO_COLOR": no_color} if no_color else {})
    process = subprocess.Popen([sys.executable, "-m", "gptcalc", "count", "gpt2"], stdout=child, env=environment)
    os.close(child)
    shown = b""
    while True:
        try:
            chunk = os.read(parent, 65536)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    process.wait()
    os.close(parent)
    text = shown.decode().replace("\r\n", "\n")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)

    assert ("\x1b[36m" in text) == (no_color is None)
    assert [line.rstrip() for line in plain.splitlines()] == gptcalc(
        "count", "gpt2", COLUMNS=columns
    ).stdout.splitlines()


@pytest.mark.parametrize("model", MODELS)
def test_explain_gives_formula_why_and_source_for_every_row(model: str) -> None:
    """Each component of the model has a row that says why it has its size, and who says so."""
    text = gptcalc("count", model, "--explain").stdout
    lines = json.loads(gptcalc("count", model, "--format", "json").stdout)["lines"]
    why = text[text.index("\nWhy\n") : text.index("\nNot in these")]
    rows = [re.split(r"\s{2,}", row.strip()) for row in why.strip().splitlines()[2:]]

    assert {row[0].removesuffix(" (tied)") for row in rows} >= {line["label"] for line in lines}
    assert all(len(row) == 4 for row in rows), rows


def test_a_norm_and_an_unembedding_cite_those_who_defined_them() -> None:
    """RMSNorm is not LayerNorm, and tying is cited only where it is done."""
    sources = {
        model: {line["key"]: line["source"] for line in answer["lines"]}
        for model in ("llama-3-8b", "gpt2")
        for answer in [json.loads(gptcalc("count", model, "--format", "json").stdout)]
    }

    assert "Zhang & Sennrich" in sources["llama-3-8b"]["norm_weight"]
    assert "Ba et al." in sources["gpt2"]["norm_weight"]
    assert "Press & Wolf" in sources["gpt2"]["unembedding"]
    assert "Press & Wolf" not in sources["llama-3-8b"]["unembedding"]


def test_layers_of_one_kind_are_one_section_wherever_they_stand() -> None:
    """Three of four layers of Qwen3-Next are linear: two sections, and JSON names every stretch."""
    text = gptcalc("count", "qwen3-next-80b-a3b", "--depth", "2").stdout
    lines = json.loads(gptcalc("count", "qwen3-next-80b-a3b", "--depth", "2", "--format", "json").stdout)["lines"]
    keys = {line["key"].rpartition(".")[0] for line in lines}

    assert "layers 0–2, 4–6, 8–10, …, 44–46 (36×)" in text
    assert "layers 3, 7, 11, …, 47 (12×)" in text
    assert len(keys) == 3
    assert "layers.3-3,7-7,11-11,15-15,19-19,23-23,27-27,31-31,35-35,39-39,43-43,47-47" in keys
