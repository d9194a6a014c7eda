"""What tests share: the command line as a user runs it, facts, and toy models drawn by hypothesis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from gptcalc.cli.app import run

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parent.parent


def examples(most: int) -> int:
    """How many examples hypothesis draws: half of the `most`, or with GPTCALC_DRAWS=all in the environment all."""
    return most if os.environ.get("GPTCALC_DRAWS") == "all" else most // 2


def gptcalc(*arguments: str, cwd: Path | None = None, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run `gptcalc` in a process of its own, with the environment changed by keywords (`None` removes)."""
    changed = {"COLUMNS": None, "PYTHONIOENCODING": "utf-8", **environment}
    variables = {key: value for key, value in os.environ.items() if key not in changed}
    variables |= {key: value for key, value in changed.items() if value is not None}
    command = [sys.executable, "-m", "gptcalc", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", check=False, env=variables, cwd=cwd, timeout=120
    )


def asked_memory(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what `gptcalc memory` prints as JSON."""
    code = run(["memory", *arguments, "--format", "json"])
    shown = capsys.readouterr()
    assert shown.err == ""
    return code, json.loads(shown.out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one clear error of a request that cannot be answered."""
    code = run([*arguments])
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    assert 1 <= len(shown.err.splitlines()) <= 2
    assert len(shown.err) < 600
    assert "bug" not in shown.err
    return shown.err


def facts() -> list[dict[str, Any]]:
    """Published models with the counts of their transformers classes; the file says where they come from."""
    models: list[dict[str, Any]] = json.loads((DATA / "facts_models.json").read_text())["models"]
    return models


def published() -> list[dict[str, Any]]:
    """Every published model: its hyperparameters, what was claimed of it, and how that agrees with its class."""
    models: list[dict[str, Any]] = json.loads((DATA / "facts_published.json").read_text())["models"]
    return models


@st.composite
def toy_configs(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """A small config of any family with odd dims, and overrides that no published config has."""
    model_type = draw(st.sampled_from(["gpt2", "openai-gpt", "llama", "mixtral"]))
    n_kv_heads = draw(st.integers(1, 4))
    own: dict[str, Any] = {
        "n_vocab": draw(st.integers(1, 50)),
        "n_ctx": draw(st.integers(1, 20)),
        "d_model": draw(st.integers(1, 40)),
        "n_layers": draw(st.integers(2, 4)),
        "n_kv_heads": n_kv_heads,
        "n_heads": n_kv_heads * draw(st.integers(1, 3)),
        "d_head": 2 * draw(st.integers(1, 6)),
        "d_ff": draw(st.integers(1, 60)),
        "tied": draw(st.booleans()),
        "positions": draw(st.sampled_from(["learned", "sinusoidal", "rotary", "none"])),
        "qkv_bias": draw(st.booleans()),
        "out_bias": draw(st.booleans()),
        "norm_bias": draw(st.booleans()),
        "unembedding_bias": draw(st.booleans()),
    }
    if model_type == "mixtral":
        own["n_experts"] = draw(st.integers(1, 5))
        own["n_active"] = draw(st.integers(1, own["n_experts"]))
    else:
        own["mlp_bias"] = draw(st.booleans())
    return {"model_type": model_type}, own
