"""A training loop as a user writes it: the script of every witness that runs steps, on meta, fake CUDA or a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from gptcalc.plan import Plan
from gptcalc.witness.adam8bit import AdamW8bit
from gptcalc.witness.meta import DTYPES, autocast

#: What opens a phase, by its name and the number of the step.
PhaseOf = Callable[[str, int], AbstractContextManager[None]]


class Loop(NamedTuple):
    """A model, and a forward pass of it, whose output has the loss."""

    model: nn.Module
    forward: Callable[[], Any]


def train(
    phase: PhaseOf,
    build: Callable[[], Loop],
    plan: Plan,
    steps: int,
    after: Callable[[], None] = lambda: None,
) -> None:
    """`steps` steps of what `build` builds in the phase of that name; `after` them, all variables are alive."""
    n = plan.grad_accum
    with phase("build", 0):
        model, run = under_autocast(build(), plan)
        if plan.grad_dtype != "none":
            add_main_gradients(model, DTYPES[plan.grad_dtype])
        update = Update(model, plan)
    for step in range(1, steps + 1):
        for number in range(1, n + 1):
            micro_batch = f"#{number}" if n > 1 else ""
            with phase(f"forward{micro_batch}", step):
                if plan.keep_outputs:
                    out = run()
                    loss = out.loss / n if n > 1 else out.loss
                else:
                    loss = run().loss / n if n > 1 else run().loss
            with phase(f"backward{micro_batch}", step):
                update.scaled(loss).backward()
        with phase("optimizer", step):
            update.step()
        with phase("end", step):
            update.let_go()
            if not plan.keep_outputs:
                del loss
    after()


def under_autocast(loop: Loop, plan: Plan) -> Loop:
    """The same, its forward pass under what the plan's precision asks for."""

    def forward() -> Any:
        with autocast(plan):
            return loop.forward()

    return loop._replace(forward=forward) if plan.autocast else loop


def add_main_gradients(model: nn.Module, dtype: torch.dtype) -> None:
    """Give each weight a buffer to which each gradient is added before it is dropped, as Megatron's `main_grad`."""

    def add(weight: Any) -> None:
        weight.main_grad.add_(weight.grad)
        weight.grad = None

    weights: list[Any] = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.main_grad = torch.zeros_like(weight, dtype=dtype, requires_grad=False)
        weight.register_post_accumulate_grad_hook(add)


class Update:
    """What a user's loop does after the backward passes: gradients in the right dtype, clipped, a step, zeroing."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        """Copy the weights where the plan has master weights, and make the optimizer."""
        self.plan = plan
        names = [name for name, weight in model.named_parameters() if weight.requires_grad]
        self.weights: list[Any] = [weight for weight in model.parameters() if weight.requires_grad]
        self.updated: list[Any] = self.weights
        if plan.master_weights != "none":
            dtype = DTYPES[plan.master_weights]
            self.updated = [nn.Parameter(weight.detach().to(dtype, copy=True)) for weight in self.weights]
        named = list(zip(names, self.updated, strict=True))
        self.optimizer: Any = _InBackward(plan, named) if plan.optimizer_in_backward else optimizer_of(plan, named)
        self.scaler = _Scaler("cuda", enabled=plan.autocast == "fp16")

    def scaled(self, loss: Any) -> Any:
        """The loss as it goes backwards."""
        return self.scaler.scale(loss)

    def step(self) -> None:
        """Hand the gradients on, clip them, update, and copy master weights back."""
        for weight, one in zip(self.weights, self.updated, strict=True):
            self._hand_on(weight, one)
        if self.plan.grad_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.updated, self.plan.grad_clip, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.updated is not self.weights:
            with torch.no_grad():
                for weight, one in zip(self.weights, self.updated, strict=True):
                    weight.copy_(one)

    def _hand_on(self, weight: Any, one: Any) -> None:
        """Give what is updated the weight's gradient, in its own dtype."""
        if self.plan.grad_dtype != "none":
            one.grad = weight.main_grad.to(one.dtype)
        elif one is not weight and weight.grad is not None:
            one.grad = weight.grad.to(one.dtype)
            if not self.plan.zero_grads:
                weight.grad = None

    def let_go(self) -> None:
        """Gradients become None, or zero where they stay."""
        if self.plan.grad_dtype != "none":
            for weight in self.weights:
                weight.main_grad.zero_()
        elif self.updated is not self.weights and self.plan.zero_grads:
            for weight in self.weights:
                if weight.grad is not None:
                    weight.grad.zero_()
        stays = self.plan.zero_grads and self.updated is self.weights
        self.optimizer.zero_grad(set_to_none=not stays)


