from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from zlib import crc32

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from gptcalc.bench import cases, plan, reference
from gptcalc.bench.cases import CompileError, Workload, WrongResultError, prepare
from gptcalc.errors import InvalidValueError
from gptcalc.ledger.profile import Backend, DeviceKind, Moved, Shape
from gptcalc.modules import GPTEmbedding
from gptcalc.modules.checks import InputRangeError, trusted

SHAPE = Shape(rows=21, d_model=13, n_vocab=29, n_ctx=9, seq=7)
SHAPES = [
    SHAPE,
    Shape(rows=1, d_model=1, n_vocab=1, n_ctx=1, seq=1),
    Shape(rows=130, d_model=2, n_vocab=3, n_ctx=65, seq=65),
]
KERNELS = [name for name, info in plan.CASES.items() if not info.ceiling]
SMALL_COPY = 1 << 16


def work(
    case: str,
    dtype: str = "fp32",
    backend: Backend = "eager",
    shape: Shape = SHAPE,
    **changed: Any,
) -> Workload:
    """A workload on the CPU, or on the `device` that is named, which nothing touches until it is checked."""
    job = plan.Job(case, dtype, backend, shape)
    device: DeviceKind = changed.get("device", "cpu")
    return prepare(job, device, cache_bytes=1 << 10, units=changed.get("units", 2))


def planted(case: str, kernel: Callable[..., Any], dtype: str = "fp32", **options: Any) -> Workload:
    """A workload whose kernel is another."""
    wrong = work(case, dtype, **options)
    wrong._kernel = lambda: kernel  # type: ignore[method-assign]
    return wrong


def total(terms: tuple[Moved, ...]) -> int:
    """Bytes of all terms."""
    return sum(term.bytes for term in terms)


def test_every_case_has_a_kernel() -> None:
    """The plan names the cases, and the table has a kernel for each and for no other."""
    assert list(cases.CASES) == list(plan.CASES)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", plan.DTYPES)
@pytest.mark.parametrize("case", KERNELS)
def test_eager_kernels_agree_with_float64(case: str, dtype: str, shape: Shape) -> None:
    """Odd shapes, one row of one number, and many rows of two, in every dtype."""
    assert re.search(r"relative error|rows that differ 0", work(case, dtype, shape=shape).check())


@pytest.mark.parametrize("case", ["layernorm.forward", "rmsnorm.backward", "gpt_embedding.backward"])
def test_compiled_kernels_agree_with_float64_and_run_again(case: str) -> None:
    """The compiled function is checked, serves every set, and its graph is kept for the next run."""
    compiled = work(case, backend="compile")

    assert "relative error" in compiled.check()
    for run in compiled.sets(2):
        first = [one.clone() for one in tensors(run())]
        assert all(map(torch.equal, tensors(run()), first))


def test_compiled_workloads_live_side_by_side() -> None:
    """Each has its own list of compiled shapes: a third shape neither reaches a limit nor drops the first."""
    from torch._dynamo import config

    shapes = [SHAPE.model_copy(update={"d_model": width}) for width in (3, 4, 5)]
    with config.patch(recompile_limit=1):
        works = [work("rmsnorm.forward", backend="compile", shape=shape) for shape in shapes]
        for one in works:
            one.check()
    with config.patch(error_on_recompile=True):
        for one in works:
            one.sets(1)[0]()


