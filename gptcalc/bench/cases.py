"""The kernels: what each runs, on which data, what it must move and what it must compute.

A `Workload` is one job on one device. It allocates nothing until it is checked or asked for sets, so that its memory
can be refused first.
"""

from __future__ import annotations

import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import count
from math import gcd, prod, sqrt
from types import FunctionType
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn import functional

from gptcalc.bench import reference
from gptcalc.bench.device import out_of_memory
from gptcalc.bench.plan import Job
from gptcalc.bench.reference import REFERENCE_BYTES, Finding, Norm, WrongResultError
from gptcalc.errors import InvalidValueError
from gptcalc.formula import Dim
from gptcalc.ledger.profile import DeviceKind, Moved
from gptcalc.modules import GPTEmbedding
from gptcalc.modules.checks import trusted
from gptcalc.parts.embedding import TokenEmbedding
from gptcalc.parts.norm import LayerNorm, RMSNorm
from gptcalc.parts.positions import LearnedPositions
from gptcalc.parts.stage import input_stage
from gptcalc.tape import Chip, Setting, Tape, Traffic, backward, moves, must_move, reasons, whole
from gptcalc.tape import Tensor as Value
from gptcalc.units import ceil_div

__all__ = ["CASES", "CompileError", "Workload", "WrongResultError", "prepare"]

Run = Callable[[], object]
Kernel = Callable[..., Any]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: A copy this large is no longer helped by any cache, nor hurt by its launch.
_LEAST_COPY_BYTES = {"cpu": 1 << 27, "cuda": 1 << 29, "mps": 1 << 29}
#: torch's CUDA allocator hands out large blocks in steps of this.
_BLOCK_BYTES = 2 << 20


class CompileError(InvalidValueError):
    """A kernel that torch.compile cannot make here."""


class Fresh(NamedTuple):
    """New inputs: what the kernel is called with, and those tensors of it that get gradients."""

    arguments: tuple[Any, ...]
    learned: tuple[Tensor, ...]


class Set(NamedTuple):
    """One input set and its run; `dy` is the gradient that a backward pass starts from."""

    inputs: Fresh
    run: Run
    dy: Tensor | None = None


class Sizes(NamedTuple):
    """Bytes of one set's tensors, each; and what a run takes for a while, at most."""

    inputs: tuple[int, ...]
    output: int
    learned: tuple[int, ...]
    saved: tuple[int, ...] = ()
    passing: int = 0


class Request(NamedTuple):
    """What `prepare` was asked for."""

    job: Job
    device: DeviceKind
    cache_bytes: int
    units: int | None


def prepare(job: Job, device: DeviceKind, *, cache_bytes: int, units: int | None) -> Workload:
    """The work of `job` on `device`, whose last cache has `cache_bytes`, and which has `units` SMs or cores.

    Raises `InvalidValueError` where rows are not whole sequences.
    """
    return CASES[job.case](Request(job, device, cache_bytes, units))


