"""What fits where: every cell is asked again of `gptcalc.memory`, at the answer and at the next step."""

from __future__ import annotations

import json
import shlex
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

import gptcalc
from gptcalc import api
from gptcalc.catalog import resolve
from gptcalc.cli.app import run
from gptcalc.errors import GptcalcError, InvalidValueError, UnknownNameError
from gptcalc.gpus import gpus
from gptcalc.ledger.fit import rooms
from gptcalc.ledger.grid import WAYS, Grid, Wish, by_gpu, by_model, planned, sort, ways
from gptcalc.ledger.memory import CONTEXT
from gptcalc.ledger.solve import Search
from gptcalc.report.grid import command

if TYPE_CHECKING:
    from collections.abc import Mapping

TOY = {"n_layers": 2, "d_model": 64, "n_heads": 2, "n_vocab": 500}
LLAMA = {**TOY, "n_kv_heads": 1, "d_ff": 128}
#: A model, its overrides, the devices, what is solved for, and what is asked beside it.
GRIDS: dict[str, tuple[str, dict[str, object], list[str], Any, dict[str, object]]] = {
    "batches": ("gpt2", TOY, ["1GiB", "rtx-4090", "t4"], "batch", {}),
    "lengths": ("gpt2", {**TOY, "n_ctx": 20_000}, ["1GiB", "rtx-3070"], "seq", {"batch": 3}),
    "lengths without end": ("llama-3.2-3b", LLAMA, ["0.7GiB"], "seq", {}),
    "an optimizer": ("gpt2", TOY, ["1GiB"], "batch", {"optimizer": "adamw8bit", "seq": 128}),
    "written-out attention": ("gpt2", TOY, ["1GiB", "h100-sxm"], "batch", {"attention": "eager"}),
    "one target": ("gpt2", TOY, ["2GiB", "h100-sxm"], "batch", {"target": "sm80", "mode": "training"}),
    "chunks and masters": ("gpt2", TOY, ["1GiB"], "batch", {"chunked_loss": 8, "master_weights": "fp32"}),
    "transformers": ("gpt2", TOY, ["1GiB"], "batch", {"implementation": "transformers"}),
    "nothing": ("gpt3-175b", {}, ["rtx-4090"], "batch", {"mode": "inference"}),
}


@cache
def grid(name: str) -> Grid:
    """One of the grids."""
    model, overrides, names, what, asked = GRIDS[name]
    return by_gpu(resolve(model, overrides), rooms(names), Wish(what, asked))


@pytest.mark.parametrize("name", GRIDS)
def test_a_cell_fits_at_its_answer_and_not_at_the_next_step(name: str) -> None:
    """Asked of `gptcalc.memory`: at the value the run fits, with one more it does not; without a value not one fits."""
    model, overrides, _, what, asked = GRIDS[name]
    found = grid(name)
    assert found.cells

    for row, cell in found.cells:
        if cell.refused:
            assert (cell.value, cell.fit, name) == (None, None, "transformers")
            continue

        def fits(value: int, where: str = row.room.name, own: Mapping[str, Any] = cell.asked) -> bool | None:
            return gptcalc.memory(model, **{**own, what: value}, gpu=where, **overrides).fits

        longest = resolve(model, overrides).spec.n_ctx if what == "seq" and model == "gpt2" else None
        if cell.value is None:
            assert not fits(cell.asked[what])
        else:
            assert fits(cell.value)
            assert cell.asked[what] == cell.value
        assert {**asked, **cell.asked}.items() >= cell.way.settings.items()
        if cell.value is not None and cell.value != longest:
            assert not fits(cell.value + 1)


def test_the_answer_is_the_engines_in_bytes() -> None:
    """What a cell says is needed is what `gptcalc.memory` says, on the device's own kernels."""
    for row, cell in grid("batches").cells:
        report = gptcalc.memory("gpt2", **cell.asked, gpu=row.room.name, **TOY)
        assert cell.plan == report.answer.plan
        assert cell.fit == report.answers[0].gpu


def test_every_way_is_a_column_in_its_order() -> None:
    """Inference, and training in three precisions, each with and without checkpointing."""
    keys = ["inference", "fp32", "fp32-full", "autocast-bf16", "autocast-bf16-full", "bf16", "bf16-full"]
    assert [way.key for way in WAYS] == [way.key for way in ways({})] == keys


@pytest.mark.parametrize(
    ("asked", "keys"),
    [
        ({"mode": "inference"}, ["inference"]),
        ({"mode": "training", "checkpointing": "none"}, ["fp32", "autocast-bf16", "bf16"]),
        ({"precision": "fp16"}, ["inference", "fp16", "fp16-full"]),
        ({"precision": "BF16", "checkpointing": "selective"}, ["inference", "bf16-selective"]),
        ({"precision": "autocast-fp16", "mode": "both"}, ["inference", "autocast-fp16", "autocast-fp16-full"]),
    ],
)
def test_what_is_asked_leaves_the_ways_that_have_it(asked: dict[str, object], keys: list[str]) -> None:
    """A mode, a precision or a checkpointing that is given is that of every column."""
    assert [way.key for way in ways(asked)] == keys


