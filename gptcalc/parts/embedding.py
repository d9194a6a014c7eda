"""Token tables, at the input and at the output."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from gptcalc.formula import Dim
from gptcalc.inventory import Slice, Weight, Weighted
from gptcalc.spec import Probability, Size, Spec

if TYPE_CHECKING:
    from gptcalc.tape import Op, Setting, Tensor


def _table(spec: Spec, component: str, narrow: int | None) -> tuple[Slice, ...]:
    """One row of width D for each of V tokens, or of a `narrow` width W."""
    width = Dim("D", spec.d_model) if narrow is None else Dim("W", narrow)
    return (Slice(component, ((Dim("V", spec.n_vocab),), (width,))),)


class TokenEmbedding(Weighted):
    """A row of width D for each token; `scaled` multiplies by √D (Vaswani et al. 2017, §3.4), else by `multiplier`.

    Rows may be narrower (`d_embed`, W): a projection follows.
    """

    without_ops = ("multiplier", "d_embed")
    kind: Literal["token_embedding"] = "token_embedding"
    dropout: Probability = 0.0
    scaled: bool = False
    multiplier: float = 1.0
    d_embed: Size | None = None

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """The token table (V, D)."""
        yield Weight("weight", "lookup", _table(spec, "embedding", self.d_embed))

    def ops(self, setting: "Setting", ids: "Tensor") -> "tuple[Op, ...]":
        """The rows of `ids` (M) to (M, D), and where it is `scaled` their product with √D."""
        from gptcalc import tape

        rows = tape.Rows(setting)
        table = setting.weight("token table", "weight", setting.n_vocab, setting.width)
        x = rows(tape.embedding(ids, table, setting.unique, "token rows"))
        if self.scaled:
            rows(tape.scale(x, "scaled token rows"))
            rows.drop(x)
        return tuple(rows)


class Projection(Weighted):
    """A matrix between D and the narrower width W of the token table (Zhang et al. 2022, OPT-350M).

    It widens at the input (`widens`), and narrows before the unembedding.
    """

    without_ops = None
    kind: Literal["projection"] = "projection"
    d_embed: Size
    widens: bool

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """The matrix (D, W), or (W, D)."""
        wide, narrow = (Dim("D", spec.d_model),), (Dim("W", self.d_embed),)
        axes = (wide, narrow) if self.widens else (narrow, wide)
        yield Weight("weight", "matmul", (Slice("embedding_proj", axes),))


class Unembedding(Weighted):
    """D to V: scores for each token. Tied (Press & Wolf 2017): it uses the token table and stores nothing.

    Scores are multiplied by `multiplier`, and then bounded by `softcap`: c·tanh(score/c) (Gemma 2). `d_embed` is the
    width W of a narrower table.
    """

    without_ops = ("d_embed", "multiplier", "softcap")
    kind: Literal["unembedding"] = "unembedding"
    tied: bool
    bias: bool = False
    d_embed: Size | None = None
    multiplier: float = 1.0
    softcap: float | None = None

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """The matrix (V, D), the token table itself where it is tied, and a bias (V) where there is one."""
        tied_to = f"{spec.trunk}.{spec.embedding.name}.weight" if self.tied else None
        source = "Press & Wolf 2017" if self.tied else ""
        yield Weight("weight", "matmul", _table(spec, "unembedding", self.d_embed), tied_to=tied_to, source=source)
        if self.bias:
            yield Weight("bias", "bias", (Slice("lm_head_bias", ((Dim("V", spec.n_vocab),),)),))

    def ops(self, setting: "Setting", x: "Tensor", table: "Tensor") -> "tuple[Op, ...]":
        """Vectors (…, D) to logits (…, V), by its own matrix or, tied, by the token `table`."""
        from gptcalc import tape

        rows, n_vocab = tape.Rows(setting), setting.n_vocab
        weight = table if self.tied else setting.weight("unembedding", "weight", n_vocab, setting.width)
        bias = setting.weight("unembedding bias", "bias", n_vocab) if self.bias else None
        rows(tape.linear(x, weight, bias, tape.made(x, "logits", *x.dims[:-1], n_vocab)))
        return tuple(rows)