class Workload(ABC):
    """A kernel with its data.

    Random numbers are drawn once, from a seed that depends on the shape alone, and copied to new addresses for each
    set; IDs are drawn once and renamed for each set by another permutation of the vocabulary, so that every set has
    as many distinct ones.
    """

    def __init__(self, request: Request) -> None:
        """Compute sizes, allocate nothing."""
        self.request, self.job, self.device = request, request.job, request.device
        self.is_backward = self.job.case.endswith(".backward")
        self.dtype = _DTYPES[self.job.dtype]
        self._seed = crc32(" ".join(str(size) for _, size in self.job.shape).encode())
        self._renamings = random.Random(self._seed)  # noqa: S311  not a secret

    # What a kernel is.

    @abstractmethod
    def _kernel(self) -> Kernel:
        """The function that is timed."""

    @abstractmethod
    def _tape(self) -> Tape:
        """What its forward pass reads and writes."""

    @abstractmethod
    def _draw(self) -> tuple[Tensor, ...]:
        """Random numbers for one set of inputs; for a backward pass, those of `dy` come last."""

    @abstractmethod
    def _fresh(self, drawn: Sequence[Tensor]) -> Fresh:
        """Inputs for one set, of which `drawn` are its own."""

    @abstractmethod
    def _sizes(self) -> Sizes:
        """What a set and a run take."""

    @abstractmethod
    def _compare(self, made: Set, result: Any) -> list[Finding]:
        """The result of a run against the reference."""

    # What is asked of it.

    @cached_property
    def must_move(self) -> tuple[Moved, ...]:
        """Bytes that any implementation moves."""
        return _moved(must_move(self._timed_tape))

    @cached_property
    def torch_moves(self) -> tuple[Moved, ...]:
        """Bytes that torch's eager kernels for CUDA move, where that is more; else, and elsewhere, nothing."""
        if self.job.backend != "eager" or self.device != "cuda":
            return ()
        terms = moves(self._timed_tape)
        same = sum(term.bytes for term in terms) == sum(term.bytes for term in must_move(self._timed_tape))
        return () if same else _moved(terms)

    @property
    def torch_why(self) -> str:
        """Why torch moves more, in sentences."""
        if not self.torch_moves:
            return ""
        several = "torch runs one kernel for each op, and writes what the next one reads."
        return " ".join((several,) * (len(self._timed_tape.ops) > 1) + (reasons(self._timed_tape),)).strip()

    @property
    def set_bytes(self) -> int:
        """Memory of one set with its outputs, its graph and its gradients: an upper estimate."""
        sizes = self._sizes()
        graph = (sizes.output, *sizes.learned) if self.is_backward else ()
        return sum(map(_block, (*sizes.inputs, sizes.output, *sizes.saved, *graph)))

    @property
    def pool_bytes(self) -> int:
        """Memory that stays from the first check on: the random numbers."""
        sizes = self._sizes()
        drawn = (*sizes.inputs, sizes.output) if self.is_backward else sizes.inputs
        return sum(map(_block, drawn))

    @property
    def fixed_bytes(self) -> int:
        """Memory beside the sets: the pool, the reference, what a run takes for a while: an upper estimate."""
        return self.pool_bytes + REFERENCE_BYTES + self._sizes().passing

    def check(self) -> str:
        """Run once on a fresh set, as it will be timed, and compare with float64.

        Returns what was found; raises `WrongResultError` where rounding does not explain it, and `CompileError`.
        """
        made = self._set()
        with self._compiling():
            result = made.run()
        findings = [*self._form(made, result)]
        if not any(finding.is_wrong for finding in findings):
            findings += self._compare(made, result)
        for finding in findings:
            if finding.is_wrong:
                job, shape = self.job, self.job.shape
                raise WrongResultError(
                    f"{job.case}, {job.dtype}, {job.backend}, {shape.rows:,} rows × {shape.d_model:,}: wrong result:"
                    f" {finding.what} {finding.found:.3g}; allowed: at most {finding.allowed:.3g}"
                )
        return "; ".join(f"{one.what} {one.found:.1e}" if one.found else f"{one.what} 0" for one in findings)

    def sets(self, n_sets: int) -> list[Run]:
        """Kernels on `n_sets` new input sets, each at addresses of its own.

        Each runs once when it is called, waits for nothing, and keeps its outputs until its next call.
        """
        return [_keeping(self._set().run) for _ in range(n_sets)]

    # How it is done.

    @cached_property
    def _timed_tape(self) -> Tape:
        tape = self._tape()
        return backward(tape) if self.is_backward else tape

    @cached_property
    def _callable(self) -> Callable[..., Any]:
        kernel = self._kernel()
        if self.job.backend == "eager":
            return kernel
        try:
            return torch.compile(_apart(kernel), dynamic=False, fullgraph=True)
        except RuntimeError as error:
            raise CompileError(f"torch.compile: {_first_line(error)}; allowed: --backend eager") from None

    @cached_property
    def _pool(self) -> tuple[Tensor, ...]:
        return self._draw()

    def _set(self) -> Set:
        drawn = [one.clone() for one in self._pool]
        if not self.is_backward:
            # No input asks for a gradient, so no graph is built; entering torch.no_grad() would be timed too.
            inputs = self._fresh(drawn)
            return Set(inputs, partial(self._callable, *inputs.arguments))
        *own, dy = drawn
        inputs = self._fresh(own)
        for tensor in inputs.learned:
            tensor.requires_grad_()
        with self._compiling():
            out = self._callable(*inputs.arguments)
        run = partial(torch.autograd.grad, out, inputs.learned, dy.view_as(out), retain_graph=True)
        return Set(inputs, run, dy.view_as(out))

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        """Where torch.compile may compile: quietly, its failure in one line.

        A compiled backward pass may write over what the forward pass kept; ours runs again, and older releases of torch
        see that too late.
        """
        if self.job.backend == "eager":
            yield
            return
        from torch._dynamo.exc import TorchDynamoException
        from torch._functorch import config

        try:
            with warnings.catch_warnings(), config.patch(donated_buffer=False):
                warnings.simplefilter("ignore")
                yield
        except (TorchDynamoException, RuntimeError) as error:
            if out_of_memory(error):
                raise
            raise CompileError(f"torch.compile: {_first_line(error)}; allowed: --backend eager") from None

    def _form(self, made: Set, result: Any) -> Iterator[Finding]:
        """Whether the result has the shapes and dtypes that it must have."""
        found = result if self.is_backward else (result,)
        wanted = made.inputs.learned if self.is_backward else self._wanted()
        for got, want in zip(found, wanted, strict=True):
            if got.shape != want.shape or got.dtype != want.dtype:
                yield Finding(f"shape {tuple(got.shape)}, {got.dtype} for {tuple(want.shape)}, {want.dtype}", 1, 0)

    def _wanted(self) -> tuple[Tensor, ...]:
        """Tensors without values, of the form of the forward pass's output."""
        return (torch.empty(self.job.shape.rows, self.job.shape.d_model, dtype=self.dtype, device="meta"),)

    # Data.

    @cached_property
    def _generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self._seed)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.dtype, device=self.device, generator=self._generator)

    def _between(self, low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand(shape, dtype=self.dtype, device=self.device, generator=self._generator)
        return drawn.mul_(high - low).add_(low)

    @cached_property
    def _ids(self) -> Tensor:
        """IDs (M), drawn uniformly, on the CPU."""
        generator = torch.Generator().manual_seed(self._seed)
        return torch.randint(self.job.shape.n_vocab, (self.job.shape.rows,), generator=generator)

    def _renamed_ids(self) -> Tensor:
        """The same IDs under other names: a·ID + b modulo V, which is a permutation where a and V share no factor."""
        n_vocab, draw = self.job.shape.n_vocab, self._renamings.randrange
        factor = draw(1, n_vocab + 1)
        while gcd(factor, n_vocab) > 1:
            factor = draw(1, n_vocab + 1)
        return ((self._ids * factor + draw(n_vocab)) % n_vocab).to(self.device)

    @property
    def _setting(self) -> Setting:
        shape = self.job.shape
        return Setting(
            Dim("M", shape.rows),
            Dim("T", shape.seq),
            Dim("D", shape.d_model),
            Dim("V", shape.n_vocab),
            Dim("C", shape.n_ctx),
            Dim("U", torch.unique(self._ids).numel()),
            self.job.dtype,
            None if self.request.units is None else Chip(self.request.cache_bytes, self.request.units),
        )

    def _bytes(self, *dims: int) -> int:
        return prod(dims) * self.dtype.itemsize


def _moved(terms: Sequence[Traffic]) -> tuple[Moved, ...]:
    return tuple(Moved(label=term.label, formula=term.formula.letters, bytes=term.bytes) for term in terms)


def _apart(kernel: Kernel) -> Kernel:
    """The same function with code of its own.

    torch.compile keeps what it compiled with the code: kernels of many shapes would share one list, look through it on
    every call, and stop at its limit of eight.
    """
    if not isinstance(kernel, FunctionType):
        raise TypeError(f"{kernel} is no plain function")
    code = kernel.__code__.replace(co_name=f"{kernel.__name__}_{next(_NUMBERS)}")
    return FunctionType(code, kernel.__globals__, code.co_name, kernel.__defaults__, kernel.__closure__)


_NUMBERS = count()


def _block(size: int) -> int:
    return ceil_div(size, _BLOCK_BYTES) * _BLOCK_BYTES if size >= _BLOCK_BYTES // 2 else size


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("backend=")), type(error).__name__)[:200]


