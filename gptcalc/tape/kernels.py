"""What no op shows: which attention kernel torch picks, cuBLAS workspaces, and buffers inside kernels.

Both depend on the device's generation and on torch's version. Where torch's source gives a size, the source stands with
it; cuDNN's workspace is known only to cuDNN, and is not in the numbers.
"""

from collections.abc import Callable, Sequence
from math import ceil
from typing import NamedTuple

from gptcalc.errors import InvalidValueError, UnknownNameError, shown
from gptcalc.formula import Dim, product_size
from gptcalc.tape.backward import ROWS_PER_PARTIAL, SORTED_ABOVE
from gptcalc.tape.rows import Op, Tensor, heads_first
from gptcalc.tape.unknown import computed
from gptcalc.units import KIB, MIB, ceil_div

Version = tuple[int, int]


class Chip(NamedTuple):
    """A generation of GPUs: its compute capability, and the SMs of its best known device."""

    capability: Version
    n_sms: int
    devices: str


#: Kernel targets by name; SMs decide only how flash attention splits few long sequences.
TARGETS = {
    "sm70": Chip((7, 0), 80, "V100"),
    "sm75": Chip((7, 5), 40, "T4, RTX 20"),
    "sm80": Chip((8, 0), 108, "A100, A30"),
    "sm86": Chip((8, 6), 82, "A10, A40, RTX 30"),
    "sm89": Chip((8, 9), 128, "L4, L40, RTX 40"),
    "sm90": Chip((9, 0), 132, "H100, H200, GH200"),
    "sm100": Chip((10, 0), 148, "B200, GB200"),
    "sm103": Chip((10, 3), 148, "B300, GB300"),
    "sm120": Chip((12, 0), 170, "RTX 50, RTX PRO 6000"),
}
#: Releases of torch of which the rules are known.
FIRST_TORCH, LAST_TORCH = (2, 0), (2, 15)
#: cuBLAS's workspace for each thread: `:4096:2:16:8`, and what Hopper and later take [parseChosenWorkspaceSize].
WORKSPACE, LARGE_WORKSPACE = (2 * 4096 + 8 * 16) * KIB, 32 * MIB
#: What cuBLASLt takes for a product with a bias, at first for each.
LT_WORKSPACE = 1 * MIB
#: Generations with the large workspace, from each release on (PR #175344, #189312).
LARGE_SINCE: dict[Version, Callable[[Version], bool]] = {
    (2, 14): lambda capability: capability[0] in (9, 10, 11, 12),
    (2, 13): lambda capability: capability[0] in (9, 10, 12),
    (2, 0): lambda capability: capability == (9, 0),
}
#: From here on that is kept for each thread (PR #156495), and from here on it is cuBLAS's own (PR #175879).
LT_KEEPS_SINCE, LT_SHARES_SINCE = (2, 9), (2, 12)
#: From here on the workspace is taken for each product and given back (PR #194311).
WORKSPACE_PER_CALL_SINCE = (2, 15)
#: From here on cuDNN's attention comes first on these [sdp_utils.cpp, check_prefer_cudnn_attention]: that takes a cuDNN
#: later than 9.15, which the wheels of 2.11 are the first to bring. Those of 2.9 were built with one too old for it.
CUDNN_FIRST_SINCE, CUDNN_FIRST_ON = (2, 11), ((9, 0), (10, 0), (10, 3))
#: From here on it is not asked for a dropout between the steps that it knows (PR #174245).
CUDNN_DROPOUT_SINCE, CUDNN_DROPOUT_STEPS = (2, 12), 16
#: From here on it takes heads of 256 on sm90 (PR #161210).
CUDNN_LARGER_SINCE = (2, 9)
#: From here on it takes a mask (PR #130482).
CUDNN_MASK_SINCE = (2, 5)
#: From here on mem-efficient attention takes grouped heads (PR #191085).
GROUPED_EFFICIENT_SINCE = (2, 14)
#: Attention takes grouped heads, and RMSNorm is one kernel, from these on (PR #128898, #153666).
GROUPED_SINCE, FUSED_RMS_NORM_SINCE = (2, 5), (2, 9)
#: Flash's kernels for heads of 224 are no more from the first on, those for 160 from the second [flash_api.cpp].
NO_HEADS_OF_224_SINCE, NO_HEADS_OF_160_SINCE = (2, 7), (2, 11)
#: The head sizes that flash and cuDNN's attention take, and the most sequences or heads that cuDNN does.
FLASH_LARGEST, CUDNN_LARGEST, CUDNN_LARGER, CUDNN_STEP, CUDNN_MOST = 256, 128, 256, 8, 65535
#: What a block of a foreach kernel works on [MultiTensorApply.cuh, kChunkSize].
NUMBERS_PER_CHUNK = 65_536
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


