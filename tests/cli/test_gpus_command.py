"""`gptcalc gpus`: the list by vendor, words, memory and speed, one whole, and what the shell completes."""

from __future__ import annotations

import csv
import io
import json

import pytest
from support import gptcalc

from gptcalc.cli.app import run
from gptcalc.cli.gpus import _complete_sort, _complete_vendor
from gptcalc.cli.options import complete_gpu
from gptcalc.gpus import Gpu, gpu_names, gpus, need_gpu
from gptcalc.ledger.fit import room, room_of

GIB = 2**30
each_gpu = pytest.mark.parametrize("gpu", gpus(), ids=[gpu.slug for gpu in gpus()])


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `gptcalc gpus` prints."""
    assert run(["gpus", *arguments]) == 0
    return capsys.readouterr().out


def drawn(capsys: pytest.CaptureFixture[str], width: int | None, *arguments: str) -> str:
    """What `gptcalc gpus` prints on a terminal of that width, or into a pipe."""
    with pytest.MonkeyPatch.context() as environment:
        if width:
            environment.setenv("COLUMNS", str(width))
        return printed(capsys, *arguments)


def names(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The names that `gptcalc gpus` lists, from its JSON."""
    return [entry["name"] for entry in json.loads(printed(capsys, *arguments, "--format", "json"))["gpus"]]


def test_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """The list holds every GPU, each with the room that an answer about it rests on."""
    answer = json.loads(printed(capsys, "--format", "json"))

    assert [gpu.slug for gpu in gpus()] == [entry["name"] for entry in answer["gpus"]]
    for entry in answer["gpus"]:
        found = room(entry["name"])
        assert entry["memory"] == found.capacity
        assert entry["usable"] == {"low": found.usable.low, "high": found.usable.high}
        assert (entry["source"], entry["estimated"]) == (found.source, found.source == "marketing")
        assert entry["target"] == found.target


def test_filters_narrow_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    """What is listed is of the vendor, has every word, surely has the memory, and is common if that was asked."""
    assert names(capsys, "--vendor", "nvidia", "--search", "hopper", "--min-memory", "130GiB") == [
        gpu.slug
        for gpu in gpus()
        if "hopper" in gpu.arch.lower() and gpu.vendor == "NVIDIA" and room_of(gpu).usable.low >= 130 * GIB
    ]
    assert names(capsys, "--common") == [gpu.slug for gpu in gpus() if gpu.common]
    assert names(capsys, "--common", "--vendor", "AMD") == ["mi300x"]


def test_memory_is_what_torch_surely_has(capsys: pytest.CaptureFixture[str]) -> None:
    """A card of 24 GB has less than 24 GiB, and a filter at what it surely has lists it, one byte above does not."""
    low = room("rtx-4090").usable.low

    assert "rtx-4090" in names(capsys, "--min-memory", f"{low} B")
    assert "rtx-4090" not in names(capsys, "--min-memory", f"{low + 1} B")
    assert "rtx-4090" not in names(capsys, "--min-memory", "24GiB")
    assert "rtx-4090" in names(capsys, "--min-memory", "24GB")


@pytest.mark.parametrize(
    ("key", "amount"),
    [
        ("memory", lambda entry: -entry["usable"]["low"]),
        ("bandwidth", lambda entry: -entry["bandwidth"]),
        ("bf16", lambda entry: -(entry["bf16"] or 0)),
        ("name", lambda entry: entry["name"]),
    ],
)
def test_sorted_by_each_key(key: str, amount: object, capsys: pytest.CaptureFixture[str]) -> None:
    """Names come from A, numbers from the most down, and what is not known at the end; nothing is lost."""
    entries = json.loads(printed(capsys, "--sort", key, "--format", "json"))["gpus"]

    assert sorted(entries, key=amount) == entries
    assert {entry["name"] for entry in entries} == {gpu.slug for gpu in gpus()}


