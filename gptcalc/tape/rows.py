"""The rows of a tape: one for each PyTorch op that a part runs, with what it reads, writes and keeps.

An op lists accesses: the tensor, and the elements touched of it (of a token table, the rows that the IDs name). It
lists too what autograd keeps of it for the backward pass (`saves`), and which values' last Python reference ends after
it (`drops`). What its CUDA kernel takes for itself is in `kernels`.

Letters: `M` rows (tokens; B·T), `T` tokens of a sequence, `U` distinct tokens among the M, `P` partial sums.
"""

from collections.abc import Hashable, Iterable, Iterator
from itertools import groupby, pairwise
from typing import NamedTuple, Protocol, Self, runtime_checkable

from gptcalc.formula import Dim, Formula, Product, ordered, product_size
from gptcalc.tape import autocast
from gptcalc.units import bytes_of

#: Rows of a norm that one SM works on at a time: 16 blocks of 128 threads, 2,048 being the most that an SM holds.
ROWS_PER_SM = 16


class Tensor(NamedTuple):
    """A value: two are the same where all fields are equal.

    `name` is that of a parameter, as the inventory has it. A view has the storage of its `base`. A `copy_of` a
    parameter in another dtype is autocast's.
    """

    label: str
    dims: Product
    dtype: str
    name: str = ""
    base: "Tensor | None" = None
    copy_of: str = ""

    @property
    def owner(self) -> "Tensor":
        """The value whose storage this one has."""
        return self if self.base is None else self.base.owner

    @property
    def bytes(self) -> int:
        """What its elements take."""
        return bytes_of(product_size(self.dims), self.dtype)


class Access(NamedTuple):
    """The elements of a tensor that an op reads or writes, each once; `label` says which, where they are not all."""

    tensor: Tensor
    touched: Product
    label: str

    def formula(self, times: int = 1) -> Formula:
        """What goes through memory, in bytes: `4×U×D`."""
        return Formula(((times * bytes_of(1, self.tensor.dtype), ordered(self.touched)),))


class Checkpoint(NamedTuple):
    """A stretch of rows that runs again in the backward pass (`torch.utils.checkpoint`, non-reentrant).

    Autograd keeps the tensors that it was called with (`keeps`); what reached it another way it `holds`. Other
    references, which are there already, end with it (`ends`). `name` tells it from others of the same stretch; up to a
    comma it says what runs again.
    """

    name: str
    keeps: tuple[Tensor, ...]
    holds: tuple[Tensor, ...] = ()
    ends: tuple[Tensor, ...] = ()


class Turn(NamedTuple):
    """Things of a kind that run one after the other, as experts do: the ops of the first are there for all of them.

    `numbers` are theirs, without gaps; their values are labelled with `str(turn)`, the name of the first.
    """

    what: str
    numbers: range

    def __str__(self) -> str:
        """`expert 1`."""
        return self.name(self.numbers[0])

    def name(self, number: int) -> str:
        """What one of them is called."""
        return f"{self.what} {number}"


def turns(what: str, kinds: Iterable[Hashable]) -> Iterator[Turn]:
    """Of things of one kind in a row the first and the last by themselves, and all between in one; `kinds` says which.

    One between may touch what all of them share, and itself, but no neighbour; the recorder refuses what does.
    """
    start = 0
    for _, together in groupby(kinds):
        end = start + len(list(together))
        bounds = sorted({start, min(start + 1, end), max(end - 1, start), end})
        yield from (Turn(what, range(*pair)) for pair in pairwise(bounds))
        start = end


