"""The gated delta rule op by op: what is read of the states, in chunks, or for one token.

Letters: `Nk` groups share a query and a key (size Hk), `Nv` states are (Hk, Hv). Pieces are `n` = C·B·Nv, of L = 64
tokens each, where C is the number of chunks, ⌈T/64⌉; in decode one token is a piece.
"""

from typing import TYPE_CHECKING, NamedTuple

from gptcalc import tape
from gptcalc.formula import Dim, Product
from gptcalc.parts.norm import RMSNorm
from gptcalc.tape import Op, Rows, Setting, Tensor
from gptcalc.units import ceil_div

if TYPE_CHECKING:
    from gptcalc.parts.delta import GatedDeltaNet

#: Tokens that are computed together.
CHUNK = 64


class Sizes(NamedTuple):
    """The axes of a layer in a pass: pieces of `length` tokens, of which `missing` are zeros after the last one."""

    batch: Dim
    seq: Dim
    chunks: Dim
    length: Dim
    missing: int
    groups: Dim
    per_group: Dim
    states: Dim
    key: Dim
    value: Dim
    kernel: Dim

    @classmethod
    def of(cls, part: "GatedDeltaNet", setting: Setting) -> "Sizes":
        """Of a `part` in a pass."""
        batch, seq = setting.tokens
        decodes = setting.cached is not None
        length = Dim("1", 1) if decodes else Dim("64", CHUNK)
        chunks = Dim("1", 1) if decodes else Dim("⌈T/64⌉", ceil_div(seq.size, CHUNK))
        return cls(
            batch,
            seq,
            chunks,
            length,
            chunks.size * length.size - seq.size,
            Dim("Nk", part.n_key_heads),
            Dim("(Nv/Nk)", part.n_value_heads // part.n_key_heads),
            Dim("Nv", part.n_value_heads),
            Dim("Hk", part.d_key),
            Dim("Hv", part.d_value),
            Dim("kernel", part.kernel),
        )

    @property
    def padded(self) -> Dim:
        """The tokens with the zeros after them."""
        return Dim("⌈T⌉64", self.seq.size + self.missing) if self.missing else self.seq

    @property
    def features(self) -> Dim:
        """What is convolved."""
        return Dim("(2·Nk·Hk+Nv·Hv)", 2 * self.groups.size * self.key.size + self.states.size * self.value.size)

    @property
    def pieces(self) -> Product:
        """Chunks of all sequences and states."""
        return (self.chunks, self.batch, self.states)

    @property
    def square(self) -> Product:
        """Token by token in every piece."""
        return (*self.pieces, self.length, self.length)

    @property
    def rate(self) -> Product:
        """A number for each token of every piece."""
        return (*self.pieces, self.length)


class Given(NamedTuple):
    """What the rule reads, in fp32: query and key (n, L, Hk), value (n, L, Hv), β and decays (n, L)."""

    query: Tensor
    key: Tensor
    value: Tensor
    beta: Tensor
    decay: Tensor


def delta_net(part: "GatedDeltaNet", setting: Setting, x: Tensor) -> tuple[Op, ...]:
    """(B, T, D) to the same."""
    rows, at = Rows(setting), Sizes.of(part, setting)
    row = 2 * at.key.size + 2 * at.per_group.size * at.value.size
    projected = tape.made(x, "query, key, value, gate", *setting.tokens, at.groups, Dim("2·(Hk+Nv/Nk·Hv)", row))
    fused = tape.project(setting, rows, "in_proj_qkvz", x, projected, bias=False)
    inner = Dim("(Nv/Nk·Hv)", at.per_group.size * at.value.size)
    mixed = tape.made(x, "query, key, value", *setting.tokens, at.groups, Dim("(2·Hk+Nv/Nk·Hv)", row - inner.size))
    cut = tape.split(fused, mixed, tape.made(x, "gate", *setting.tokens, at.groups, inner))
    rows(cut)
    rows.drop(fused)
    mixed, gate = (access.tensor for access in cut.writes)
    y = _read(setting, rows, at, x, mixed)
    gated = _gated(setting, rows, at, y, gate)
    tape.project(setting, rows, "out_proj", gated, tape.made(x, "linear attention output"), bias=False)
    rows.drop(gated, y, mixed, gate)
    return tuple(rows)


def _read(setting: Setting, rows: Rows, at: Sizes, x: Tensor, mixed: Tensor) -> Tensor:
    """What every token reads of the states, (B, C·L, Nv, Hv)."""
    vectors = _vectors(setting, rows, at, mixed)
    given = Given(*vectors, *_rates(setting, rows, at, x))
    if setting.cached is not None:
        y = _step(rows, given)
        held: tuple[Tensor, ...] = (y,)
    else:
        y, states = _chunked(rows, at, given, keeps=setting.training)
        held = (y, states)
        y = _by_state(rows, at, y)
        held = (*held, *(() if y is held[0] else (y,)))
    dims = (at.batch, Dim("1", 1) if setting.cached is not None else at.padded, at.states, at.value)
    out = _copy(rows, y, "what is read, by token", setting.dtype, *dims)
    rows.drop(*given, *held)
    return out


def _by_state(rows: Rows, at: Sizes, y: Tensor) -> Tensor:
    """What is read, of which the gradient comes by token: where its states do not join, it is copied."""
    comes = tape.made(y, "gradient", at.batch, at.chunks, at.length, at.states, at.value)
    return y if tape.joins(comes, at.batch, at.states) else rows(tape.copied_back(y, "what is read by each state"))


# --- What the rule is given ------------------------------------------------------------------------------------------


def _copy(rows: Rows, x: Tensor, label: str, dtype: str, *dims: Dim) -> Tensor:
    """A dense copy in a `dtype`, whether that is another or not."""
    if x.dtype == dtype:
        return rows(tape.clone(x, label, *dims))
    op = tape.cast(x, dtype, label)
    return rows(op._replace(writes=(tape.all_of(tape.made(op.output, label, *dims)),)))


def _float(rows: Rows, x: Tensor, label: str) -> Tensor:
    """X in fp32: itself, or a copy."""
    return x if x.dtype == "fp32" else rows(tape.cast(x, "fp32", label))


def _padded(rows: Rows, at: Sizes, x: Tensor, *dims: Dim) -> Tensor:
    """X, with zeros after the last token if some are missing."""
    if not at.missing:
        return x
    return rows(tape.whole("aten::constant_pad_nd", (x,), tape.made(x, f"padded {x.label}", *dims)))


def _vectors(setting: Setting, rows: Rows, at: Sizes, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of every piece, of what is projected."""
    active = _convolved(setting, rows, at, mixed)
    y = _padded(rows, at, active, at.batch, at.features, at.padded)
    rows.drop(*(() if y is active else (active,)))
    inner = Dim("(Nv/Nk·Hv)", at.per_group.size * at.value.size)
    cut = tape.split(
        y,
        *(
            tape.made(y, f"convolved {label}", at.batch, at.groups, size, at.padded)
            for label, size in (("query", at.key), ("key", at.key), ("value", inner))
        ),
    )
    rows(cut)
    views = [access.tensor for access in cut.writes]
    query, key = (_unit(setting, rows, at, view) for view in views[:2])
    several = at.chunks.size == 1 and at.per_group.size > 1 and at.value.size > 1
    value = _by_chunk(rows, at, views[2], "value", at.states, at.length, at.value, apart=several)
    rows.drop(y, *views)
    return query, key, value


def _convolved(setting: Setting, rows: Rows, at: Sizes, mixed: Tensor) -> Tensor:
    """(B, features, T), after SiLU; a token is convolved with those before it that are kept."""
    wide = Dim("(T+kernel-1)", at.seq.size + at.kernel.size - 1)
    weight = setting.within("conv1d").weight("filters", "weight", at.features, Dim("1", 1), at.kernel)
    filters = _filters(rows, at, weight)
    inputs = rows(tape.clone(mixed, "input of the convolution", at.batch, at.features, at.seq))
    if setting.cached is not None:
        window = _window(setting, rows, at, inputs)
        y = rows(tape.conv1d(window, filters, tape.made(inputs, "convolved")))
        rows.drop(window)
    else:
        y = rows(tape.conv1d(inputs, filters, tape.made(inputs, "convolved", at.batch, at.features, wide)))
    held = [inputs, filters, y]
    if y.dims[-1].size != at.seq.size:
        y = rows(tape.cut(y, "convolved, cut back", *inputs.dims))
        held.append(y)
    out = rows(tape.activation("silu", y, "activated"))
    rows.drop(*held)
    return out


def _filters(rows: Rows, at: Sizes, weight: Tensor) -> Tensor:
    """Those of query, key and values of each group side by side.

    Their gradient comes so; it is copied where the features of a group do not follow on those of the one before.
    """
    sizes = (("query", (at.groups, at.key)), ("key", (at.groups, at.key)), ("value", (at.states, at.value)))
    parts = (Tensor(f"filters of {label}", (*own, *weight.dims[1:]), weight.dtype) for label, own in sizes)
    cut = tape.split(weight, *parts)
    rows(cut)
    views = [access.tensor for access in cut.writes]
    grouped = list(views)
    if at.groups.size > 1:
        several = (at.key.size > 1, at.key.size > 1, at.per_group.size * at.value.size > 1)
        for number, copies in enumerate(several):
            if copies:
                grouped[number] = rows(tape.copied_back(views[number], f"{views[number].label} by group"))
    filters = rows(tape.join(grouped, Tensor("filters by group", weight.dims, weight.dtype)))
    rows.drop(*views, *_own(*zip(grouped, views, strict=True)))
    return filters


def _window(setting: Setting, rows: Rows, at: Sizes, inputs: Tensor) -> Tensor:
    """What the convolution reads for one token: the inputs that are kept, less the first, then its own."""
    before = Tensor("inputs before", (at.batch, at.features, Dim("(kernel-1)", at.kernel.size - 1)), setting.dtype)
    parts: tuple[Tensor, ...] = (inputs,)
    if setting.kv_dtype != setting.dtype:
        rows(tape.whole("aten::_to_copy", (), before))
        parts = (before, inputs)
    out = rows(tape.join(parts, tape.made(inputs, "inputs so far", at.batch, at.features, at.kernel)))
    rows.drop(*parts[:-1])
    return out


def _by_chunk(rows: Rows, at: Sizes, x: Tensor, label: str, *own: Dim, apart: bool = False) -> Tensor:
    """X of some heads by chunk, in fp32: (C, B, `own`), the heads first.

    The gradient comes by chunk. Where chunks do not lie one after the other, or the heads' features lie `apart`, it is
    copied.
    """
    seen = x
    if apart or (at.chunks.size > 1 and at.batch.size * own[0].size > 1):
        seen = rows(tape.copied_back(x, f"{x.label} by chunk"))
    out = _copy(rows, seen, label, "fp32", at.chunks, at.batch, *own)
    rows.drop(*(() if seen is x else (seen,)))
    return out


def _unit(setting: Setting, rows: Rows, at: Sizes, x: Tensor) -> Tensor:
    """Queries or keys of a length of their own, one for every state."""
    label = x.label.removeprefix("convolved ")
    dense = _by_chunk(rows, at, x, f"{label} in fp32", at.groups, at.length, at.key)
    normalised = rows(tape.rms_norm(dense, None, f"normalised {label}", setting.chip))
    unit = rows(tape.scale(normalised, f"{label} of unit length"))
    rows.drop(normalised)
    if at.per_group.size > 1:
        narrow, unit = unit, rows(tape.repeat(unit, f"{label} of every state", *at.pieces, at.length, at.key))
        rows.drop(narrow)
    rows.drop(dense)
    return unit


def _rates(setting: Setting, rows: Rows, at: Sizes, x: Tensor) -> tuple[Tensor, Tensor]:
    """β and the logarithm of the decay of each token."""
    heads = (at.groups, at.per_group)
    all_tokens = tuple(dim if dim.size == 1 else Dim("1", 1) for dim in setting.tokens)
    both = tape.made(x, "β and decay", *setting.tokens, at.groups, Dim("2·(Nv/Nk)", 2 * at.per_group.size))
    tape.project(setting, rows, "in_proj_ba", x, both, bias=False)
    labels = ("β as projected", "decay as projected")
    cut = tape.split(both, *(tape.made(x, label, *setting.tokens, *heads) for label in labels))
    rows(cut)
    rows.drop(both)
    b, a = (access.tensor for access in cut.writes)
    wide = _float(rows, a, "decay as projected, in fp32")
    shift, rate = (
        setting.weight(label, name, at.states) for label, name in (("bias of the steps", "dt_bias"), ("decay", "A_log"))
    )
    wide_shift = _float(rows, shift, "bias of the steps in fp32")
    seen = rows(tape.view(wide_shift, "bias of the steps by group", *all_tokens, *heads))
    shifted = rows(tape.add(wide, seen, "shifted decay"))
    rows.drop(seen, *_own((wide, a), (wide_shift, shift)))
    steps = rows(tape.activation("softplus", shifted, "steps"))
    rows.drop(shifted)
    wide_rate = _float(rows, rate, "logarithm of the decay in fp32")
    grown = rows(tape.activation("exp", wide_rate, "size of the decay"))
    rows.drop(*_own((wide_rate, rate)))
    fast = rows(tape.view(grown, "size of the decay by group", *all_tokens, *heads))
    rows.drop(grown)
    negated = rows(tape.whole("aten::neg", (fast,), tape.made(fast, "decay by group")))
    rows.drop(fast)
    decay = rows(tape.multiply(steps, negated, "decay of a token"))
    rows.drop(negated)
    beta = rows(tape.activation("sigmoid", b, "β of a token"))
    first = _rate_by_chunk(rows, at, beta, ends=True)
    second = _rate_by_chunk(rows, at, decay, ends=False)
    rows.drop(decay, steps, b, a)
    return first, second


def _own(*pairs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Of copies and what they were made of: those that are copies."""
    return tuple(made for made, given in pairs if made is not given)


def _rate_by_chunk(rows: Rows, at: Sizes, x: Tensor, *, ends: bool) -> Tensor:
    """A number for each token of every piece, in fp32; x may end."""
    padded = _padded(rows, at, x, at.batch, at.padded, *x.dims[2:])
    out = _by_chunk(rows, at, padded, f"{x.label} of a piece", at.states, at.length)
    rows.drop(*_own((padded, x)))
    if ends:
        rows.drop(x)
    return out


# --- The rule --------------------------------------------------------------------------------------------------------


def _chunked(rows: Rows, at: Sizes, given: Given, *, keeps: bool) -> tuple[Tensor, Tensor]:
    """What is read (C, B·Nv, L, Hv), and the states (B, Nv, Hk, Hv): all, where autograd `keeps` them, or one."""
    query, key, value, beta, decay = given
    since = rows(tape.cumsum(decay, "decay since the chunk's start"))
    grown = rows(tape.activation("exp", since, "what is left of the chunk's start"))
    against = rows(tape.whole("aten::neg", (beta,), tape.made(beta, "−β")))
    between = _between(rows, at, since)
    agree = _agree(rows, at, query, key)
    within = rows(tape.multiply(agree, between, "what is read within a chunk"))
    rows.drop(agree)
    below = _below(rows, at, key, between, against)
    inverse = _inverse(rows, at, below)
    scaled = rows(tape.multiply(value, beta, "β times value"))
    new = rows(tape.product(inverse, scaled, tape.made(value, "new values")))
    rows.drop(scaled)
    rate = rows(tape.multiply(against, grown, "−β times what is left"))
    scaled = rows(tape.multiply(key, rate, "keys at the chunk's start"))
    rows.drop(rate)
    read = rows(tape.product(inverse, scaled, tape.made(key, "corrections")))
    rows.drop(scaled)
    end = rows(tape.cut(since, "decay of a chunk", *at.pieces, Dim("1", 1)))
    asked = rows(tape.multiply(query, grown, "queries at the chunk's start"))
    gap = rows(tape.subtract(end, since, tape.made(since, "decay until the chunk's end")))
    left = rows(tape.activation("exp", gap, "what is left at the chunk's end"))
    rows.drop(gap)
    written = rows(tape.multiply(key, left, "keys at the chunk's end"))
    rows.drop(left)
    lasting = rows(tape.activation("exp", end, "what is left of a state"))
    steps = (new, read, asked, within, written, lasting)
    y, states = _scan(rows, at, steps, keeps=keeps)
    rows.drop(*steps, since, grown, against, between, below, inverse, end)
    return y, states


def _between(rows: Rows, at: Sizes, since: Tensor) -> Tensor:
    """What is left of each token at each other of its piece."""
    square = (at.length, at.length)
    ones = rows(tape.whole("aten::ones", (), Tensor("ones", square, "bool")))
    later = rows(tape.whole("aten::triu", (ones,), Tensor("what is later", square, "bool")))
    rows.drop(ones)
    turned = rows(tape.turned(since, "decay since the chunk's start, turned", *since.dims))
    gaps = rows(tape.subtract(since, turned, tape.made(since, "decay between tokens", *at.square)))
    rows.drop(turned)
    masked = rows(tape.masked_fill(gaps, later, "decay between tokens, masked"))
    rows.drop(gaps)
    between = rows(tape.activation("exp", masked, "what is left between tokens"))
    rows.drop(masked, later)
    return between


def _agree(rows: Rows, at: Sizes, x: Tensor, key: Tensor) -> Tensor:
    """Queries or keys times the keys of their piece."""
    turned = rows(tape.turned(key, f"keys, turned for {x.label}", *at.pieces, at.key, at.length))
    out = rows(tape.product(x, turned, tape.made(x, f"{x.label} times keys", *at.square)))
    rows.drop(turned)
    return out


def _below(rows: Rows, at: Sizes, key: Tensor, between: Tensor, against: Tensor) -> Tensor:
    """How tokens of a piece change what later ones write, (n, L, L)."""
    agree = _agree(rows, at, key, key)
    decayed = rows(tape.multiply(agree, between, "decayed keys times keys"))
    rows.drop(agree)
    below = rows(tape.multiply(decayed, against, "what tokens change"))
    rows.drop(decayed)
    return below


def _inverse(rows: Rows, at: Sizes, below: Tensor) -> Tensor:
    """(1 − below)⁻¹, by blocks of twice the size each time."""
    places = rows(tape.whole("aten::arange", (), Tensor("places", (at.length,), "int64")))
    apart = rows(tape.whole("aten::bitwise_xor", (places,), Tensor("bits of places", (at.length, at.length), "int64")))
    link = _linked(rows, apart, below, 1)
    eye = rows(tape.whole("aten::eye", (), Tensor("ones on the diagonal", (at.length, at.length), below.dtype)))
    found = rows(tape.whole("aten::add", (link, eye), tape.made(below, "inverse of blocks of 2")))
    rows.drop(link, eye)
    size = 2
    while size < at.length.size:
        link = _linked(rows, apart, below, size)
        half = rows(tape.whole("aten::bmm", (found, link), tape.made(below, f"half way to blocks of {2 * size}")))
        rows.drop(link)
        wider = tape.made(below, f"inverse of blocks of {2 * size}")
        rows(tape.whole("aten::baddbmm", (found, half, found), wider))
        rows.drop(half, found)
        found, size = wider, 2 * size
    out = rows(tape.inverse(below, found, "inverse"))
    rows.drop(found, apart, places)
    return out


def _linked(rows: Rows, apart: Tensor, x: Tensor, size: int) -> Tensor:
    """What links the halves of blocks of twice the `size`."""
    shares = rows(tape.whole("aten::floor_divide", (apart,), tape.made(apart, f"bits above {size}")))
    others = rows(tape.whole("aten::ne", (shares,), tape.made(apart, f"what links no blocks of {size}", dtype="bool")))
    rows.drop(shares)
    out = rows(tape.whole("aten::masked_fill", (x, others), tape.made(x, f"what links blocks of {size}")))
    rows.drop(others)
    return out


def _scan(rows: Rows, at: Sizes, steps: tuple[Tensor, ...], *, keeps: bool) -> tuple[Tensor, Tensor]:
    """From chunk to chunk, every result into room made before: what is read, and the states."""
    new = steps[0]
    kept = at.chunks if keeps else Dim("1", 1)
    more = Dim("(⌈T/64⌉+1)", at.chunks.size + 1) if keeps else kept
    sizes = (more, at.batch, at.states, at.key, at.value)
    states = rows(tape.whole("aten::zeros", (), Tensor("states", sizes, new.dtype)))
    corrected = rows(tape.whole("aten::baddbmm", (), tape.made(new, "corrected values", kept, *new.dims[1:])))
    found = rows(tape.whole("aten::bmm", (), tape.made(new, "what is read of the states")))
    y = rows(tape.scan(steps, found, (corrected, states), "what is read"))
    rows.drop(found, corrected)
    return y, states


def _step(rows: Rows, given: Given) -> Tensor:
    """One token: the state that is kept changes in place."""
    query, key, value, beta, decay = given
    left = rows(tape.whole("aten::exp", (decay,), tape.made(decay, "what is left of the state")))
    rows.drop(left)
    said = rows(tape.whole("aten::bmm", (key,), tape.made(value, "what the state says")))
    gap = rows(tape.whole("aten::sub", (value, said), tape.made(value, "what is new")))
    rows.drop(said)
    change = rows(tape.whole("aten::mul", (gap, beta), tape.made(value, "what is written")))
    rows.drop(gap)
    y = rows(tape.whole("aten::bmm", (query,), tape.made(value, "what is read")))
    rows.drop(change)
    return y


# --- After it --------------------------------------------------------------------------------------------------------


def _gated(setting: Setting, rows: Rows, at: Sizes, y: Tensor, gate: Tensor) -> Tensor:
    """What is read, normalised, times SiLU of the gate."""
    wide = _float(rows, gate, "gate in fp32")
    opened = rows(tape.activation("silu", wide, "open gate"))
    rows.drop(*_own((wide, gate)))
    rows += tape.ops_of(RMSNorm(name="norm"), setting._replace(width=at.value), y)
    normalised = held = rows[-1].output
    views: tuple[Tensor, ...] = ()
    if at.missing:
        normalised = rows(tape.cut(held, "normalised, cut back", at.batch, at.seq, at.states, at.value))
        views = (normalised,)
    out = rows(tape.multiply(normalised, opened, "gated"))
    rows.drop(held, *views)
    if out.dtype != y.dtype:
        exact, out = out, rows(tape.cast(out, y.dtype, f"gated, in {y.dtype}"))
        rows.drop(exact)
    rows.drop(opened)
    return out
