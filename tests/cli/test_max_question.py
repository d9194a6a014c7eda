"""`gptcalc memory --max`: what it solves for fits, the next one does not, and the command itself says so."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import asked_memory, examples

from gptcalc import api
from gptcalc.catalog import presets, resolve
from gptcalc.cli.app import run
from gptcalc.errors import GptcalcError
from gptcalc.ledger.alive import KINDS
from gptcalc.ledger.asked import SOLVED
from gptcalc.ledger.largest import builder, near, width_step
from gptcalc.ledger.request import command_line

if TYPE_CHECKING:
    from pathlib import Path

TOY = {"model_type": "gpt2", "n_layer": 2, "n_embd": 24, "n_head": 3, "vocab_size": 67, "n_positions": 64}
LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 67}
LLAMA |= {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64}
OPTIONS = {"batch": "--batch", "seq": "--seq", "layers": "--n-layers", "d-model": "--d-model"}
#: A model, what it must fit, what is solved for, other options.
CASES: list[tuple[str, list[str], str, list[str]]] = [
    ("gpt2", ["--gpu", "rtx-4090"], "batch", ["--mode", "training"]),
    ("gpt2-xl", ["--gpu", "rtx-4090"], "batch", []),
    ("gpt2-xl", ["--budget", "20GiB"], "batch", ["--mode", "training", "--optimizer-impl", "fused"]),
    ("llama-3-8b", ["--gpu", "24GiB"], "batch", ["--mode", "inference", "--seq", "4096"]),
    ("llama-3-8b", ["--gpu", "a100-80g"], "seq", ["--mode", "inference"]),
    ("llama-3-8b", ["--budget", "75GiB"], "seq", ["--mode", "training", "--optimizer", "adamw8bit"]),
    ("gpt2-xl", ["--budget", "15.5GiB"], "seq", ["--mode", "training"]),
    ("gpt2-large", ["--gpu", "12GiB"], "layers", ["--mode", "training"]),
    ("mixtral-8x7b", ["--gpu", "h100-80g"], "layers", ["--mode", "inference"]),
    ("gpt2", ["--gpu", "8GiB", "--budget", "7GiB"], "d-model", ["--mode", "training"]),
    ("llama-3-8b", ["--gpu", "rtx-4090"], "d-model", ["--mode", "inference"]),
    ("gpt2", ["--gpu", "m3-max-40c"], "batch", ["--mode", "training", "--checkpointing", "full"]),
]
#: What is typed -> what the error must say.
WRONG: dict[str, tuple[list[str], list[str]]] = {
    "a size that is none": (["--gpu", "24GiB", "--max", "bach"], ["--max", "'bach'", "nearest: batch"]),
    "a size like none": (
        ["--gpu", "24GiB", "--max", "foo"],
        ["--max", "'foo'", "allowed: batch, d-model, layers, seq"],
    ),
    "no limit": (["--max", "batch"], ["--max batch", "without a limit", "--gpu NAME", "--budget SIZE"]),
    "a batch given": (["--gpu", "24GiB", "--max", "batch", "--batch", "8"], ["--batch", "--max batch", "one of them"]),
    "a length given": (["--gpu", "24GiB", "--max", "seq", "--seq", "8"], ["--seq", "--max seq", "one of them"]),
    "layers given": (["--gpu", "24GiB", "--max", "layers", "--n-layers", "8"], ["--n-layers", "--max layers"]),
    "layers given otherwise": (["--gpu", "24GiB", "--max", "layers", "--set", "n_layer=8"], ["--n-layers", "--max"]),
    "a width given": (["--gpu", "24GiB", "--max", "d-model", "--d-model", "64"], ["--d-model", "--max d-model"]),
    "a stage": (["--gpu", "24GiB", "--max", "batch", "--scope", "embedding"], ["--scope embedding", "no use"]),
    "two plans": (["--gpu", "24GiB", "--max", "batch", "--versus", "--batch 2"], ["--versus", "one of them"]),
    "what the model cannot": (["--gpu", "24GiB", "--max", "batch", "--seq", "2048"], ["--seq", "at most 1,024"]),
}


@pytest.fixture(autouse=True)
def unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would make a run fit is searched for in other tests: here it is not waited for."""
    monkeypatch.setattr(api, "_suggest", lambda *_asked: None)


