"""Shapes near a number of parameters: exact, in order, and each with a command that gives it again."""

from __future__ import annotations

import csv
import io
import json
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import DATA, examples, gptcalc

import gptcalc as package
from gptcalc.catalog import presets
from gptcalc.cli.app import run
from gptcalc.errors import GptcalcError
from gptcalc.ledger import design as engine
from gptcalc.ledger.design import PUBLISHED, SHAPE, bracket, read_amount, read_tolerance, usual_aspect
from gptcalc.ledger.parameters import parameters, stored

WISHES = (
    ["--params", "350M"],
    ["--params", "1.3B", "--family", "llama", "--vocab", "32000", "--tied"],
    ["--params", "20B", "--family", "mixtral", "--context", "4096", "--top", "3"],
    ["--params", "125M", "--family", "openai-gpt", "--no-bias", "--set", "norm_bias=true"],
    ["--params", "1e9", "--n-layers", "24", "--d-head", "128", "--tolerance", "20%"],
)


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    assert run([*arguments, "--format", "json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("wish", WISHES, ids=" ".join)
def test_the_command_of_every_shape_counts_what_is_printed(capsys: pytest.CaptureFixture[str], wish: list[str]) -> None:
    """Run as it is printed, it gives the same totals and the same shape."""
    answer = answered(capsys, "design", *wish)

    assert answer["designs"]
    for line in answer["designs"]:
        counted = answered(capsys, *shlex.split(line["command"])[1:])
        assert counted["totals"] == line["totals"]
        assert {field: counted["model"][field] for field in SHAPE} == {field: line[field] for field in SHAPE}


@pytest.mark.parametrize("wish", WISHES, ids=" ".join)
def test_shapes_are_in_order_and_within_the_tolerance(capsys: pytest.CaptureFixture[str], wish: list[str]) -> None:
    """By rank, each no farther off than was asked."""
    answer = answered(capsys, "design", *wish)
    ranks = [line["rank"] for line in answer["designs"]]

    assert ranks == sorted(ranks)
    assert len(ranks) == len({tuple(line[field] for field in SHAPE) for line in answer["designs"]})
    for line in answer["designs"]:
        assert abs(line["totals"]["stored"] - answer["params"]) <= answer["tolerance"] * answer["params"]


@pytest.mark.parametrize("name", ["gpt2", "gpt2-xl", "gpt3-175b", "llama-3-8b", "mixtral-8x7b", "gpt1"])
def test_a_published_count_finds_the_published_shape(name: str) -> None:
    """Of its own count, built as itself, each preset is among the first three, and exact."""
    count = package.count(name)
    found = package.design(count.totals.stored, family=name).shapes[:3]
    own = {field: count.model.family.resolved()[field] for field in SHAPE}

    assert own in [shape.sizes for shape in found if not shape.off]


def test_gpt2_is_the_first_answer_to_its_own_count() -> None:
    """124,439,808 parameters: 12 layers, 768 wide, 12 heads, and the command needs no option."""
    first = package.design(124_439_808).shapes[0]

    assert (first.stored, first.off, dict(first.overrides)) == (124_439_808, 0, {})
    assert [first.sizes[field] for field in ("n_layers", "d_model", "n_heads")] == [12, 768, 12]


@given(
    target=st.integers(10**6, 10**12),
    family=st.sampled_from(["gpt2", "llama-3-8b", "mixtral-8x7b", "gpt1"]),
    vocab=st.integers(1, 5000),
)
@settings(max_examples=examples(15), deadline=None)
def test_any_target_has_exact_shapes_or_a_reason(target: int, family: str, vocab: int) -> None:
    """What is printed of a shape is the ledger's, whose lines add up; or an error says what is possible."""
    try:
        shapes = package.design(target, family=family, n_vocab=vocab).shapes
    except GptcalcError as error:
        assert "nearest: " in str(error) or "least" in str(error)  # noqa: PT017  either outcome is right
        return
    for shape in shapes:
        again = parameters(shape.model.spec)
        assert shape.stored == sum(line.stored for line in again.lines)
        assert shape.off * target == shape.stored - target
        assert shape.sizes["d_model"] % 64 == 0
        assert shape.embedding_share < 1
        assert shape.sizes["d_head"] in (64, 128)
        assert shape.sizes["n_heads"] * shape.sizes["d_head"] == shape.sizes["d_model"]


def test_the_families_rules_for_the_mlp_are_kept() -> None:
    """GPT-2's is four times as wide; Llama 3's 3.5 comes in multiples of 256."""
    llama = package.design("7B", family="llama-3-8b", n_vocab=32000).shapes

    assert all(shape.sizes["d_ff"] == 4 * shape.sizes["d_model"] for shape in package.design("1B").shapes)
    assert all(shape.sizes["d_ff"] % 256 == 0 for shape in llama)


def test_llamas_third_rule_gives_its_published_widths(tmp_path: Any) -> None:
    """From the 7B's 11,008 of 4,096 follow the 13B's 13,824, the 33B's 17,920 and the 65B's 22,016 (Touvron 2023)."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama"}))
    for d_model, n_layers, d_ff in ((5120, 40, 13824), (6656, 60, 17920), (8192, 80, 22016)):
        stored = package.count(str(path), d_model=d_model, n_layers=n_layers, d_ff=d_ff).totals.stored
        first = package.design(stored, family=str(path), d_model=d_model).shapes[0]
        assert (first.stored, first.sizes["d_ff"], first.sizes["n_layers"]) == (stored, d_ff, n_layers)


def test_a_dim_that_is_given_is_kept() -> None:
    """Layers, width, heads, head size and d_ff stay as they were asked for."""
    for field, value in (("n_layers", 20), ("d_model", 1000), ("n_heads", 10), ("d_head", 80), ("d_ff", 5000)):
        shapes = package.design("400M", tolerance="20%", **{field: value}).shapes  # type: ignore[arg-type]
        assert {shape.sizes[field] for shape in shapes} == {value}


def test_grouped_heads_keep_about_the_bases_share() -> None:
    """A quarter of Llama 3's query heads, within a factor of 1.5, and always a divisor."""
    for shape in package.design("8B", family="llama-3-8b").shapes:
        n_heads, n_kv_heads = shape.sizes["n_heads"], shape.sizes["n_kv_heads"]
        assert n_heads % n_kv_heads == 0
        assert 4 / 1.5 <= n_heads / n_kv_heads <= 4 * 1.5


def test_kv_bytes_are_those_of_the_published_models() -> None:
    """36,864 bytes a token for GPT-2 and 131,072 for Llama 3 8B in bf16 (tests/data/facts_models.json)."""
    assert package.design(124_439_808).shapes[0].kv_bytes_per_token == 36_864
    assert package.design(8_030_261_248, family="llama-3-8b").shapes[0].kv_bytes_per_token == 131_072


def test_the_usual_aspect_goes_through_the_published_table() -> None:
    """At its rows it is theirs, between them between them, beyond them the last."""
    for size, n_layers, d_model in PUBLISHED:
        assert usual_aspect(size) == pytest.approx(d_model / n_layers)
    assert 42.7 < usual_aspect(500_000_000) < 64
    assert usual_aspect(10**13) == pytest.approx(128)
    assert usual_aspect(1) == pytest.approx(64)


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(1, 10**9), st.integers(1, 40))
def test_the_depths_on_both_sides_are_found(slope: int, start: int, target: int, first: int) -> None:
    """For equal layers, and where the first ones are others."""

    def stored(n_layers: int) -> int:
        return start + slope * n_layers + 3 * slope * min(n_layers, first)

    low, *above = bracket(stored, target)
    assert stored(low) <= target or low == 1
    assert not above or stored(above[0]) >= target or above[0] == 1_000_000


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        *(("350M", 350_000_000), ("1.3B", 1_300_000_000), ("124439808", 124_439_808), ("1e9", 10**9), (1e9, 10**9)),
        *(("124,439,808", 124_439_808), ("0.5t", 5 * 10**11), ("7 b", 7 * 10**9), ("12k", 12_000), (5, 5)),
    ],
)
def test_a_target_is_read_exactly(text: object, amount: int) -> None:
    """Letters are powers of a thousand; no float comes in between."""
    assert read_amount(text, "params") == amount


