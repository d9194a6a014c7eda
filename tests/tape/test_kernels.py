"""What no op shows: workspaces and buffers against torch's sources, and which attention kernel runs."""

from __future__ import annotations

import re
from math import ceil
from typing import Any

import pytest

from gptcalc import tape
from gptcalc.errors import InvalidValueError, UnknownNameError
from gptcalc.formula import Dim
from gptcalc.tape import Op, Tensor
from gptcalc.tape.backward import gradients
from gptcalc.tape.kernels import TARGETS, CudaKernels, Heads, choose_attention, splits, target, torch_version

SMALL, LARGE = 8_519_680, 33_554_432  # facts/gpu_memory.md §1.2: `:4096:2:16:8`, and 32 MiB
SIZES = {"batch": 8, "n_keys": 1024, "n_heads": 12, "n_kv_heads": 12, "d_head": 64, "d_value": 64}
GPT2 = Heads(**SIZES, dropout=0.125, dtype="bf16", training=True)
LLAMA = GPT2._replace(n_heads=32, n_kv_heads=8, d_head=128, d_value=128, dropout=0.0)


def product(*, bias: bool) -> Op:
    """A linear layer, with a bias `addmm`, without one `mm`."""
    x, weight = (Tensor(label, (Dim("D", 4), Dim("D", 4)), "bf16") for label in ("x", "weight"))
    return tape.linear(x, weight, Tensor("bias", (Dim("D", 4),), "bf16") if bias else None, x._replace(label="y"))


# --- cuBLAS ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torch", ["2.0", "2.6", "2.12", "2.13", "2.14", "2.15"])
@pytest.mark.parametrize("name", TARGETS)
def test_the_workspace_of_a_generation(name: str, torch: str) -> None:
    """32 MiB on sm90 at first, from 2.13 on also on sm100 and sm120 [facts/gpu_memory.md §1.2]; 2.15 keeps none."""
    version = torch_version(torch)
    large = {"sm90"} if version < (2, 13) else {"sm90", "sm100", "sm103", "sm120"}
    kernels = CudaKernels(target(name), version)
    (taken,) = (kernels.kept if version < (2, 15) else kernels.buffers)(product(bias=False))
    assert (taken.label, taken.bytes) == ("cuBLAS workspace", LARGE if name in large else SMALL)
    assert (kernels.buffers if version < (2, 15) else kernels.kept)(product(bias=False)) == ()


def test_a_generation_of_11_joined_in_2_14() -> None:
    """Compute capability 11.0 has the small workspace in 2.13 and the large one from 2.14 on (PR #189312)."""
    thor = TARGETS["sm90"]._replace(capability=(11, 0))
    found = [CudaKernels(thor, version).kept(product(bias=False)) for version in ((2, 6), (2, 13), (2, 14))]
    assert [tensor.bytes for (tensor,) in found] == [SMALL, SMALL, LARGE]


def test_the_device_of_the_old_rule_is_sm90_alone() -> None:
    """Before 2.13 only 9.0 itself, not all of generation 9 or 10, took 32 MiB."""
    other = TARGETS["sm90"]._replace(capability=(9, 1))
    found = [CudaKernels(other, version).kept(product(bias=False)) for version in ((2, 12), (2, 13))]
    assert [tensor.bytes for (tensor,) in found] == [SMALL, LARGE]


@pytest.mark.parametrize(
    ("torch", "kept", "taken"),
    [((2, 0), 0, 1), ((2, 8), 0, 1), ((2, 9), 1, 0), ((2, 11), 1, 0), ((2, 12), 0, 0), ((2, 13), 0, 0)],
)
def test_cublas_lt_took_a_mebibyte_of_its_own(torch: tuple[int, int], kept: int, taken: int) -> None:
    """A product with a bias took 1 MiB, at first each time, from 2.9 on once; since 2.12 it uses cuBLAS's workspace."""
    kernels = CudaKernels(TARGETS["sm80"], torch)
    assert [tensor.bytes for tensor in kernels.kept(product(bias=True))] == [SMALL, *[1 << 20] * kept]
    assert [tensor.bytes for tensor in kernels.buffers(product(bias=True))] == [1 << 20] * taken
    assert [tensor.bytes for tensor in kernels.kept(product(bias=False))] == [SMALL]
    assert kernels.buffers(product(bias=False)) == ()