def target(name: str) -> Chip:
    """The generation of that name, or an error with those that there are."""
    if name not in TARGETS:
        raise UnknownNameError.near("target", name, TARGETS)
    return TARGETS[name]


def torch_version(text: str) -> Version:
    """`2.13` as numbers, or an error that says which releases are known."""
    parts = text.split("+", maxsplit=1)[0].split(".")
    if len(parts) in (2, 3) and all(part.isdecimal() for part in parts):
        version = (int(parts[0]), int(parts[1]))
        if FIRST_TORCH <= version <= LAST_TORCH:
            return version
    raise InvalidValueError(f"torch: read {shown(text)}; allowed: a release from 2.0 to 2.15, as in 2.13")


class Heads(NamedTuple):
    """What the choice of an attention kernel depends on."""

    batch: int
    n_keys: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_value: int
    dropout: float
    dtype: str
    training: bool
    #: Whether an explicit mask is added to the scores (a window, ALiBi).
    masked: bool = False
    #: What no kernel does, so that it is written out.
    written_out: str = ""

    @property
    def is_half(self) -> bool:
        """16 bits."""
        return self.dtype in ("bf16", "fp16")


class Choice(NamedTuple):
    """An attention backend and why it is that one."""

    backend: str
    reason: str


def choose_attention(asked: str, heads: Heads, chip: Chip, torch: Version) -> Choice:
    """The kernel that was asked for, if it can run, or the one that torch picks."""
    refusals = {
        "cudnn": _not_cudnn(heads, chip, torch),
        "flash": _not_flash(heads, chip),
        "efficient": _not_efficient(heads, chip, torch),
        "math": heads.written_out,
        "eager": "",
    }
    if heads.written_out:
        refusals |= dict.fromkeys(("cudnn", "flash", "efficient"), heads.written_out)
    if asked != "auto":
        if refusals[asked]:
            able = [name for name, refusal in refusals.items() if not refusal]
            raise InvalidValueError(
                f"attention: read {asked!r}, which does not run with {refusals[asked]}; allowed: {', '.join(able)}"
            )
        return Choice(asked, "as asked")
    if heads.written_out:
        return Choice("eager", f"no kernel of torch runs with {heads.written_out}")
    first = ("cudnn",) if torch >= CUDNN_FIRST_SINCE and chip.capability in CUDNN_FIRST_ON else ()
    passed: list[str] = []
    for name in (*first, "flash", "efficient"):
        if not refusals[name]:
            why = f"the first of {', '.join((*first, 'flash', 'efficient', 'math'))} that runs"
            return Choice(name, f"torch's choice: {why}{_because(passed)}")
        passed.append(f"{name} does not with {refusals[name]}")
    return Choice("math", f"torch's choice: no fused kernel runs{_because(passed)}")


def _because(passed: Sequence[str]) -> str:
    return "".join(f"; {reason}" for reason in passed)