def _keeping(run: Run) -> Run:
    """`run`, with a place for its outputs: an output that is freed at once would be written to one place by all."""
    place: list[object] = []

    def call() -> object:
        place.clear()
        place.append(run())
        return place[0]

    return call


# --- Kernels ---------------------------------------------------------------------------------------------------------


class Copy(Workload):
    """A copy within the device, at least four times as large as its last cache."""

    @property
    def _n_elements(self) -> int:
        return ceil_div(max(4 * self.request.cache_bytes, _LEAST_COPY_BYTES[self.device]), 4)

    def _kernel(self) -> Kernel:
        def copy(target: Tensor, source: Tensor) -> Tensor:
            return target.copy_(source)

        return copy

    def _tape(self) -> Tape:
        source, target = (
            Value(label, (Dim(str(self._n_elements), self._n_elements),), "fp32") for label in ("source", "copy")
        )
        return Tape((whole("aten::copy_", (source,), target),), (target,))

    def _draw(self) -> tuple[Tensor, ...]:
        return (self._normal(self._n_elements),)

    def _fresh(self, drawn: Sequence[Tensor]) -> Fresh:
        return Fresh((torch.empty_like(drawn[0]), drawn[0]), ())

    def _sizes(self) -> Sizes:
        return Sizes((4 * self._n_elements,), 4 * self._n_elements, ())

    def _wanted(self) -> tuple[Tensor, ...]:
        return (torch.empty(self._n_elements, device="meta"),)

    def _compare(self, made: Set, result: Any) -> list[Finding]:
        source = made.inputs.arguments[1]
        wrong = sum(int((result[at] != source[at]).sum()) for at in reference.chunks(len(source), 1))
        return [Finding("elements that differ", wrong, 0)]