def test_only_products_multiply() -> None:
    """A norm, an attention kernel or a copy opens no workspace."""
    kernels = CudaKernels(TARGETS["sm90"], (2, 13))
    op = product(bias=False)
    names = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::add", "aten::_softmax")
    assert [kernels.multiplies(op._replace(name=name)) for name in names] == [True, True, True, True, False, False]
    assert kernels.buffers(op._replace(name="aten::add")) == ()


def test_an_empty_product_does_not_reach_cublas() -> None:
    """An expert without rows opens no workspace."""
    op = product(bias=False)
    (y,) = op.writes
    empty = op._replace(writes=(y._replace(tensor=y.tensor._replace(dims=(Dim("rows", 0), Dim("D", 4)))),))
    assert not CudaKernels(TARGETS["sm90"], (2, 13)).multiplies(empty)


# --- Attention: which ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "torch", "heads", "backend"),
    [
        ("sm90", (2, 13), GPT2, "cudnn"),
        ("sm100", (2, 13), LLAMA, "cudnn"),
        ("sm103", (2, 13), LLAMA, "cudnn"),
        ("sm90", (2, 13), GPT2._replace(dropout=0.1), "flash"),
        ("sm90", (2, 11), GPT2._replace(dropout=0.1), "cudnn"),
        ("sm90", (2, 10), GPT2, "flash"),
        ("sm90", (2, 9), GPT2, "flash"),
        ("sm90", (2, 8), GPT2, "flash"),
        ("sm90", (2, 13), GPT2._replace(n_keys=1), "flash"),
        ("sm90", (2, 13), GPT2._replace(batch=65_536), "flash"),
        ("sm90", (2, 13), GPT2._replace(batch=65_535), "cudnn"),
        ("sm100", (2, 13), GPT2._replace(d_head=136, d_value=136), "flash"),
        ("sm80", (2, 13), LLAMA, "flash"),
        ("sm120", (2, 15), GPT2, "flash"),
        ("sm90", (2, 13), GPT2._replace(d_head=256, d_value=256), "cudnn"),
        ("sm90", (2, 13), GPT2._replace(d_head=100, d_value=100), "flash"),
        ("sm90", (2, 13), GPT2._replace(d_head=264, d_value=264), "efficient"),
        ("sm90", (2, 13), GPT2._replace(dtype="fp32"), "efficient"),
        ("sm90", (2, 13), LLAMA._replace(dtype="fp32"), "math"),
        ("sm90", (2, 14), LLAMA._replace(dtype="fp32"), "efficient"),
        ("sm75", (2, 13), GPT2._replace(dtype="fp16"), "efficient"),
        ("sm75", (2, 13), GPT2, "math"),
        ("sm75", (2, 13), GPT2._replace(dtype="fp32", d_head=33), "efficient"),
        ("sm80", (2, 13), GPT2._replace(dtype="fp32", d_head=34), "math"),
        ("sm80", (2, 13), GPT2._replace(dtype="fp32", d_head=36), "efficient"),
        ("sm86", (2, 13), GPT2._replace(d_head=200, d_value=200), "efficient"),
        ("sm86", (2, 13), GPT2._replace(d_head=192, d_value=192), "flash"),
        ("sm86", (2, 13), GPT2._replace(d_head=224, d_value=224, training=False), "flash"),
        ("sm89", (2, 13), GPT2._replace(d_head=232, d_value=232), "efficient"),
        ("sm89", (2, 13), GPT2._replace(d_head=232, d_value=232, dropout=0.0), "flash"),
        ("sm80", (2, 13), GPT2._replace(d_head=232, d_value=232), "flash"),
    ],
)
def test_auto_is_what_torch_picks(name: str, torch: tuple[int, int], heads: Heads, backend: str) -> None:
    """The first of torch's order that runs, with what spoke against those before it [sdp_utils.cpp]."""
    choice = choose_attention("auto", heads, target(name), torch)
    assert choice.backend == backend
    assert choice.reason.startswith("torch's choice: ")
    orders = ["cudnn", "flash", "efficient", "math"], ["flash", "efficient", "math"]
    passed = re.findall(r"(\w+) does not with", choice.reason)
    assert passed in [order[: order.index(backend)] for order in orders if backend in order]


def test_the_reason_names_what_is_not_possible() -> None:
    """fp32 with grouped heads: why each fused kernel is passed over is said in full."""
    choice = choose_attention("auto", LLAMA._replace(dtype="fp32"), target("sm90"), (2, 13))
    assert choice.reason == (
        "torch's choice: no fused kernel runs"
        "; cudnn does not with fp32; flash does not with fp32; efficient does not with grouped heads"
    )
    first = choose_attention("auto", GPT2, target("sm90"), (2, 13))
    assert first.reason == "torch's choice: the first of cudnn, flash, efficient, math that runs"


