"""The tape: one row for each PyTorch op that a part runs, with what it reads and writes.

An op lists accesses: the tensor, and the elements touched of it (of a token table, the rows that the IDs name). Two
folds over the rows say how many bytes go through memory: `must_move`, what any implementation moves, and `moves`, what
torch's eager kernels on CUDA do. `backward` makes the tape of the gradients, by one rule for each kind of op.

Letters: `M` rows (tokens; B·T), `T` tokens of a sequence, `U` distinct tokens among the M, `P` partial sums.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from gptcalc.formula import Dim, Formula, Product, ordered, product_size
from gptcalc.units import bytes_of, ceil_div

#: More IDs than this, and torch sorts them before it adds up their rows [aten/src/ATen/native/cuda/Embedding.cu].
SORTED_ABOVE = 3072
#: Rows of one ID that torch adds up in one partial sum [EmbeddingBackwardKernel.cu, NROWS_PER_THREAD].
ROWS_PER_PARTIAL = 10
#: Rows of a norm that one SM works on at a time: 16 blocks of 128 threads, 2,048 being the most that an SM holds.
ROWS_PER_SM = 16

_NOT_DIFFERENTIABLE = ("int64", "bool")


class Tensor(NamedTuple):
    """A value: two are the same storage where all fields are equal."""

    label: str
    dims: Product
    dtype: str


class Access(NamedTuple):
    """The elements of a tensor that an op reads or writes, each once; `label` says which, where they are not all."""

    tensor: Tensor
    touched: Product
    label: str

    def formula(self, times: int = 1) -> Formula:
        """What goes through memory, in bytes: `4×U×D`."""
        return Formula(((times * bytes_of(1, self.tensor.dtype), ordered(self.touched)),))


class Op(NamedTuple):
    """An op by its name in torch; the first tensor written is its output.

    `again` is what torch's CUDA kernel moves beyond reading each input and writing each output once; `why` says so.
    """

    name: str
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    again: tuple[Access, ...] = ()
    why: str = ""

    @property
    def output(self) -> Tensor:
        """What the op is run for."""
        return self.writes[0].tensor


class Tape(NamedTuple):
    """Ops in the order in which they run, and those of their tensors that are wanted."""

    ops: tuple[Op, ...]
    results: tuple[Tensor, ...]


class Traffic(NamedTuple):
    """One term of the bytes that go through memory."""

    label: str
    formula: Formula

    @property
    def bytes(self) -> int:
        """The exact number."""
        return self.formula.value


class Chip(NamedTuple):
    """What decides whether a second read comes from memory: the last cache in bytes, and the number of SMs."""

    cache_bytes: int
    units: int


class Setting(NamedTuple):
    """What a tape speaks of: M rows of T tokens a sequence, width D, tables V and C, and the U rows that IDs name.

    Without a `chip`, all that is read again is counted as if it came from memory: an upper bound.
    """

    rows: Dim
    seq: Dim
    width: Dim
    n_vocab: Dim
    n_ctx: Dim
    unique: Dim
    dtype: str
    chip: Chip | None = None

    @property
    def ids(self) -> Tensor:
        """Token IDs (M); torch wants int64."""
        return Tensor("token IDs", (self.rows,), "int64")

    @property
    def x(self) -> Tensor:
        """Vectors (M, D)."""
        return Tensor("x", (self.rows, self.width), self.dtype)


# --- The two folds ---------------------------------------------------------------------------------------------------


def must_move(tape: Tape) -> tuple[Traffic, ...]:
    """What any implementation moves: each tensor that no op here made, read once; each result, written once."""
    made = {access.tensor for op in tape.ops for access in op.writes}
    given: dict[Tensor, Access] = {}
    for access in (access for op in tape.ops for access in op.reads if access.tensor not in made):
        known = given.get(access.tensor, access)
        given[access.tensor] = max(known, access, key=lambda one: product_size(one.touched))
    reads = [Traffic(f"read {access.label}", access.formula()) for access in given.values()]
    writes = [Traffic(f"write {result.label}", all_of(result).formula()) for result in tape.results if result in made]
    return (*reads, *writes)


def moves(tape: Tape) -> tuple[Traffic, ...]:
    """What torch's eager kernels on CUDA move: every access of every op, and what they read and write again.

    An upper bound: what one op writes and the next one reads is counted twice, though a small tensor stays in cache.
    """
    counts = Counter(
        (f"{op.name.removeprefix('aten::')}: {verb} {access.label}", access)
        for op in tape.ops
        for verb, accesses in (("read", op.reads), ("write", op.writes), ("again", op.again))
        for access in accesses
    )
    return tuple(Traffic(label, access.formula(count)) for (label, access), count in counts.items())


def reasons(tape: Tape) -> str:
    """Why the kernels move more than they must, each reason once."""
    return " ".join(dict.fromkeys(op.why for op in tape.ops if op.why))


# --- Rows: one function for each kind of op --------------------------------------------------------------------------


def all_of(tensor: Tensor) -> Access:
    """Every element of a tensor."""
    return Access(tensor, tensor.dims, tensor.label)


def whole(name: str, reads: Iterable[Tensor], *writes: Tensor) -> Op:
    """An op that reads and writes whole tensors, as arange, copy and sin do."""
    return Op(name, tuple(map(all_of, reads)), tuple(map(all_of, writes)))


def embedding(ids: Tensor, table: Tensor, unique: Dim, label: str) -> Op:
    """Rows of `table` (…, D) by `ids`, of which `unique` are distinct: a repeated row comes from cache."""
    width = table.dims[-1]
    touched = Access(table, (unique, width), f"distinct rows of the {table.label}")
    return Op("aten::embedding", (all_of(ids), touched), (all_of(Tensor(label, (*ids.dims, width), table.dtype)),))


def add(x: Tensor, other: Tensor, label: str) -> Op:
    """The sum, in the shape of x; an `other` of fewer rows is added to every sequence."""
    return whole("aten::add", (x, other), x._replace(label=label))


def scale(x: Tensor, label: str) -> Op:
    """Multiply x by a number."""
    return whole("aten::mul", (x,), x._replace(label=label))


def dropout(x: Tensor, label: str) -> Op:
    """Zero some elements and keep which, a byte each."""
    kept = Tensor(f"mask of {label}", x.dims, "bool")
    return whole("aten::native_dropout", (x,), x._replace(label=label), kept)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, label: str, chip: Chip | None) -> Op:
    """LayerNorm over D; mean and 1/σ of each row are kept in fp32 for the backward pass."""
    learned = (weight,) if bias is None else (weight, bias)
    stats = (_stat("mean", x), _stat("1/σ", x))
    return _read_twice(whole("aten::native_layer_norm", (x, *learned), x._replace(label=label), *stats), x, chip)


def rms_norm(x: Tensor, weight: Tensor, label: str, chip: Chip | None) -> Op:
    """RMSNorm over D, as torch's fused kernel for CUDA has it; 1/rms of each row is kept in fp32."""
    op = whole("aten::_fused_rms_norm", (x, weight), x._replace(label=label), _stat("1/rms", x))
    return _read_twice(op, x, chip)


