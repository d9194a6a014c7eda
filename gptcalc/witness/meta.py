"""The reference decoder as the scripts of the memory witnesses make it, and inputs without values."""

from __future__ import annotations

import torch
from torch import Tensor

from gptcalc.modules import Decoder, build
from gptcalc.plan import Plan
from gptcalc.spec import Spec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def decoder(spec: Spec, plan: Plan, device: str = "meta") -> Decoder:
    """The decoder of `spec` on a device, its weights in the plan's precision, made in that dtype at once.

    The plan's attention is one backend, or those of the groups of layers with commas between them.
    """
    attention = plan.attention.split(",")
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[plan.dtype])
    try:
        with torch.device(device):
            return build(
                spec,
                attention=attention if len(attention) > 1 else attention[0],
                checkpointing=plan.checkpointing,
                chunked_loss=plan.chunked_loss,
            )
    finally:
        torch.set_default_dtype(before)


def token_ids(batch: int, seq: int, device: str = "meta") -> Tensor:
    """Token IDs, or targets, (B, T) in int64."""
    return torch.empty(batch, seq, dtype=torch.int64, device=device)


def autocast(plan: Plan) -> torch.autocast:
    """Around a forward pass: what the plan's precision asks for; the meta device has no autocast."""
    dtype = DTYPES.get(plan.autocast, torch.bfloat16)
    return torch.autocast("cuda", dtype, enabled=bool(plan.autocast))
