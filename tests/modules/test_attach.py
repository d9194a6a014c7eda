"""Children under dotted names, and a child without one."""

from __future__ import annotations

import copy

import pytest
import torch

from gptcalc.errors import InvalidValueError
from gptcalc.modules.itemised import Dims, Itemised, make

DIMS = Dims(8, 11, 5)
MLP = {"kind": "dense", "d_ff": 16, "activation": "silu", "bias": False, "dropout": 0.5}


def held(name: str) -> Itemised:
    """A module with an MLP of that name."""
    module = Itemised()
    module.attach(name, make(MLP | {"name": name}, DIMS))
    return module


def test_a_dotted_name_is_a_path() -> None:
    """Containers are made on the way, once, and are itemised through."""
    module = held("a.b")
    module.attach("a.c.d", make(MLP | {"name": "a.c.d"}, DIMS))

    assert [*module.state_dict()] == [
        f"a.{name}.{layer}_proj.weight" for name in ("b", "c.d") for layer in ("up", "down")
    ]
    assert [key for key, _ in module.child("a").itemise()] == ["mlp_up", "mlp_down"] * 2
    with pytest.raises(InvalidValueError, match="read a part named 'b'; allowed: a free name"):
        module.attach("a.b", make(MLP, DIMS))


def test_a_child_without_a_name_lends_its_children() -> None:
    """Its tensors are the holder's; it is switched between training and evaluation with it, and copied with it."""
    module = held("")
    twin = copy.deepcopy(module)
    x = torch.ones(3, 50, 8)

    assert [*module.state_dict()] == ["up_proj.weight", "down_proj.weight"]
    assert len([*module.parameters()]) == 2
    assert (module.train().child("")(x) == 0).any()
    assert not (module.eval().child("")(x) == 0).any()
    assert twin.child("").child("up_proj") is twin.child("up_proj")
    with pytest.raises(InvalidValueError, match="read another part named ''; allowed: one"):
        module.attach("", make(MLP, DIMS))
