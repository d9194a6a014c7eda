"""8-bit AdamW, in the layout of bitsandbytes (0.44 and later): bitsandbytes/optim/optimizer.py, Optimizer2State.

Derived from that source; no run of bitsandbytes has confirmed it.
"""

from collections.abc import Sequence
from typing import ClassVar, Self

from gptcalc.formula import Dim, product_size
from gptcalc.optimizers.base import Optimizer, Parameter, each, state
from gptcalc.plan import Plan
from gptcalc.tape.record import Recorder
from gptcalc.units import ceil_div

#: Elements that share a scale, and the fewest that a tensor must have for 8 bits [init_state, min_8bit_size].
BLOCK, LEAST = 256, 4096
#: Entries of a quantization map, in fp32 [functional.py, create_dynamic_map].
N_CODES = 256


class Adam8bit(Optimizer):
    """AdamW with moments of one byte, and an fp32 scale for each block of 256 of them (Dettmers et al. 2022).

    Tensors of fewer than 4,096 elements keep both moments in fp32. Two quantization maps of 256 numbers are moved to
    the device for the first tensor that has 8 bits; all tensors of an optimizer share them. The step is one kernel for
    each tensor, in place: it takes nothing (its norms are for percentile clipping, which is off by default).
    """

    since: ClassVar = {"fused": (2, 0)}

    @classmethod
    def of(cls, plan: Plan) -> Self:  # noqa: ARG003  it has but one form
        """As a plan asks for it."""
        return cls()

    def create(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """The maps where they are first used; the moments, then the scales, of each weight."""
        has_maps = False
        for tensor, *_ in each(record, parameters):
            n_elements = product_size(tensor.dims)
            if n_elements < LEAST:
                for name in ("state1", "state2"):
                    state(record, tensor, name, "aten::zeros_like", dtype="fp32")
                continue
            if not has_maps:
                for name in ("qmap1", "qmap2"):
                    state(record, tensor, name, "aten::_to_copy", dims=(Dim(str(N_CODES), N_CODES),), dtype="fp32")
                has_maps = True
            for name in ("state1", "state2"):
                state(record, tensor, name, "aten::zeros_like", dtype="uint8")
            blocks = Dim(f"⌈n/{BLOCK}⌉", ceil_div(n_elements, BLOCK))
            for name in ("absmax1", "absmax2"):
                state(record, tensor, name, "aten::zeros", dims=(blocks,), dtype="fp32")

    def step(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """Everything happens in place."""
