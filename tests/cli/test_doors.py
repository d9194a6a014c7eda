"""What a user meets at the door: help, exit codes, stdout against stderr, what is imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, gptcalc

COMMANDS = ("count", "fit", "explain", "compare", "design", "check", "bench", "presets", "gpus", "claims", "schema")
IMPORTS = """
import sys
from gptcalc.cli.app import run
code = run({arguments!r})
heavy = {{"torch", "transformers", "numpy", "rich", "jsonschema"}} & {{name.partition(".")[0] for name in sys.modules}}
print(code, sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    """`gptcalc COMMAND --help` says what it does and shows one line to type."""
    done = gptcalc(command, "--help", COLUMNS="100")

    assert done.returncode == 0
    assert f"Example: gptcalc {command}" in done.stdout


def test_help_lists_every_command() -> None:
    """`gptcalc --help` names them all, and so does gptcalc alone."""
    listed = gptcalc("--help", COLUMNS="100").stdout

    assert all(command in listed for command in COMMANDS)
    assert gptcalc(COLUMNS="100").stdout == listed


def test_version_is_printed() -> None:
    """`--version` prints it and nothing else."""
    import gptcalc as package

    assert gptcalc("--version").stdout == f"gptcalc {package.__version__}\n"


def test_torch_without_numpy_is_no_news() -> None:
    """Torch's warning that NumPy is missing does not stand before an answer that needs none; other warnings do."""
    code = (
        "import sys, warnings; from gptcalc.cli.app import main; sys.argv = ['gptcalc', '--version']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "warnings.warn('Failed to initialize NumPy: No module named numpy'); warnings.warn('something else')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "NumPy" not in done.stderr
    assert "something else" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "opened"),
    [
        (["count", "gpt3-175b"], ["rich"]),
        (["count", "gpt3-175b", "--format", "json"], []),
        (["count", "gpt3-175b", "--format", "csv"], []),
        (["count", "gpt3-175b", "--format", "markdown", "--depth", "3"], []),
        (["compare", "gpt2", "gpt2-xl"], ["rich"]),
        (["compare", "gpt2", "gpt2-xl", "--memory", "--format", "json"], []),
        (["fit", "gpt2", "--gpu", "1GiB", "--mode", "inference", "--format", "csv"], []),
        (["design", "--params", "350M"], ["rich"]),
        (["design", "--params", "350M", "--format", "json"], []),
        (["presets", "--format", "json"], []),
        (["gpus", "--format", "json"], []),
        (["claims", "--format", "json"], []),
    ],
    ids=" ".join,
)
def test_cheap_commands_open_no_torch_and_json_no_rich(arguments: list[str], opened: list[str]) -> None:
    """Cold start is kept by what gets imported: never torch or numpy, and rich only for tables."""
    code = IMPORTS.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr.splitlines()[-1] == f"0 {opened}"


def test_importing_gptcalc_opens_neither_torch_nor_rich_nor_pydantic() -> None:
    """The package itself is free until a name is used."""
    code = "import sys, gptcalc; print({'torch', 'rich', 'pydantic', 'typer'} & set(sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("command", ["count", "check", "presets", "gpus", "claims"])
def test_json_validates_against_its_schema(command: str) -> None:
    """What `--format json` prints is what `gptcalc schema` promises, and its integers are integers."""
    jsonschema = pytest.importorskip("jsonschema")
    arguments = (
        [command, "--format", "json"]
        if command in ("presets", "gpus", "claims")
        else [command, "gpt2", "--format", "json"]
    )
    answer = json.loads(gptcalc(*arguments).stdout)
    schema = json.loads(gptcalc("schema", command).stdout)

    jsonschema.Draft202012Validator(schema).validate(answer)
    assert answer["schema"] == f"gptcalc.{command}/1"


def test_count_json_at_depth_three_validates_too() -> None:
    """Every tensor has its name, shape, role and components."""
    jsonschema = pytest.importorskip("jsonschema")
    answer = json.loads(gptcalc("count", "mixtral-8x7b", "--depth", "3", "--format", "json").stdout)

    jsonschema.Draft202012Validator(json.loads(gptcalc("schema", "count").stdout)).validate(answer)
    names = {line["key"]: line for line in answer["lines"]}
    experts = names["model.layers.31.mlp.experts.gate_up_proj"]
    assert experts["shape"] == [8, 28672, 4096]
    assert experts["components"] == ["experts_gate", "experts_up"]
    assert sum(line["amount"] for line in answer["lines"]) == answer["totals"]["stored"] == 46_702_792_704


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_early_is_no_error(unbuffered: str) -> None:
    """`gptcalc count … | head -1` ends quietly, whether or not Python buffers its output."""
    command = [sys.executable, "-m", "gptcalc", "count", "gpt3-175b", "--depth", "3", "--format", "json"]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()

        assert process.wait() == 0
        assert process.stderr.read() == ""