class Op(NamedTuple):
    """An op by its name in torch; the first tensor written is its output.

    `again` is what torch's CUDA kernel moves beyond reading each input and writing each output once; `why` says so.
    Outputs that are views take no memory. Inputs that are `viewed` are read through a view (a reshape, a transpose), so
    that their gradients arrive as views, into which autograd adds no other gradient in place. Outputs beside the first
    that the caller holds on to are `handed`. What a `shared` op makes is there for all layers that come after. An
    attention kernel may drop out some weights (`drops_out`). Of an `unrecorded` op autograd knows nothing (`no_grad`).
    The output of a `cached` op lives until the forward pass ends: autocast holds it. `casts` is the order in which
    autocast looks at what is read, where that is not the last one first. `where` is the path of the module that runs
    the op, `checkpoint` what it is recomputed with. In a `turn` it runs for each of several things.
    """

    name: str
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    again: tuple[Access, ...] = ()
    why: str = ""
    saves: tuple[Tensor, ...] = ()
    drops: tuple[Tensor, ...] = ()
    viewed: tuple[Tensor, ...] = ()
    handed: tuple[Tensor, ...] = ()
    shared: bool = False
    drops_out: bool = False
    unrecorded: bool = False
    cached: bool = False
    casts: tuple[Tensor, ...] = ()
    where: str = ""
    checkpoint: Checkpoint | None = None
    turn: Turn | None = None

    @property
    def output(self) -> Tensor:
        """What the op is run for."""
        return self.writes[0].tensor


class Tape(NamedTuple):
    """Ops in the order in which they run, and those of their tensors that are wanted."""

    ops: tuple[Op, ...]
    results: tuple[Tensor, ...]


class Chip(NamedTuple):
    """What decides whether a second read comes from memory: the last cache in bytes, and the number of SMs."""

    cache_bytes: int
    units: int


class Once(NamedTuple):
    """Whether a layer is the first to ask for something that layers share; a `suffix` tells it from others like it."""

    new: bool
    suffix: str


class Setting(NamedTuple):
    """What a tape speaks of: M rows of T tokens a sequence, width D, tables V and C, and the U rows that IDs name.

    Without a `chip`, all that is read again is counted as if it came from memory: an upper bound. Memory needs more:
    the `batch` (B), the path of the module (`where`), whether it is `training`, the kernel of `attention`, whether its
    core runs `again` in the backward pass, whether the layer is the `first` one of the pass (what others have made for
    it is `shared`), and in a decode step how many tokens are `cached`, in which dtype. With `worst_routing` the tokens
    of a mixture all go to the same experts, else to all experts evenly. Under `autocast` to a
    lower dtype, `dtype` is that of the weights.
    """

    rows: Dim
    seq: Dim
    width: Dim
    n_vocab: Dim
    n_ctx: Dim
    unique: Dim
    dtype: str
    chip: Chip | None = None
    batch: Dim | None = None
    where: str = ""
    training: bool = False
    attention: str = ""
    again: bool = False
    first: bool = True
    worst_routing: bool = False
    cached: Dim | None = None
    kv_dtype: str = ""
    autocast: str = ""
    shared: dict[Hashable, str] | None = None

    def once(self, what: Hashable) -> Once:
        """What layers share (angles, a mask), by its first element if it is a tuple; made where it is first asked for.

        `shared` remembers what a pass has made. Without it the first layer makes all.
        """
        if self.shared is None:
            return Once(self.first, "")
        if what in self.shared:
            return Once(new=False, suffix=self.shared[what])
        kind = what[0] if isinstance(what, tuple) else what
        others = sum(1 for other in self.shared if (other[0] if isinstance(other, tuple) else other) == kind)
        self.shared[what] = f" ({others + 1})" if others else ""
        return Once(new=True, suffix=self.shared[what])

    @property
    def tokens(self) -> Product:
        """The axes before the width: (B, T), or the M rows of which no more is known."""
        return (self.rows,) if self.batch is None else (self.batch, self.seq)

    @property
    def ids(self) -> Tensor:
        """Token IDs (M); torch wants int64."""
        return Tensor("token IDs", self.tokens, "int64")

    @property
    def x(self) -> Tensor:
        """Vectors (M, D)."""
        return Tensor("x", (*self.tokens, self.width), self.dtype)

    def within(self, name: str) -> Self:
        """The setting inside the child module `name`."""
        return self._replace(where=f"{self.where}.{name}".strip(".")) if name else self

    def weight(self, label: str, name: str, *dims: Dim) -> Tensor:
        """The module's parameter `name`."""
        return Tensor(label, dims, self.dtype, f"{self.where}.{name}".strip("."))