@pytest.mark.parametrize("name", ["flash", "cudnn", "efficient", "math", "eager"])
def test_what_is_asked_for_is_taken(name: str) -> None:
    """Where a kernel can run, no more is said."""
    assert choose_attention(name, GPT2, target("sm90"), (2, 13)) == (name, "as asked")


@pytest.mark.parametrize(
    ("asked", "name", "heads", "why", "allowed"),
    [
        ("flash", "sm90", GPT2._replace(dtype="fp32"), "fp32", "efficient, math, eager"),
        ("flash", "sm75", GPT2._replace(dtype="fp16"), "devices before sm80", "efficient, math, eager"),
        ("flash", "sm90", GPT2._replace(d_head=264, d_value=264), "heads of more than 256", "efficient, math, eager"),
        (
            "flash",
            "sm86",
            GPT2._replace(d_head=224, d_value=224),
            "the gradients of heads of 224",
            "efficient, math, eager",
        ),
        (
            "cudnn",
            "sm90",
            GPT2._replace(d_head=100, d_value=100),
            "heads of 100 (multiples of 8 up to 256)",
            "flash, math, eager",
        ),
        ("cudnn", "sm80", GPT2._replace(d_head=136, d_value=136), "heads of 136", "flash, efficient, math, eager"),
        ("cudnn", "sm90", GPT2._replace(dropout=0.1), "a dropout of 0.1", "flash, efficient, math, eager"),
        ("cudnn", "sm90", GPT2._replace(n_keys=1), "a single key", "flash, efficient, math, eager"),
        ("cudnn", "sm90", GPT2._replace(dtype="fp32"), "fp32", "efficient, math, eager"),
        ("cudnn", "sm70", GPT2._replace(dtype="fp16"), "devices before sm80", "efficient, math, eager"),
        ("efficient", "sm90", LLAMA, "grouped heads", "cudnn, flash, math, eager"),
        ("efficient", "sm70", GPT2, "bf16 before sm80", "math, eager"),
        (
            "efficient",
            "sm90",
            GPT2._replace(d_head=20, d_value=20),
            "heads of 20 (multiples of 8)",
            "flash, math, eager",
        ),
        ("efficient", "sm90", GPT2._replace(dtype="fp32", d_head=6), "heads of 6 (multiples of 4)", "math, eager"),
    ],
)
def test_what_cannot_run_is_an_error(asked: str, name: str, heads: Heads, why: str, allowed: str) -> None:
    """It says which kernel was asked for, what it does not take, and which ones run."""
    with pytest.raises(InvalidValueError) as error:
        choose_attention(asked, heads, target(name), (2, 13))
    message = str(error.value)
    assert message.startswith(f"attention: read {asked!r}, which does not run with {why}")
    assert message.endswith(f"; allowed: {allowed}")


# --- Names -----------------------------------------------------------------------------------------------------------


def test_a_target_is_one_that_is_known() -> None:
    """An unknown one is an error that names the nearest."""
    assert target("sm90").capability == (9, 0)
    with pytest.raises(UnknownNameError, match=r"sm91.*sm90"):
        target("sm91")


@pytest.mark.parametrize(
    ("text", "version"), [("2.13", (2, 13)), ("2.0", (2, 0)), ("2.6.0", (2, 6)), ("2.15.1+cu130", (2, 15))]
)
def test_a_version_is_read(text: str, version: tuple[int, int]) -> None:
    """Major and minor count; a patch or a build is read over."""
    assert torch_version(text) == version


@pytest.mark.parametrize("text", ["1.13", "2.16", "3.0", "2", "two", "2.x", "", "2.13.0.1", "-2.13", "2.", "2.13rc1"])
def test_a_version_that_is_not_known_is_an_error(text: str) -> None:
    """Releases before 2.0 and after 2.15, and what is no release, are refused, and the known ones named."""
    with pytest.raises(
        InvalidValueError, match=r"^torch: read .*; allowed: a release from 2\.0 to 2\.15, as in 2\.13$"
    ):
        torch_version(text)


# --- Inside kernels --------------------------------------------------------------------------------------------------


def buffers(op: Op, name: str = "sm90", torch: tuple[int, int] = (2, 13)) -> list[int]:
    """Bytes of each buffer."""
    return [tensor.bytes for tensor in CudaKernels(target(name), torch).buffers(op)]