def test_a_closed_stdout_is_no_accident() -> None:
    """`gptcalc count … >&-` has nowhere to write, and says nothing of bugs."""
    command = f"{sys.executable} -m gptcalc count gpt2 >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)  # noqa: S602  its own line

    assert done.returncode == 0
    assert done.stderr == ""


def test_what_a_file_says_reaches_the_terminal_as_plain_text(tmp_path: Path) -> None:
    """Control characters in a file's keys or name are quoted, never sent on."""
    path = tmp_path / "odd\x1b[31mname.json"
    path.write_text(json.dumps({"model_type": "gpt2", "evil\x1b[31mred\nnew": 1}))
    done = gptcalc("count", str(path))

    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert r"evil\x1b[31mred\nnew is no field" in done.stdout.replace("'", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_an_answer_that_cannot_be_written_is_one_error() -> None:
    """A full disk is said in one line."""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "gptcalc", "count", "gpt2"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr == "gptcalc: the answer could not be written: No space left on device\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_output_survives_a_terminal_without_utf8(encoding: str) -> None:
    """Where × cannot be printed, x stands for it, and every number is there."""
    command = [sys.executable, "-m", "gptcalc", "count", "gpt3-175b", "--explain"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, check=False, env=environment, cwd=ROOT)
    text = done.stdout.decode(encoding)

    assert done.returncode == 0, done.stderr
    assert "174,604,259,328" in text
    assert "LxNxHxD" in text or "L×N×H×D" in text
    assert "?" not in text


def test_a_check_that_disagrees_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A planted error is found from the command line, named, and is exit code 1."""
    pytest.importorskip("torch")
    from gptcalc.cli.app import run
    from gptcalc.parts.norm import LayerNorm

    monkeypatch.setattr(LayerNorm, "weights", lambda *_: iter(()))
    code = run(["check", "gpt2", "--n-layers", "2"])
    shown = capsys.readouterr().out

    assert code == 1
    assert "DISAGREES" in shown
    assert "transformer.h.0.ln_1.weight" in shown
    assert run(["count", "gpt2", "--n-layers", "2", "--check"]) == 1
    assert run(["count", "gpt2", "--n-layers", "2"]) == 0


def test_without_torch_a_check_says_how_to_install_it(tmp_path: Path) -> None:
    """Where torch cannot be imported, one line says what to do."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch')\n")
    done = gptcalc("check", "gpt2", PYTHONPATH=str(tmp_path))

    assert done.returncode == 2
    assert done.stderr == "gptcalc: torch is not installed; install it with: pip install 'gptcalc[torch]'\n"


def test_without_torch_a_benchmark_says_how_to_install_it(tmp_path: Path) -> None:
    """Where torch cannot be imported, one line says what to do, and what works without."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch')\n")
    done = gptcalc("bench", "empty", PYTHONPATH=str(tmp_path))

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "gptcalc: torch is not installed; install it with: pip install 'gptcalc[bench]';"
        " 'bench show FILE' works without\n"
    )


def test_without_transformers_the_family_mapping_is_said_to_be_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference module still witnesses, and the report says what was not looked at."""
    pytest.importorskip("torch")
    import gptcalc as package
    from gptcalc.report.check import check_document
    from gptcalc.report.plain import render_markdown
    from gptcalc.witness import hub

    monkeypatch.setattr(hub, "installed", lambda: False)
    done = package.check("gpt2", n_layers=2)

    assert done.agrees
    assert "family mapping not checked" in render_markdown(check_document([done]))


def test_a_list_is_set_in_brackets_and_shown_by_its_runs() -> None:
    """`--set KEY=[…]` is a list; a heading says equal neighbours once, and `none` of defaults not at all."""
    listed = gptcalc("count", "qwen3-30b-a3b", "--set", "mlp_only_layers=[0, 1]")
    shorter = gptcalc("count", "gpt-oss-20b", "--n-layers", "3")

    assert re.search(r"^changed: dense_layers .* → \[0, 1\]$", listed.stdout, re.MULTILINE)
    assert max(map(len, shorter.stdout.splitlines()[:5])) < 260
    assert "[sliding_attention, full_attention, sliding_attention]" in shorter.stdout
