"""The README is run: its output is what the commands print, its Python works, its commands are those of CI."""

import re
import shlex
import subprocess
import sys

import pytest
from support import ROOT, gptcalc

README = (ROOT / "README.md").read_text(encoding="utf-8")
OUTPUTS = re.findall(r"<!-- output: (gptcalc .*?) -->\n```text\n(.*?)```", README, re.DOTALL)
EXCERPTS = re.findall(r"<!-- excerpt: (gptcalc .*?) -->\n```text\n(.*?)\n```", README, re.DOTALL)


def printed(command: str) -> str:
    """What a command prints at the README's width."""
    return gptcalc(*shlex.split(command)[1:], cwd=ROOT, COLUMNS="100").stdout


@pytest.mark.parametrize(("command", "shown"), OUTPUTS, ids=[command for command, _ in OUTPUTS])
def test_the_output_in_the_readme_is_real(command: str, shown: str) -> None:
    """Each block of output is what its command prints today; `python tests/test_docs.py` writes it anew."""
    if " check " in command:
        pytest.importorskip("transformers")

    assert _any_version(printed(command)) == _any_version(shown)


@pytest.mark.parametrize(("command", "shown"), EXCERPTS, ids=[command for command, _ in EXCERPTS])
def test_an_excerpt_in_the_readme_is_real(command: str, shown: str) -> None:
    """It is a whole paragraph of what its command prints today."""
    assert f"\n\n{shown}\n\n" in printed(command)


def _any_version(text: str) -> str:
    """The text whatever release of transformers is installed."""
    return re.sub(r"transformers \d[\w.]*", "transformers X", text)


def test_there_are_outputs_to_check() -> None:
    """The marks in the README are found."""
    assert [command.split()[1] for command, _ in OUTPUTS] == [
        "count",
        "count",
        "check",
        "memory",
        "fit",
        "compare",
        "design",
        "claims",
        "bench",
    ]


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_python_in_the_readme_runs(code: str) -> None:
    """Each snippet runs, and a comment behind an expression is its value."""
    pytest.importorskip("torch")
    lines = [re.sub(r"^(\S.*?)  # (\d+)$", r"assert \1 == \2", line) for line in code.splitlines()]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_ci_runs_the_test_command_of_the_readme() -> None:
    """CI takes its command from the README, and both commands install what they run."""
    commands = re.findall(r"<!-- (main|test) command -->\n```bash\n(.*?)\n```", README)

    assert dict(commands) == {
        "main": "python -m pip install . && gptcalc count gpt3-175b",
        "test": "python -m pip install -e '.[dev]' && python -m pytest -n auto --dist worksteal",
    }
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_command_is_in_the_readme_and_the_changelog() -> None:
    """A command that nobody is told of does not exist."""
    from gptcalc.cli.app import COMMANDS

    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"gptcalc {command}" in README
        assert f"gptcalc {command}" in changelog


def write() -> None:
    """Put today's output into the README."""
    text = README
    for command, shown in OUTPUTS:
        head = f"<!-- output: {command} -->\n```text\n"
        text = text.replace(head + shown + "```", head + printed(command) + "```")
    for command, shown in EXCERPTS:
        start = shown.splitlines()[0]
        paragraph = next(part for part in printed(command).split("\n\n") if part.startswith(start))
        text = text.replace(
            f"<!-- excerpt: {command} -->\n```text\n{shown}\n", f"<!-- excerpt: {command} -->\n```text\n{paragraph}\n"
        )
    (ROOT / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
