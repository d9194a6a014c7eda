"""Any decoder class of transformers as an oracle: its tensors on the meta device, held against ours.

class_tensors({"model_type": "gpt_neox", "hidden_size": 64, ...})   # every tensor's name and shape, and who it is
assert_same({"model_type": "gpt_neox", "hidden_size": 64, ...})     # our inventory has these, and no others
assert_defaults("gpt_neox", {"hidden_size": 64, "vocab_size": 50})  # a silent file is read as the class reads it
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any, NamedTuple

from gptcalc.catalog import Resolved, resolve
from gptcalc.inventory import expand, inventory
from gptcalc.ledger.parameters import parameters


class ClassTensor(NamedTuple):
    """A tensor of the class; `owner` is the first name of its storage, its own name where it is not tied."""

    shape: tuple[int, ...]
    owner: str


@cache
def _transformers() -> Any:
    """The package, silent: its remarks on token ids and on missing kernels concern no weight."""
    import transformers

    transformers.logging.set_verbosity(logging.ERROR)
    return transformers


def class_config(config: Mapping[str, Any]) -> Any:
    """The config object of a `config.json`, as `AutoConfig` makes it."""
    fields = {key: deepcopy(value) for key, value in config.items() if key != "model_type"}  # classes write into them
    return _transformers().AutoConfig.for_model(config["model_type"], **fields)


def class_model(config: Mapping[str, Any]) -> Any:
    """The causal language model of a `config.json`, without values."""
    import torch

    with torch.device("meta"):
        return _transformers().AutoModelForCausalLM.from_config(class_config(config))


def class_tensors(config: Mapping[str, Any]) -> dict[str, ClassTensor]:
    """Every parameter by name, tied ones under each of their names."""
    owners: dict[int, str] = {}
    found = {}
    for name, tensor in class_model(config).named_parameters(remove_duplicate=False):
        owners.setdefault(id(tensor), name)
        found[name] = ClassTensor(tuple(tensor.shape), owners[id(tensor)])
    return found


def our_tensors(model: Resolved) -> dict[str, ClassTensor]:
    """The same of our inventory."""
    return {
        tensor.name: ClassTensor(tensor.weight.shape, tensor.weight.tied_to or tensor.name)
        for tensor in expand(inventory(model.spec))
    }


def assert_same(config: Mapping[str, Any], *, notes: bool = False) -> Resolved:
    """Our reading of `config` has the tensors of the class, and, unless `notes` are expected, leaves nothing unread."""
    ours = resolve(config, {})
    theirs = class_tensors(config)

    assert our_tensors(ours) == theirs, config
    stored = {tensor.owner: tensor.shape for tensor in theirs.values()}
    assert parameters(ours.spec).totals.stored == sum(_size(shape) for shape in stored.values())
    assert notes or ours.notes == (), config
    return ours


def assert_defaults(model_type: str, given: Mapping[str, Any]) -> None:
    """With every field of the class but `given` left out, and with all of them written out, we read the same model."""
    config = class_config({"model_type": model_type, **given})
    silent = {"model_type": model_type, **given}
    assert_same(silent)
    written = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
    said = resolve({**written, "model_type": model_type}, {})

    assert said.notes == ()
    assert said.spec == resolve(silent, {}).spec


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