def _not_flash(heads: Heads, chip: Chip) -> str:
    size = heads.d_head
    if not heads.is_half:
        return heads.dtype
    if chip.capability < (8, 0):
        return "devices before sm80"
    if size != heads.d_value or heads.masked:
        return "a mask" if heads.masked else "values of another size than keys"
    if size > FLASH_LARGEST:
        return f"heads of more than {FLASH_LARGEST}"
    small = chip.capability in ((8, 6), (8, 9), (12, 0), (12, 1))
    if small and heads.training and (192 < size <= 224 or (size > 224 and heads.dropout)):
        return f"the gradients of heads of {size} on this device"
    return ""


def _not_cudnn(heads: Heads, chip: Chip, torch: Version) -> str:
    sizes = (heads.d_head, heads.d_value)
    largest = CUDNN_LARGER if chip.capability == (9, 0) and torch >= CUDNN_LARGER_SINCE else CUDNN_LARGEST
    if not heads.is_half:
        return heads.dtype
    if chip.capability < (8, 0):
        return "devices before sm80"
    if wrong := [size for size in sizes if size > largest or size % CUDNN_STEP]:
        return f"heads of {wrong[0]} (multiples of {CUDNN_STEP} up to {largest})"
    if torch >= CUDNN_DROPOUT_SINCE and (heads.dropout * CUDNN_DROPOUT_STEPS) % 1:
        return f"a dropout of {heads.dropout:g} (multiples of 1/{CUDNN_DROPOUT_STEPS})"
    if heads.n_keys == 1 or (heads.masked and torch < CUDNN_MASK_SINCE):
        return "a mask" if heads.n_keys > 1 else "a single key"
    return f"more than {CUDNN_MOST:,} sequences or heads" if max(heads.batch, heads.n_heads) > CUDNN_MOST else ""


def _not_efficient(heads: Heads, chip: Chip, torch: Version) -> str:
    if heads.n_kv_heads < heads.n_heads and torch < GROUPED_EFFICIENT_SINCE:
        return "grouped heads"
    if heads.dtype == "bf16" and chip.capability < (8, 0):
        return "bf16 before sm80"
    modern = chip.capability >= (8, 0)
    step = 8 if heads.is_half else 4 if modern else 1
    wrong = [size for size in (heads.d_head, heads.d_value) if size % step]
    return f"heads of {wrong[0]} (multiples of {step})" if wrong else ""


class CudaKernels:
    """What CUDA's kernels take for themselves on a device, in a release of torch."""

    def __init__(self, chip: Chip, torch: Version, workspace: int | None = None) -> None:
        """By generation and release; the size of cuBLAS's workspace too, where it is not given."""
        self.chip, self.torch = chip, torch
        self._workspace = _workspace("cuBLAS workspace", workspace or workspace_size(chip, torch))
        self._lt_workspace = _workspace("cuBLASLt workspace", LT_WORKSPACE)

    def multiplies(self, op: Op) -> bool:
        """Whether the op is a product of matrices by cuBLAS; an empty one never gets there."""
        return op.name in PRODUCTS and op.output.bytes > 0

    def kept(self, op: Op) -> tuple[Tensor, ...]:
        """What a thread takes when it first runs such an op, and keeps."""
        if self.torch >= WORKSPACE_PER_CALL_SINCE or not self.multiplies(op):
            return ()
        lt = op.name == "aten::addmm" and LT_KEEPS_SINCE <= self.torch < LT_SHARES_SINCE
        return (self._workspace, self._lt_workspace) if lt else (self._workspace,)

    def buffers(self, op: Op) -> tuple[Tensor, ...]:
        """What the kernel of `op` takes after its outputs, and gives back."""
        if self.multiplies(op):
            if self.torch >= WORKSPACE_PER_CALL_SINCE:
                return (self._workspace,)
            return (self._lt_workspace,) if op.name == "aten::addmm" and self.torch < LT_KEEPS_SINCE else ()
        return _BUFFERS[op.name](op, self) if op.name in _BUFFERS else ()

    def padded_head(self, size: Dim) -> Dim:
        """The heads that flash's accumulators are laid out for: the next larger ones that it is compiled for."""
        step = 64 if size.size > 128 and self.torch >= NO_HEADS_OF_160_SINCE else 32
        padded = ceil_div(size.size, step) * step
        return Dim("⌈H⌉", 256 if padded == 224 and self.torch >= NO_HEADS_OF_224_SINCE else padded)


