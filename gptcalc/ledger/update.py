"""What a step makes of its gradients: copies of them and of the weights, their norm, the optimizer, the end.

    for weight, one in zip(weights, updated):        # `updated` are the weights, or their fp32 copies
        one.grad = main or weight's gradient, in one's dtype
        weight.grad = None                           # only where that was a cast
    clip_grad_norm_(updated, max_norm)
    optimizer.step()                                 # fp16 under autocast: by way of a scaler (`ledger.scaler`)
    for weight, one in zip(weights, updated): weight.copy_(one)

Main gradients and fp32 copies are made once, at build.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gptcalc.formula import Dim, product_size
from gptcalc.ledger.scaler import Scaler
from gptcalc.optimizers import Optimizer, Parameter
from gptcalc.plan import Plan, weight_dtype
from gptcalc.tape.record import Slot
from gptcalc.tape.replay import Recording
from gptcalc.tape.rows import Tensor, whole

#: Optimizers whose fused kernels take the scale of a gradient scaler.
SCALED_IN_KERNEL = ("adamw", "adam", "sgd")


class _Cast(NamedTuple):
    """A gradient in the dtype of what is updated, and whose it is."""

    parameter: Parameter
    slot: Slot


class Update:
    """The part of a step that comes after the backward passes, of `parameters` in the order of the module."""

    def __init__(self, recording: Recording, plan: Plan, optimizer: Optimizer, parameters: Sequence[Parameter]) -> None:
        """Nothing is made yet."""
        self.recording, self.record, self.plan = recording, recording.record, plan
        self.optimizer, self.parameters = optimizer, parameters
        self._casts: list[_Cast] = []
        self._begun = False
        self._names = {one.tensor.name.format(one.layer): one for one in parameters}
        self._stepped: set[str] = set()
        if plan.optimizer_in_backward:
            self.record.hook = self._step_one
        in_kernel = plan.optimizer in SCALED_IN_KERNEL and plan.optimizer_impl == "fused"
        self.scaler = Scaler(self.record, in_kernel=in_kernel) if plan.autocast == "fp16" else None

    def build(self) -> None:
        """Buffers of the gradients' dtype, to which each fresh gradient is added; the copies that are updated."""
        if self.plan.grad_dtype != "none":
            for tensor, layer, label, _ in self.parameters:
                self.record.segment(label, layer)
                self.record.main_gradient(tensor, self.plan.grad_dtype)
        if self.plan.master_weights != "none":
            for one in self.parameters:
                master = self._updated(one)
                self.record.segment(one.label, one.layer)
                tensor = master.tensor._replace(label=f"master weights of {one.tensor.label}")
                self.record.hold(self.record.alloc(tensor, "optimizer", "build"))

    def step(self) -> None:
        """Gradients in the dtype of what is updated, clipped, and the optimizer's own step."""
        if self.plan.optimizer_in_backward:
            return
        trained = [one for one in self.parameters if self.record.has_gradient(one.tensor.name, one.layer)]
        updated = [self._updated(one) for one in trained]
        self._casts = (
            [self._cast(one, new) for one, new in zip(trained, updated, strict=True)] if self._casts_gradients else []
        )
        if self.plan.grad_clip:
            if self.scaler is not None:
                self.scaler.unscale()
            self._clip(updated)

        def update() -> None:
            self.optimizer.update(self.record, updated, first=not self._begun)

        if self.scaler is None:
            update()
        else:
            self.scaler.step(update)
        self._begun = True

    def _step_one(self, name: str) -> None:
        """In the backward pass: the optimizer of one weight, which has its whole gradient, and that gradient's end."""
        one = self._names[name]
        self.optimizer.update(self.record, [one], first=name not in self._stepped)
        self._stepped.add(name)
        self.record.segment(one.label, one.layer)
        if (grad := self.record.parameter_gradient(one.tensor.name)) is not None:
            self.record.release(grad)

    def let_go(self) -> None:
        """Gradients that do not stay."""
        for (_, layer, label, _), slot in self._casts:
            self.record.segment(label, layer)
            self.record.release(slot)
        for tensor, layer, label, _ in self.parameters if not self.plan.zero_grads else ():
            self.record.segment(label, layer)
            if (grad := self.record.parameter_gradient(tensor.name)) is not None:
                self.record.release(grad)
        self._casts = []

    def _updated(self, one: Parameter) -> Parameter:
        """What the optimizer updates of a weight: itself, or its copy."""
        return one._replace(tensor=one.tensor._replace(dtype=self._dtype))

    @property
    def _dtype(self) -> str:
        """The dtype of what the optimizer updates."""
        return weight_dtype(self.plan) if self.plan.master_weights == "none" else self.plan.master_weights

    @property
    def _casts_gradients(self) -> bool:
        """Whether gradients have another dtype than what is updated."""
        buffers = self.plan.grad_dtype
        return self._dtype != (weight_dtype(self.plan) if buffers == "none" else buffers)

    def _cast(self, one: Parameter, new: Parameter) -> _Cast:
        """The gradient in the other dtype; the one that it was made of is let go, unless it stays."""
        tensor, layer, label, _ = new
        self.record.segment(label, layer)
        cast = tensor._replace(label=f"gradient of {tensor.label} in {tensor.dtype}")
        slot = self.record.hold(self.record.alloc(cast, "gradients", "aten::_to_copy"))
        if self.plan.grad_dtype == "none" and not self.plan.zero_grads:
            grad = self.record.parameter_gradient(one.tensor.name)
            if grad is not None:
                self.record.release(grad)
        return _Cast(one, slot)

    def _clip(self, updated: Sequence[Parameter]) -> None:
        """`clip_grad_norm_` by foreach: a norm of each gradient, all in one, theirs, what the gradients are scaled by.

        The kernel's partial norms come first [ForeachReduceOp.cu, foreach_tensor_norm_cuda].
        """
        record = self.record
        number = Tensor("", (), updated[0].tensor.dtype)
        n = sum(1 if one.layer is None else len(self.recording.actual(one.layer)) for one in updated)
        stacked = Tensor("norms of all gradients", (Dim("gradients", n),), number.dtype)
        largest = max((one.tensor for one in updated), key=lambda tensor: product_size(tensor.dims))
        partial = self._buffers(largest, stacked)
        norms = []
        for tensor, layer, label, _ in updated:
            record.segment(label, layer)
            norm = number._replace(label=f"norm of the gradient of {tensor.label}", name=tensor.name)
            norms.append(record.hold(record.alloc(norm, "temporary", "aten::_foreach_norm")))
        record.segment("optimizer")
        for slot in partial:
            record.release(slot)
        together = self._made(stacked, "aten::stack")
        total = self._made(number._replace(label="norm of all gradients"), "aten::linalg_vector_norm")
        record.release(together)
        for (_, layer, label, _), norm_slot in zip(reversed(updated), reversed(norms), strict=True):
            record.segment(label, layer)
            record.release(norm_slot)
        record.segment("optimizer")
        above, inverse, scale = (
            self._made(number._replace(label=label), op)
            for label, op in (
                ("norm, above zero", "aten::add"),
                ("its inverse", "aten::reciprocal"),
                ("scale of gradients", "aten::mul"),
            )
        )
        for slot in (inverse, above):
            record.release(slot)
        most = self._made(number._replace(label="scale of gradients, at most one"), "aten::clamp")
        for slot in (most, scale, total):
            record.release(slot)

    def _made(self, tensor: Tensor, op: str) -> Slot:
        return self.record.hold(self.record.alloc(tensor, "temporary", op, shared=True))

    def _buffers(self, largest: Tensor, norms: Tensor) -> list[Slot]:
        """What the kernel of the norms takes for itself."""
        self.record.segment("optimizer")
        kernels = self.record.kernels
        op = whole("aten::_foreach_norm", (largest,), norms)
        return [
            self.record.hold(self.record.alloc(tensor, "workspace", op.name, shared=True))
            for tensor in (kernels.buffers(op) if kernels is not None else ())
        ]


def micro_batches(plan: Plan, recorded: int) -> Iterator[str]:
    """What the phases of each micro-batch of a step are called after: of those after the second, none is recorded."""
    if plan.grad_accum == 1:
        yield ""
        return
    yield from (f"#{number + 1}" for number in range(min(plan.grad_accum, recorded)))
