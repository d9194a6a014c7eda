"""Attention: who looks at whom."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from gptcalc.formula import Dim, Product
from gptcalc.inventory import Slice, Weight, Weighted, linear
from gptcalc.parts.norm import LayerNorm, RMSNorm, inside
from gptcalc.parts.positions import Rotary
from gptcalc.parts.remembered import Remembered
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
    to the distance (`alibi`: Press et al. 2022). The t-th query is multiplied by 1 + `tempered`·log(1 + ⌊t/s⌋) with
    s = `tempered_from` (Llama 4). `sinks` are one more score for each head, of nothing (Xiao et al. 2024). A `gated`
    output is multiplied by a sigmoid that the query layer computes beside the query, or a layer with a `gate_name`; it
    may be normalised before the output layer (`out_norm`).
    """

    without_ops = (
        "norm_over",
        "clip",
        "window",
        "softcap",
        "alibi",
        "sinks",
        "gated",
        "tempered",
        "gate_name",
        "out_norm",
    )
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
    sinks: bool = False
    gated: bool = False
    gate_name: str = ""
    out_norm: AnyPart | None = None
    tempered: float | None = None
    tempered_from: Size | None = None
    dropout: Probability = 0.0
    residual_dropout: Probability = 0.0

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
        query, key, value = self._project(setting, rows, x)
        if not self.norm_after_rotary:
            query, key = self._normalised(setting, rows, query, key)
        if self.rotary is not None:
            angles, cos, sin = self.rotary.tables(setting, self.d_head)
            rows += angles if setting.first else ()
            rotated = []
            for vector in (query, key):
                rows += self.rotary.rotate(setting, vector, cos, sin)
                rotated.append(rows[-1].output)
            rows.drop(key, query)
            query, key = rotated
        if self.norm_after_rotary:
            query, key = self._normalised(setting, rows, query, key)
        if setting.cached is not None:
            key, value = attend.read_cache(self, setting, rows, key, value)
        joined = attend.BACKENDS[setting.attention](self, setting, rows, attend.Given(query, key, value))
        flat = attend.side_by_side(rows, joined, query.dims)
        out = self._layer(setting, rows, self.out_name, flat, tape.made(x, "attention output"), bias=self.out_bias)
        rows.drop(*(() if flat is joined else (flat,)))
        locals_ = [query, key, value, joined]
        if setting.training and self.residual_dropout:
            rows(tape.dropout(out, "dropped attention output"))
            locals_.append(out)
        rows.drop(*locals_)
        return tuple(rows)

    def _layer(  # noqa: PLR0913  what a layer is
        self, setting: "Setting", rows: "Rows", name: str, x: "Tensor", out: "Tensor", *, bias: bool
    ) -> "Tensor":
        from gptcalc import tape

        return tape.project(setting, rows, name, x, out, bias=bias, transposed=self.transposed)

    def _project(self, setting: "Setting", rows: "Rows", x: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
        """Query (B, T, N, H), key and value (B, T, K, H): three outputs, or views of a fused one."""
        from gptcalc import tape
        from gptcalc.parts import attend

        size = Dim("H", self.d_head)
        heads = {"query": Dim("N", self.n_heads), "key": Dim("K", self.n_kv_heads), "value": Dim("K", self.n_kv_heads)}
        query, key, value = (tape.made(x, label, *setting.tokens, n, size) for label, n in heads.items())
        if len(self.qkv_names) > 1:
            outs = []
            for name, out in zip(self.qkv_names, (query, key, value), strict=True):
                self._layer(setting, rows, name, x, out, bias=self.qkv_bias)
                seen = attend.by_token(self, setting, rows, out)
                outs.append(attend.by_head(self, setting, rows, seen))
            return outs[0], outs[1], outs[2]
        if self.fused_by == "groups":
            return self._groups(setting, rows, x, query, (key, value))
        together = Dim("(N+2K)", self.n_heads + 2 * self.n_kv_heads)
        fused = tape.made(x, "query, key, value", *setting.tokens, together, size)
        self._layer(setting, rows, self.qkv_names[0], x, fused, bias=self.qkv_bias)
        cut = tape.split(fused, query, key, value)
        rows(cut)
        rows.drop(fused)
        query, key, value = (attend.by_head(self, setting, rows, access.tensor) for access in cut.writes)
        return query, key, value

    def _groups(
        self, setting: "Setting", rows: "Rows", x: "Tensor", query: "Tensor", shared: "tuple[Tensor, Tensor]"
    ) -> "tuple[Tensor, Tensor, Tensor]":
        """Query, key and value of a fused layer that computes them group by group: views, or a copy of the queries."""
        from gptcalc import tape

        n_groups, per_group = Dim("K", self.n_kv_heads), self.n_heads // self.n_kv_heads
        row = Dim("(N/K+2)·H", (per_group + 2) * self.d_head)
        fused = tape.made(x, "query, key, value", *setting.tokens, n_groups, row)
        if copies := self.n_kv_heads > 1 and per_group > 1:
            of_group = (*setting.tokens, n_groups, Dim("N/K·H", per_group * self.d_head))
            query = tape.made(x, "query of each group", *of_group)
        elif per_group > 1:  # one group: all heads are side by side
            heads = Dim("(N+2)", per_group + 2)
            fused = tape.made(x, "query, key, value", *setting.tokens, heads, query.dims[-1])
        self._layer(setting, rows, self.qkv_names[0], x, fused, bias=self.qkv_bias)
        cut = tape.split(fused, query, *shared)
        rows(cut)
        rows.drop(fused)
        query, key, value = (access.tensor for access in cut.writes)
        if copies:
            own = (*setting.tokens, Dim("N", self.n_heads), key.dims[-1])
            grouped, query = query, rows(tape.clone(query, "query", *own))
            rows.drop(grouped)
        return query, key, value

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
            rows += tape.ops_of(norm, setting._replace(width=x.dims[-1]), dense)
            out = rows[-1].output
            rows.drop(*(() if dense is x else (dense,)))
            found.append(attend.dense_gradient(self, setting, rows, out, query=x is query))
        rows.drop(*(x for norm, x in ((self.q_norm, query), (self.k_norm, key)) if norm is not None))
        return found[0], found[1]

    def cache(self, batch: Dim, seq: Dim, dtype: str) -> "tuple[Tensor, Tensor]":
        """Room for the keys and values of T tokens of B sequences: (B, K, T, H) each."""
        from gptcalc import tape

        dims = (batch, Dim("K", self.n_kv_heads), seq, Dim("H", self.d_head))
        return tape.Tensor("cached keys", dims, dtype), tape.Tensor("cached values", dims, dtype)
