"""Whole reports, letter by letter: a change of what users see is a change of a file under review.

`python tests/report/test_goldens.py` writes the files anew.
"""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from support import DATA, gptcalc

FOLDER = DATA / "goldens"
MODELS = ("gpt3-175b", "mixtral-8x7b", "llms-from-scratch-124m")
FORMS = {
    **{f"{width}.txt": (["count"], {"COLUMNS": str(width)}) for width in (60, 80, 200)},
    "pipe.txt": (["count", "--explain"], {"COLUMNS": None}),
    "depth2.txt": (["count", "--depth", "2"], {"COLUMNS": "100"}),
    "csv": (["count", "--format", "csv"], {"COLUMNS": None}),
    "md": (["count", "--format", "markdown"], {"COLUMNS": None}),
}
CASES = [(model, form) for model in MODELS for form in FORMS]


SIDES = {
    "compare": ["compare", "gpt2", "gpt2:n_layers=24,d_model=1024", "llama-3-8b", "--batch", "8"],
    "design": ["design", "--params", "350M"],
    "memory-gpu": ["memory", "gpt2", "--gpu", "m3-max-40c", "--budget", "16GiB", "--batch", "8"],
    "memory-changes": ["memory", "gpt2", "--gpu", "8GiB", "--batch", "8", "--mode", "training"],
    "memory-max": ["memory", "gpt2-xl", "--gpu", "rtx-4090", "--max", "batch"],
    "fit": ["fit", "gpt2-small", "gpt3-175b", "--gpu", "rtx-4090", "--gpu", "h100-sxm", "--gpu", "m4", "--gpu", "1GiB"],
    "fit-gpu": ["fit", "--gpu", "24GiB", "--search", "gpt-neo"],
    "gpus": ["gpus", "--common"],
    "gpus-show": ["gpus", "show", "rtx-4090"],
}
SIDE_FORMS = {
    **{f"{width}.txt": ([], {"COLUMNS": str(width)}) for width in (60, 80, 200)},
    "pipe.txt": ([], {"COLUMNS": None}),
    "csv": (["--format", "csv"], {"COLUMNS": None}),
    "md": (["--format", "markdown"], {"COLUMNS": None}),
}
SIDE_CASES = [(name, form) for name in SIDES for form in SIDE_FORMS]


def side(name: str, form: str) -> str:
    """What the command of such a golden file prints today."""
    arguments, environment = SIDE_FORMS[form]
    return gptcalc(*SIDES[name], *arguments, **environment).stdout


def printed(model: str, form: str) -> str:
    """What the command of a golden file prints today."""
    arguments, environment = FORMS[form]
    return gptcalc(arguments[0], model, *arguments[1:], **environment).stdout


@pytest.mark.parametrize(("model", "form"), CASES)
def test_a_report_is_printed_as_it_was(model: str, form: str) -> None:
    """The output equals the golden file."""
    assert (FOLDER / f"{model}.{form}").read_text(encoding="utf-8") == printed(model, form)


@pytest.mark.parametrize(("name", "form"), SIDE_CASES)
def test_a_report_of_another_command_is_printed_as_it_was(name: str, form: str) -> None:
    """The output equals the golden file, and fits its terminal."""
    text = side(name, form)

    assert (FOLDER / f"{name}.{form}").read_text(encoding="utf-8") == text
    if form.removesuffix(".txt").isdecimal():
        assert max(map(len, text.splitlines())) <= int(form.removesuffix(".txt"))


@pytest.mark.parametrize(("model", "form"), CASES)
def test_a_golden_file_adds_up(model: str, form: str) -> None:
    """Read back, the amounts of a golden file's first table add up to the total in its title, or to csv's columns."""
    text = (FOLDER / f"{model}.{form}").read_text(encoding="utf-8")
    title = (FOLDER / f"{model}.200.txt").read_text(encoding="utf-8")
    expected = re.search(r": ([\d,]+) parameters", title)
    if form == "csv":
        amounts = re.findall(r",(\d+),\d+,[\d.e-]+,", text)
    else:
        table = next(part for part in text.split("\n\n") if re.match(r"(\| )?component ", part))
        rows = [line for line in table.splitlines() if "stored" not in line and "×)" not in line]
        if form == "depth2.txt":
            rows = [line for line in rows if line.startswith("  ")]
        amounts = [found[1] for line in rows if (found := re.search(r"([\d,]+) *\|? *[\d.]+%", line))]

    assert expected is not None
    assert sum(int(amount.replace(",", "")) for amount in amounts) == int(expected[1].replace(",", ""))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for model_, form_ in CASES:
        (FOLDER / f"{model_}.{form_}").write_text(printed(model_, form_), encoding="utf-8")
    for name_, form_ in SIDE_CASES:
        (FOLDER / f"{name_}.{form_}").write_text(side(name_, form_), encoding="utf-8")
