"""What autograd keeps for the backward pass: every save of the reference decoder's forward pass, without values."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from gptcalc.modules.checks import trusted
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.witness.meta import autocast, decoder, token_ids


class Saved(NamedTuple):
    """A storage that lives until the backward pass has used it.

    `dtype` and `shape` are those of the tensor that was saved first, `module` the path of the one that saved it.
    """

    bytes: int
    dtype: str
    shape: tuple[int, ...]
    module: str


def saved(spec: Spec, plan: Plan, device: str = "meta") -> tuple[Saved, ...]:
    """Every storage that a training step's forward pass keeps, once, in the order in which they are first saved.

    Weights, token IDs and targets are left out: they live anyhow.
    """
    model = decoder(spec, plan, device).train()
    ids, targets = (token_ids(plan.batch, plan.seq, device) for _ in range(2))
    given = [*model.parameters(), ids, targets]
    with trusted(), autocast(plan):
        return watch(model, lambda: model(ids, targets).loss, given)


def watch(model: nn.Module, run: Callable[[], Tensor], given: list[Tensor]) -> tuple[Saved, ...]:
    """What autograd keeps of `run`, except `given`; tensors that are not on the device of `given` count for nothing."""
    paths: list[str] = []
    handles = [hook for name, module in model.named_modules() for hook in _follow(module, name, paths)]
    device, seen = given[0].device, {_storage(tensor) for tensor in given}
    rows: list[Saved] = []
    kept: list[Tensor] = []  # so that no storage's address is used twice

    def pack(tensor: Tensor) -> Tensor:
        key = _storage(tensor)
        if tensor.device == device and key not in seen:
            seen.add(key)
            kept.append(tensor)
            rows.append(_row(tensor, paths[-1] if paths else ""))
        return tensor

    try:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            result = run()
        del result
    finally:
        for handle in handles:
            handle.remove()
    return tuple(rows)


def _follow(module: nn.Module, name: str, paths: list[str]) -> tuple[RemovableHandle, RemovableHandle]:
    """Hooks that keep the path of the module that runs on top of `paths`."""

    def leave(*_: object) -> None:
        paths.pop()

    return module.register_forward_pre_hook(lambda *_: paths.append(name)), module.register_forward_hook(leave)


def _row(tensor: Tensor, module: str) -> Saved:
    size = tensor.untyped_storage().nbytes()
    return Saved(size, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), module)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001  a storage has no public name