def test_a_setting_is_heard_by_the_ways_that_have_a_use_for_it() -> None:
    """The KV cache's dtype is inference's, the optimizer training's; fp32 weights need no copies in fp32."""
    asked = {"kv_dtype": "fp16", "optimizer": "adam", "master_weights": "fp32"}
    found = {one.way.key: one for one in planned(resolve("gpt2", {}), Wish("batch", asked))}

    assert found["inference"].asked.keys() & asked.keys() == {"kv_dtype"}
    assert found["fp32"].asked.keys() & asked.keys() == {"optimizer"}
    assert found["autocast-bf16-full"].asked.keys() & asked.keys() == {"optimizer"}
    assert found["bf16"].asked.keys() & asked.keys() == {"optimizer", "master_weights"}


@pytest.mark.parametrize(
    ("what", "asked", "said"),
    [
        ("batch", {"batch": 4}, ["batch", "max", "seq"]),
        ("seq", {"seq": 4}, ["seq", "max", "batch"]),
        ("batch", {"seq": 2048}, ["seq", "2,048", "1,024"]),
        ("batch", {"momentum": 0.9}, ["momentum", "optimizer"]),
        ("batch", {"mode": "inference", "optimizer": "sgd"}, ["optimizer", "inference"]),
        ("batch", {"precision": "fp32", "master_weights": "fp32"}, ["master_weights", "fp32"]),
        ("seq", {"batch": 0}, ["batch", "read 0"]),
        ("batch", {"attention": "flsh"}, ["attention", "'flsh'", "flash"]),
    ],
)
def test_a_wrong_setting_is_said(what: Any, asked: dict[str, object], said: list[str]) -> None:
    """What no way can have is an error, as it is for `memory`."""
    with pytest.raises(GptcalcError) as caught:
        by_gpu(resolve("gpt2", TOY), rooms(["1GiB"]), Wish(what, asked))
    assert all(word in str(caught.value) for word in said), caught.value


def test_the_largest_that_has_a_position_is_where_the_search_ends() -> None:
    """Learned positions end at the context; the others go on as long as there is memory."""
    learned = by_gpu(resolve("gpt2", TOY), rooms(["rtx-4090"]), Wish("seq", {"mode": "inference"}))
    rotary = by_gpu(resolve("llama-3.2-3b", LLAMA), rooms(["rtx-4090"]), Wish("seq", {"mode": "inference"}))

    assert learned.rows[0].cells[0].value == 1024
    assert (rotary.rows[0].cells[0].value or 0) > resolve("llama-3.2-3b", {}).spec.n_ctx


def test_rows_are_in_the_order_that_was_asked() -> None:
    """GPUs by memory, the least first, by name, or by a way, the most first."""
    found = by_gpu(resolve("gpt2", TOY), rooms(["3GiB", "1GiB", "20GiB"]), Wish("batch", {"checkpointing": "none"}))
    assert [row.room.name for row in found.rows] == ["1GiB", "3GiB", "20GiB"]
    assert [row.room.name for row in sort(found, "name").rows] == ["1GiB", "20GiB", "3GiB"]
    assert [row.room.name for row in sort(found, "bf16").rows] == ["20GiB", "3GiB", "1GiB"]


def test_models_on_one_device_are_the_other_way_round() -> None:
    """The same cells, the smallest model first; a model that refuses the request says why in its cells."""
    models = [resolve("llama-3.2-3b", LLAMA), resolve("gpt2", {**TOY, "n_ctx": 64})]
    wish = Wish("batch", {"seq": 128, "checkpointing": "none"})
    found = by_model(rooms(["1GiB"])[0], models, wish)
    cells = {row.model.family.model_type: row.cells for row in found.rows}

    assert {cell.value for cell in cells["gpt2"]} == {None}
    assert all("positions are learned" in cell.refused for cell in cells["gpt2"])
    assert cells["llama"] == by_gpu(models[0], rooms(["1GiB"]), wish).rows[0].cells
    with pytest.raises(InvalidValueError, match="positions are learned"):
        by_model(rooms(["1GiB"])[0], models[1:], wish)


def test_the_closest_is_what_lacks_least() -> None:
    """Of GPT-3 175B on two devices the larger one, in inference."""
    found = by_gpu(resolve("gpt3-175b", {}), rooms(["rtx-4090", "80GiB"]), Wish("batch", {"checkpointing": "full"}))
    assert not found.fits
    assert found.closest is not None
    row, cell = found.closest
    assert (row.room.name, cell.way.key, cell.asked["batch"]) == ("80GiB", "inference", 1)
    lacks = [-other.fit.margin.low for _, other in found.cells if other.fit]
    assert cell.fit is not None
    assert -cell.fit.margin.low == min(lacks)


