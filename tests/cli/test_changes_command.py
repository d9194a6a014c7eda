"""`gptcalc memory --gpu` of what does not fit: what it suggests is true when it is typed, and is read at any width."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator
from support import asked_memory

from gptcalc import api
from gptcalc.report.changes import options
from gptcalc.report.formats import Format, render
from gptcalc.report.schema import json_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Runs that do not fit, and what is suggested first.
CASES = {
    "gpt2 --gpu 8GiB --batch 8 --mode training": "--chunked-loss 2",
    "gpt2 --gpu t4 --batch 31 --mode training": "--batch 1 --grad-accum 31",
    "gpt2 --gpu 8GiB --batch 64 --mode inference --logits all --attention eager": "--logits last",
    "gpt2-xl --gpu rtx-4090 --batch 8": "--batch 2 --grad-accum 4",
    "llama-3-8b --gpu h100 --batch 4 --mode training": "--optimizer-impl fused",
    "llama-3-8b --gpu rtx-4090 --mode inference --batch 64 --seq 8192": "--batch 3",
    "gpt2 --budget 1500MiB --gpu rtx-4090 --batch 2 --seq 512 --mode training": "--chunked-loss 3",
}
WITH_PAIRS = "gpt2 --gpu 3GiB --batch 4 --mode training --precision fp32 --amsgrad"


def asked(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what a command line prints as JSON."""
    return asked_memory(capsys, *shlex.split(line))


def suggested(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every change that is said to be enough."""
    found = answer["changes"]
    yield from (*found["singles"], *found["pairs"])
    if found["together"]:
        yield found["together"]


@pytest.mark.parametrize(("line", "first"), CASES.items(), ids=CASES.keys())
def test_what_is_suggested_fits_when_it_is_typed(capsys: pytest.CaptureFixture[str], line: str, first: str) -> None:
    """Without it the exit code is 1, with its options 0, and the figures are those that were promised."""
    code, answer = asked(capsys, line)
    assert code == 1
    Draft202012Validator(json_schema("memory")).validate(answer)
    assert answer["changes"]["singles"][0]["options"] == first

    for change in suggested(answer):
        code, after = asked(capsys, f"{line} {change['options']}")
        assert code == 0, change["options"]
        assert "changes" not in after
        for fit in change["fits"]:
            mode = after[fit["mode"]]
            assert fit["figures"] == {name: mode["totals"][name] for name in fit["figures"]}
            own = mode["fit" if fit["gpu"] else "budget"]
            assert [fit[name] for name in ("needed", "margin", "verdict")] == [
                own[name] for name in ("needed", "margin", "verdict")
            ]


def test_the_next_step_of_a_number_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    """One sequence or token more, or one chunk fewer, and it does not fit."""
    line = "gpt2 --gpu 8GiB --batch 8 --mode training"
    found = {change["options"].split()[0]: change for change in suggested(asked(capsys, line)[1])}
    more = {
        "--chunked-loss": lambda now: {"chunked_loss": now["chunked_loss"] - 1},
        "--seq": lambda now: {"seq": now["seq"] + 1},
    }
    for option, step in more.items():
        assert asked(capsys, f"{line} {options(step(found[option]['settings']))}")[0] == 1
    batch = next(own for own in suggested(asked(capsys, line)[1]) if set(own["settings"]) == {"batch"})
    assert asked(capsys, f"{line} --batch {batch['settings']['batch'] + 1}")[0] == 1


def test_pairs_are_suggested_where_no_single_change_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Each is typed as it stands, and does."""
    code, answer = asked(capsys, WITH_PAIRS)
    assert (code, answer["changes"]["singles"]) == (1, [])
    assert len(answer["changes"]["pairs"]) > 1
    for change in answer["changes"]["pairs"]:
        assert asked(capsys, f"{WITH_PAIRS} {change['options']}")[0] == 0, change["options"]


def test_a_run_that_fits_has_no_changes_and_makes_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked for before somebody asks, and where it fits there is nothing to ask."""
    from gptcalc.ledger import changes

    searches: list[object] = []
    monkeypatch.setattr(changes, "suggest", lambda *arguments: searches.append(arguments))
    fitting = api.memory("gpt2", gpu="rtx-4090")
    assert fitting.changes is None
    assert fitting.to_dict().get("changes") is None
    lacking = api.memory("gpt2", gpu="1GiB")
    assert lacking.fits is False
    assert not searches
    assert lacking.changes is None
    assert lacking.changes is None
    assert len(searches) == 1


def test_dropout_that_was_asked_for_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    """A search over a run with its own dropout asks for it once."""
    line = "gpt2 --gpu 8GiB --batch 8 --mode training --dropout 0.2"
    assert next(suggested(asked(capsys, line)[1]))["options"] == "--chunked-loss 2"


@pytest.mark.parametrize(
    ("settings", "typed"),
    [
        ({"zero_grads": False}, "--set-to-none"),
        ({"zero_grads": True}, "--zero-grads"),
        ({"keep_outputs": False}, "--no-keep-outputs"),
        ({"dropout": 0.0}, "--dropout 0"),
        ({"batch": 4, "grad_accum": 8}, "--batch 4 --grad-accum 8"),
        (
            {"precision": "autocast-bf16", "optimizer_in_backward": True},
            "--precision autocast-bf16 --optimizer-in-backward",
        ),
    ],
)
def test_settings_are_spelled_as_options(settings: dict[str, object], typed: str) -> None:
    """A flag has its own name for no."""
    assert options(settings) == typed


#: What is shown of runs that do not fit: single changes, pairs, weights that are too large, and what comes closest.
SHOWN: dict[str, tuple[dict[str, Any], list[str]]] = {
    "singles": (
        {"model": "gpt2", "gpu": "8GiB", "batch": 8, "mode": "training"},
        ["What would make it fit, each by itself", "--chunked-loss 2", "Alters: 6 of 8 sequences a step"],
    ),
    "pairs": (
        {"model": "gpt2", "gpu": "3GiB", "batch": 4, "mode": "training", "precision": "fp32", "amsgrad": True},
        ["No single change is enough; pairs that are", "; and "],
    ),
    "weights": (
        {"model": "deepseek-v3", "gpu": "h100", "mode": "inference"},
        ["the weights alone take 1.22 TiB in bf16", "no single NVIDIA GPU"],
    ),
    "closest": (
        {"model": "gpt2", "gpu": "1GiB", "mode": "training"},
        ["Nothing makes it fit; what comes closest", "Even so training lacks"],
    ),
}


@pytest.mark.parametrize(("settings", "words"), SHOWN.values(), ids=SHOWN.keys())
def test_the_answer_is_read_at_any_width(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], words: list[str]
) -> None:
    """No line is longer than the terminal, and what a change alters is never dropped."""
    document = api.memory(**settings).document()
    for width in (60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        text = render(Format.TABLE, lambda: document, dict)
        whole = " ".join(text.split())
        assert all(word in whole for word in words), text
        assert max(map(len, text.splitlines())) <= width
