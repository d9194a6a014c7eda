"""`gptcalc memory --gpu` and `--budget`: the answer at the top, in JSON, and as an exit code."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator
from support import asked_memory

from gptcalc import api
from gptcalc.allocator import Figures
from gptcalc.catalog import resolve
from gptcalc.cli.app import run
from gptcalc.gpus import need_gpu
from gptcalc.ledger.answer import Answer
from gptcalc.ledger.asked import settle
from gptcalc.ledger.fit import Range, Room, budget, fit, room
from gptcalc.ledger.request import Request, read_plan
from gptcalc.ledger.totals import Totals
from gptcalc.report.fits import fit_tables
from gptcalc.report.schema import json_schema

if TYPE_CHECKING:
    from pathlib import Path

TOTALS = Totals()
#: What is typed -> what the error must say.
WRONG: dict[str, tuple[list[str], list[str]]] = {
    "a GPU that is none": (["--gpu", "rtx4099"], ["--gpu", "'rtx4099'", "rtx4090", "24GiB"]),
    "a device of nothing": (["--gpu", "0GiB"], ["--gpu", "'0GiB'", "more than nothing"]),
    "a budget of nothing": (["--budget", "0GiB"], ["--budget", "'0GiB'", "above zero", "40GiB"]),
    "a budget below nothing": (["--budget=-1GiB"], ["--budget", "'-1GiB'", "above zero"]),
    "a budget without a unit": (["--budget", "40"], ["--budget", "'40'", "40GiB"]),
    "a GPU for a budget": (["--budget", "rtx-4090"], ["--budget", "'rtx-4090'", "40GiB"]),
    "a stage on a GPU": (["--gpu", "24GiB", "--scope", "embedding"], ["--gpu", "--scope embedding"]),
    "a stage in a budget": (["--budget", "1GiB", "--scope", "embedding"], ["--budget", "--scope embedding"]),
    "two plans on a GPU": (["--gpu", "24GiB", "--versus", "--batch 2"], ["--gpu", "--versus", "one of them"]),
    "two plans in a budget": (["--budget", "1GiB", "--versus", "--batch 2"], ["--budget", "--versus"]),
}
#: What is typed, and whether that fits.
CASES: list[tuple[list[str], int]] = [
    (["gpt2", "--gpu", "rtx-4090"], 0),
    (["gpt2", "--gpu", "RTX4090", "--mode", "inference"], 0),
    (["gpt2", "--gpu", "24GiB", "--batch", "24", "--mode", "training"], 1),
    (["gpt2", "--gpu", "rtx-4090", "--batch", "64"], 1),
    (["gpt2", "--gpu", "mi300x"], 0),
    (["gpt2", "--gpu", "m3-max-40c", "--mode", "inference"], 0),
    (["llama-3-8b", "--gpu", "rtx-4090", "--mode", "inference"], 0),
    (["gpt2", "--budget", "1GiB"], 1),
    (["gpt2", "--budget", "1GiB", "--mode", "inference"], 0),
    (["gpt2", "--gpu", "rtx-4090", "--budget", "1GiB", "--mode", "training"], 1),
    (["gpt2", "--gpu", "1GiB", "--budget", "100GiB", "--mode", "training"], 1),
]


@pytest.fixture(autouse=True)
def unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would make a run fit is searched for in other tests: here it is not waited for."""
    monkeypatch.setattr(api, "_suggest", lambda *_asked: None)


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_question_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: list[str]
) -> None:
    """It names what was read and what is allowed, exits with 2 and prints no answer."""
    code = run(["memory", "gpt2", *arguments])
    shown = capsys.readouterr()

    assert (code, shown.out) == (2, "")
    assert len(shown.err.splitlines()) == 1
    assert all(word in shown.err for word in said), shown.err


