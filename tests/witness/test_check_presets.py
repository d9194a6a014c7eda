"""Every preset before the class of transformers: hyperparameters go over as they were published."""

from __future__ import annotations

import pytest

from gptcalc.api import check
from gptcalc.catalog import presets

pytest.importorskip("transformers")

#: One of each file, and those whose fields are objects, nulls, or bear our own names.
NAMES = sorted({preset.family: preset.name for preset in presets()}.values())
FURTHER = ("deepseek-v2-lite", "moonlight-16b-a3b", "gemma-3-12b", "phi-4-mini", "mistral-nemo", "llama-3.1-8b")
#: No field of GPT-2's class says that layers have no biases.
NOT_EXPRESSIBLE = ("llms-from-scratch-124m", "nanogpt-124m-nobias")


@pytest.mark.parametrize("name", sorted({*NAMES, *FURTHER} - {*NOT_EXPRESSIBLE}))
def test_the_class_agrees(name: str) -> None:
    """Names, shapes, ties, components and totals, of the config that gptcalc hands over."""
    (evidence,) = check(name, witness="transformers").evidence

    assert not evidence.skipped
    assert not evidence.findings
