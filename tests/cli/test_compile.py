"""`--compile`: eager's numbers, and what is known of compiled runs."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest

from gptcalc import api
from gptcalc.cli.app import run
from gptcalc.errors import InvalidValueError
from gptcalc.ledger.reasons import COMPILED
from gptcalc.units import format_fixed

if TYPE_CHECKING:
    from pathlib import Path

TOY = {"n_layers": 2, "n_vocab": 67, "n_ctx": 32}


def test_compiled_runs_get_the_eager_answer_and_the_line_that_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure is that of the eager run; heading, notes and JSON say what it is, and nothing does unasked."""
    eager, compiled = api.memory("gpt2", **TOY), api.memory("gpt2", compile=True, **TOY)
    plans = [report.to_dict()["plan"] for report in (eager, compiled)]
    assert [plan["compile"] for plan in plans] == [False, True]
    for mode, other in zip(eager.modes, compiled.modes, strict=True):
        assert other._replace(notes=mode.notes) == mode
        assert COMPILED in other.notes
        assert COMPILED not in mode.notes
    assert COMPILED in compiled.to_dict()["training"]["notes"]

    typed = ["memory", "gpt2", "--n-layers", "2", "--vocab", "67", "--context", "32"]
    assert run([*typed, "--compile"]) == 0
    text = capsys.readouterr().out
    assert f"Note: {COMPILED}" in text
    assert "torch.compile: not modelled, these are eager's numbers" in text
    assert run(typed) == 0
    assert "compile" not in capsys.readouterr().out


def test_the_shares_are_those_of_the_cited_amounts() -> None:
    """Percents follow from the GiB that are printed beside them."""
    for compiled, eager, share in (("77.0", "82.4", "6.6%"), ("62.0", "67.0", "7.5%")):
        assert f"{format_fixed((1 - Fraction(compiled) / Fraction(eager)) * 100, 1)}%" == share
        assert all(word in COMPILED for word in (compiled, eager, f"−{share}"))


def test_plan_files_comparisons_and_checks_hear_of_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It is a setting like any other; witnesses run eager code and refuse it."""
    api.memory("gpt2", compile=True, **TOY).save_plan(tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["compile"] is True
    assert run(["compare", "gpt2", "distilgpt2", "--compile", "--seq", "8", "--mode", "inference"]) == 0
    assert COMPILED in capsys.readouterr().out
    pytest.importorskip("torch")
    with pytest.raises(InvalidValueError, match="check: read compile"):
        api.check("gpt2", witness="trace", settings={"compile": True}, **TOY)
