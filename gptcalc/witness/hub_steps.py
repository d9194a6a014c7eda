"""A training step of the class that transformers has for a model, on meta or fake CUDA: the witness of `gptcalc.hf`.

The class runs its own Python and reads no numbers. What torch would do otherwise on meta than on CUDA is done by
`modules.ops`: dropout keeps a mask of bits, attention is the kernel that the plan names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import masking_utils

from gptcalc.catalog import Resolved
from gptcalc.modules import ops
from gptcalc.plan import Plan
from gptcalc.witness.hub import build_class, silent
from gptcalc.witness.loop import Loop
from gptcalc.witness.meta import DTYPES, autocast, token_ids
from gptcalc.witness.saved_tensors import Saved, watch
from gptcalc.witness.trace import Recorder, Trace, recording, trace_steps

#: Where rows of a mask lie apart by this, mem-efficient attention takes it as it is [sdp, preprocess_mask].
MASK_ALIGNMENT = 8

_aten = torch.ops.aten


def trace_training(model: Resolved, plan: Plan, steps: int = 2, device: str = "meta") -> Trace:
    """As `witness.trace.trace_training`, with the class of transformers; its labels are the token IDs themselves."""

    def build(recorder: Recorder) -> Loop:
        for tensor in (*module.parameters(), *module.buffers(), ids):
            recorder.see(tensor, "build")
        return Loop(module, lambda: module(input_ids=ids, labels=ids))

    with as_on_cuda(plan.attention):
        module, ids = training_class(model, plan, device), token_ids(plan.batch, plan.seq, device)
        return trace_steps(build, plan, steps, device)


def saved(model: Resolved, plan: Plan, device: str = "meta") -> tuple[Saved, ...]:
    """Every storage that a training step's forward pass keeps, once; weights, buffers and token IDs are left out."""
    with as_on_cuda(plan.attention), recording(device), autocast(plan):
        module, ids = training_class(model, plan, device), token_ids(plan.batch, plan.seq, device)
        given = [*module.parameters(), *module.buffers(), ids]
        return watch(module, lambda: module(input_ids=ids, labels=ids).loss, given)


def training_class(model: Resolved, plan: Plan, device: str = "meta") -> Any:
    """The class without values, in the plan's precision, as training has it: without a KV cache."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[plan.dtype])
    try:
        how = "eager" if plan.attention == "eager" else "sdpa"
        module, _ = build_class(model, device, use_cache=False, attn_implementation=how)
    finally:
        torch.set_default_dtype(before)
    if plan.checkpointing == "full":
        module.activation_checkpointing_enable()
    return module.train()


@contextmanager
def as_on_cuda(attention: str) -> Iterator[None]:
    """Dropout, Mish, and attention by the kernel of that name, run the ops that CUDA runs."""

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # noqa: A002, FBT001, FBT002  torch's signature
        if inplace:
            raise NotImplementedError("dropout in place")
        how = ops.dropout if input.is_meta else theirs["dropout"]
        return cast(Tensor, how(input, p, training)) if training and p else input

    def sdpa(  # noqa: PLR0913, PLR0917  torch's signature
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,  # noqa: FBT001, FBT002
        scale: float | None = None,
        enable_gqa: bool = False,  # noqa: FBT001, FBT002
    ) -> Tensor:
        if enable_gqa != (key.shape[1] < query.shape[1]):
            raise ValueError(f"enable_gqa is {enable_gqa} for {query.shape[1]} heads that share {key.shape[1]}")
        with _lowered(query, key, value) as given:
            numbers = None if attn_mask is None else _in_numbers(attn_mask, given[0])
            mask = _aligned(numbers) if numbers is not None and attention == "efficient" else numbers
            how: dict[str, Any] = {"dropout_p": dropout_p, "causal": is_causal, "mask": mask, "scale": scale}
            return ops.attention(*given, backend=attention, **how)

    def softmax(input: Tensor, dim: int, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:  # noqa: A002  torch's signature
        if input.is_meta and input.dtype is torch.float16 and dtype is torch.float32:
            narrow = _aten._softmax(input, dim, True)  # noqa: FBT003, SLF001  the kernel reads fp16 and writes fp32
            return cast(Tensor, narrow)
        return cast(Tensor, theirs["softmax"](input, dim, _stacklevel, dtype))

    def mish(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002, FBT001, FBT002  torch's signature
        return cast(Tensor, ops.mish(input) if input.is_meta else theirs["mish"](input, inplace))

    ours: dict[str, Any] = {
        "dropout": dropout,
        "softmax": softmax,
        "scaled_dot_product_attention": sdpa,
        "mish": mish,
    }
    theirs = {name: getattr(functional, name) for name in ours}
    for name, function in ours.items():
        setattr(functional, name, function)
    try:
        with silent(), _not_compiled():
            yield
    finally:
        for name, function in theirs.items():
            setattr(functional, name, function)


@contextmanager
def _not_compiled() -> Iterator[None]:
    """Fake tensors are not taken for those of a compiler, for which masks are made that a real run does without."""
    masks: Any = masking_utils
    before = masks.is_tracing
    masks.is_tracing = lambda *_: False
    try:
        yield
    finally:
        masks.is_tracing = before


@contextmanager
def _lowered(*given: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """What autocast hands to `scaled_dot_product_attention`, which is on its list, and none of its steps."""
    if not (given[0].is_cuda and torch.is_autocast_enabled("cuda")):
        yield given
        return
    lower = torch.get_autocast_dtype("cuda")
    copies = tuple(reversed([x.to(lower) for x in reversed(given)]))
    with torch.autocast("cuda", enabled=False):
        yield copies


def _in_numbers(seen: Tensor, query: Tensor) -> Tensor:
    """What `scaled_dot_product_attention` makes of a mask of bits [attention.cpp, convert_boolean_attn_mask]."""
    none = torch.scalar_tensor(-torch.inf, dtype=query.dtype, device=query.device)
    return torch.where(seen, 0.0, none)


def _aligned(mask: Tensor) -> Tensor:
    """The mask as mem-efficient attention takes it: a copy with longer rows, cut back (`pad_bias`)."""
    missing = -mask.shape[-1] % MASK_ALIGNMENT
    return functional.pad(mask, (0, missing))[..., : mask.shape[-1]] if missing else mask