def test_a_tolerance_is_a_share() -> None:
    """5% and 0.05 are the same."""
    assert read_tolerance("5%", "t") == read_tolerance("0.05", "t") == read_tolerance(0.05, "t")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["--params"]),
        (["--params", "0"], ["--params", "'0'", "from 1"]),
        (["--params=-5"], ["--params", "'-5'", "350M"]),
        (["--params", "many"], ["'many'", "350M"]),
        (["--params", "1.5"], ["'1.5'", "whole number"]),
        (["--params", "9" * 4000], ["--params", "characters"]),
        (["--params", "1e99"], ["--params", "100,000,000,000,000"]),
        (["--params", "1M"], ["least", "3,332,096", "n_vocab = 50,257", "--vocab"]),
        (["--params", "1M", "--n-layers", "2"], ["least", "2 layers of d_model 64"]),
        (["--params", "350M", "--tolerance", "0"], ["--tolerance", "5% or 0.05"]),
        (["--params", "350M", "--tolerance", "5"], ["--tolerance", "below 100%"]),
        (["--params", "350M", "--top", "0"], ["--top", "from 1"]),
        (["--params", "350M", "--family", "gtp2"], ["--family", "'gtp2'", "gpt2"]),
        (["--params", "350M", "--d-model", "1024", "--tolerance", "0.1%"], ["no shape is within 0.1%", "nearest: "]),
        (["--params", "350M", "--d-model", "1000", "--n-heads", "7"], ["no width has a whole number of heads"]),
        (["--params", "350M", "--set", "n_foo=3"], ["'n_foo'"]),
    ],
    ids=str,
)
def test_a_wrong_wish_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: list[str]
) -> None:
    """It names what was read and what is possible, and exits with 2."""
    code = run(["design", *arguments])
    shown = capsys.readouterr()

    assert (code, shown.out) == (2, "")
    assert len(shown.err.splitlines()) <= 2
    assert len(shown.err) < 400
    assert all(words in shown.err for words in said), shown.err