@pytest.mark.parametrize(
    ("arguments", "code"), CASES, ids=lambda case: " ".join(case) if isinstance(case, list) else ""
)
def test_the_answer_is_the_engines(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> None:
    """Every number of `fit` and `budget` is that of the four figures against the room; the exit code follows."""
    found_code, found = asked_memory(capsys, *arguments)
    words = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    settings: dict[str, Any] = {key.removeprefix("--"): value for key, value in words.items()}
    settings |= {"batch": int(settings["batch"])} if "batch" in settings else {}
    spec = resolve(arguments[0], {}).spec
    plan, modes, _ = settle(spec, settings)
    does = []
    for mode in modes:
        totals = TOTALS(spec, plan, mode)
        for key, read, field in (("fit", room, "gpu"), ("budget", budget, "budget")):
            if field not in settings:
                assert key not in found[mode]
                continue
            expected = fit(totals, read(settings[field]))
            own = found[mode][key]
            assert {bound: own["needed"][bound] for bound in ("low", "high")} == expected.needed._asdict()
            assert own["usable"] == expected.room.usable._asdict()
            assert own["margin"] == {
                "low": own["usable"]["low"] - own["needed"]["high"],
                "high": own["usable"]["high"] - own["needed"]["low"],
            }
            assert (own["verdict"], own["fits"]) == (expected.verdict, expected.fits)
            assert (own["title"], own["capacity"]) == (expected.room.title, expected.room.capacity)
            assert (own["source"], own["estimated"]) == (expected.room.source, expected.room.estimated)
            assert own["gpu"] == (expected.room.name if key == "fit" else None)
            does.append(expected.fits)

    assert (found_code, all(does)) == (code, code == 0)


def test_the_json_is_that_of_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """With a device and a budget too."""
    _, found = asked_memory(capsys, "gpt2", "--gpu", "m3-max-40c", "--budget", "1GiB")

    Draft202012Validator(json_schema("memory")).validate(found)
    assert found["training"]["fit"]["estimated"] is True
    assert any("number on the box" in note for note in found["training"]["fit"]["notes"])
    assert found["training"]["budget"]["needed"]["low"] == found["training"]["totals"]["reserved"]


def test_a_device_sets_the_kernels_unless_they_were_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of its generation; `--target` wins, and where nobody knows them the default stays; a note says both."""
    _, own = asked_memory(capsys, "gpt2", "--gpu", "rtx-4090")
    _, named = asked_memory(capsys, "gpt2", "--gpu", "rtx-4090", "--target", "sm80")
    _, unknown = asked_memory(capsys, "gpt2", "--gpu", "mi300x")
    _, plain = asked_memory(capsys, "gpt2", "--target", "sm89")

    assert [each["plan"]["target"] for each in (own, named, unknown)] == ["sm89", "sm80", "sm90"]
    assert own["training"]["totals"] == plain["training"]["totals"]
    assert own["training"]["fit"]["notes"] == []
    assert any("sm80" in note and "sm89" in note for note in named["training"]["fit"]["notes"])
    assert any("sm90" in note and "not known" in note for note in unknown["training"]["fit"]["notes"])


def test_the_heading_says_whose_kernels_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """The target is no default then."""
    run(["memory", "gpt2", "--gpu", "rtx-4090", "--mode", "inference"])
    shown = capsys.readouterr().out
    default = next(line for line in shown.splitlines() if line.startswith("by default"))

    assert "sm89 of the GeForce RTX 4090" in shown
    assert "target" not in default


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_answer_stands_at_the_top(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """The title has the verdict of every mode, the first table the exact margin; nothing is wider than the terminal."""
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(["memory", "gpt2", "--gpu", "rtx-4090", "--batch", "64"]) == 1
    shown = capsys.readouterr().out
    title = " ".join(shown.splitlines()[:3])
    first = shown.split("\n\n")[1]
    margin = api.memory("gpt2", gpu="rtx-4090", batch=64).answers[0].fits[0].margin

    assert "training does not fit" in title
    assert "inference fits" in title
    assert first.startswith("Does it fit on the GeForce RTX 4090?")
    assert f"−{-margin.low:,}" in first
    assert f"−{-margin.high:,}" in first
    assert max(map(len, shown.splitlines())) <= width


def test_csv_has_the_answer_in_every_record(capsys: pytest.CaptureFixture[str]) -> None:
    """One record a line, as without a question."""
    run(["memory", "gpt2", "--gpu", "rtx-4090", "--budget", "1GiB", "--format", "csv"])
    records = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    found = api.memory("gpt2", gpu="rtx-4090", budget="1GiB")
    margins = {answer.mode: [fit.margin.low for fit in answer.fits] for answer in found.answers}

    assert {record["gpu"] for record in records} == {"rtx-4090"}
    for record in records:
        own = [int(record["gpu_margin_low"]), int(record["budget_margin_low"])]
        assert own == margins[record["mode"]]  # type: ignore[index]


def test_python_says_whether_it_fits() -> None:
    """`fits` is of all modes, and of nothing where nothing was asked."""
    assert api.memory("gpt2", gpu="rtx-4090").fits is True
    assert api.memory("gpt2", gpu="rtx-4090", budget="1GiB").fits is False
    assert api.memory("gpt2").fits is None


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_a_plan_file_keeps_the_question(capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str) -> None:
    """Read back it gives the same answer and the same exit code; another device brings its own kernels."""
    file = str(tmp_path / f"run{suffix}")
    first = asked_memory(capsys, "gpt2", "--gpu", "rtx-4090", "--budget", "1GiB", "--batch", "2", "--save-plan", file)
    again = asked_memory(capsys, "--plan", file)
    other = asked_memory(capsys, "--plan", file, "--gpu", "a100-80g")

    assert (again[0], again[1]["training"]) == (first[0], first[1]["training"])
    assert other[1]["plan"]["target"] == "sm80"
    assert read_plan(file).settings == {"batch": 2, "gpu": "rtx-4090", "budget": "1GiB"}


def test_other_commands_take_the_run_of_a_plan_file_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """On the kernels of its device: what is asked about it is `memory`'s."""
    file = str(tmp_path / "run.toml")
    run(["memory", "gpt2", "--gpu", "rtx-4090", "--budget", "1GiB", "--save-plan", file, "--format", "json"])
    capsys.readouterr()

    assert run(["compare", "gpt2", "gpt2-medium", "--plan", file, "--format", "json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert "sm89" in json.dumps(compared)
    assert run(["compare", "gpt2", "gpt2-medium", "--gpu", "rtx-4090"]) == 2
    assert Request("gpt2", settings={"gpu": "rtx-4090"}).without_questions().asked == {"target": "sm89"}


def test_of_the_gpu_here_it_says_what_is_free() -> None:
    """The capacity is the driver's, what is usable is what is free now."""
    here = Room("local", "GeForce RTX 4090 (local)", 24 * 2**30, "now free", Range(2**30, 2**30), "sm89")
    table = next(fit_tables([Answer("training", (fit(Figures(1, 512, 512, 2**21), here),))]))
    notes = {row[0]: row[-1] for row in table.rows}

    assert "driver" in str(notes["capacity"])
    assert "free" in str(notes["usable"])


def test_every_nvidia_gpu_has_kernels() -> None:
    """The target that a device sets is one that the engine knows."""
    assert room("rtx-4090").target == "sm89"
    assert need_gpu("rtx-4090").compute_capability == "8.9"
