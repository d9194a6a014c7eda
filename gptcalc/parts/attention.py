"""Attention: who looks at whom."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from gptcalc.formula import Dim, Product
from gptcalc.inventory import Slice, Weight, Weighted, linear
from gptcalc.parts.norm import LayerNorm, RMSNorm, inside
from gptcalc.parts.positions import Rotary
from gptcalc.parts.remembered import Remembered
from gptcalc.parts.scores import Scores
from gptcalc.spec import AnyPart, Probability, Size, Spec

if TYPE_CHECKING:
    from gptcalc.tape import Op, Rows, Setting, Tensor


class MultiHeadAttention(Weighted):
    """N query heads of size H over K key/value heads (K = N: Vaswani et al. 2017; K < N: Ainslie et al. 2023).

    Three `qkv_names` are three layers, one name is a fused layer: its rows are query, key and value in this order for
    the model ("parts"), or for each group of heads that share a key ("groups", GPT-NeoX, Falcon); CodeGen has query,
    value and key, in this order, for each quarter of the heads ("quarters"). `transposed` keeps weights as (in, out).

    Query and key may be normalised (`q_norm`, `k_norm`) before the rotation or after it: over each head with one gain
    for all heads ("head"), with a gain for each ("heads"), with a norm for each ("list"), or over all heads together
    ("all"). They may be clipped (`clip`). A `window` limits how many tokens back are seen; `chunked`, none before the
    last multiple of it. Scores are multiplied by `scale` (else 1/√H), bounded by `softcap`, and shifted in proportion
    to the distance (`alibi`: Press et al. 2022; its slopes times `alibi_steepness`, in Falcon 1/√H). The t-th query
    is multiplied by 1 + `tempered`·log(1 + ⌊t/s⌋) with s = `tempered_from` (Llama 4). `sinks` are one more score for
    each head, of nothing (Xiao et al. 2024). A `gated` output is multiplied by a sigmoid that the query layer
    computes beside the query, or a layer with a `gate_name`; it may be normalised before the output layer
    (`out_norm`).
    """

    without_ops = ("gate_name", "out_norm")
    reads_heads_of_cache: ClassVar[bool] = True
    kind: Literal["multi_head"] = "multi_head"
    n_heads: Size
    n_kv_heads: Size
    d_head: Size
    qkv_bias: bool
    out_bias: bool
    qkv_names: tuple[str] | tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")
    out_name: str = "o_proj"
    fused_by: Literal["parts", "groups", "quarters"] = "parts"
    transposed: bool = False
    rotary: Rotary | None = None
    q_norm: AnyPart | None = None
    k_norm: AnyPart | None = None
    norm_over: Literal["head", "heads", "list", "all"] = "head"
    norm_after_rotary: bool = False
    clip: float | None = None
    window: Size | None = None
    chunked: bool = False
    scale: float | None = None
    softcap: float | None = None
    alibi: bool = False
    alibi_steepness: float = 1.0
    sinks: bool = False
    gated: bool = False
    gate_name: str = ""
    out_norm: AnyPart | None = None
    tempered: float | None = None
    tempered_from: Size | None = None
    dropout: Probability = 0.0
    residual_dropout: Probability = 0.0

    @property
    def scores(self) -> Scores:
        """What becomes of its scores."""
        return Scores(self.window, self.chunked, self.n_heads if self.alibi else 0, self.softcap, self.sinks)

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """Query (N·H, D), key and value (K·H, D), output (D, N·H), and their biases; norms and sinks."""
        width, size = (Dim("D", spec.d_model),), Dim("H", self.d_head)
        query, shared = (Dim("N", self.n_heads), size), (Dim("K", self.n_kv_heads), size)
        outputs = [
            ("attn_q", (Dim("2", 2), *query) if self.gated and not self.gate_name else query),
            ("attn_k", shared),
            ("attn_v", shared),
        ]
        layers = [outputs] if len(self.qkv_names) == 1 else [[output] for output in outputs]
        for name, computed in zip(self.qkv_names, layers, strict=True):
            yield from linear(name, computed, width, bias=self.qkv_bias, transposed=self.transposed)
        if self.gate_name:
            yield from linear(self.gate_name, [("attn_gate", query)], width, bias=False)
        yield from inside(self.out_norm, query)
        output = [("attn_o", width)]
        yield from linear(self.out_name, output, query, bias=self.out_bias, transposed=self.transposed)
        for norm, heads in ((self.q_norm, query), (self.k_norm, shared)):
            yield from self._norm(norm, heads)
        if self.sinks:
            yield Weight("sinks", "norm", (Slice("attn_sinks", ((query[0],),)),), source="Xiao et al. 2024")

    def _norm(self, norm: AnyPart | None, heads: Product) -> Iterator[Weight]:
        if not isinstance(norm, LayerNorm | RMSNorm):
            return
        count, size = heads
        axes = {"all": (heads,), "heads": ((count,), (size,))}.get(self.norm_over, ((size,),))
        paths = [f"{norm.name}.norms.{n}" for n in range(count.size)] if self.norm_over == "list" else [norm.name]
        for path in paths:
            for row in norm.over("qk_norm", *axes):
                yield row._replace(name=f"{path}.{row.name}")

    def remembered(self) -> Remembered:
        """A key and a value of each of K heads for every token in sight."""
        vector = (Dim("K", self.n_kv_heads), Dim("H", self.d_head))
        kind = "full" if self.window is None else "chunked" if self.chunked else "sliding"
        return Remembered(kind, (vector, vector), window=self.window)

    def ops(self, setting: "Setting", x: "Tensor") -> "tuple[Op, ...]":
        """(B, T, D) to the same: projections, rotations, attention by `setting.attention`, the projection back."""
        from gptcalc import tape
        from gptcalc.parts import attend

        rows = tape.Rows(setting)
        *vectors, gate = self._project(setting, rows, x)
        query, key, value = rows.meant(*vectors)
        if not self.norm_after_rotary:
            query, key = self._normalised(setting, rows, query, key)
        if self.rotary is not None:
            angles, cos, sin = self.rotary.tables(setting, self.d_head)
            rows += angles
            rotated = []
            for vector in (query, key):
                rows += self.rotary.rotate(setting, vector, cos, sin)
                rotated.append(rows[-1].output)
            rows.drop(key, query)
            query, key = rotated
        if self.norm_after_rotary:
            query, key = self._normalised(setting, rows, query, key)
        if self.tempered is not None:
            cool, query = query, self._warmed(setting, rows, query)
            rows.drop(cool)
        if setting.cached is not None:
            key, value = attend.read_cache(self, setting, rows, key, value, query)
        joined = attend.core(self, setting, rows, attend.Given(query, key, value))
        # A bias is added in the kernel of the product to dense rows alone; stored transposed, it is to any.
        flat = attend.side_by_side(rows, joined, query.dims, dense=self.out_bias and not self.transposed)
        if gate is not None:
            flat = self._gated(rows, flat, joined, gate)
        out = self._layer(setting, rows, self.out_name, flat, tape.made(x, "attention output"), bias=self.out_bias)
        rows.drop(*(() if flat is joined else (flat,)))
        locals_ = [query, key, value, joined, *(() if gate is None else (gate,))]
        if setting.training and self.residual_dropout:
            rows(tape.dropout(out, "dropped attention output"))
            locals_.append(out)
        rows.drop(*locals_)
        return tuple(rows)

    @staticmethod
    def _gated(rows: "Rows", flat: "Tensor", joined: "Tensor", gate: "Tensor") -> "Tensor":
        """The weighted values, each multiplied by the sigmoid of its gate."""
        from gptcalc import tape

        opened = rows(tape.activation("sigmoid", gate, "open gates"))
        out = rows(tape.multiply(flat, opened, "gated values"))
        rows.drop(opened, *(() if flat is joined else (flat,)))
        return out

    def _warmed(self, setting: "Setting", rows: "Rows", query: "Tensor") -> "Tensor":
        """The query times 1 + `tempered`·log(1 + ⌊t/s⌋), which the first layer makes for all of its kind."""
        from gptcalc import tape

        once = setting.once(("temperatures", self.tempered, self.tempered_from))
        factors = tape.Tensor(f"temperatures{once.suffix}", (setting.seq,), "fp32")
        made = tape.Rows(setting)
        for name in ("arange", "div", "floor", "log1p", "mul", "add"):
            label = factors.label if name == "add" else f"{name} of temperatures{once.suffix}"
            step = tape.made(factors, label)
            made(tape.whole(f"aten::{name}", [made[-1].output] if made else (), step))
            if name not in ("arange", "div"):
                made.drop(made[-2].output)
        if setting.dtype != factors.dtype:
            wide, factors = factors, made(tape.cast(factors, setting.dtype, factors.label))
            made.drop(wide)
        made.drop(made[0].output)
        if once.new:
            rows += [op._replace(shared=True) for op in made]
        return rows(tape.multiply(query, factors, f"warmed {query.label}", constant=True))

    def _layer(  # noqa: PLR0913  what a layer is
        self, setting: "Setting", rows: "Rows", name: str, x: "Tensor", out: "Tensor", *, bias: bool
    ) -> "Tensor":
        from gptcalc import tape

        return tape.project(setting, rows, name, x, out, bias=bias, transposed=self.transposed)

    def _project(self, setting: "Setting", rows: "Rows", x: "Tensor") -> "tuple[Tensor, Tensor, Tensor, Tensor | None]":
        """Query (B, T, N, H), key and value (B, T, K, H), outputs or views of one; the gate where there is one."""
        from gptcalc import tape
        from gptcalc.parts import attend

        size = Dim("H", self.d_head)
        heads = {"query": Dim("N", self.n_heads), "key": Dim("K", self.n_kv_heads), "value": Dim("K", self.n_kv_heads)}
        query, key, value = (tape.made(x, label, *setting.tokens, n, size) for label, n in heads.items())
        if len(self.qkv_names) > 1:
            outs = []
            for name, out in zip(self.qkv_names, (query, key, value), strict=True):
                if self.gated and out is query:
                    outs += self._query_and_gate(setting, rows, name, x, query)
                    continue
                self._layer(setting, rows, name, x, out, bias=self.qkv_bias)
                # The gradient of what is clipped is dense: its mask comes first among what decides on the strides.
                seen = attend.by_token(self, setting, rows, out) if self.clip is None else self._clipped(rows, out)
                outs.append(attend.by_head(self, setting, rows, seen))
            if self.gated:
                return self._cut_gate(rows, query, *outs)
            return outs[0], outs[1], outs[2], None
        if self.fused_by != "parts":
            return *self._groups(setting, rows, x, (query, key, value)), None
        together = Dim("(N+2K)", self.n_heads + 2 * self.n_kv_heads)
        fused = tape.made(x, "query, key, value", *setting.tokens, together, size)
        self._layer(setting, rows, self.qkv_names[0], x, fused, bias=self.qkv_bias)
        fused = self._clipped(rows, fused)
        cut = tape.split(fused, query, key, value)
        rows(cut)
        rows.drop(fused)
        query, key, value = (attend.by_head(self, setting, rows, access.tensor) for access in cut.writes)
        return query, key, value, None

    def _clipped(self, rows: "Rows", x: "Tensor") -> "Tensor":
        """No number beyond `clip`."""
        from gptcalc import tape

        if self.clip is None:
            return x
        out = rows(tape.clamp(x, f"{x.label} clipped", 2))
        rows.drop(x)
        return out

    def _query_and_gate(
        self, setting: "Setting", rows: "Rows", name: str, x: "Tensor", query: "Tensor"
    ) -> "list[Tensor]":
        """What computes both: for each head the query, then the gate."""
        from gptcalc import tape

        *axes, size = query.dims
        both = tape.made(x, "query and gate", *axes, Dim("2H", 2 * size.size))
        self._layer(setting, rows, name, x, both, bias=self.qkv_bias)
        return [self._clipped(rows, both)]

    @staticmethod
    def _cut_gate(
        rows: "Rows", query: "Tensor", both: "Tensor", key: "Tensor", value: "Tensor"
    ) -> "tuple[Tensor, Tensor, Tensor, Tensor]":
        """The query is a view, and so is the gate of a single head; those of more are copied side by side."""
        from gptcalc import tape

        cut = tape.split(both, query, tape.made(query, "gate of each head"))
        rows(cut)
        rows.drop(both)
        query, gate = (access.tensor for access in cut.writes)
        if not tape.joins(gate, *gate.dims[2:]):
            apart, gate = gate, rows(tape.clone(gate, "gate", *gate.dims))
            rows.drop(apart)
        return query, key, value, gate

    def _groups(
        self, setting: "Setting", rows: "Rows", x: "Tensor", parts: "tuple[Tensor, Tensor, Tensor]"
    ) -> "tuple[Tensor, Tensor, Tensor]":
        """Query, key and value of a fused layer that is cut group by group: views, or copies of many heads a group."""
        from gptcalc import tape

        quarters = self.fused_by == "quarters"
        n_groups = Dim("4", 4) if quarters else Dim("K", self.n_kv_heads)
        of_each = [self.n_heads // n_groups.size, *[1 if not quarters else self.n_heads // 4] * 2]
        copies = [n_groups.size > 1 and count > 1 for count in of_each]
        row = (n_groups, Dim("(N+2K)·H/groups", sum(of_each) * self.d_head))
        if n_groups.size == 1:  # all heads are side by side
            row = (Dim("(N+2K)", sum(of_each)), parts[0].dims[-1])
        fused = tape.made(x, "query, key, value", *setting.tokens, *row)
        self._layer(setting, rows, self.qkv_names[0], x, fused, bias=self.qkv_bias)
        fused = self._clipped(rows, fused)
        views = [
            tape.made(x, f"{part.label} of each group", *setting.tokens, n_groups, Dim("heads·H", count * self.d_head))
            if copied
            else part
            for part, count, copied in zip(parts, of_each, copies, strict=True)
        ]
        cut = tape.split(fused, *views)
        rows(cut)
        rows.drop(fused)
        found = []
        for access, part, copied in zip(cut.writes, parts, copies, strict=True):
            found.append(rows(tape.clone(access.tensor, part.label, *part.dims)) if copied else access.tensor)
        rows.drop(*(access.tensor for access, copied in zip(cut.writes, copies, strict=True) if copied))
        return found[0], found[1], found[2]

    def _normalised(self, setting: "Setting", rows: "Rows", query: "Tensor", key: "Tensor") -> "tuple[Tensor, Tensor]":
        """Query and key (B, T, heads, H), each by its norm where it has one."""
        from gptcalc import tape
        from gptcalc.parts import attend

        found = []
        for norm, x in ((self.q_norm, query), (self.k_norm, key)):
            if norm is None:
                found.append(x)
                continue
            dense = x if tape.joins(x, *x.dims) else rows(tape.clone(x, f"{x.label} side by side", *x.dims))
            out = self._by_norm(setting, rows, norm, dense)
            rows.drop(*(() if dense is x else (dense,)))
            found.append(attend.dense_gradient(self, setting, rows, out, query=x is query))
        rows.drop(*(x for norm, x in ((self.q_norm, query), (self.k_norm, key)) if norm is not None))
        return found[0], found[1]

    def _by_norm(self, setting: "Setting", rows: "Rows", norm: AnyPart, x: "Tensor") -> "Tensor":
        """Query or key (B, T, heads, H): each head by itself, or, seen side by side, all together."""
        from gptcalc import tape

        if not isinstance(norm, LayerNorm | RMSNorm):
            raise TypeError(f"part {norm.kind!r} is no norm of heads")
        inside, (count, size) = setting.within(norm.name), x.dims[-2:]
        if self.norm_over == "all":
            both = Dim(f"{count.letter}·H", count.size * size.size)
            flat = rows(tape.view(x, x.label, *x.dims[:-2], both))
            rows += norm.normalise(inside, flat, both)
            wide = rows[-1].output
            out = rows(tape.view(wide, f"{wide.label} by head", *x.dims))
            rows.drop(flat, wide)
            return out
        if self.norm_over == "list":
            return self._by_norms(inside, rows, norm, x)
        rows += norm.normalise(inside, x, *((count, size) if self.norm_over == "heads" else (size,)))
        return rows[-1].output

    @staticmethod
    def _by_norms(setting: "Setting", rows: "Rows", norm: "LayerNorm | RMSNorm", x: "Tensor") -> "Tensor":
        """A norm for each head: normalised together, then multiplied by their gains side by side."""
        from gptcalc import tape

        count, size = x.dims[-2:]
        rows += norm.model_copy(update={"learned": False}).normalise(setting, x, size)
        out = rows[-1].output
        names = [
            name
            for name, there in (("weight", norm.learned), ("bias", norm.learned and getattr(norm, "bias", False)))
            if there
        ]
        for name in names:
            each = [setting.within(f"norms.{n}").weight(f"norm {name}", name, size) for n in range(count.size)]
            stacked = rows(
                tape.whole("aten::stack", each, tape.Tensor(f"{name}s of {norm.name}", (count, size), x.dtype))
            )
            before, label = out, f"{out.label}, {name}ed"
            out = rows(tape.multiply(out, stacked, label) if name == "weight" else tape.add(out, stacked, label))
            rows.drop(before, stacked)
        return out

    def cache(self, batch: Dim, seq: Dim, dtype: str) -> "tuple[Tensor, Tensor]":
        """Room for the keys and values of T tokens of B sequences, at most a window: (B, K, T, H) each."""
        from gptcalc import tape

        if self.window is not None and self.window < seq.size:
            seq = Dim("W", self.window)
        dims = (batch, Dim("K", self.n_kv_heads), seq, Dim("H", self.d_head))
        return tape.Tensor("cached keys", dims, dtype), tape.Tensor("cached values", dims, dtype)
