# ruff: noqa: SLF001  reference counts and the engine are not in torch's public face
"""A whole step of the reference decoder on meta or fake CUDA: every storage that it allocates and frees, in order.

The tensors have no numbers, but torch runs the same Python and the same autograd as on a GPU, and reference counts
decide when a storage is freed. Where torch takes another way because it is watched, `Recorder` puts it right.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import graph
from torch.optim import optimizer as optimizer_module
from torch.utils import _foreach_utils as foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gptcalc.allocator import Allocator, Block, Figures
from gptcalc.modules.checks import trusted
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.witness.loop import Loop, train
from gptcalc.witness.meta import DTYPES, autocast, decoder, token_ids


class Event(NamedTuple):
    """A storage comes or goes. `op`, `shape` and `dtype` are those of the op, and of the tensor, that made it."""

    kind: str  # alloc, free
    storage: int
    bytes: int
    op: str
    shape: tuple[int, ...]
    dtype: str


class Phase(NamedTuple):
    """What happened in one phase of one step; steps count from 1, and what stands before them is step 0."""

    name: str
    step: int
    events: tuple[Event, ...]


class Trace(NamedTuple):
    """Every phase in order. What is never freed lives on at the end."""

    phases: tuple[Phase, ...]

    @property
    def events(self) -> tuple[Event, ...]:
        """All events in order."""
        return tuple(event for phase in self.phases for event in phase.events)


class _References(NamedTuple):
    """How many hold a tensor, and how many tensors (and the recorder) its storage."""

    tensor: int
    storage: int


_aten = torch.ops.aten
_ADD = _aten.add.Tensor
#: A number's way to Python, which meta has none to give.
_ITEM = _aten._local_scalar_dense.default
#: What formulas of backward run in place on zeros that they have just made, unless they are watched.
_IN_PLACE_IF_UNWATCHED = {
    _aten.index_put.default,
    _aten.index_add.default,
    _aten.scatter.src,
    _aten.scatter.value,
    _aten.scatter_add.default,
}
#: Updates in place by one kernel, which allocates nothing and which meta does not have.
_FUSED_STEPS = {_aten._fused_adam_.default, _aten._fused_adamw_.default, _aten._fused_sgd_.default}
_ENGINE = graph._engine_run_backward.__code__
#: What torch wraps around `__torch_dispatch__`.
_WRAPPERS = {"_fn", "inner"}


class Recorder(TorchDispatchMode):
    """Storages as ops make them and as their last reference goes.

    Under any dispatch mode, and for meta tensors anyhow, torch believes to have a tensor subclass before it
    (`isTensorSubclassLike`), and adds gradients that meet at a fan-in out of place. A real run adds the later one into
    the first, if it is dense and nobody else holds it or its storage (`InputBuffer::accumulate`). So being watched
    costs a tensor at every residual add. Here such an add gives back the first tensor itself, as a real run does.
    Who holds it is seen in its reference counts: a gradient that is a view, as that of a tied table or of a linear
    layer's input, shares its storage with the tensor that it is a view of, and is added out of place in a real run too.
    Some formulas of backward also write into zeros that they have just made, and out of place only when watched.
    """

    def __init__(self, device: str, sole: _References | None = None) -> None:
        """Take `sole` as what a tensor shows that the engine alone holds; `None` is for finding that out."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.phases: list[Phase] = []
        self.references: list[_References] = []
        self._device, self._sole = device, sole
        self._events: list[Event] = []
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._made = 0

    @contextmanager
    def phase(self, name: str, step: int = 0) -> Iterator[None]:
        """What happens within belongs to `name`."""
        self._events = []
        yield
        self.phases.append(Phase(name, step, tuple(self._events)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the op, and note the storages that are new; keep hold of nothing."""
        if func in _FUSED_STEPS:
            return None
        if func is _ADD and _called_by_engine(sys._getframe()) and self._sole_and_dense(args[0]):
            return args[0]
        if func is _ITEM and args[0].device.type == self._device:
            return (
                1.0  # what an optimizer computes with it decides about no tensor; that no sequences are packed is true
            )
        if func in _IN_PLACE_IF_UNWATCHED and _called_by_engine(sys._getframe()):
            return args[0]
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == self._device:
                self.see(leaf, str(func))
        return result

    def _sole_and_dense(self, first: Tensor) -> bool:
        """`can_accumulate_inplace` of torch's input_buffer.cpp."""
        holders: int = first._use_count()  # type: ignore[attr-defined]
        references = _References(holders, torch._C._storage_Use_Count(first.untyped_storage()._cdata))
        self.references.append(references)
        return references == self._sole and bool(_aten.is_non_overlapping_and_dense(first))

    def see(self, tensor: Tensor, op: str) -> None:
        """Note the storage of a tensor that `op` has made, if it is new."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or not size:
            return
        self._made += 1
        made = Event("alloc", self._made, size, op, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        self._events.append(made)

        def free(_: object) -> None:
            del self._alive[key]
            self._events.append(made._replace(kind="free"))

        self._alive[key] = weakref.ref(storage, free)


def _called_by_engine(frame: FrameType | None) -> bool:
    """Whether the autograd engine itself runs the op: no Python function stands between them."""
    frame = frame and frame.f_back
    while frame is not None and frame.f_code.co_name in _WRAPPERS:
        frame = frame.f_back
    return frame is not None and frame.f_code is _ENGINE


@cache
def _sole_references(device: str) -> _References:
    """What a tensor shows at an add of the engine, which nothing but the engine's buffer holds: seen, not assumed."""
    recorder = Recorder(device)
    x = torch.empty(1, device=device, requires_grad=True)
    with recorder:
        y = x.sin()
        (y.cos() * y.tan()).backward()  # type: ignore[no-untyped-call]
    return recorder.references[0]


# --- The scripts that are traced -------------------------------------------------------------------------------------


def trace_training(spec: Spec, plan: Plan, steps: int = 2, device: str = "meta") -> Trace:
    """`steps` steps of training as a user writes them; from the second one on, the optimizer has its states.

    Phases: `build` (weights, token IDs and targets, main gradients, master weights), then for each step `forward` (with
    the loss; logits are not kept, unless the plan says so), `backward`, of micro-batches `forward#1` and so on,
    `optimizer` (clipping belongs to it), and `end` (gradients, then the loss, are let go).
    """

    def build(_: Recorder) -> Loop:
        model = decoder(spec, plan, device).train()
        ids, targets = (token_ids(plan.batch, plan.seq, device) for _ in range(2))
        return Loop(model, lambda: model(ids, targets))

    return trace_steps(build, plan, steps, device)


def trace_steps(build: Callable[[Recorder], Loop], plan: Plan, steps: int, device: str = "meta") -> Trace:
    """`steps` steps of what `build` builds in the phase of that name."""
    with recording(device) as recorder:
        train(recorder.phase, lambda: build(recorder), plan, steps)
    return Trace(tuple(recorder.phases))


def trace_inference(spec: Spec, plan: Plan, device: str = "meta") -> Trace:
    """A prompt of T tokens, and the T-th token of an answer, without gradients.

    Phases: `build` (weights, KV cache, the prompt's IDs, the one token's ID), `prefill`, `decode`. Logits live until
    their phase ends: a user picks the next token from them. Both passes fill the same cache.
    """
    with recording(device) as recorder, torch.no_grad():
        with recorder.phase("build"):
            model = decoder(spec, plan, device).eval()
            cache = model.make_cache(plan.batch, plan.seq, DTYPES[plan.kv_dtype])
            prompt, token = (token_ids(plan.batch, seq, device) for seq in (plan.seq, 1))
        last_only = plan.logits == "last"
        with recorder.phase("prefill", 1):
            with autocast(plan):
                logits = model(prompt, cache=cache, last_only=last_only).logits
            del logits
        with recorder.phase("decode", 1):
            with autocast(plan):
                logits = model(token, cache=cache, start=plan.seq - 1, last_only=last_only).logits
            del logits
    return Trace(tuple(recorder.phases))


@contextmanager
def recording(device: str = "meta") -> Iterator[Recorder]:
    """A recorder at work: values are not looked at, no cycle is collected by chance, fused optimizers take meta."""
    recorder, collecting = Recorder(device, _sole_references(device)), gc.isenabled()
    optimizers: Any = optimizer_module
    clipping: Any = foreach_utils
    supported = optimizers._get_fused_kernels_supported_devices
    foreach = clipping._get_foreach_kernels_supported_devices
    gc.collect()
    gc.disable()
    optimizers._get_fused_kernels_supported_devices = lambda: [device]
    clipping._get_foreach_kernels_supported_devices = lambda: [device]
    try:
        with trusted(), recorder:
            yield recorder
    finally:
        optimizers._get_fused_kernels_supported_devices = supported
        clipping._get_foreach_kernels_supported_devices = foreach
        if collecting:
            gc.enable()


# --- Through the allocator -------------------------------------------------------------------------------------------


class Peak(NamedTuple):
    """The figures of one phase, each its own maximum over it."""

    phase: str
    step: int
    figures: Figures


def replay(trace: Trace, *, expandable: bool = False) -> tuple[Peak, ...]:
    """Every phase's peaks, in the order of the trace, as the allocator would serve it."""
    allocator = Allocator(expandable=expandable)
    blocks: dict[int, Block | None] = {}
    peaks = []
    for phase in trace.phases:
        allocator.reset_peak()
        for event in phase.events:
            if event.kind == "alloc":
                blocks[event.storage] = allocator.malloc(event.bytes)
            else:
                allocator.free(blocks.pop(event.storage))
        peaks.append(Peak(phase.name, phase.step, allocator.peak()))
    return tuple(peaks)