def step_of(model: object, what: str) -> int:
    """How far the next size is."""
    build = builder(model, {})
    return width_step(build, build({}).spec.d_model) if what == "d-model" else 1


@pytest.mark.parametrize(("model", "rooms", "what", "others"), CASES, ids=str)
def test_the_command_itself_says_that_it_fits_and_the_next_does_not(
    capsys: pytest.CaptureFixture[str], model: str, rooms: list[str], what: str, others: list[str]
) -> None:
    """Exit code 0 at the answer and 1 at the next step, for each mode that was asked for."""
    code, found = asked_memory(capsys, model, *rooms, "--max", what, *others)
    modes = [mode for mode in ("training", "inference") if mode in found]
    assert (code, bool(modes)) == (0, True)
    others = [other for other in others if other not in ("--mode", *modes)]
    for mode in modes:
        own = found[mode]["max"]
        assert list(own) == ["what", "value", "binding"]
        assert own["what"] == what
        assert own["binding"]
        assert set(own["binding"]) <= set(KINDS)
        for value, does in ((own["value"], True), (own["value"] + step_of(model, what), False)):
            code, alone = asked_memory(capsys, model, *rooms, "--mode", mode, *others, OPTIONS[what], str(value))
            fits = [alone[mode][key]["fits"] for key in ("fit", "budget") if key in alone[mode]]
            assert (code, all(fits)) == (0 if does else 1, does)


def test_what_is_shown_is_the_run_of_that_size(capsys: pytest.CaptureFixture[str]) -> None:
    """Where one mode was asked for: its plan, its figures and its fit are those of the answer."""
    _, found = asked_memory(capsys, "gpt2", "--gpu", "rtx-4090", "--max", "batch", "--mode", "training")
    value = found["training"]["max"]["value"]
    _, typed = asked_memory(capsys, "gpt2", "--gpu", "rtx-4090", "--batch", str(value), "--mode", "training")
    found["training"].pop("max")

    assert found["plan"]["batch"] == value
    assert found["training"] == typed["training"]


def test_where_the_modes_differ_the_run_that_was_asked_for_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """And a note says so; where they agree it is the run of that size."""
    _, both = asked_memory(capsys, "gpt2", "--gpu", "rtx-4090", "--max", "batch")
    _, same = asked_memory(capsys, "gpt2", "--gpu", "rtx-4090", "--max", "seq")

    assert both["training"]["max"]["value"] != both["inference"]["max"]["value"]
    assert both["plan"]["batch"] == 1
    assert any("different answers" in note for note in both["notes"])
    assert same["plan"]["seq"] == same["training"]["max"]["value"] == same["inference"]["max"]["value"] == 1024
    assert not any("different answers" in note for note in same["notes"])


@pytest.mark.parametrize(("what", "said"), [("seq", "1,024 learned positions"), ("layers", "40 at most")])
def test_a_limit_that_is_not_memory_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str, said: str
) -> None:
    """Nothing binds then."""
    monkeypatch.setattr("gptcalc.ledger.largest.MOST_LAYERS", 40)
    code, found = asked_memory(capsys, "gpt2", "--mode", "inference", "--gpu", "h200", "--max", what)

    assert (code, found["inference"]["max"]["binding"]) == (0, [])
    assert found["inference"]["max"]["value"] == int(said.split(maxsplit=1)[0].replace(",", ""))
    assert any(said in note for note in found["inference"]["notes"])