def lookup(n_ids: int, n_vocab: int, width: int) -> Op:
    """The backward pass of an embedding."""
    ids = Tensor("IDs", (Dim("B", 1), Dim("T", n_ids)), "int64")
    table = Tensor("table", (Dim("V", n_vocab), Dim("D", width)), "bf16", "table")
    op = tape.embedding(ids, table, Dim("U", n_ids), "rows")
    ((row,), *_) = gradients(op, {op.output: tape.gradient(op.output)}, {table})
    return row


@pytest.mark.parametrize(("numbers", "chunks"), [(1, 1), (65_536, 1), (65_537, 2), (50257 * 768, 589)])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_gradient_has_as_many_partial_norms_as_the_largest(dtype: str, numbers: int, chunks: int) -> None:
    """`output_per_tensor` of foreach_tensor_norm_cuda: tensors × chunks of 65,536 numbers, in fp32."""
    largest, norms = (Tensor("", (Dim("n", n),), dtype) for n in (numbers, 148))
    assert buffers(tape.whole("aten::_foreach_norm", (largest,), norms)) == [4 * 148 * chunks]


def test_many_ids_are_sorted() -> None:
    """8,192 tokens of GPT-2, d = 768: 27.7 MB of fp32 partial sums [facts/gpu_memory.md §1.6], and the sort's IDs."""
    n, v, d = 8192, 50257, 768
    partial = n // 10 + min(n, v)
    found = buffers(lookup(n, v, d))
    assert found == [8 * n, 8 * n, 8 * n, 8 * n, 8 * n, 8 * partial, 4 * partial * d]
    assert f"{found[-1] / 1e6:.1f}" == "27.7"


def test_few_ids_are_not_sorted() -> None:
    """Up to 3,072 IDs go straight into the zeros; one more is sorted. A small vocabulary bounds the segments."""
    assert buffers(lookup(3072, 50257, 768)) == []
    assert len(buffers(lookup(3073, 50257, 768))) == 7
    assert buffers(lookup(4000, 100, 3)) == [*[32_000] * 3, 800, 800, 8 * 500, 4 * 500 * 3]


def attended(  # noqa: PLR0913  what an attention kernel depends on
    backend: str,
    n_queries: int,
    n_keys: int,
    *,
    n_heads: int = 12,
    n_kv_heads: int = 12,
    size: int = 64,
    batch: int = 8,
    dropout: bool = False,
) -> tuple[Op, Op]:
    """An attention kernel, and its backward pass."""
    b, h = Dim("B", batch), Dim("H", size)
    query = Tensor("query", (b, Dim("T", n_queries), Dim("N", n_heads), h), "bf16")
    key, value = (Tensor(label, (b, Dim("T", n_keys), Dim("K", n_kv_heads), h), "bf16") for label in ("key", "value"))
    lse = Tensor("sums", (b, Dim("N", n_heads), Dim("T", n_queries)), "fp32")
    op = tape.attention(backend, query, key, value, "out", lse, ())._replace(drops_out=dropout)
    ((row,), *_) = gradients(op, {op.output: tape.gradient(op.output)}, {query, key, value})
    return op, row


def test_flash_backward_accumulates_in_fp32() -> None:
    """Row sums B·N·⌈T⌉128 and the query's gradient B·⌈T⌉128·N·⌈H⌉, both fp32 [flash_api.cpp, mha_bwd]."""
    assert buffers(attended("flash", 1024, 1024)[1]) == [8 * 12 * 1024 * 4, 8 * 1024 * 12 * 64 * 4]
    assert buffers(attended("flash", 777, 777, size=40, batch=3)[1]) == [3 * 12 * 896 * 4, 3 * 896 * 12 * 64 * 4]
    assert buffers(attended("flash", 1, 1, size=96, batch=1)[1]) == [12 * 128 * 4, 128 * 12 * 96 * 4]


def test_flash_backward_of_grouped_heads_expands_them() -> None:
    """The gradients of key and value for all N heads, B·T·N·H in their dtype, before they are summed over a group."""
    grouped = buffers(attended("flash", 777, 777, n_heads=32, n_kv_heads=8, size=128, batch=2)[1])
    assert grouped == [2 * 32 * 896 * 4, 2 * 896 * 32 * 128 * 4, *[2 * 777 * 32 * 128 * 2] * 2]


def test_efficient_backward_sums_rows() -> None:
    """B·N·T in fp32, not padded [attention_backward.cu]; forward it takes nothing."""
    forward, back = attended("efficient", 777, 777, batch=3)
    assert buffers(back) == [3 * 12 * 777 * 4]
    assert buffers(forward) == []


