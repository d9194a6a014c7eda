"""Latent attention: keys and values are kept as one short vector for each token."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from gptcalc.formula import Dim, Product
from gptcalc.inventory import Weight, Weighted, linear
from gptcalc.parts.norm import RMSNorm
from gptcalc.parts.positions import Rotary
from gptcalc.parts.remembered import Remembered
from gptcalc.parts.scores import Scores
from gptcalc.spec import Probability, Size, Spec

if TYPE_CHECKING:
    from gptcalc.tape import Op, Rows, Setting, Tensor


class LatentAttention(Weighted):
    """N heads whose keys and values come from a latent vector of width R (DeepSeek-AI 2024, DeepSeek-V2, §2.1).

    A head's query and key are a part without positions (size Hn) and a rotated one (size Hr), which all heads share on
    the key's side; its value has size Hv. The query comes from a latent vector of width Rq, or straight from D where
    there is no `q_rank`.
    """

    reads_heads_of_cache: ClassVar[bool] = False
    scores: ClassVar[Scores] = Scores()
    kind: Literal["latent"] = "latent"
    n_heads: Size
    kv_rank: Size
    q_rank: Size | None = None
    d_nope: Size
    d_rope: Size
    d_value: Size
    bias: bool = False
    norm_eps: float = 1e-6
    rotary: Rotary
    scale: float | None = None
    dropout: Probability = 0.0

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """Down to the latents (Rq, D) and (R+Hr, D), their norms, up to the heads, and the output (D, N·Hv)."""
        width, heads = (Dim("D", spec.d_model),), Dim("N", self.n_heads)
        plain, rotated = Dim("Hn", self.d_nope), Dim("Hr", self.d_rope)

        def query(key: str) -> list[tuple[str, Product]]:
            return [(key, (heads, plain)), (key, (heads, rotated))]

        if self.q_rank is None:
            yield from linear("q_proj", query("attn_q"), width, bias=False)
        else:
            rank = (Dim("Rq", self.q_rank),)
            yield from linear("q_a_proj", [("mla_q_a", rank)], width, bias=self.bias)
            yield from self._norm("q_a_layernorm", rank)
            yield from linear("q_b_proj", query("mla_q_b"), rank, bias=False)
        rank = (Dim("R", self.kv_rank),)
        both = [("mla_kv_a", rank), ("mla_kv_a", (rotated,))]
        yield from linear("kv_a_proj_with_mqa", both, width, bias=self.bias)
        yield from self._norm("kv_a_layernorm", rank)
        value = (heads, Dim("Hv", self.d_value))
        yield from linear("kv_b_proj", [("mla_kv_b", (heads, plain)), ("mla_kv_b", value)], rank, bias=False)
        yield from linear("o_proj", [("attn_o", width)], value, bias=self.bias)

    def remembered(self) -> Remembered:
        """The latent vector of each token, and the rotated key that all heads share."""
        return Remembered("latent", ((Dim("R", self.kv_rank),), (Dim("Hr", self.d_rope),)))

    def _norm(self, name: str, rank: Product) -> Iterator[Weight]:
        for row in RMSNorm(name=name, eps=self.norm_eps).over("qk_norm", rank):
            yield row._replace(name=f"{name}.{row.name}")

    def cache(self, batch: Dim, seq: Dim, dtype: str) -> "tuple[Tensor, Tensor]":
        """Room for the latent vectors (B, 1, T, R) and the rotated keys (B, 1, T, Hr) of T tokens of B sequences."""
        from gptcalc import tape

        one = Dim("1", 1)
        return (
            tape.Tensor("cached latent vectors", (batch, one, seq, Dim("R", self.kv_rank)), dtype),
            tape.Tensor("cached rotated keys", (batch, one, seq, Dim("Hr", self.d_rope)), dtype),
        )

    def ops(self, setting: "Setting", x: "Tensor") -> "tuple[Op, ...]":
        """(B, T, D) to the same: latent vectors, keys and values of every head, attention, the projection back."""
        from gptcalc import tape
        from gptcalc.parts import attend

        rows = tape.Rows(setting)
        angles, cos, sin = self.rotary.tables(setting, self.d_rope)
        rows += angles
        query = self._query(setting, rows, x, (cos, sin))
        latent, key = self._latent(setting, rows, x, (cos, sin))
        if setting.cached is not None:
            latent, key = attend.read_cache(self, setting, rows, latent, key, x)
        keys, values = self._expand(setting, rows, latent, key)
        joined = attend.core(self, setting, rows, attend.Given(query, keys, values))
        flat = attend.side_by_side(rows, joined, (*query.dims[:-1], values.dims[-1]))
        tape.project(setting, rows, "o_proj", flat, tape.made(x, "attention output"), bias=self.bias)
        rows.drop(*(() if flat is joined else (flat,)), query, keys, values, joined)
        return tuple(rows)

    def _query(self, setting: "Setting", rows: "Rows", x: "Tensor", waves: "tuple[Tensor, Tensor]") -> "Tensor":
        """(B, T, N, Hn+Hr), the last Hr features of each head rotated."""
        from gptcalc import tape

        heads, size = (*setting.tokens, Dim("N", self.n_heads)), Dim("(Hn+Hr)", self.d_nope + self.d_rope)
        name, source = "q_proj", x
        if self.q_rank is not None:
            rank = Dim("Rq", self.q_rank)
            low = tape.made(x, "latent query", *setting.tokens, rank)
            low = tape.project(setting, rows, "q_a_proj", x, low, bias=self.bias)
            source = self._normalised(setting, rows, "q_a_layernorm", low)
            rows.drop(low)
            name = "q_b_proj"
        fused = tape.project(setting, rows, name, source, tape.made(x, "heads of the query", *heads, size), bias=False)
        if source is not x:
            rows.drop(source)
        cut = tape.split(
            fused,
            tape.made(x, "query without positions", *heads, Dim("Hn", self.d_nope)),
            tape.made(x, "query to rotate", *heads, Dim("Hr", self.d_rope)),
        )
        rows(cut)
        rows.drop(fused)
        plain, turned = rows.meant(*(access.tensor for access in cut.writes))
        rows += self.rotary.rotate(setting, turned, *waves)
        rotated = rows[-1].output
        query = rows(tape.join((plain, rotated), tape.made(x, "query", *heads, size)))
        rows.drop(rotated, plain, turned)
        return query

    def _latent(
        self, setting: "Setting", rows: "Rows", x: "Tensor", waves: "tuple[Tensor, Tensor]"
    ) -> "tuple[Tensor, Tensor]":
        """The latent vectors (B, T, R) and the rotated keys (B, T, 1, Hr) of these tokens."""
        from gptcalc import tape

        rank, size = Dim("R", self.kv_rank), Dim("Hr", self.d_rope)
        both = tape.made(x, "latent vector and key", *setting.tokens, Dim("(R+Hr)", rank.size + size.size))
        both = tape.project(setting, rows, "kv_a_proj_with_mqa", x, both, bias=self.bias)
        parts = (
            tape.made(x, "latent vector", *setting.tokens, rank),
            tape.made(x, "key to rotate", *setting.tokens, Dim("1", 1), size),
        )
        cut = tape.split(both, *parts)
        rows(cut)
        rows.drop(both)
        latent, key = rows.meant(*(access.tensor for access in cut.writes))
        dense = latent
        if not tape.is_dense(latent):
            dense = rows(tape.clone(latent, "latent vector side by side", *latent.dims))
        normalised = self._normalised(setting, rows, "kv_a_layernorm", dense)
        rows.drop(latent, *(() if dense is latent else (dense,)))
        rows += self.rotary.rotate(setting, key, *waves)
        rotated = rows[-1].output
        rows.drop(key)
        return normalised, rotated

    def _normalised(self, setting: "Setting", rows: "Rows", name: str, x: "Tensor") -> "Tensor":
        """X (…, rank), normalised over the rank."""
        from gptcalc import tape

        norm = RMSNorm(name=name, eps=self.norm_eps)
        rows += tape.ops_of(norm, setting._replace(width=x.dims[-1]), x)
        return rows[-1].output

    def _expand(self, setting: "Setting", rows: "Rows", latent: "Tensor", key: "Tensor") -> "tuple[Tensor, Tensor]":
        """Keys (B, S, N, Hn+Hr) and values (B, S, N, Hv) of every head."""
        from gptcalc import tape

        seen = (*key.dims[:2], Dim("N", self.n_heads))
        plain, size, value = Dim("Hn", self.d_nope), Dim("Hr", self.d_rope), Dim("Hv", self.d_value)
        wide = tape.made(latent, "keys and values", *seen, Dim("(Hn+Hv)", plain.size + value.size))
        wide = tape.project(setting, rows, "kv_b_proj", latent, wide, bias=False)
        cut = tape.split(
            wide, tape.made(wide, "keys without positions", *seen, plain), tape.made(wide, "values", *seen, value)
        )
        rows(cut)
        rows.drop(wide)
        unrotated, values = (access.tensor for access in cut.writes)
        shared = rows(tape.expand(key, "key of every head", *seen, size))
        keys = rows(
            tape.join((unrotated, shared), tape.made(wide, "keys", *seen, Dim("(Hn+Hr)", plain.size + size.size)))
        )
        rows.drop(shared, unrotated, latent, key)
        return keys, values
