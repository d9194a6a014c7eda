"""Every causal language model of the installed transformers: counted as its class counts, or refused with a reason.

`python tests/families/test_every_decoder.py` writes the table in `docs/models.md` anew.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

transformers = pytest.importorskip("transformers")

import decoders  # noqa: E402  it opens transformers
from support import ROOT  # noqa: E402  beside this folder

from gptcalc.catalog import resolve  # noqa: E402
from gptcalc.errors import GptcalcError  # noqa: E402
from gptcalc.families import is_known, model_types  # noqa: E402
from gptcalc.families.guess import NOT_MODELLED  # noqa: E402
from gptcalc.ledger.parameters import parameters  # noqa: E402

DOCS = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- every decoder -->\n", "<!-- end -->"
TYPES = sorted(decoders.model_types())


class Verdict(NamedTuple):
    """What a toy of a class holds, by gptcalc and by the class; `refused` is why gptcalc does not count it."""

    decoder: decoders.Decoder
    ours: int | None
    components: dict[str, int]
    active: int | None
    refused: str

    @property
    def exact(self) -> bool:
        """Whether both say the same."""
        return self.ours is not None and self.ours == self.decoder.parameters


@cache
def judged(model_type: str) -> Verdict:
    """The toy of a class, counted from a file that gives all its fields."""
    found = decoders.decoder(model_type)
    if found.reason:
        return Verdict(found, None, {}, None, found.reason)
    transformers.logging.set_verbosity_error()
    config: dict[str, Any] = transformers.AutoConfig.for_model(model_type, **found.config).to_dict()
    del config["architectures"]
    try:
        spec = resolve({**config, **found.config, "model_type": model_type}, {}).spec
    except GptcalcError as error:
        return Verdict(found, None, {}, None, str(error))
    counted = parameters(spec)
    stored = {line.key: line.stored for line in counted.lines if line.stored}
    return Verdict(found, counted.totals.stored, stored, counted.totals.active, "")


@pytest.mark.parametrize("model_type", TYPES)
def test_every_causal_class_is_counted_exactly_or_refused(model_type: str) -> None:
    """By component, and what one token uses; what is no decoder, or has parts that are not modelled, has a reason."""
    verdict = judged(model_type)

    if verdict.refused:
        assert verdict.ours is None
        return
    found = verdict.decoder
    assert verdict.ours == found.parameters
    assert verdict.components == {key: size for key, size in found.breakdown.items() if size}
    assert found.active is None or verdict.active == found.active


@pytest.mark.parametrize("model_type", model_types())
def test_every_family_reads_the_class_that_it_is_named_after(model_type: str) -> None:
    """No family of ours is among those that are refused."""
    if model_type not in decoders.model_types():
        pytest.skip(f"the installed transformers has no {model_type}")
    assert judged(model_type).exact


def test_what_is_not_modelled_is_listed() -> None:
    """A class of transformers that no family reads is never guessed from its fields."""
    unread = {name for name in TYPES if not judged(name).decoder.reason and not is_known(name)}

    assert unread - NOT_MODELLED == set()
    assert not any(map(is_known, NOT_MODELLED))


def test_the_table_in_the_docs_is_current() -> None:
    """`python tests/families/test_every_decoder.py` writes it; another release of transformers has other classes."""
    text = DOCS.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}" not in text:
        pytest.skip(f"the table is not of transformers {transformers.__version__}")
    assert text.partition(BEGIN)[2].partition(END)[0] == table()


def table() -> str:
    """A row for each decoder, both counts side by side; then what is none, by reason."""
    rows = [verdict for name in TYPES if not (verdict := judged(name)).decoder.reason]
    exact = sum(verdict.exact for verdict in rows)
    lines = [
        f"Of {len(rows)} causal decoders in transformers {transformers.__version__}, {exact} are exact.",
        "",
        "| model type | class | gptcalc | the class | |",
        "| --- | --- | ---: | ---: | --- |",
        *(_row(verdict) for verdict in rows),
        "",
        "Listed as causal language models by transformers, and not counted:",
        "",
        "| model type | why |",
        "| --- | --- |",
        *(f"| {name} | {judged(name).decoder.reason} |" for name in TYPES if judged(name).decoder.reason),
        "",
    ]
    return "\n".join(lines)


def _row(verdict: Verdict) -> str:
    found = verdict.decoder
    ours = "–" if verdict.ours is None else f"{verdict.ours:,}"
    what = "exact" if verdict.exact else "refused: no family reads it"
    if not verdict.exact and found.unknown:
        what = f"refused: no part has {', '.join(f'`{name}`' for name in found.unknown[:3])}"
    return f"| {found.model_type} | {found.class_name} | {ours} | {found.parameters:,} | {what} |"


if __name__ == "__main__":
    text = DOCS.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    DOCS.write_text(before + BEGIN + table() + END + after, encoding="utf-8")