class Empty(Workload):
    """One addition: what a launch takes."""

    def _kernel(self) -> Kernel:
        def add_one(target: Tensor, x: Tensor) -> Tensor:
            return torch.add(x, 1, out=target)

        return add_one

    def _tape(self) -> Tape:
        x, y = (Value(label, (), "fp32") for label in ("x", "x + 1"))
        return Tape((whole("aten::add", (x,), y),), (y,))

    def _draw(self) -> tuple[Tensor, ...]:
        return (self._normal(1),)

    def _fresh(self, drawn: Sequence[Tensor]) -> Fresh:
        return Fresh((torch.empty_like(drawn[0]), drawn[0]), ())

    def _sizes(self) -> Sizes:
        return Sizes((512,), 512, ())

    def _wanted(self) -> tuple[Tensor, ...]:
        return (torch.empty(1, device="meta"),)

    def _compare(self, made: Set, result: Any) -> list[Finding]:
        exact = reference.wide(made.inputs.arguments[1]) + 1
        error = float(((reference.wide(result) - exact) / exact).abs())
        return [Finding("relative error", error, reference.TOLERANCE[torch.float32])]


class Embedding(Workload):
    """Rows of the token table."""

    def _kernel(self) -> Kernel:
        def embedding(ids: Tensor, table: Tensor) -> Tensor:
            return functional.embedding(ids, table)

        return embedding

    def _tape(self) -> Tape:
        setting = self._setting
        ops = TokenEmbedding(name="wte").ops(setting, setting.ids)
        return Tape(ops, (ops[-1].output,))

    def _draw(self) -> tuple[Tensor, ...]:
        shape = self.job.shape
        table = self._normal(shape.n_vocab, shape.d_model)
        return (table, self._normal(shape.rows, shape.d_model)) if self.is_backward else (table,)

    def _fresh(self, drawn: Sequence[Tensor]) -> Fresh:
        return Fresh((self._renamed_ids(), drawn[0]), (drawn[0],))

    def _sizes(self) -> Sizes:
        shape = self.job.shape
        table = self._bytes(shape.n_vocab, shape.d_model)
        passing = _adding_bytes(shape.rows, shape.n_vocab, shape.d_model) if self.is_backward else 0
        return Sizes((8 * shape.rows, table), self._bytes(shape.rows, shape.d_model), (table,), passing=passing)

    def _compare(self, made: Set, result: Any) -> list[Finding]:
        ids, table = made.inputs.arguments
        if made.dy is None:
            return reference.looked_up(result, ids, table)
        return reference.table_gradient("table", result[0], ids, made.dy)