@pytest.mark.parametrize("width", [60, 80, 200, None])
@pytest.mark.parametrize("arguments", [[], ["--sort", "memory"]], ids=["grouped", "flat"])
def test_the_list_fits_any_width(arguments: list[str], width: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    """At 60, 80 and 200 columns and in a pipe each GPU stands on one line with its memory and who says so."""
    text = drawn(capsys, width, *arguments)
    lines = text.splitlines()
    rows = {word: line for line in lines for word in line.split() if word in gpu_names()}

    if width:
        assert max(map(len, lines)) <= width
    assert "\u2026" not in text
    assert {gpu.slug for gpu in gpus()} <= set(rows)
    assert "139.80 GiB  torch" in rows["h200-sxm"]
    assert "estimated" in rows["m1"]
    assert "driver" in rows["a10"]


def test_csv_is_in_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    """A record has its vendor, whole bytes and whole FLOPs per second, and nothing where nothing is known."""
    records = list(csv.DictReader(io.StringIO(printed(capsys, "--format", "csv"))))
    first = next(record for record in records if record["name"] == "h100-sxm")

    assert [record["name"] for record in records] == [gpu.slug for gpu in gpus()]
    assert (first["vendor"], first["memory"], first["bf16"]) == ("NVIDIA", str(81_089 * 2**20), "989400000000000")
    assert next(record["bf16"] for record in records if record["name"] == "t4") == ""


@each_gpu
def test_one_whole(gpu: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    """`show` prints every published value of a GPU, its names, its sources and how sure they are."""
    answer = json.loads(printed(capsys, "show", gpu.slug, "--format", "json"))

    expected = (gpu.slug, gpu.name, gpu.vendor, gpu.arch)
    assert (answer["name"], answer["title"], answer["vendor"], answer["arch"]) == expected
    assert answer["sources"] == list(gpu.sources)
    assert (answer["aliases"], answer["device_names"]) == (list(gpu.aliases), list(gpu.device_names))
    assert (answer["memory_driver"], answer["memory_torch"]) == (gpu.memory_driver_bytes, gpu.memory_torch_bytes)
    assert answer["peaks"] == {dtype: gpu.peak(dtype) for dtype in gpu.dense_tflops}
    assert (answer["l2"], answer["link"], answer["tdp_w"]) == (gpu.l2_bytes, gpu.link, gpu.tdp_w)
    assert (answer["confidence"], answer["note"]) == (gpu.confidence, gpu.note)


@pytest.mark.parametrize("width", [60, 80, 200, None])
@pytest.mark.parametrize("name", ["rtx-4090", "m4-pro", "mi250x", "p100", "b300", "trn2"])
def test_one_whole_fits_any_width(name: str, width: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has the same facts at any width: sizes, confidence, sources, note, what to type next."""
    text = drawn(capsys, width, "show", name)
    gpu, words = need_gpu(name), " ".join(text.split())

    if width:
        assert max(map(len, text.splitlines())) <= width
    for part in (gpu.name, *gpu.aliases, *gpu.device_names, *gpu.sources, gpu.note, f"{gpu.bandwidth_gb_s:,} GB/s"):
        assert " ".join(part.split()) in words
    assert f"confidence: {gpu.confidence}" in words
    assert f"Next: gptcalc memory MODEL --gpu {gpu.slug}" in words


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rtx-4090", ["surely for torch 23.52 GiB", "at most for torch 23.99 GiB", "whichever the driver"]),
        ("a10", ["driver's total 23,028 MiB", "torch's total not known", "it may keep up to 2.9% of it from torch"]),
        (
            "rtx-4060-ti-16g",
            ["estimated: the number on the box", "An answer for it is but probable: its memory is estimated"],
        ),
        ("p100", ["kernels: those of sm70, the nearest that is known"]),
        ("mi300x", ["kernels: those of AMD are not known", "An answer for it is but probable: kernels and allocator"]),
        ("h100", ["kernels: sm90", "surely for torch 79.19 GiB"]),
    ],
)
def test_the_memory_is_reasoned(name: str, said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Whose figure the memory is, what may be missing of it, and why an answer is but probable, stands there."""
    words = " ".join(drawn(capsys, 200, "show", name).split())

    assert [part for part in said if part not in words] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "h10"], ["GPU: read 'h10'", "h100"]),
        (["show", "rtx 4091"], ["'rtx 4091'", "rtx-4090"]),
        (["--vendor", "nvida"], ["'nvida'", "nearest: NVIDIA"]),
        (["--search", "no such thing"], ["'no such thing'", "'gptcalc gpus' lists all"]),
        (["--vendor", "amd", "--search", "hopper"], ["GPU of amd with these words"]),
        (["--min-memory", "40"], ["--min-memory: read '40'", "40GiB"]),
        (["--min-memory", "1TiB"], ["the largest of these", "surely has"]),
        (["--vendor", "google", "--common"], ["leave --common out"]),
        (["--sort", "bandwith"], ["--sort: read 'bandwith'", "nearest: bandwidth"]),
        (["--sort", "name", "show", "h100"], ["gpus show", "of the list only"]),
    ],
    ids=" ".join,
)
def test_nothing_found_is_an_error(arguments: list[str], said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What no GPU has is a wrong request, answered with what is near or what there is."""
    assert run(["gpus", *arguments]) == 2
    captured = capsys.readouterr()

    assert captured.out == ""
    assert [word for word in said if word not in captured.err] == []


def test_show_validates_against_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """One GPU whole is what `gptcalc schema gpus-show` promises, whichever it is."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(gptcalc("schema", "gpus-show").stdout)
    for name in ("h100", "m1", "trn2"):
        answer = json.loads(printed(capsys, "show", name, "--format", "json"))
        jsonschema.Draft202012Validator(schema).validate(answer)
        assert answer["schema"] == "gptcalc.gpus-show/1"


def test_names_are_completed() -> None:
    """The shell completes names and aliases in any case of letters, `local`, vendors and keys to sort by."""
    assert {"h100", "h100-80g", "h100-pcie"} <= set(complete_gpu("H100"))
    assert complete_gpu("loc") == ["local"]
    assert _complete_vendor("a") == ["AMD", "Apple", "AWS"]
    assert _complete_sort("b") == ["bandwidth", "bf16"]