def workspace_size(chip: Chip, torch: Version) -> int:
    """Bytes of the workspace that cuBLAS takes."""
    large = LARGE_SINCE[max(version for version in LARGE_SINCE if version <= torch)](chip.capability)
    return LARGE_WORKSPACE if large else WORKSPACE


def _workspace(label: str, size: int) -> Tensor:
    return Tensor(label, (Dim(f"{size:,}", size),), "uint8")


def _embedding_backward(op: Op, device: CudaKernels) -> tuple[Tensor, ...]:  # noqa: ARG001  every kernel's signature
    """IDs sorted and in order, their ranges, the segments' offsets, the partial sums in fp32.

    [EmbeddingBackwardKernel.cu, embedding_backward_cuda_kernel]: there are at most ⌊M/10⌋ + min(M, V) partial sums.
    """
    ids, table = op.reads[1].tensor, op.output
    n_ids = product_size(ids.dims)
    if n_ids <= SORTED_ABOVE:
        return ()
    width, segments = table.dims[-1], Dim("min(M,V)", computed(min, n_ids, table.dims[0].size))
    partial = Dim("P", n_ids // ROWS_PER_PARTIAL + segments.size)
    return (
        *(Tensor(label, ids.dims, "int64") for label in ("sorted IDs", "order of the IDs", "ranges of equal IDs")),
        *(Tensor(label, (segments,), "int64") for label in ("offsets of segments", "partial segments of each")),
        Tensor("offsets of partial segments", (partial,), "int64"),
        Tensor("partial sums of rows", (partial, width), "fp32"),
    )


def _flash_forward(op: Op, device: CudaKernels) -> tuple[Tensor, ...]:
    """Where few blocks of queries leave SMs idle, the keys are split and the parts accumulated in fp32.

    Not with dropout. The heads that share a key become the queries of one, where each has a single query.
    [flash_api.cpp, mha_fwd, set_params_splitkv and num_splits_heuristic]
    """
    if op.drops_out:
        return ()
    batch, heads, seq, size = heads_first(op.reads[0].tensor)
    _, shared, keys, _ = heads_first(op.reads[1].tensor)
    if seq.size == 1 and shared.size < heads.size:
        seq, heads = Dim("N/K", heads.size // shared.size), shared
    per_block = 256 if size.size <= 64 else 128 if size.size <= 128 else 64
    blocks = batch.size * heads.size * ceil_div(seq.size, 64)
    n_splits = computed(splits, blocks, device.chip.n_sms * 2, ceil_div(keys.size, per_block))
    if n_splits == 1:
        return ()
    parts = Dim("splits", n_splits)
    return (
        Tensor("log-sum-exp of each split", (parts, batch, heads, seq), "fp32"),
        Tensor("output of each split", (parts, batch, heads, seq, device.padded_head(size)), "fp32"),
    )


def splits(blocks: int, n_sms: int, n_key_blocks: int, most: int = 128) -> int:
    """Into how many parts flash attention splits the keys: the fewest that use the SMs 85 % as well as the best."""
    if blocks >= 0.8 * n_sms:
        return 1
    most = min(most, n_sms, n_key_blocks)

    def eligible(n: int) -> bool:
        return n == 1 or ceil_div(n_key_blocks, n) != ceil_div(n_key_blocks, n - 1)

    used = {n: blocks * n / n_sms / ceil(blocks * n / n_sms) for n in range(1, most + 1) if eligible(n)}
    return next((n for n, share in used.items() if share >= 0.85 * max(used.values())), 1)


def _flash_backward(op: Op, device: CudaKernels) -> tuple[Tensor, ...]:
    """Row sums and the gradient of the query in fp32; grouped heads: the gradients of key and value for all heads.

    [flash_api.cpp, mha_bwd].
    """
    query, key = (access.tensor for access in op.writes[:2])
    batch, heads, seq, size = heads_first(query)
    _, shared, keys, _ = heads_first(key)
    rows = Dim("⌈T⌉128", ceil_div(seq.size, 128) * 128)
    found: tuple[Tensor, ...] = (
        Tensor("row sums of the softmax's gradient", (batch, heads, rows), "fp32"),
        Tensor("gradient of the query, accumulated", (batch, rows, heads, device.padded_head(size)), "fp32"),
    )
    if shared.size < heads.size:
        expanded = (batch, keys, heads, size)
        found += (
            Tensor("gradient of the key for all heads", expanded, key.dtype),
            Tensor("gradient of the value for all heads", expanded, key.dtype),
        )
    return found


def _efficient_backward(op: Op, device: CudaKernels) -> tuple[Tensor, ...]:  # noqa: ARG001
    """Row sums in fp32 [attention_backward.cu]; what heads of more than 128 take on top is not known."""
    batch, heads, seq, _ = heads_first(op.output)
    return (Tensor("row sums of the softmax's gradient", (batch, heads, seq), "fp32"),)


def _layer_norm_backward(op: Op, device: CudaKernels) -> tuple[Tensor, ...]:
    """Partial sums of the weight's and bias's gradients, for many rows of small width [layer_norm_kernel.cu]."""
    x = op.output
    rows, width = product_size(x.dims[:-1]), x.dims[-1]
    if rows <= 65536 or width.size / 32 >= device.chip.n_sms / 2:
        return ()
    blocks = Dim("⌈M/32⌉", computed(min, ceil_div(rows, 32), 32768 // ceil_div(width.size, 32)))
    labels = [f"partial sums of the {access.tensor.label}" for access in op.writes[1:]]
    return tuple(Tensor(label, (blocks, width), x.dtype) for label in labels)


def _put_rows(op: Op, device: CudaKernels) -> tuple[Tensor, ...]:  # noqa: ARG001
    """Where rows are added up by place, the places are sorted [Indexing.cu, index_put_with_sort_kernel]."""
    places = op.reads[0].tensor
    labels = ("places in one number", "sorted places", "order of the places", "ranges of equal places")
    return tuple(Tensor(label, places.dims, "int64") for label in labels)


def _sort(op: Op, device: CudaKernels) -> tuple[Tensor, ...]:  # noqa: ARG001
    """The indices that a stable sort carries along [Sort.cu]."""
    return (Tensor("indices to be sorted", op.output.dims, "int64"),)


def _foreach_norm(op: Op, device: CudaKernels) -> tuple[Tensor, ...]:  # noqa: ARG001
    """A number for each chunk of the largest tensor, of every tensor [ForeachReduceOp.cu, foreach_tensor_norm_cuda].

    They are of the type that the norms' is computed in: fp32.
    """
    n_chunks = ceil_div(product_size(op.reads[0].tensor.dims), NUMBERS_PER_CHUNK)
    dims = (*op.output.dims, Dim(f"⌈largest/{NUMBERS_PER_CHUNK:,}⌉", n_chunks))
    return (Tensor("partial norms of the gradients", dims, "fp32"),)


_BUFFERS: dict[str, Callable[[Op, CudaKernels], tuple[Tensor, ...]]] = {
    "aten::embedding_dense_backward": _embedding_backward,
    "aten::_scaled_dot_product_flash_attention": _flash_forward,
    "aten::_scaled_dot_product_flash_attention_backward": _flash_backward,
    "aten::_scaled_dot_product_efficient_attention_backward": _efficient_backward,
    "aten::native_layer_norm_backward": _layer_norm_backward,
    "aten::_index_put_impl_": _put_rows,
    "aten::sort": _sort,
    "aten::_foreach_norm": _foreach_norm,
}