def _adding_bytes(n_ids: int, n_rows: int, width: int) -> int:
    """What a dense gradient takes beside itself: in eager, sort buffers and partial sums; compiled, a table in fp32."""
    return 4 * width * (n_ids // 10 + min(n_ids, n_rows)) + 64 * n_ids + 4 * width * n_rows


class NormCase(Workload):
    """A norm over the width. A fourth of its rows has a variance of only ten times ε, so that ε is seen."""

    eps: float
    part: LayerNorm | RMSNorm
    has_bias: bool

    def _tape(self) -> Tape:
        setting = self._setting
        (op,) = self.part.ops(setting, setting.x)
        return Tape((op,), tuple(access.tensor for access in op.writes))

    def _draw(self) -> tuple[Tensor, ...]:
        shape = self.job.shape
        x = self._normal(shape.rows, shape.d_model)
        x[::4] *= sqrt(10 * self.eps)
        drawn = [x, self._between(0.5, 1.5, shape.d_model)]
        if self.has_bias:
            drawn.append(self._between(-0.25, 0.25, shape.d_model))
        return (*drawn, self._normal(shape.rows, shape.d_model)) if self.is_backward else tuple(drawn)

    def _fresh(self, drawn: Sequence[Tensor]) -> Fresh:
        return Fresh(tuple(drawn), tuple(drawn))

    def _sizes(self) -> Sizes:
        shape = self.job.shape
        x, weight = self._bytes(shape.rows, shape.d_model), self._bytes(shape.d_model)
        inputs = (x, weight, weight)
        # Where torch has no kernel of its own for RMSNorm, it keeps up to four copies of x in fp32.
        fused = self.has_bias or self.device == "cuda" or self.job.backend == "compile"
        wide = 0 if fused else 4 * shape.rows * shape.d_model
        saved = (4 * shape.rows, 4 * shape.rows, wide, wide, wide, wide) if self.is_backward else ()
        return Sizes(inputs, x, inputs, saved, passing=4 * shape.rows * shape.d_model + 4 * wide)

    def _compare(self, made: Set, result: Any) -> list[Finding]:
        x, weight, *bias = made.inputs.arguments
        norm = Norm(weight, bias[0] if bias else None, self.eps)
        if made.dy is None:
            return reference.normalised(result, x, norm)
        # torch's CPU kernels add up rows in the dtype of the weights; those of GPUs and compiled ones in fp32.
        own = self.device == "cpu" and self.job.backend == "eager"
        return reference.norm_gradients(result, x, made.dy, norm, self.dtype if own else torch.float32)


class LayerNormCase(NormCase):
    """LayerNorm with weight and bias."""

    part = LayerNorm(name="norm")
    eps, has_bias = part.eps, True

    def _kernel(self) -> Kernel:
        eps = self.eps

        def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return functional.layer_norm(x, weight.shape, weight, bias, eps)

        return layer_norm


class RMSNormCase(NormCase):
    """RMSNorm with weight."""

    part = RMSNorm(name="norm")
    eps, has_bias = part.eps, False

    def _kernel(self) -> Kernel:
        eps = self.eps

        def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
            return functional.rms_norm(x, weight.shape, weight, eps)

        return rms_norm


class InputStage(Workload):
    """GPT-2's input stage without dropout: token rows, position rows, their sum."""

    def __init__(self, request: Request) -> None:
        """Check that rows are whole sequences."""
        super().__init__(request)
        job, shape = request.job, request.job.shape
        if shape.rows % shape.seq or shape.seq > shape.n_ctx:
            raise InvalidValueError(
                f"{job.case}: read {shape.rows} rows in sequences of {shape.seq}; allowed: sequences that divide the"
                f" rows and are not longer than the context, {shape.n_ctx}"
            )

    def _kernel(self) -> Kernel:
        def stage(module: GPTEmbedding, ids: Tensor) -> Any:
            if torch.compiler.is_compiling():
                return module(ids)
            with trusted():
                return module(ids)

        return stage

    def _tape(self) -> Tape:
        return input_stage(self._setting, TokenEmbedding(name="wte"), LearnedPositions(name="wpe"))

    def _draw(self) -> tuple[Tensor, ...]:
        shape = self.job.shape
        tables = (self._normal(shape.n_vocab, shape.d_model), self._normal(shape.n_ctx, shape.d_model))
        return (*tables, self._normal(shape.rows, shape.d_model)) if self.is_backward else tables

    def _fresh(self, drawn: Sequence[Tensor]) -> Fresh:
        shape = self.job.shape
        with torch.device("meta"):
            module = GPTEmbedding(n_vocab=shape.n_vocab, d_model=shape.d_model, n_ctx=shape.n_ctx, dropout=0.0)
        tables = tuple(nn.Parameter(table, requires_grad=self.is_backward) for table in drawn)
        for name, table in zip(("wte", "wpe"), tables, strict=True):
            module.child(name).weight = table
        ids = self._renamed_ids().view(-1, shape.seq)
        return Fresh((module, ids), tables)

    def _sizes(self) -> Sizes:
        shape = self.job.shape
        tables = (self._bytes(shape.n_vocab, shape.d_model), self._bytes(shape.n_ctx, shape.d_model))
        out = self._bytes(shape.rows, shape.d_model)
        adding = _adding_bytes(shape.rows, shape.n_vocab, shape.d_model) if self.is_backward else 0
        passing = 3 * out + 2 * self._bytes(shape.seq, shape.d_model) + adding
        return Sizes((8 * shape.rows, *tables), out, tables, (8 * shape.seq,), passing)

    def _wanted(self) -> tuple[Tensor, ...]:
        shape = self.job.shape
        size = (shape.rows // shape.seq, shape.seq, shape.d_model)
        return (torch.empty(size, dtype=self.dtype, device="meta"),)

    def _compare(self, made: Set, result: Any) -> list[Finding]:
        ids = made.inputs.arguments[1]
        if made.dy is None:
            tokens, positions = made.inputs.learned
            return reference.stage(result, ids, tokens, positions)
        return reference.stage_gradients(result, ids, made.dy)


#: The kernels, by the names in `gptcalc.bench.plan.CASES`.
CASES: dict[str, type[Workload]] = {
    "copy": Copy,
    "empty": Empty,
    "embedding.forward": Embedding,
    "embedding.backward": Embedding,
    "layernorm.forward": LayerNormCase,
    "layernorm.backward": LayerNormCase,
    "rmsnorm.forward": RMSNormCase,
    "rmsnorm.backward": RMSNormCase,
    "gpt_embedding.forward": InputStage,
    "gpt_embedding.backward": InputStage,
}