def _stat(name: str, x: Tensor) -> Tensor:
    return Tensor(f"{name} of {x.label}", x.dims[:-1], "fp32")


def _read_twice(op: Op, x: Tensor, chip: Chip | None) -> Op:
    """The norm's second read of x: from cache while the rows that all SMs work on fit into half of it.

    An A100 (L2 in two halves of 20 MiB) leaves the cache at 28 MB in flight, an H100 (50 MiB) between 35 and 69 MB
    (Liger-Kernel's benchmark data): at the edge the second read is an upper bound.
    """
    if chip is not None:
        n_rows = min(product_size(x.dims[:-1]), chip.units * ROWS_PER_SM)
        if 2 * n_rows * bytes_of(x.dims[-1].size, x.dtype) <= chip.cache_bytes:
            return op
    why = "torch's norm reads a row for its statistics and again to normalise it: at most once more from memory."
    return op._replace(again=(all_of(x),), why=why)


# --- Backward: one rule for each kind of op --------------------------------------------------------------------------

#: The rows that a rule adds, and the gradient of each input that it found.
_Found = tuple[tuple[Op, ...], dict[Tensor, Tensor]]


def gradient(tensor: Tensor) -> Tensor:
    """The gradient of a tensor: of its shape, in its dtype."""
    return tensor._replace(label=f"gradient of {tensor.label}")


def backward(tape: Tape) -> Tape:
    """The gradients of all that was given, from that of the results: the rows in reverse, each by its rule.

    Raises a `TypeError` for an op without a rule, and where two ops read one tensor that needs a gradient.
    """
    needs = _needing_gradients(tape)
    grads = {result: gradient(result) for result in tape.results if result in needs}
    ops: list[Op] = []
    for op in reversed(tape.ops):
        if op.output not in grads:
            continue
        if op.name not in _RULES:
            raise TypeError(f"{op.name} has no backward rule")
        rows, found = _RULES[op.name](op, grads[op.output])
        for tensor in found.keys() & grads:
            raise TypeError(f"two ops read {tensor.label}: no rule adds their gradients")
        kept = {tensor: grad for tensor, grad in found.items() if tensor in needs}
        ops += [row for row in rows if row.output in kept.values()]
        grads |= kept
    given = needs - {access.tensor for op in tape.ops for access in op.writes}
    return Tape(tuple(ops), tuple(grad for tensor, grad in _in_order(tape, grads) if tensor in given))


