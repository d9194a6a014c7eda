"""The gradient scaler of fp16 training, `torch.amp.GradScaler`: a handful of single numbers [torch/amp/grad_scaler.py].

    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)       # only where gradients are clipped
    scaler.step(optimizer)           # unscales where that has not been done; torch's fused kernels do it themselves
    scaler.update()

No gradient is taken to be infinite: no step is left out.
"""

from collections.abc import Callable

from gptcalc.tape.record import Recorder, Slot
from gptcalc.tape.rows import Op, Tensor, multiply

_SCALE = Tensor("loss scale", (), "fp32")
_GROWN = Tensor("steps since the loss scale grew", (), "int32")


class Scaler:
    """What a scaler allocates; `in_kernel` says that the optimizer's own kernel scales the gradients."""

    def __init__(self, record: Recorder, *, in_kernel: bool) -> None:
        """The scale is made when it is first asked for."""
        self.record, self.in_kernel = record, in_kernel
        self._begun = False
        self._found: Slot | None = None

    def scaled(self, loss: Tensor) -> Op:
        """The loss times the scale."""
        if not self._begun:
            self._begun = True
            for tensor in (_SCALE, _GROWN):
                self.record.given(tensor, "optimizer", "aten::full")
        return multiply(loss, _SCALE, "scaled loss", constant=True)._replace(where="loss")

    def unscale(self) -> None:
        """The scale's inverse, by way of double precision; the gradients are scaled in place."""
        double = self._made("loss scale in double precision", "aten::_to_copy", "fp64")
        exact = self._made("its inverse in double precision", "aten::reciprocal", "fp64")
        self.record.release(double)
        inverse = self._made("inverse of the loss scale", "aten::_to_copy")
        self.record.release(exact)
        self._check(inverse)

    def step(self, update: Callable[[], None]) -> None:
        """The optimizer's step, with what it takes before."""
        if not self.in_kernel:
            if self._found is None:
                self.unscale()
            update()
        else:
            taken = []
            if self._found is None:
                self._check(self._made("a scale of one", "aten::full"))
                taken.append(("loss scale for the kernel", "aten::mul"))
            slots = [self._made(*one) for one in (("sum of what was infinite", "aten::add"), *taken)]
            update()
            for slot in reversed(slots):
                self.record.release(slot)
        if self._found is not None:
            self.record.segment("optimizer")
            self.record.release(self._found)
            self._found = None

    def _check(self, scale: Slot) -> None:
        """Whether a gradient is infinite; what the kernel is given are copies, for each device one."""
        infinite = self._made("whether a gradient is infinite", "aten::full")
        self._found = self._made("whether one is infinite, on this device", "aten::_to_copy")
        copy = self._made("scale, on this device", "aten::_to_copy")
        for slot in (copy, scale, infinite):
            self.record.release(slot)

    def _made(self, label: str, op: str, dtype: str = "fp32") -> Slot:
        self.record.segment("optimizer")
        return self.record.hold(self.record.alloc(Tensor(label, (), dtype), "temporary", op, shared=True))