def test_the_least_that_an_error_names_is_possible() -> None:
    """3,332,096 parameters are one layer of width 64, and fewer are not."""
    assert package.design(3_332_096, tolerance="0.001%").shapes[0].stored == 3_332_096
    with pytest.raises(GptcalcError, match="least"):
        package.design(3_332_000, tolerance="0.001%")


def test_the_tolerance_that_an_error_names_is_enough() -> None:
    """Asked again with it, there is a shape."""
    with pytest.raises(GptcalcError, match=r"tolerance of (\d+\.\d)%") as error:
        package.design("350M", d_model=1024, tolerance="0.1%")
    share = str(error.value).rpartition("tolerance of ")[2]

    assert package.design("350M", d_model=1024, tolerance=share).shapes


@pytest.mark.parametrize("width", ["60", "80", "200", None])
def test_every_width_shows_layers_width_and_the_exact_count(width: str | None) -> None:
    """Columns go, these stay."""
    text = gptcalc("design", "--params", "46B", "--family", "mixtral", COLUMNS=width).stdout
    for shape in package.design("46B", family="mixtral").shapes:
        row = next(line for line in text.splitlines() if f" {shape.stored:,} " in line)
        assert row.split()[:2] == [str(shape.sizes["n_layers"]), f"{shape.sizes['d_model']:,}"]
    if width:
        assert max(map(len, text.splitlines())) <= int(width)


def test_the_search_takes_less_than_two_seconds() -> None:
    """All shapes are counted by the ledger itself, and yet nobody waits."""
    start = time.process_time()
    package.design("350M")

    assert time.process_time() - start < 2


def test_no_more_shapes_are_counted_than_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """About four counts a width of usual aspect, though there are hundreds of widths, and as many depths."""
    counted: list[int] = []
    monkeypatch.setattr(engine, "stored", lambda spec: counted.append(spec.n_layers) or stored(spec))
    package.design("70B", family="llama-3-8b")

    assert 50 < len(counted) < 300
    assert max(counted) < 1000


@pytest.mark.parametrize(
    "path", sorted((DATA / "configs").glob("*.json"))[::4], ids=lambda path: str(path.stem).partition("__")[2]
)
def test_every_published_config_is_found_from_its_own_count(path: Path) -> None:
    """Whatever its heads, experts and layers are like: built as itself, its shape is the first and exact."""
    count = package.count(path)
    first = package.design(count.totals.stored, family=str(path), n_layers=count.model.spec.n_layers).shapes[0]

    assert first.off == 0
    assert first.sizes == {field: count.model.family.resolved()[field] for field in SHAPE}


def test_design_csv_and_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """CSV has the JSON's counts; JSON is what its schema says."""
    jsonschema = pytest.importorskip("jsonschema")
    from gptcalc.report.schema import json_schema

    answer = answered(capsys, "design", "--params", "350M")
    run(["design", "--params", "350M", "--format", "csv"])
    records = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))

    jsonschema.Draft202012Validator(json_schema("design")).validate(answer)
    assert answer["schema"] == "gptcalc.design/1"
    assert [int(record["stored"]) for record in records] == [line["totals"]["stored"] for line in answer["designs"]]


def test_every_family_of_the_presets_has_designs() -> None:
    """Each model type by its own name: a shape near the size of a small model, or a reason."""
    for model_type in sorted({str(preset.hyperparameters["model_type"]) for preset in presets()}):
        assert package.design("2B", family=model_type, tolerance="10%").shapes, model_type
