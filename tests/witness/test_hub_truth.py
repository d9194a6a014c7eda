"""The class that transformers has for each published model, against its counts in the facts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support import DATA, facts

from gptcalc.witness.findings import stored_elements
from gptcalc.witness.tensor_names import active, components

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def built(config_file: str) -> Any:
    """The module that transformers makes of a published config.json, without memory."""
    fields = json.loads((DATA / "configs" / config_file).read_text())
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("fact", facts(), ids=lambda fact: fact["id"])
def test_the_class_of_a_published_model_is_itemised_as_the_facts_are(fact: dict[str, Any]) -> None:
    """Its total, every component and what a token uses follow from the names and shapes of its tensors."""
    module = built(fact["config_file"])
    tensors = dict(module.named_parameters())

    assert (type(module).__name__, stored_elements(tensors.values())) == (fact["model_class"], fact["params"])
    assert components(tensors) == fact["breakdown"]
    assert active(tensors, module.config) == fact.get("active_params", fact["params"])