def test_cudnn_shows_nothing() -> None:
    """Its workspace is known to cuDNN alone."""
    assert [buffers(op) for op in attended("cudnn", 777, 777)] == [[], []]


def test_flash_splits_a_decode_steps_keys() -> None:
    """One query of each of 12 heads over 1,024 keys on an H100: 4 blocks of 256 keys, each a part of its own."""
    found = buffers(attended("flash", 1, 1024, batch=1)[0])
    assert found == [4 * 12 * 1 * 4, 4 * 12 * 1 * 64 * 4]


def test_flash_splits_neither_with_dropout_nor_where_the_device_is_full() -> None:
    """Dropout forbids it, and 8 × 12 × 16 blocks fill 132 SMs; keys of one block cannot be cut."""
    assert buffers(attended("flash", 1, 1024, batch=1, dropout=True)[0]) == []
    assert buffers(attended("flash", 1024, 1024)[0]) == []
    assert buffers(attended("flash", 1, 256, batch=1)[0]) == []
    assert buffers(attended("flash", 1, 257, batch=1)[0]) == [2 * 12 * 4, 2 * 12 * 64 * 4]


@pytest.mark.parametrize(
    ("torch", "padded"),
    [
        ((2, 6), {8: 32, 128: 128, 136: 160, 160: 160, 168: 192, 200: 224, 224: 224, 232: 256}),
        ((2, 10), {8: 32, 128: 128, 136: 160, 160: 160, 168: 192, 200: 256, 224: 256, 256: 256}),
        ((2, 13), {8: 32, 96: 96, 128: 128, 136: 192, 160: 192, 192: 192, 200: 256, 256: 256}),
    ],
)
def test_heads_are_padded_to_those_compiled(torch: tuple[int, int], padded: dict[int, int]) -> None:
    """Multiples of 32; kernels for 224, then for 160, were given up [flash_api.cpp, head_size_rounded]."""
    for size, laid_out in padded.items():
        _, back = attended("flash", 128, 128, size=size, batch=1, n_heads=1, n_kv_heads=1)
        assert buffers(back, torch=torch) == [128 * 4, 128 * laid_out * 4]


def test_heads_that_share_a_key_are_queries_of_one_in_decoding() -> None:
    """8 × 8 blocks of 4 queries, not 8 × 32 of one: 264 SMs are split among 64 blocks [flash_api.cpp, mha_fwd]."""
    grouped = attended("flash", 1, 1024, n_heads=32, n_kv_heads=8, size=128)[0]
    assert buffers(grouped) == [4 * 8 * 8 * 4 * 4, 4 * 8 * 8 * 4 * 128 * 4]
    assert buffers(attended("flash", 1, 1024, n_heads=32, n_kv_heads=32, size=128)[0]) == []
    assert buffers(attended("flash", 2, 1024, n_heads=32, n_kv_heads=8, size=128)[0]) == []


def test_keys_come_in_blocks_by_head_size() -> None:
    """256 keys of heads up to 64, 128 up to 128, 64 of larger ones; the output is padded to 32 [flash_api.cpp]."""
    for size, n_keys, n_parts, padded in ((64, 512, 2, 64), (72, 512, 4, 96), (128, 512, 4, 128), (192, 512, 8, 192)):
        found = buffers(attended("flash", 1, n_keys, batch=1, n_heads=1, n_kv_heads=1, size=size)[0])
        assert found == [n_parts * 4, n_parts * padded * 4]


@pytest.mark.parametrize(
    ("blocks", "n_sms", "n_key_blocks", "parts"),
    [
        (212, 264, 64, 1),  # 0.8 × 264 is 211.2
        (211, 264, 64, 5),  # one to four parts use 0.799, five 1,055 of 1,056
        (12, 264, 4, 4),  # 48 of 264: the most there are
        (132, 264, 64, 2),  # half of the SMs: two parts use all
        (100, 216, 8, 2),  # two parts use 0.926, as do four and eight
        (1, 264, 300, 100),  # 100 parts of 3 blocks; up to 128 there are no smaller ones
        (1, 264, 1, 1),
        (96, 264, 3, 2),  # two parts use 0.727, three start a second wave: 0.545
    ],
)
def test_splits_by_hand(blocks: int, n_sms: int, n_key_blocks: int, parts: int) -> None:
    """The fewest parts that use the SMs 85 % as well as the best number does [num_splits_heuristic]."""
    assert splits(blocks, n_sms, n_key_blocks) == parts