def test_a_model_whose_weights_are_too_many_is_not_recorded_but_where_it_comes_closest() -> None:
    """The bytes of its weights are a lower bound that no engine is needed for; what lacks least is the engine's own."""
    search = Search()
    model, where = resolve("gpt3-175b", {}), rooms(("t4", "rtx-4090", "h100-sxm"))
    found = by_gpu(model, where, Wish(), search=search)
    assert len(search.totals.runs) == 1
    assert found.closest is not None
    row, cell = found.closest
    assert (row.room.name, cell.way.key, cell.weights_alone) == ("h100-sxm", "inference", False)
    whole = gptcalc.memory("gpt3-175b", gpu="h100-sxm", mode="inference", precision="bf16").answers[0].gpu
    assert cell.fit == whole
    stored, biases_and_norms = 174_604_259_328, 15_360_000
    for other_row, other in found.cells:
        if other is not cell:
            numbers = stored if other.way.mode == "inference" else 2 * stored - biases_and_norms
            width = 2 if other.way.settings["precision"] == "bf16" else 4
            assert other.weights_alone
            assert other.fit is not None
            assert other.fit.needed == (numbers * width + CONTEXT[0], numbers * width + CONTEXT[1])
            assert other_row.room.usable.high < other.fit.needed.low


@pytest.mark.parametrize("what", ["batch", "seq"])
def test_memory_solves_for_what_the_grid_has(what: str) -> None:
    """The same search: near the limit there may be several numbers that fit while the next one does not."""
    overrides = {**TOY, "n_ctx": 20_000}
    found = by_gpu(resolve("gpt2", overrides), rooms(("1GiB", "rtx-3060-12g")), Wish(what))  # type: ignore[arg-type]
    for row, cell in found.cells:
        settings = {key: value for key, value in cell.asked.items() if key not in {what, "target"}}
        solved = gptcalc.memory("gpt2", gpu=row.room.name, max=what, **{"mode": cell.way.mode, **settings, **overrides})
        assert solved.answers[0].largest is not None
        assert solved.answers[0].largest.value == cell.value


def test_the_hardware_table_of_the_notes() -> None:
    """GPT-2 small serves and trains on consumer cards in every way; GPT-3 175B does on no GPU that is common."""
    cards = ["rtx-3060-12g", "rtx-4090"]
    small = gptcalc.fit("gpt2-small", gpu=cards, seq=1024).grids[0]
    assert [row.room.name for row in small.rows] == cards
    assert all((cell.value or 0) >= 4 for _, cell in small.cells)
    common = [gpu.slug for gpu in gpus() if gpu.common]
    large = gptcalc.fit("gpt3-175b", gpu=common, mode="inference")
    assert (large.fits, len(large.grids[0].rows)) == (False, len(common))


@pytest.mark.parametrize("name", ["batches", "one target", "chunks and masters", "lengths"])
def test_the_command_of_a_cell_has_its_answer(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """The command line that a cell comes with asks `gptcalc memory` for its very plan, and says that it fits."""
    for row, cell in grid(name).cells[-3:]:
        words = shlex.split(command(row, cell, GRIDS[name][4]))
        assert run([*words[1:], "--format", "json"]) == 0
        fit = json.loads(capsys.readouterr().out)[cell.way.mode]["fit"]
        assert cell.fit is not None
        assert (fit["needed"]["low"], fit["needed"]["high"], fit["fits"]) == (*cell.fit.needed, True)


def test_settings_of_the_api_are_those_of_memory() -> None:
    """An unknown one is named with what is near, as are what is solved for and the order."""
    for given_, said in (
        ({"batsh": 1}, "batch"),
        ({"max": "layers"}, "gptcalc memory"),
        ({"max": "bach"}, "batch"),
        ({"sort": "memry"}, "memory"),
        ({"gpu": "rtx-4091"}, "rtx-4090"),
        ({"gpu": "0GiB"}, "more than nothing"),
    ):
        with pytest.raises((UnknownNameError, InvalidValueError), match=said):
            gptcalc.fit("gpt2", **given_)  # type: ignore[arg-type]


def test_a_repr_says_how_much_fits() -> None:
    """In a notebook and on a prompt."""
    found = api.fit(("gpt2", TOY), gpu=["1GiB", "0.5GiB"])
    assert repr(found) == "Fits(1 of 2)"
    assert "<table>" in found._repr_html_()
    assert found.command == f"gptcalc.fit(('gpt2', {TOY!r}), gpu=['1GiB', '0.5GiB'])"
