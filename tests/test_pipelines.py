"""What docs/pipelines.md shows is run: each step of its workflow, its shell and its Python, where it fits and not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT, gptcalc

if TYPE_CHECKING:
    from pathlib import Path

yaml = pytest.importorskip("yaml", reason="it comes with transformers")

PAGE = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
SHOWN: dict[str, str] = dict(re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL))
(JOB,) = yaml.safe_load(SHOWN["yaml"])["jobs"].values()
BUDGETS: list[str] = JOB["strategy"]["matrix"]["budget"]
#: Less than the 36.17 GiB that the plan needs.
SMALL = "36GiB"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with the plan file that the page shows, and `gptcalc` and `python` on the path."""
    (tmp_path / "plan.toml").write_text(SHOWN["toml"], encoding="utf-8")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, given in (("gptcalc", "-m gptcalc "), ("python", "")):
        command = commands / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {given}"$@"\n', encoding="utf-8")
        command.chmod(0o755)
    return tmp_path


def ran(script: str, repository: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A script, as bash with these options runs it in the repository."""
    path = os.pathsep.join([str(repository / "bin"), os.environ["PATH"]])
    variables = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "GITHUB_STEP_SUMMARY": "summary.md"}
    command = ["bash", *options, "-c", script]
    return subprocess.run(command, cwd=repository, env=variables, capture_output=True, text=True, check=False)


def job(repository: Path, budget: str) -> list[int]:
    """The exit code of each step but the one that installs; after a failure only those run that always do."""
    codes: list[int] = []
    for step in JOB["steps"]:
        script = step.get("run", "").replace("${{ matrix.budget }}", budget)
        if script and " pip install " not in script and (step.get("if") == "always()" or not any(codes)):
            codes.append(ran(script, repository, "-e").returncode)
    return codes


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_workflow_lets_through_what_fits(repository: Path, budget: str) -> None:
    """Every step succeeds with each budget of the matrix, and the summary says what is left."""
    assert job(repository, budget) == [0, 0]
    assert re.search(r"GiB: fits, \+\d+\.\d\d GiB \(\+[\d,]+ bytes\)\n$", (repository / "summary.md").read_text())


def test_the_workflow_stops_what_does_not(repository: Path) -> None:
    """With less than is needed the gate fails, and the summary still says by how much."""
    assert job(repository, SMALL) == [1, 0]
    assert (repository / "summary.md").read_text().startswith("a budget of 36.00 GiB: does not fit, -0.17 GiB (-")


def test_every_step_is_run_or_installs() -> None:
    """The gate asks what the page is about, and nothing goes untested but what fetches and installs."""
    steps: list[dict[str, Any]] = JOB["steps"]
    gates = [step["run"] for step in steps if step.get("run", "").startswith("gptcalc ")]
    assert gates == ["gptcalc memory --plan plan.toml --budget ${{ matrix.budget }} --format json > memory.json"]
    assert [step["uses"].partition("@")[0] for step in steps if "uses" in step] == [
        "actions/checkout",
        "actions/setup-python",
    ]
    assert sum(" pip install " in step.get("run", "") for step in steps) == 1


@pytest.mark.parametrize(
    ("budget", "code", "says"),
    [("40GiB", 0, "it fits"), (SMALL, 1, "it does not fit, see memory.txt"), ("40", 2, "nothing was answered")],
)
def test_the_shell_hands_the_exit_code_on(repository: Path, budget: str, code: int, says: str) -> None:
    """0 where it fits, 1 where not, 2 where a budget has no unit."""
    done = ran(SHOWN["bash"].replace("40GiB", budget), repository)
    assert (done.returncode, done.stdout) == (code, f"{says}\n")


@pytest.mark.parametrize(
    ("budget", "says"),
    [("40GiB", ""), (SMALL, r"AssertionError: [\d,]+ bytes too many"), ("40", "InvalidValueError: budget: read '40'")],
)
def test_the_python_asserts(repository: Path, budget: str, says: str) -> None:
    """It goes through where it fits, says how many bytes are too many where not, and raises on a bad request."""
    code = SHOWN["python"].replace("40GiB", budget)
    done = ran(f"python - <<'END'\n{code}\nEND", repository)
    assert (done.returncode == 0) == (not says)
    assert re.search(says, done.stderr)


def test_what_would_make_it_fit_comes_with_a_one(repository: Path) -> None:
    """As the table of exit codes says, the answer is printed all the same, with what would make it fit."""
    done = gptcalc("memory", "--plan", "plan.toml", "--budget", SMALL, cwd=repository)
    assert done.returncode == 1
    assert "What would make it fit" in done.stdout
    assert not done.stderr