def test_splits_as_torch_counts_them() -> None:
    """The heuristic of flash_api.cpp, written out as it stands there, over many sizes."""
    for blocks in (1, 5, 12, 37, 96, 100, 131, 180, 211, 212, 400):
        for n_sms in (80, 216, 264, 340):
            for n_key_blocks in (1, 2, 3, 7, 31, 32, 64, 129, 300):
                assert splits(blocks, n_sms, n_key_blocks) == heuristic(blocks, n_sms, n_key_blocks, 128)


def heuristic(batch_nheads_mblocks: int, num_sms: int, num_n_blocks: int, max_splits: int) -> int:
    """`num_splits_heuristic`, line by line."""
    if batch_nheads_mblocks >= 0.8 * num_sms:
        return 1
    max_splits = min(max_splits, num_sms, num_n_blocks)
    max_efficiency, efficiency = 0.0, []
    for num_splits in range(1, max_splits + 1):
        if num_splits != 1 and ceil(num_n_blocks / num_splits) == ceil(num_n_blocks / (num_splits - 1)):
            efficiency.append(0.0)
            continue
        n_waves = batch_nheads_mblocks * num_splits / num_sms
        eff = n_waves / ceil(n_waves)
        max_efficiency = max(max_efficiency, eff)
        efficiency.append(eff)
    for num_splits in range(1, max_splits + 1):
        if efficiency[num_splits - 1] and efficiency[num_splits - 1] >= 0.85 * max_efficiency:
            return num_splits
    return 1


def normed(rows: int, width: int, *, bias: bool = True) -> Op:
    """The backward pass of a LayerNorm."""
    x = Tensor("x", (Dim("M", rows), Dim("D", width)), "bf16")
    learned = [Tensor(label, (Dim("D", width),), "bf16", label) for label in ("weight", "bias")]
    op = tape.layer_norm(x, learned[0], learned[1] if bias else None, "y", None)
    ((row,), *_) = gradients(op, {op.output: tape.gradient(op.output)}, {x, *learned})
    return row


def test_a_layer_norm_of_many_narrow_rows_sums_in_parts() -> None:
    """Above 65,536 rows and below 16·SMs columns: ⌈M/32⌉ partial rows for weight and bias [layer_norm_kernel.cu]."""
    assert buffers(normed(65_536, 768)) == []
    assert buffers(normed(65_537, 768)) == [min(2049, 32768 // 24) * 768 * 2] * 2
    assert buffers(normed(65_537, 256)) == [2049 * 256 * 2] * 2
    assert buffers(normed(65_537, 256, bias=False)) == [2049 * 256 * 2]
    assert buffers(normed(65_537, 132 * 16)) == []
    assert len(buffers(normed(65_537, 132 * 16 - 1))) == 2
    assert buffers(normed(65_537, 108 * 16), "sm80") == []


@pytest.mark.parametrize(
    ("name", "torch", "changed", "expected"),
    [
        ("sm90", (2, 13), {"masked": True}, "cudnn"),
        ("sm80", (2, 13), {"masked": True}, "efficient"),
        ("sm80", (2, 13), {"masked": True, "n_kv_heads": 4}, "math"),
        ("sm80", (2, 14), {"masked": True, "n_kv_heads": 4}, "efficient"),
        ("sm90", (2, 13), {"written_out": "a softcap"}, "eager"),
    ],
)
def test_a_mask_and_what_no_kernel_does_decide(
    name: str, torch: tuple[int, int], changed: dict[str, Any], expected: str
) -> None:
    """Flash takes no mask, and what no kernel knows of is written out; the reason says so."""
    choice = choose_attention("auto", GPT2._replace(**changed), target(name), torch)
    assert choice.backend == expected
    assert changed.get("written_out", "a mask") in choice.reason or expected == "cudnn"


@pytest.mark.parametrize(
    ("asked", "changed", "words"),
    [
        ("flash", {"masked": True}, "'flash', which does not run with a mask; allowed: cudnn, efficient, math, eager"),
        ("math", {"written_out": "sinks"}, "'math', which does not run with sinks; allowed: eager"),
    ],
)
def test_a_kernel_that_cannot_is_refused_with_the_reason(asked: str, changed: dict[str, Any], words: str) -> None:
    """What was asked for and cannot be is an error that names what can."""
    with pytest.raises(InvalidValueError, match=re.escape(words)):
        choose_attention(asked, GPT2._replace(**changed), target("sm90"), (2, 13))