@pytest.mark.parametrize(
    ("what", "mode", "kind", "grows"),
    [
        ("batch", "inference", "kv_cache", 4 * 12 * 1024 * 12 * 64),
        ("layers", "inference", "weights", 2 * (12 * 768**2 + 13 * 768)),
        ("layers", "training", "optimizer", 4 * (12 * 768**2 + 13 * 768)),
    ],
)
def test_what_binds_is_what_the_next_size_adds(what: str, mode: str, kind: str, grows: int) -> None:
    """By so many bytes as its formula says, in bf16; a batch adds no weights."""
    found = api.memory("gpt2", budget="2GiB", max=what, mode=mode).answers[0].largest
    assert found is not None
    binding = dict(found.binding)

    assert binding[kind] == grows  # type: ignore[index]
    assert next(iter(binding)) == kind
    assert list(binding.values()) == sorted(binding.values(), reverse=True)
    assert ("weights" in binding) is (what == "layers")


def test_where_not_even_the_smallest_fits_it_says_what_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    """The value is null, the exit code 1, and what is lacking is what the command with 1 lacks."""
    code, found = asked_memory(capsys, "llama-3-8b", "--gpu", "rtx-4090", "--max", "batch", "--mode", "training")
    _, alone = asked_memory(capsys, "llama-3-8b", "--gpu", "rtx-4090", "--batch", "1", "--mode", "training")
    own = found["training"]["max"]
    shown = api.memory("llama-3-8b", gpu="rtx-4090", max="batch", mode="training")
    step = shown.answers[0].largest

    assert (code, own["value"], own["binding"][0]) == (1, None, "optimizer")
    assert shown.fits is False
    assert step is not None
    assert step.beyond is not None
    assert step.beyond.excess == -alone["training"]["fit"]["margin"]["low"]
    assert any("even batch 1 lacks 56." in note for note in found["training"]["notes"])
    assert "even batch 1 lacks 56." in shown.document().title


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_question_for_the_largest_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: list[str]
) -> None:
    """It names what was read and what is allowed, exits with 2 and prints no answer."""
    code = run(["memory", "gpt2", *arguments])
    shown = capsys.readouterr()

    assert (code, shown.out) == (2, "")
    assert len(shown.err.splitlines()) == 1
    assert all(word in shown.err for word in said), shown.err


def test_the_command_that_checks_it_is_printed_and_does(capsys: pytest.CaptureFixture[str]) -> None:
    """For each mode, with all other options that it has a use for."""
    typed = ["gpt2", "--gpu", "rtx-4090", "--max", "batch", "--kv-dtype", "fp32", "--zero-grads", "--bias"]
    assert run(["memory", *typed]) == 0
    next_line = capsys.readouterr().out.splitlines()[-1]
    commands = re.findall(r"(gptcalc memory .*?) checks it", next_line)

    assert [re.search(r"--batch \d+", command) is not None for command in commands] == [True, True]
    assert ["--kv-dtype" in command for command in commands] == [False, True]
    for command in commands:
        assert run([*shlex.split(command)[1:], "--format", "json"]) == 0
        capsys.readouterr()