def test_the_ceiling_copies_every_element(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least four times the cache, read and written."""
    monkeypatch.setitem(cases._LEAST_COPY_BYTES, "cpu", SMALL_COPY)
    job = plan.Job("copy", "fp32", "eager", plan.ONE)
    copy = prepare(job, "cpu", cache_bytes=SMALL_COPY, units=None)

    assert total(copy.must_move) == 2 * 4 * SMALL_COPY
    assert copy.check() == "elements that differ 0"


def test_the_floor_adds_one() -> None:
    """One element read, one written."""
    floor = work("empty", shape=plan.ONE)

    assert total(floor.must_move) == 8
    assert floor.check().startswith("relative error")


def other_epsilon(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm with a tenth of ε."""
    return functional.layer_norm(x, weight.shape, weight, bias, 1e-6)


def sample_variance(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm with the variance of a sample: over D − 1."""
    centred = x - x.mean(-1, keepdim=True)
    return centred * (x.var(-1, keepdim=True) + 1e-5).rsqrt() * weight + bias


def right_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm as it should be."""
    return functional.layer_norm(x, weight.shape, weight, bias, 1e-5)


def last_row_missing(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The last row is zero."""
    return torch.cat((right_norm(x, weight, bias)[:-1], torch.zeros_like(x[:1])))


def one_row_short(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The last row is not there."""
    return right_norm(x, weight, bias)[:-1]


def one_nan(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One element is NaN."""
    out = right_norm(x, weight, bias)
    out[0, 0] = torch.nan
    return out


def rows_swapped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each row stands where the next one should."""
    return right_norm(x, weight, bias)[torch.arange(len(x)).roll(1)]


def wider(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The right numbers in another dtype."""
    return right_norm(x, weight, bias).double()


@pytest.mark.parametrize("dtype", plan.DTYPES)
@pytest.mark.parametrize(
    "kernel", [other_epsilon, sample_variance, last_row_missing, one_row_short, one_nan, rows_swapped, wider]
)
def test_a_wrong_layer_norm_is_never_timed(kernel: Callable[..., Tensor], dtype: str) -> None:
    """A wrong ε, the variance of a sample, rows lost, swapped or in another dtype, and NaN, in every dtype."""
    with pytest.raises(WrongResultError, match=rf"^layernorm.forward, {dtype}, eager, 21 rows × 13: wrong result: "):
        planted("layernorm.forward", kernel, dtype).check()


def test_one_wrong_row_among_many_is_seen() -> None:
    """A row of 20,000 is 0.7 % of the whole, which bf16 would forgive: each row is held against its own size."""
    shape = SHAPE.model_copy(update={"rows": 20_000, "seq": 1})

    with pytest.raises(WrongResultError, match="worst row"):
        planted("layernorm.forward", last_row_missing, "bf16", shape=shape).check()


def right_rms(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm as it should be."""
    return functional.rms_norm(x, weight.shape, weight, 1e-6)


@pytest.mark.parametrize(
    "kernel",
    [
        lambda x, weight: functional.rms_norm(x, weight.shape, weight, 1e-5),
        lambda x, weight: functional.layer_norm(x, weight.shape, weight, None, 1e-6),
        lambda x, weight: right_rms(x, torch.ones_like(weight)) + 0 * weight,
        lambda x, weight: right_rms(x, weight).nan_to_num() * torch.nan,
    ],
)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_wrong_rms_norm_is_never_timed(kernel: Callable[..., Tensor], direction: str) -> None:
    """Another ε, the mean taken away, the weight forgotten, NaN: wrong forward, and wrong backward."""
    with pytest.raises(WrongResultError):
        planted(f"rmsnorm.{direction}", kernel, "bf16").check()


@pytest.mark.parametrize(
    "kernel",
    [
        lambda x, weight, bias: right_norm(x, weight, bias.detach()) + 0 * bias,
        lambda x, weight, bias: right_norm(x, weight.detach(), bias) + 0 * weight,
        lambda x, weight, bias: right_norm(x.detach(), weight, bias) + x,
        other_epsilon,
        lambda x, weight, bias: right_norm(torch.cat((x[:-1], x[-1:].detach())), weight, bias),
        lambda x, weight, bias: right_norm(x, weight, bias) * torch.where(x == x[3, 5], torch.nan, 1),
    ],
)
@pytest.mark.parametrize("dtype", plan.DTYPES)
def test_a_wrong_gradient_of_a_norm_is_never_timed(kernel: Callable[..., Tensor], dtype: str) -> None:
    """The gradient of bias, of weight, of x or of its last row forgotten, another ε, one NaN."""
    with pytest.raises(WrongResultError, match=r"^layernorm\.backward"):
        planted("layernorm.backward", kernel, dtype).check()


@pytest.mark.parametrize(
    "kernel",
    [
        lambda ids, table: table[ids].roll(1, 0),
        lambda ids, table: table[ids][:-1],
        lambda ids, table: table[ids] * (1 + 2**-20),
        lambda ids, table: torch.where(table[ids] == table[ids][2, 3], torch.nan, table[ids]),
    ],
)
def test_a_wrong_lookup_is_never_timed(kernel: Callable[..., Tensor]) -> None:
    """Rows swapped, one missing, the last bits changed, one NaN."""
    with pytest.raises(WrongResultError, match=r"^embedding\.forward"):
        planted("embedding.forward", kernel).check()


@pytest.mark.parametrize("dtype", plan.DTYPES)
@pytest.mark.parametrize(
    "kernel",
    [
        lambda ids, table: functional.embedding(ids, table, padding_idx=int(ids[-1])),
        lambda ids, table: functional.embedding(ids, table, scale_grad_by_freq=True),
        lambda ids, table: functional.embedding((ids + 1) % len(table), table),
        lambda ids, table: functional.embedding(ids, table) * torch.tensor([1.0] * 12 + [torch.nan], dtype=table.dtype),
        lambda ids, table: functional.embedding(ids, table) + 1e-3 * table[missing(ids, table)],
    ],
)
def test_a_wrong_gradient_of_a_table_is_never_timed(kernel: Callable[..., Tensor], dtype: str) -> None:
    """A token forgotten, an average for a sum, other rows, NaN, and a row that no ID names."""
    with pytest.raises(WrongResultError, match=r"^embedding\.backward"):
        planted("embedding.backward", kernel, dtype).check()


def missing(ids: Tensor, table: Tensor) -> int:
    """A token that no ID names."""
    return min(set(range(len(table))) - set(ids.tolist()))


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", plan.DTYPES)
@pytest.mark.parametrize(
    "kernel",
    [
        lambda module, ids: module.wte(ids) + 0 * module.wpe.weight[0],
        lambda module, ids: module.wte(ids) + module.wpe.weight[1 : 1 + ids.shape[1]],
        lambda module, ids: module(ids.flip(0)),
        lambda module, ids: module(ids) * 1.05,
    ],
)
def test_a_wrong_input_stage_is_never_timed(kernel: Callable[..., Tensor], dtype: str, direction: str) -> None:
    """Positions forgotten or shifted, sequences swapped, a factor."""
    with pytest.raises(WrongResultError, match=rf"^gpt_embedding\.{direction}"):
        planted(f"gpt_embedding.{direction}", kernel, dtype).check()


def test_a_reference_in_chunks_sees_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two rows, or of one column, find what one chunk finds."""
    monkeypatch.setattr(reference, "CHUNK", 26)

    for case in KERNELS:
        work(case).check()
    for kernel in (last_row_missing, one_nan):
        with pytest.raises(WrongResultError):
            planted("layernorm.forward", kernel).check()
    with pytest.raises(WrongResultError):
        planted("embedding.backward", lambda ids, table: table[ids] * (torch.arange(13) < 12)).check()


def tensors(result: object) -> tuple[Tensor, ...]:
    """What a run returns, as a tuple."""
    return result if isinstance(result, tuple) else (result,)  # type: ignore[return-value]


@pytest.mark.parametrize("case", KERNELS)
def test_sets_share_no_address_and_outputs_stay(case: str) -> None:
    """Inputs and outputs of three sets lie apart; an output stays until its own set runs again."""
    kernel = work(case)
    made = [kernel._set() for _ in range(3)]
    inputs = [tensor for one in made for tensor in one.inputs.learned]
    runs = kernel.sets(3)
    addresses = {one.data_ptr() for run in runs for one in tensors(run())}

    assert len({tensor.data_ptr() for tensor in inputs}) == len(inputs)
    assert len(addresses) == len(runs) * len(tensors(runs[0]()))


@pytest.mark.parametrize(("case", "at"), [("embedding.forward", 0), ("gpt_embedding.backward", 1)])
def test_sets_name_other_tokens_but_as_many(case: str, at: int) -> None:
    """IDs are renamed by a permutation: every set has U distinct ones, the U of the bytes that must move."""
    kernel = work(case, shape=SHAPE.model_copy(update={"n_vocab": 30}))
    ids = [kernel._set().inputs.arguments[at] for _ in range(10)]

    assert len({tuple(one.flatten().tolist()) for one in ids}) == 10
    assert {len(one.unique()) for one in ids} == {kernel._setting.unique.size}
    assert all(int(one.min()) >= 0 and int(one.max()) < 30 for one in ids)


def test_runs_repeat() -> None:
    """The same job draws the same numbers and IDs, in every dtype the same IDs."""
    first, second = work("embedding.forward")._set(), work("embedding.forward")._set()
    third = work("embedding.forward", "bf16")._set()

    assert all(map(torch.equal, first.inputs.arguments, second.inputs.arguments))
    assert torch.equal(first.inputs.arguments[0], third.inputs.arguments[0])
    # No hash of a string, which every process salts.
    assert work("embedding.forward")._seed == crc32(b"21 13 29 9 7")


EXPECTED = {
    "embedding.forward": ["embedding"],
    "embedding.backward": ["embedding_dense_backward"],
    "layernorm.forward": ["native_layer_norm"],
    "layernorm.backward": ["native_layer_norm_backward"],
    "gpt_embedding.forward": ["embedding", "arange", "embedding", "add"],
    "gpt_embedding.backward": ["sum", "embedding_dense_backward", "embedding_dense_backward"],
}


@pytest.mark.parametrize("case", EXPECTED)
def test_a_run_is_the_kernel_and_nothing_else(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No look at values, which would wait for the device; no graph; nothing of the forward pass in a backward run."""
    monkeypatch.setattr(Tensor, "aminmax", None)
    monkeypatch.setattr(Tensor, "item", None)
    (run,) = work(case).sets(1)
    assert all(one.grad_fn is None for one in tensors(run()))
    with recorded() as names:
        run()

    assert [name for name in names if name not in ("view", "detach")] == EXPECTED[case]


@contextmanager
def recorded() -> Iterator[list[str]]:
    """The names of the ops that run inside."""
    names: list[str] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(func.name().removeprefix("aten::").split(".")[0])
            return func(*args, **(kwargs or {}))

    with Mode():
        yield names


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("case", KERNELS)
def test_the_memory_of_a_set_is_not_underestimated(case: str, dtype: str) -> None:
    """At least inputs, graph and outputs, tensor by tensor; not ten times as much."""
    shape = SHAPE.model_copy(update={"rows": 210, "d_model": 130})
    kernel = work(case, dtype, shape=shape)
    made = kernel._set()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):  # type: ignore[func-returns-value]
        made = kernel._set()
    held = [*made.inputs.learned, *made.inputs.arguments, *made.run.args, made.dy, *tensors(made.run()), *saved]
    storages = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in held if isinstance(one, Tensor)
    }

    assert sum(storages.values()) <= kernel.set_bytes <= 10 * sum(storages.values())


def test_memory_is_known_before_anything_is_allocated() -> None:
    """A table of 2³¹ − 1 rows of 16,384 can be refused by its size."""
    shape = Shape(rows=1, d_model=16384, n_vocab=2**31 - 1, n_ctx=1, seq=1)

    for case in KERNELS[:2] + KERNELS[-2:]:
        huge = work(case, shape=shape)
        assert huge.set_bytes >= 4 * 16384 * (2**31 - 1)
        assert huge.fixed_bytes > huge.pool_bytes >= 4 * 16384 * (2**31 - 1)


def test_ids_of_a_huge_vocabulary_stay_in_it() -> None:
    """Renaming multiplies numbers below 2³¹, which int64 holds."""
    kernel = work("embedding.forward", shape=SHAPE.model_copy(update={"n_vocab": 2**31 - 1, "rows": 1001}))

    for _ in range(10):
        ids = kernel._renamed_ids()
        assert int(ids.min()) >= 0
        assert int(ids.max()) < 2**31 - 1


def test_what_torch_moves_is_said_where_its_kernels_are_known() -> None:
    """On CUDA, eager, with the reason; not where it is no more, nor elsewhere, nor for compiled kernels."""
    cuda = work("layernorm.backward", device="cuda")

    assert total(cuda.torch_moves) - total(cuda.must_move) == 2 * 4 * 21 * 13 + 8 * 21
    assert "second kernel" in cuda.torch_why
    assert "one kernel for each op" in work("gpt_embedding.forward", device="cuda").torch_why
    for silent in (
        work("embedding.forward", device="cuda"),
        work("layernorm.backward", device="cuda", backend="compile"),
        work("layernorm.backward"),
    ):
        assert (silent.torch_moves, silent.torch_why) == ((), "")


def test_rows_that_are_no_whole_sequences_are_refused() -> None:
    """The input stage works on sequences."""
    with pytest.raises(InvalidValueError, match="read 21 rows in sequences of 5"):
        work("gpt_embedding.forward", shape=SHAPE.model_copy(update={"seq": 5}))


def test_a_missing_compiler_is_one_line() -> None:
    """The reason of torch.compile, and what to use instead."""
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": ("/no/such/compiler",), "force_disable_caches": True}),
        pytest.raises(CompileError, match=r"^torch\.compile: .*No working C\+\+ compiler.*; allowed: --backend eager$"),
    ):
        work("rmsnorm.backward", backend="compile").check()


def test_a_torch_that_cannot_compile_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile itself says, as for a Python that is too new."""

    def compile(*_: Any, **__: Any) -> None:  # noqa: A001
        raise RuntimeError("torch.compile is not supported here\nat all")

    monkeypatch.setattr(torch, "compile", compile)

    with pytest.raises(CompileError, match=r"^torch\.compile: torch\.compile is not supported here; allowed"):
        work("layernorm.forward", backend="compile").check()


def test_trusted_ids_are_not_looked_at() -> None:
    """Inside, an ID that is no token is torch's own error; outside, and afterwards, it is ours."""
    stage = GPTEmbedding(n_vocab=5, d_model=2, n_ctx=3)
    ids = torch.tensor([[5]])

    for _ in range(2):
        with trusted(), pytest.raises(IndexError, match="index out of range"):
            stage(ids)
        with pytest.raises(InputRangeError, match="allowed: 0 to 4"):
            stage(ids)