class _Scaler(torch.amp.GradScaler):
    """torch's own; where tensors have no numbers, no gradient is infinite."""

    def _maybe_opt_step(self, optimizer: Any, optimizer_state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        found = optimizer_state["found_inf_per_device"].values()
        if any(isinstance(one, FakeTensor) for one in found):
            return optimizer.step(*args, **kwargs)
        return super()._maybe_opt_step(optimizer, optimizer_state, *args, **kwargs)


class Updates(Protocol):
    """What a training loop calls of its optimizer, or optimizers."""

    def step(self) -> object:
        """Update the weights."""

    def zero_grad(self, *, set_to_none: bool) -> None:
        """Let go of the gradients."""


class _Several:
    """Optimizers of different weights, stepped one after the other."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self._optimizers = optimizers

    def step(self) -> None:
        """Each in turn."""
        for one in self._optimizers:
            one.step()

    def zero_grad(self, *, set_to_none: bool) -> None:
        """Of all."""
        for one in self._optimizers:
            one.zero_grad(set_to_none=set_to_none)


class _InBackward:
    """An optimizer for each weight, which a hook steps once the weight has its whole gradient; that is then let go.

    https://docs.pytorch.org/tutorials/intermediate/optimizer_step_in_backward_tutorial.html
    """

    def __init__(self, plan: Plan, named: Sequence[tuple[str, Any]]) -> None:
        self._optimizers = {weight: optimizer_of(plan, [(name, weight)]) for name, weight in named}
        for weight in self._optimizers:
            weight.register_post_accumulate_grad_hook(self._update)

    def _update(self, weight: Any) -> None:
        self._optimizers[weight].step()
        self._optimizers[weight].zero_grad(set_to_none=True)

    def step(self) -> None:
        """All is done already."""

    def zero_grad(self, *, set_to_none: bool) -> None:
        """There are no gradients left."""


def optimizer_of(plan: Plan, named: Sequence[tuple[str, Any]]) -> Updates:
    """As torch has it, with its defaults; the implementation is said outright, since torch picks none on meta.

    Weights are `named` as in the model.
    """
    everything = [weight for _, weight in named]
    how: dict[str, Any] = {"foreach": plan.optimizer_impl == "foreach", "fused": plan.optimizer_impl == "fused"}
    if plan.optimizer == "sgd":
        return torch.optim.SGD(everything, momentum=plan.momentum, **how)
    if plan.optimizer == "adam":
        return torch.optim.Adam(everything, amsgrad=plan.amsgrad, **how)
    if plan.optimizer == "adafactor":
        return torch.optim.Adafactor(everything, foreach=how["foreach"])
    if plan.optimizer == "adamw8bit":
        return AdamW8bit(everything)
    if plan.optimizer == "muon":
        # A layer's tensors have its number in their names; tables and the unembedding have none.
        numbered = {name for name, _ in named if any(step.isdecimal() for step in name.split("."))}
        matrices = [weight for name, weight in named if name in numbered and weight.ndim == 2]
        taken = set(map(id, matrices))
        rest = [weight for weight in everything if id(weight) not in taken]
        muon = [torch.optim.Muon(matrices)] if matrices else []
        return _Several(*muon, *([torch.optim.AdamW(rest, **how)] if rest else []))
    return torch.optim.AdamW(everything, amsgrad=plan.amsgrad, **how)