@runtime_checkable
class Runs(Protocol):
    """A part that lists its ops: vectors in, vectors out."""

    def ops(self, setting: Setting, x: Tensor) -> tuple[Op, ...]:
        """The rows that turn x into the last one's output."""


def ops_of(part: object, setting: Setting, x: Tensor) -> tuple[Op, ...]:
    """The rows of a part, inside the module that it is in."""
    if not isinstance(part, Runs):
        raise TypeError(f"a {type(part).__name__} lists no ops")
    return part.ops(setting.within(getattr(part, "name", "")), x)


def result(rows: Iterable[Op]) -> Tensor:
    """What rows are run for: the output of the last one that has any."""
    return [op for op in rows if op.writes][-1].output


class Rows(list[Op]):
    """The rows of a module under way: called with an op, it gives the op's output.

    Under autocast the rows that cast what an op reads come before it, and its output may be of another dtype than the
    op says: whoever goes on in these rows with the tensor as the op had it means that one.
    """

    def __init__(self, setting: Setting) -> None:
        """Start with none."""
        super().__init__()
        self.where, self.autocast = setting.where, setting.autocast
        self.turn: Turn | None = None
        self._found: dict[Tensor, Tensor] = {}

    def __call__(self, op: Op) -> Tensor:
        """Append a row of this module, in the turn that it is in."""
        op = op if op.where else op._replace(where=self.where, turn=self.turn)
        self.append(self._under_autocast(op) if self.autocast else op)
        return self[-1].output

    def drop(self, *values: Tensor) -> None:
        """The last Python references to `values` end here, after the last row."""
        self[-1] = self[-1]._replace(drops=(*self[-1].drops, *map(self._as_found, values)))

    def meant(self, *given: Tensor) -> tuple[Tensor, ...]:
        """What was made of these in these rows, in whichever dtype."""
        return tuple(map(self._as_found, given))

    def lowered(self, label: str, *given: Tensor) -> tuple[Tensor, ...]:
        """What autocast hands to a function that is on its list and runs several ops, of which one makes `label`.

        The last is cast first. The copies are the caller's to drop.
        """
        wanted = self.autocast
        return tuple(
            reversed([self._copy(x, wanted, label) if wanted and x.dtype != wanted else x for x in reversed(given)])
        )

    def _under_autocast(self, op: Op) -> Op:
        """The op as it runs: it reads copies, of which those that are not cached end with it."""
        op = op._replace(
            reads=tuple(access._replace(tensor=self._as_found(access.tensor)) for access in op.reads),
            casts=tuple(map(self._as_found, op.casts)),
        )
        copies: dict[Tensor, Tensor] = {}
        seen = self._seen_flat(op)
        for tensor in op.casts or [access.tensor for access in reversed(op.reads)]:
            wanted = autocast.reads(op.name, tensor.dtype, self.autocast)
            if wanted != tensor.dtype and tensor not in copies:
                copies[tensor] = self._copy(seen.get(tensor, tensor), wanted, op.output.label)
        reads = tuple(access._replace(tensor=copies.get(access.tensor, access.tensor)) for access in op.reads)
        dtypes = [access.tensor.dtype for access in reads]
        writes = []
        for number, access in enumerate(op.writes):
            made = access.tensor
            if made.base is not None:
                base = self._as_found(made.base)
                made = made._replace(base=base, dtype=base.dtype)
            elif not number:
                made = made._replace(dtype=autocast.gives(op.name, made.dtype, dtypes, self.autocast))
            if made != access.tensor:
                self._found[access.tensor] = made
            writes.append(access._replace(tensor=made))

        def as_run(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(copies.get(found := self._as_found(tensor), found) for tensor in tensors)

        saves = as_run(op.saves)
        if op.name in ("aten::mm", "aten::addmm"):  # a weight lives anyhow, a copy of it does not
            saves += tuple(factor for factor in as_run((op.reads[1].tensor,)) if factor in copies.values())
        ended = [copy for copy in copies.values() if not copy.copy_of]
        return op._replace(
            reads=reads,
            writes=tuple(writes),
            saves=saves,
            viewed=as_run(op.viewed),
            handed=as_run(op.handed),
            drops=(*map(self._as_found, op.drops), *ended, *seen.values()),
            casts=(),
        )

    def _seen_flat(self, op: Op) -> dict[Tensor, Tensor]:
        """What `addmm` reads of x (…, in), of which the caller has made rows: what is cast is that view."""
        x = op.reads[0].tensor if op.casts else None
        if x is None or len(x.dims) <= 2 or x.dtype == self.autocast:
            return {}
        return {x: self(view(x, f"{x.label} by row for {op.output.label}"))}

    def _as_found(self, tensor: Tensor) -> Tensor:
        """The tensor that is meant."""
        if tensor in self._found or tensor.base is None:
            return self._found.get(tensor, tensor)
        base = self._as_found(tensor.base)
        return tensor if base == tensor.base else tensor._replace(base=base, dtype=base.dtype)

    def _copy(self, x: Tensor, dtype: str, label: str) -> Tensor:
        """A copy of x for what makes `label`; one of a parameter in the lower dtype is made once and cached."""
        kept = x.name if dtype == self.autocast else ""
        made = Tensor(f"{x.label} in {dtype}" + (f" for {label}" if not kept else ""), x.dims, dtype, copy_of=kept)
        self.append(whole("aten::_to_copy", (x,), made)._replace(where=self.where, turn=self.turn, cached=bool(kept)))
        return made

    def again(self, start: int, name: str, keeps: Iterable[Tensor]) -> None:
        """The rows from number `start` on will run again in the backward pass; what all layers share is there before.

        They keep what they are called with, and hold what else they read.
        """
        start += next(number for number, op in enumerate(self[start:]) if not op.shared)
        self[start:] = under(self[start:], Checkpoint(name, tuple(keeps)))


def under(rows: Iterable[Op], checkpoint: Checkpoint) -> tuple[Op, ...]:
    """The rows under a checkpoint, which holds what of other rows they read beside what it keeps."""
    found = tuple(rows)
    made = {access.tensor for op in found for access in op.writes}
    kept = {tensor.owner for tensor in checkpoint.keeps}
    read = dict.fromkeys(access.tensor for op in found for access in op.reads)
    given = (tensor for tensor in read if not tensor.owner.name and tensor.owner not in made | kept)
    checkpoint = checkpoint._replace(holds=(*checkpoint.holds, *given))
    return tuple(op._replace(checkpoint=checkpoint) for op in found)


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
    out = all_of(Tensor(label, (*ids.dims, width), table.dtype))
    return Op("aten::embedding", (all_of(ids), touched), (out,), saves=(ids,))


def add(x: Tensor, other: Tensor, label: str) -> Op:
    """The sum, in the shape of x; an `other` of fewer rows is added to every sequence."""
    return whole("aten::add", (x, other), made(x, label))


def scale(x: Tensor, label: str) -> Op:
    """Multiply x by a number."""
    return whole("aten::mul", (x,), made(x, label))


def over_number(x: Tensor, label: str) -> Op:
    """Divide x by a number."""
    return whole("aten::div", (x,), made(x, label))


def shift(x: Tensor, label: str) -> Op:
    """Add a number to x."""
    return whole("aten::add", (x,), made(x, label))


def multiply(x: Tensor, other: Tensor, label: str, *, constant: bool = False) -> Op:
    """The product, element by element, of x's shape; a `constant` other needs no gradient: x is not kept for it.

    Of two dtypes the result has the wider one.
    """
    dtype = max(x.dtype, other.dtype, key=lambda dtype: bytes_of(1, dtype))
    op = whole("aten::mul", (x, other), made(x, label, dtype=dtype))
    return op._replace(saves=(other,) if constant else (other, x))


def dropout(x: Tensor, label: str) -> Op:
    """Zero some elements and keep which, a byte each."""
    kept = Tensor(f"mask of {label}", x.dims, "bool")
    return whole("aten::native_dropout", (x,), made(x, label), kept)._replace(saves=(kept,))


def layer_norm(  # noqa: PLR0913  what a norm is
    x: Tensor, weight: Tensor | None, bias: Tensor | None, label: str, chip: Chip | None, *, of: str = ""
) -> Op:
    """LayerNorm over the last axis; mean and 1/σ of each row (`of` x) are kept in fp32 for the backward pass."""
    stats = (_stat("mean", x, of), _stat("1/σ", x, of))
    return _read_twice(_norm("aten::native_layer_norm", x, (weight, bias), made(x, label), stats), x, chip)


def rms_norm(x: Tensor, weight: Tensor | None, label: str, chip: Chip | None, *, of: str = "") -> Op:
    """RMSNorm over the last axis, as torch's fused kernel for CUDA has it; 1/rms of each row is kept in fp32."""
    stats = (_stat("1/rms", x, of),)
    return _read_twice(_norm("aten::_fused_rms_norm", x, (weight,), made(x, label), stats), x, chip)


def _norm(name: str, x: Tensor, given: Iterable[Tensor | None], out: Tensor, stats: tuple[Tensor, ...]) -> Op:
    """Of what is `given`, autograd keeps a gain that was computed; parameters live anyhow."""
    learned = [tensor for tensor in given if tensor is not None]
    computed = [tensor for tensor in learned if not tensor.name]
    return whole(name, (x, *learned), out, *stats)._replace(saves=(x, *computed, *stats))


def made(like: Tensor, label: str, *dims: Dim, dtype: str = "") -> Tensor:
    """A new value, of the dims and dtype of another where no others are given."""
    return Tensor(label, dims or like.dims, dtype or like.dtype)


def _stat(name: str, x: Tensor, of: str) -> Tensor:
    return Tensor(f"{name} of {of or x.label}", x.dims[:-1], "fp32")


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


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, *, transposed: bool = False) -> Op:
    """A matrix product: with a bias `addmm`, without one `mm`; the input is kept, the output is not.

    A weight (out, in) is read through its transpose, an input of more than two axes through a view of two.
    """
    learned = (weight,) if bias is None else (weight, bias)
    # The gradient of a single number is computed transposed [FunctionsManual.cpp, mm_mat1_grad].
    seen_anew = len(x.dims) > 2 or product_size(x.dims) == 1
    viewed = ((x,) if seen_anew else ()) + (() if transposed else (weight,))
    op = whole("aten::mm" if bias is None else "aten::addmm", (x, *learned), out)
    # Autocast's order is that of linear(x, weight, bias), or of addmm(bias, x, weight), from the last to the first.
    return op._replace(saves=(x,), viewed=viewed, casts=(weight, x, bias) if transposed and bias is not None else ())


