"""What bitsandbytes' 8-bit AdamW allocates, written from its source alone: the package is not installed.

bitsandbytes/optim/optimizer.py, `Optimizer2State.init_state` and `update_step` (block-wise, 8 bits, no percentile
clipping): the update itself is one kernel in place, which meta does not have and which allocates nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class AdamW8bit(torch.optim.Optimizer):
    """States as bitsandbytes makes them; the step changes nothing else."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        """The quantization maps wait on the CPU until a tensor needs them."""
        super().__init__(weights, {})
        self.codes: dict[str, Tensor] = {"dynamic": torch.empty(256), "udynamic": torch.empty(256)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # noqa: ARG002  torch's signature
        """Make the states of each weight that has a gradient and none yet."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and not self.state[weight]:
                    self._init_state(weight)

    def _init_state(self, weight: Tensor) -> None:
        kept = self.state[weight]
        if weight.numel() < 4096:
            kept["state1"] = torch.zeros_like(weight, dtype=torch.float32)
            kept["state2"] = torch.zeros_like(weight, dtype=torch.float32)
            return
        for name, number in (("dynamic", 1), ("udynamic", 2)):
            self.codes[name] = self.codes[name].to(weight.device)
            kept[f"qmap{number}"] = self.codes[name]
        for number in (1, 2):
            kept[f"state{number}"] = torch.zeros_like(weight, dtype=torch.uint8)
        n_blocks = weight.numel() // 256 + bool(weight.numel() % 256)
        for number in (1, 2):
            kept[f"absmax{number}"] = torch.zeros((n_blocks,), dtype=torch.float32, device=weight.device)
