"""`gptcalc bench` as a user runs it, at toy size on the CPU: save, show, resume, compare, and what goes wrong."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from support import gptcalc

pytest.importorskip("torch")

TOY = ("layernorm.forward", "--device", "cpu", "--rows", "64", "--d-model", "32,64,128", "--time-budget", "1.5")
SWEEP = ("*norm.*", "--device", "cpu", "--rows", "64:512:x2", "--d-model", "32:1024:x2", "--time-budget", "40")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy run that was saved, beside what it printed."""
    folder = tmp_path_factory.mktemp("bench")
    done = gptcalc("bench", *TOY, "--save", "run.json", "--format", "json", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "printed.json").write_text(done.stdout)
    return folder / "run.json"


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """A run in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "gptcalc", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )


def when_points(path: Path, least: int) -> None:
    """Wait until so many points are in the file."""
    end = monotonic() + 60
    while monotonic() < end:
        if path.exists() and len(json.loads(path.read_text())["points"]) >= least:
            return
        sleep(0.02)
    raise AssertionError(f"{path} never had {least} points")


def test_show_prints_what_the_run_printed(saved: Path) -> None:
    """A saved run, shown, is the very answer of the run itself; every asked number is there, with all its samples."""
    shown = gptcalc("bench", "show", "run.json", "--format", "json", cwd=saved.parent)
    assert shown.returncode == 0
    assert shown.stdout == (saved.parent / "printed.json").read_text()
    lines = json.loads(shown.stdout)["lines"]
    assert {line["case"] for line in lines} == {"copy", "empty", "layernorm.forward"}
    assert all(sum(map(len, line["samples_ns"])) == line["n"] for line in lines)


def test_show_opens_no_torch(saved: Path) -> None:
    """Reading a saved run is cheap: torch stays closed, and json opens no rich."""
    code = (
        "import sys; from gptcalc.cli.app import run; code = run(['bench', 'show', sys.argv[1], '--format', 'json']);"
        "print(code, sorted({'torch', 'numpy', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "0 []"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_table_fits_the_terminal(saved: Path, width: int) -> None:
    """At any width no line is longer than the terminal, and the headline numbers are there."""
    lines = gptcalc("bench", "show", str(saved), COLUMNS=str(width)).stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert "GB/s" in lines[0]


def test_second_run_measures_nothing_again(saved: Path) -> None:
    """The same command with the same file goes on from it: what is there stays as it is, sample by sample."""
    before = json.loads(saved.read_text())["points"]
    wider = [text.replace("32,64,128", "32,64,128,256") for text in TOY]
    done = gptcalc("bench", *wider, "--save", "run.json", cwd=saved.parent)
    after = json.loads(saved.read_text())["points"]
    assert done.returncode == 0
    assert after[: len(before)] == before
    assert len(after) == len(before) + 1


def test_fresh_measures_again(tmp_path: Path) -> None:
    """`--fresh` replaces what is there."""
    toy = ("empty", "--device", "cpu", "--time-budget", "0.4", "--save", "run.json")
    gptcalc("bench", *toy, cwd=tmp_path)
    before = json.loads((tmp_path / "run.json").read_text())["points"]
    gptcalc("bench", *toy, "--fresh", cwd=tmp_path)
    after = json.loads((tmp_path / "run.json").read_text())["points"]
    assert [point["case"] for point in after] == [point["case"] for point in before]
    assert after != before


def _edited(path: Path, change: Any) -> Path:
    data = json.loads(path.read_text())
    change(data)
    edited = path.with_name("edited.json")
    edited.write_text(json.dumps(data))
    return edited


@pytest.fixture
def runs(saved: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The saved run as a machine without noise would have it, a millisecond each time; and ten times faster."""
    data, found = json.loads(saved.read_text()), []
    for name, sample in (("slow", 1_000_000), ("fast", 100_000)):
        for point in data["points"]:
            for number in point["measured"].values():
                number["restarts"] = [[sample] * len(samples) for samples in number["restarts"]]
        found.append(tmp_path / f"{name}.json")
        found[-1].write_text(json.dumps(data))
    return found[0], found[1]


def test_against_itself_nothing_regressed(saved: Path) -> None:
    """A run against itself is the same everywhere: exit code 0."""
    done = gptcalc("bench", "show", str(saved), "--against", str(saved), "--format", "json")
    changes = json.loads(done.stdout)["changes"]
    assert done.returncode == 0
    assert {change["verdict"] for change in changes} == {"same"}


def test_regression_is_exit_code_1(runs: tuple[Path, Path]) -> None:
    """Ten times slower than before is a regression, unless the threshold allows as much."""
    slow, fast = map(str, runs)
    done = gptcalc("bench", "show", slow, "--against", fast)
    assert done.returncode == 1
    assert "slower" in done.stdout
    assert gptcalc("bench", "show", slow, "--against", fast, "--threshold", "3000%").returncode == 0
    assert gptcalc("bench", "show", fast, "--against", slow).returncode == 0