#: What each activation keeps: its input, or its output.
_KEEPS_OUTPUT = ("relu", "sigmoid", "tanh", "exp")


def activation(name: str, x: Tensor, label: str) -> Op:
    """One elementwise kernel: `gelu` (erf or tanh), `silu`, `relu`, `sigmoid`, `softplus`, `exp`."""
    op = whole(f"aten::{name}", (x,), made(x, label))
    return op._replace(saves=(op.output,) if name in _KEEPS_OUTPUT else (x,))


def square(x: Tensor, label: str) -> Op:
    """`x.square()`; x is kept."""
    return power(x, label)


def power(x: Tensor, label: str) -> Op:
    """`torch.pow` with a number above one; x is kept."""
    return whole("aten::pow", (x,), made(x, label))._replace(saves=(x,))


def clamp(x: Tensor, label: str, n_bounds: int) -> Op:
    """X, but no number beyond the upper bound, or beyond both; x is kept."""
    op = whole("aten::clamp" if n_bounds == 2 else "aten::clamp_max", (x,), made(x, label))
    return op._replace(saves=(x,))


def log_softmax(x: Tensor, label: str) -> Op:
    """The logarithm of softmax over the last axis; its output is kept."""
    op = whole("aten::_log_softmax", (x,), made(x, label))
    return op._replace(saves=(op.output,))