def _needing_gradients(tape: Tape) -> set[Tensor]:
    """Numbers that were given, and the outputs that were made of them."""
    made = {access.tensor for op in tape.ops for access in op.writes}
    needs: set[Tensor] = set()
    for op in tape.ops:
        read = {access.tensor for access in op.reads}
        needs |= {tensor for tensor in read - made if tensor.dtype not in _NOT_DIFFERENTIABLE}
        if read & needs:
            needs.add(op.output)
    return needs


def _in_order(tape: Tape, grads: dict[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Gradients in the order in which the forward pass first reads their tensors."""
    read = dict.fromkeys(access.tensor for op in tape.ops for access in op.reads)
    return [(tensor, grads[tensor]) for tensor in read if tensor in grads]


def _embedding_backward(op: Op, dy: Tensor) -> _Found:
    ids, touched = op.reads
    table = gradient(touched.tensor)
    again, why = _adding_rows(ids.tensor, touched, table)
    row = Op("aten::embedding_dense_backward", (all_of(dy), ids), (all_of(table),), again, why)
    return (row,), {touched.tensor: table}


def _adding_rows(ids: Tensor, touched: Access, table: Tensor) -> tuple[tuple[Access, ...], str]:
    """What follows the zero fill of the dense gradient: the rows that IDs name are added up into it."""
    n_ids, (unique, width) = product_size(ids.dims), touched.touched
    rows = Access(table, touched.touched, f"distinct rows of the {table.label}")
    if n_ids <= SORTED_ABOVE:
        return (rows, rows), (
            "torch fills the dense gradient with zeros, then reads and writes the rows that IDs name"
            f" (up to {SORTED_ABOVE:,} IDs; Embedding.cu)."
        )
    # A token that is named n times has ⌈n/10⌉ partial sums.
    partial = Dim("P", unique.size + (n_ids - unique.size) // ROWS_PER_PARTIAL)
    sums = all_of(Tensor("partial sums", (partial, width), "fp32"))
    # cub's radix sort reads and writes key and value once for each 8 bits of the largest ID.
    passes = max(ceil_div((table.dims[0].size - 1).bit_length(), 8), 1)
    order = all_of(Tensor("sorted IDs and their order", ids.dims, "int64"))
    return (rows, sums, sums, *[order] * (4 * passes)), (
        "torch fills the dense gradient with zeros, sorts the IDs, writes partial sums of at most 10 rows in fp32,"
        f" reads them, and writes the rows that IDs name (above {SORTED_ABOVE:,} IDs; EmbeddingBackwardKernel.cu);"
        " the partial sums are counted at most."
    )


def _add_backward(op: Op, dy: Tensor) -> _Found:
    x, other = (access.tensor for access in op.reads)
    if other.dims == x.dims:
        return (), {x: dy, other: dy}
    return (whole("aten::sum", (dy,), gradient(other)),), {x: dy, other: gradient(other)}


def _scale_backward(op: Op, dy: Tensor) -> _Found:
    x = op.reads[0].tensor
    return (whole("aten::mul", (dy,), gradient(x)),), {x: gradient(x)}


def _dropout_backward(op: Op, dy: Tensor) -> _Found:
    x, mask = op.reads[0].tensor, op.writes[1].tensor
    return (whole("aten::native_dropout_backward", (dy, mask), gradient(x)),), {x: gradient(x)}


def _norm_backward(op: Op, dy: Tensor) -> _Found:
    """One kernel for the gradient of x, a second one for those of weight and bias."""
    x, weight, *bias = (access.tensor for access in op.reads)
    stats = [access.tensor for access in op.writes[1:]]
    grads = {tensor: gradient(tensor) for tensor in (x, weight, *bias)}
    why = "torch's norms sum the gradient of their weights in a second kernel, which reads dy and x again."
    row = whole(f"{op.name}_backward", (dy, x, *stats, weight), *grads.values())
    return (row._replace(again=tuple(map(all_of, (dy, x, *stats))), why=why),), grads


_RULES: dict[str, Callable[[Op, Tensor], _Found]] = {
    "aten::embedding": _embedding_backward,
    "aten::add": _add_backward,
    "aten::mul": _scale_backward,
    "aten::native_dropout": _dropout_backward,
    "aten::native_layer_norm": _norm_backward,
    "aten::_fused_rms_norm": _norm_backward,
}