def test_a_plan_file_keeps_the_question_for_the_largest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It gives the same answer again; a value that is typed for it answers it, and the other way round."""
    file = str(tmp_path / "run.toml")
    first = asked_memory(capsys, "gpt2", "--gpu", "4GiB", "--max", "batch", "--mode", "training", "--save-plan", file)
    again = asked_memory(capsys, "--plan", file)
    typed = asked_memory(capsys, "--plan", file, "--batch", "2")
    assert again[1]["training"] == first[1]["training"]
    assert typed[1]["plan"]["batch"] == 2
    assert "max" not in typed[1]["training"]

    asked_memory(capsys, "gpt2", "--n-layers", "3", "--batch", "3", "--mode", "training", "--save-plan", file)
    deep = asked_memory(capsys, "--plan", file, "--gpu", "5GiB", "--max", "layers")
    wide = asked_memory(capsys, "--plan", file, "--gpu", "5GiB", "--max", "batch")
    assert deep[1]["training"]["max"]["value"] == deep[1]["model"]["n_layers"] > 3
    assert (deep[1]["plan"]["batch"], wide[1]["model"]["n_layers"]) == (3, 3)
    assert wide[1]["training"]["max"]["value"] == wide[1]["plan"]["batch"] > 3
    other = asked_memory(
        capsys, "--plan", file, "--gpu", "5GiB", "--max", "layers", "--save-plan", str(tmp_path / "b.json")
    )
    found = asked_memory(capsys, "--plan", str(tmp_path / "b.json"), "--n-layers", "2")
    assert other[1]["training"] == deep[1]["training"]
    assert found[1]["model"]["n_layers"] == 2
    run(["memory", "--plan", file, "--gpu", "5GiB", "--max", "batch"])
    command = re.findall(r"(gptcalc memory .*?) checks it", capsys.readouterr().out)[0]
    assert run([*shlex.split(command)[1:]]) == 0


def test_a_loss_in_chunks_needs_a_token_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    """The smallest batch and the shortest sequence have as many."""
    chunked = ["gpt2", "--chunked-loss", "64", "--n-layers", "2", "--budget", "2GiB", "--mode", "training"]
    _, batch = asked_memory(capsys, *chunked, "--seq", "8", "--max", "batch")
    _, seq = asked_memory(capsys, *chunked, "--batch", "4", "--max", "seq")

    assert batch["training"]["max"]["value"] > 8
    assert seq["training"]["max"]["value"] >= 16


MIB = 2**20


@settings(max_examples=examples(15), deadline=None)
@given(
    st.sampled_from([TOY, LLAMA]),
    st.sampled_from(list(SOLVED)),
    st.sampled_from(["training", "inference"]),
    st.integers(30 * MIB, 400 * MIB),
    st.sampled_from(["gpu", "budget"]),
)
def test_of_any_toy_the_largest_fits_and_the_next_does_not(
    fields: dict[str, Any], what: str, mode: str, size: int, place: str
) -> None:
    """On a device and in a budget, for all that can be solved for."""
    room = {place: f"{size + (700 * MIB if place == 'gpu' else 0)}B"}
    more = {} if what in ("seq", "layers") else {"seq": 32}
    more |= {"batch": 8192} if what == "layers" else {}
    found = api.memory(fields, mode=mode, max=what, **room, **more).answers[0].largest
    assert found is not None
    for value, does in ((found.value, True), ((found.value or 0) + step_of(fields, what), False)):
        if value is None or (not does and found.beyond is None):
            continue
        assert api.memory(fields, mode=mode, **room, **more, **{SOLVED[what]: value}).fits is does
    assert (found.limit == "") == (found.beyond is not None)
    if found.limit:
        assert found.value == {"seq": 64, "layers": 10_000}[what]


@pytest.mark.parametrize("preset", [preset.name for preset in presets()][::6])
def test_the_widths_are_all_that_the_model_can_have_in_their_steps(preset: str) -> None:
    """Every multiple is a model; no smaller divisor of the width is such a step."""
    build = builder(preset, {})
    own = build({}).spec.d_model
    step = width_step(build, own)

    assert own % step == 0
    for number in (1, 2, 3, 7, own // step + 1, 50):
        assert resolve(preset, {"d_model": number * step}).spec.d_model == number * step
    for smaller in (number for number in range(1, min(step, 64)) if own % number == 0):
        with pytest.raises(GptcalcError):
            resolve(preset, {"d_model": own + smaller})


@given(st.integers(1, 10**6), st.integers(1, 50), st.integers(1, 10**7))
def test_the_first_guess_of_a_straight_line_is_at_its_end(slope: int, first: int, most: int) -> None:
    """One secant finds where what grows by the same each time reaches its limit."""
    limit = first * slope * 7 + slope // 2
    guess = near(lambda number: slope * number - limit, most)

    assert abs(guess - min(limit // slope, most)) <= 1


def test_a_model_that_is_a_mapping_has_no_command() -> None:
    """What cannot be typed is not said; from Python the answer is there all the same."""
    found = api.memory(TOY, budget="1GiB", max="batch", mode="training")

    assert found.request is not None
    assert command_line(found.request, {"batch": 3}) == ""
    assert " checks it" not in " ".join(found.document().notes)