def nll_loss(scores: Tensor, targets: Tensor, label: str) -> Op:
    """The mean of the targets' negated scores, and the weight that it was divided by."""
    weight = Tensor("total weight of the targets", (), scores.dtype)
    op = whole("aten::nll_loss_forward", (scores, targets), Tensor(label, (), scores.dtype), weight)
    return op._replace(saves=(scores, targets, weight))


def split(x: Tensor, *parts: Tensor) -> Op:
    """Views of x side by side; their gradients are put together in one new tensor."""
    return whole("aten::split_with_sizes", (x,), *(part._replace(base=x) for part in parts))


def made_of(given: Iterable[Tensor], found: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Of what was `found` for what was `given`: that which is something else."""
    return tuple(new for old, new in zip(given, found, strict=True) if new != old)


def cast(x: Tensor, dtype: str, label: str) -> Op:
    """A copy in another dtype."""
    return whole("aten::_to_copy", (x,), made(x, label, dtype=dtype))


def attention(  # noqa: PLR0913, PLR0917  what the kernel is given
    backend: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    label: str,
    lse: Tensor,
    seeds: Iterable[Tensor],
    mask: Iterable[Tensor] = (),
) -> Op:
    """One fused kernel: the output, the logarithm of each softmax's sum in fp32, and the state of the dropout."""
    written, masks = (made(query, label, *query.dims[:-1], value.dims[-1]), lse, *seeds), tuple(mask)
    op = whole(f"aten::_scaled_dot_product_{backend}_attention", (query, key, value, *masks), *written)
    return op._replace(saves=(key, query, value, *masks, lse, op.output, *written[2:]))


def grouped(x: Tensor, weights: Tensor, ends: Tensor, out: Tensor) -> Op:
    """A product for each expert's rows with its matrix, seen transposed; `ends` are where the rows of each one end."""
    return whole("aten::_grouped_mm", (x, weights, ends), out)._replace(saves=(x, ends), viewed=(weights,))


def project(  # noqa: PLR0913  a layer's form
    setting: Setting, rows: Rows, name: str, x: Tensor, out: Tensor, *, bias: bool, transposed: bool = False
) -> Tensor:
    """The linear layer `name` of a module: (…, in) to the shape of `out`; its weight is (out, in), or `transposed`."""
    inside, n_axes = setting.within(name), len(setting.tokens)
    ins, outs = x.dims[n_axes:], out.dims[n_axes:]
    weight = inside.weight(f"{name} weight", "weight", *((*ins, *outs) if transposed else (*outs, *ins)))
    shift = inside.weight(f"{name} bias", "bias", *outs) if bias else None
    return rows(linear(x, weight, shift, out, transposed=transposed))


def leave(*values: Tensor) -> Op:
    """A function returns: the last references to `values` end, and nothing runs."""
    return Op("return", (), (), drops=values)


# --- Routing: what a mixture of experts runs beside its products ------------------------------------------------------


def view(x: Tensor, label: str, *dims: Dim) -> Op:
    """All of x in another shape: `x.view`."""
    return whole("aten::view", (x,), Tensor(label, dims or x.dims, x.dtype, base=x))


def softmax(x: Tensor, label: str) -> Op:
    """Shares that sum to one over the last axis; its output is kept."""
    op = whole("aten::_softmax", (x,), made(x, label))
    return op._replace(saves=(op.output,))


def topk(x: Tensor, n: Dim, label: str, chosen: str) -> Op:
    """The `n` largest of the last axis, and which they are; the latter are kept, and the caller is handed both."""
    dims = (*x.dims[:-1], n)
    places = Tensor(chosen, dims, "int64")
    return whole("aten::topk", (x,), made(x, label, *dims), places)._replace(saves=(places,), handed=(places,))


def argsort(x: Tensor, label: str) -> Op:
    """The order of the integers x, all in one row; the sorted ones are made too, and thrown away."""
    return whole("aten::sort", (x,), made(x, label), made(x, f"sorted {x.label}"))


def total(x: Tensor, label: str) -> Op:
    """The sum over the last axis, which is left with one element."""
    return whole("aten::sum", (x,), Tensor(label, x.dims[:-1], x.dtype))


def mean(x: Tensor, label: str) -> Op:
    """The mean over the last axis, which is left with one element."""
    return whole("aten::mean", (x,), made(x, label, *x.dims[:-1], Dim("1", 1)))


def rsqrt(x: Tensor, label: str) -> Op:
    """1/√x; the output is kept."""
    op = whole("aten::rsqrt", (x,), made(x, label))
    return op._replace(saves=(op.output,))


def divide(x: Tensor, other: Tensor, label: str) -> Op:
    """The quotient, of x's shape; both are kept."""
    return whole("aten::div", (x, other), made(x, label))._replace(saves=(other, x))


def gather(x: Tensor, places: Tensor, out: Tensor) -> Op:
    """`x[places]` in the shape of `out`: rows of x by integers, which are kept."""
    reads = (Access(x, out.dims, f"the rows of {x.label} that {places.label} name"), all_of(places))
    return Op("aten::index", reads, (all_of(out),), saves=(places,))


def take(x: Tensor, places: Tensor, label: str) -> Op:
    """`x.gather(-1, places)`: of each row of x the elements that `places` name; both are kept."""
    reads = (Access(x, places.dims, f"the elements of {x.label} that {places.label} name"), all_of(places))
    out = all_of(made(x, label, *places.dims))
    return Op("aten::gather", reads, (out,), saves=(x, places))


def largest(x: Tensor, label: str, place: str) -> Op:
    """`x.max(-1, keepdim=True)`: each row's largest, and where it is; the caller is handed both."""
    one = Dim("1", 1)
    where = Tensor(place, (*x.dims[:-1], one), "int64")
    return whole("aten::max", (x,), made(x, label, *x.dims[:-1], one), where)._replace(saves=(where,), handed=(where,))


def masked_fill(x: Tensor, mask: Tensor, label: str) -> Op:
    """A copy of x with one number where the mask says so; the mask is kept."""
    return whole("aten::masked_fill", (x, mask), made(x, label))._replace(saves=(mask,))


def scatter_add(onto: Tensor, places: Tensor, x: Tensor, label: str) -> Op:
    """`onto.index_add(0, places, x)`: a copy of `onto` to whose rows those of x are added; x is kept for its shape."""
    return whole("aten::index_add", (onto, places, x), made(onto, label))._replace(saves=(places, x))


def unbind(x: Tensor, *parts: Tensor) -> Op:
    """Views of x along its first axis; their gradients are stacked in one new tensor."""
    return whole("aten::unbind", (x,), *(part._replace(base=x) for part in parts))


def join(parts: Iterable[Tensor], out: Tensor) -> Op:
    """A new tensor of the parts, one after the other."""
    return whole("aten::cat", parts, out)


def heads_first(x: Tensor) -> tuple[Dim, Dim, Dim, Dim]:
    """Batch, heads, tokens and head size of a query, key or value, in whichever order they lie."""
    batch, first, second, size = x.dims
    return (batch, first, second, size) if first.letter in "NK" else (batch, second, first, size)


# --- Attention written out -------------------------------------------------------------------------------------------


def copied_back(x: Tensor, label: str) -> Op:
    """A view of x with its axes in another order: its gradient has no strides in the shape of x, and is copied."""
    return whole("aten::transpose", (x,), Tensor(label, x.dims, x.dtype, base=x))


def cut(x: Tensor, label: str, *dims: Dim) -> Op:
    """Some elements of x along an axis: a view, whose gradient is filled up with zeros."""
    return whole("aten::slice", (x,), Tensor(label, dims, x.dtype, base=x))


def clone(x: Tensor, label: str, *dims: Dim) -> Op:
    """A copy of x that is dense in the order of `dims`."""
    return whole("aten::clone", (x,), made(x, label, *dims))


def repeat(x: Tensor, label: str, *dims: Dim) -> Op:
    """A copy of x with each head repeated; its gradient is a sum."""
    return whole("aten::repeat_interleave", (x,), made(x, label, *dims))


def expand(x: Tensor, label: str, *dims: Dim) -> Op:
    """A view of x in which each element is seen several times; its gradient is a sum."""
    return whole("aten::expand", (x,), Tensor(label, dims, x.dtype, base=x))


def bmm(x: Tensor, other: Tensor, out: Tensor) -> Op:
    """A product of matrices for each sequence and head; both factors are kept, and read through views."""
    return whole("aten::bmm", (x, other), out)._replace(saves=(x, other), viewed=(x, other))


def add_in_place(x: Tensor, other: Tensor, label: str) -> Op:
    """The sum, in the storage of x."""
    return whole("aten::add_", (x, other), Tensor(label, x.dims, x.dtype, base=x))


def safe_softmax(x: Tensor, shares: Tensor, none: Tensor, zero: Tensor, label: str) -> Op:
    """The `shares`, but `zero` where of a row of x there is `none`; the output alone is kept."""
    op = whole("aten::_safe_softmax", (x, none, zero, shares), made(x, label))
    return op._replace(saves=(op.output,))


# --- Linear attention ------------------------------------------------------------------------------------------------


def subtract(x: Tensor, other: Tensor, out: Tensor) -> Op:
    """The difference, in the shape of `out`, to which both are spread."""
    return whole("aten::sub", (x, other), out)


def cumsum(x: Tensor, label: str) -> Op:
    """The sum up to each place of an axis."""
    return whole("aten::cumsum", (x,), made(x, label))


def conv1d(x: Tensor, weight: Tensor, out: Tensor) -> Op:
    """A filter of each feature of x (B, features, T); x and the filters are kept."""
    return whole("aten::convolution", (x, weight), out)._replace(saves=(x, weight))


def product(x: Tensor, other: Tensor, out: Tensor) -> Op:
    """A product of matrices as they lie; both are kept."""
    return whole("aten::bmm", (x, other), out)._replace(saves=(x, other))


def turned(x: Tensor, label: str, *dims: Dim) -> Op:
    """X with its axes in another order: a view, and so is its gradient."""
    return whole("aten::permute", (x,), Tensor(label, dims, x.dtype, base=x))


def inverse(x: Tensor, found: Tensor, label: str) -> Op:
    """What was `found` to be the inverse of 1 − x, seen as what is made of x; that alone is kept."""
    op = whole("inverse", (x, found), Tensor(label, x.dims, x.dtype, base=found))
    return op._replace(saves=(op.output,))


def scan(steps: tuple[Tensor, ...], found: Tensor, beside: tuple[Tensor, ...], label: str) -> Op:
    """What was `found` by going from chunk to chunk, seen as what is made of the steps.

    All of these but the first are kept, and what was made `beside`: corrected values, and states.
    """
    op = whole("delta scan", steps, Tensor(label, found.dims, found.dtype, base=found))
    return op._replace(saves=(*steps[1:], *beside))
