"""The tables of accuracy are what the predictions are today, beside truths that are committed."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support import DATA, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def accuracy() -> Iterator[Any]:
    """The script that writes them."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import accuracy

        yield accuracy
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def rows(accuracy: Any) -> list[Any]:
    """Every prediction beside its truth."""
    found: list[Any] = accuracy.every()
    return found


def test_the_pages_are_current(accuracy: Any, rows: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """README and docs hold what `python benchmarks/accuracy.py` writes."""
    monkeypatch.setattr(accuracy, "every", lambda: rows)
    for path, text in accuracy.pages().items():
        assert path.read_text(encoding="utf-8") == text, path.name


#: Rows that are off, by how many bytes and why: each is a miss that is understood, and none other is let through.
MISSES = {
    # The peak is in the update, and the measured loop lets the loss go before it.
    "llama-3.2-1b, fp32, sdpa, 1×1024, foreach": 512,
}


def test_what_was_measured_without_a_gpu_is_predicted_exactly(rows: list[Any]) -> None:
    """Steps on fake CUDA tensors and traces: by the byte, every row but the misses that are named."""
    seen = [row for row in rows if not row.source.startswith(("published", "measured on"))]
    assert len({row.source for row in seen}) == 2
    assert {row.case: row.predicted - row.truth for row in seen if row.predicted != row.truth} == MISSES


def test_a_published_formula_is_off_by_what_its_paper_leaves_out(accuracy: Any, rows: list[Any]) -> None:
    """Mean and 1/σ of two norms in fp32, 16·s·b bytes, and nothing else; nothing where the block runs again."""
    found = {row.case: row.predicted - row.truth for row in rows if row.source == accuracy.KORTHIKANTI}
    assert found == {
        f"a layer of {name}, {how}": 16 * 2048 * batch * (not how.startswith("full"))
        for name, (_, _, batch) in accuracy.MEGATRON.items()
        for how in ("34 + 5as/h", "selective recomputation: 34", "full recomputation: 2")
    }


def test_model_states_are_those_of_zero_and_megatron(rows: list[Any]) -> None:
    """16 bytes a parameter with gradients in fp16, 18 in fp32, by no rule of their own: exactly what was published."""
    found = [row for row in rows if row.figure in ("states between steps", "parameters and optimizer")]
    assert len(found) == 4
    assert [row for row in found if row.predicted != row.truth] == []


def test_every_case_that_was_traced_is_there(accuracy: Any) -> None:
    """A case that is taken up is traced; one that is dropped leaves no truth behind."""
    assert list(json.loads((DATA / "facts_traces.json").read_text())["cases"]) == list(accuracy.CASES)


def test_a_difference_is_never_rounded_to_nothing(accuracy: Any) -> None:
    """Nothing is printed where there is none; less than a millionth is still a difference."""
    rows = [accuracy.Row("here", "a", "peak", 10**9 + off, 10**9) for off in (0, 1, -2_000_000)]
    cells = [line.rpartition(" | ")[2] for line in accuracy.whole(rows).splitlines()[2:]]
    assert cells == ["0 |", "+1.0e-07% |", "-0.2000% |"]
    assert accuracy.summary(rows).splitlines()[2] == "| here | peak | 3 | 1 | +1.0e-07% | -0.2000% |"


def test_a_page_without_marks_is_an_error(accuracy: Any) -> None:
    """The table has one place."""
    with pytest.raises(ValueError, match="found 0 pairs of <!-- accuracy -->"):
        accuracy.between("no marks", "table")