def test_run_against_an_earlier_one_is_a_gate(runs: tuple[Path, Path]) -> None:
    """A run, here one that goes on from its file, ends with exit code 1 where it is slower than a saved one."""
    slow, fast = map(str, runs)
    done = gptcalc("bench", *TOY, "--save", slow, "--against", fast)
    assert done.returncode == 1
    assert "slower" in done.stdout
    assert gptcalc("bench", *TOY, "--save", fast, "--against", slow).returncode == 0


def test_run_is_not_held_against_its_own_file(saved: Path) -> None:
    """Saving to the file that is compared with would compare a run with itself: that is refused."""
    done = gptcalc("bench", "empty", "--save", str(saved), "--against", str(saved.parent / "." / saved.name))
    assert done.returncode == 2
    assert "allowed: an earlier run" in done.stderr


def test_fresh_run_that_is_stopped_keeps_the_old_file(saved: Path, tmp_path: Path) -> None:
    """With `--fresh` the old run stays whole until there is a new one to take its place."""
    path = tmp_path / "run.json"
    path.write_bytes(saved.read_bytes())
    process = start("bench", "empty", "--device", "cpu", "--save", "run.json", "--fresh", cwd=tmp_path)
    sleep(0.5)
    process.kill()
    process.communicate(timeout=60)
    assert path.read_bytes() == saved.read_bytes()


def test_another_device_does_not_go_on(saved: Path) -> None:
    """A file of another device or torch is not mixed with this one's numbers, and stays as it is."""
    for field, value, said in (("device", "name", "other"), ("software", "torch", "2.0")):
        edited = _edited(saved, lambda data, f=field, v=value, s=said: data[f].__setitem__(v, s))
        before = edited.read_bytes()
        done = gptcalc("bench", *TOY, "--save", str(edited))
        assert done.returncode == 2
        assert f"{value} was '{said}'" in done.stderr
        assert edited.read_bytes() == before


@pytest.mark.parametrize("name", ["killed", "interrupted"])
def test_stopped_run_leaves_a_whole_file_and_goes_on(tmp_path: Path, name: str) -> None:
    """A run that is killed, or stopped with Ctrl-C, leaves a file that is read, and the same command goes on."""
    path = tmp_path / "run.json"
    process = start("bench", *SWEEP, "--save", "run.json", cwd=tmp_path)
    when_points(path, 8)
    process.send_signal(signal.SIGKILL if name == "killed" else signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    saved = json.loads(path.read_text())
    kept = saved["points"]
    assert 8 <= len(kept) < saved["asked"]
    assert [entry.name for entry in tmp_path.iterdir() if entry.name == "run.json"]
    assert gptcalc("bench", "show", str(path)).returncode == 0
    if name == "interrupted":
        assert process.returncode == 130
        assert "GB/s" in output
        assert "goes on from run.json" in errors
    rest = ["1" if text == "40" else text for text in SWEEP]
    gptcalc("bench", *rest, "--save", "run.json", cwd=tmp_path)
    final = [point for point in kept if all(one["stopped"] != "interrupted" for one in point["measured"].values())]
    assert len(final) >= 8
    after = json.loads(path.read_text())["points"]
    assert all(point in after for point in final)


def test_full_disk_leaves_no_half_file_and_the_answer(tmp_path: Path) -> None:
    """Where the file can grow no more, no part of it is left, and what was measured is printed before the error."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gptcalc", "bench", *TOY, "--save", "run.json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)),  # noqa: PLW1509
    )
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "copies at" in output
    assert errors == "gptcalc: run.json: cannot be written: File too large\n"
    assert not list(tmp_path.iterdir())


def test_too_large_a_shape_is_refused_and_the_rest_is_measured(tmp_path: Path) -> None:
    """A shape that memory cannot hold is refused before it is allocated; the others are measured, and the code is 2."""
    toy = ("layernorm.forward", "--device", "cpu", "--rows", "64,2m", "--d-model", "1m", "--time-budget", "1")
    done = gptcalc("bench", *toy, "--format", "json", cwd=tmp_path)
    answer = json.loads(done.stdout)
    assert done.returncode == 2
    assert "1 of 4 points could not be measured; layernorm.forward: needs at least" in done.stderr
    assert [problem["kind"] for problem in answer["problems"]] == ["memory"]
    assert {line["shape"]["rows"] for line in answer["lines"] if line["case"] == "layernorm.forward"} == {64}


def test_time_that_is_up_is_said(tmp_path: Path) -> None:
    """Where the time is too short for all points, those measured are printed, and stderr says how to go on."""
    done = gptcalc("bench", *SWEEP, "--time-budget", "0.5", cwd=tmp_path)
    assert done.returncode == 0
    assert "the time was up at" in done.stderr
    assert "--save FILE" in done.stderr


def test_wrong_result_is_not_timed(tmp_path: Path) -> None:
    """A kernel whose result is wrong gets no time: it is named on stderr, and the exit code is 1."""
    code = """
import sys, torch
from torch.nn import functional
right = functional.layer_norm
functional.layer_norm = lambda x, shape, weight, bias, eps: right(x, shape, weight, bias, eps * 2)
from gptcalc.cli.app import run
sys.exit(run(["bench", *sys.argv[1:]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *TOY, "--format", "json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 1
    assert "wrong result" in done.stderr
    assert {line["case"] for line in json.loads(done.stdout)["lines"]} == {"copy", "empty"}
