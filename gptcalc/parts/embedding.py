"""Token tables, at the input and at the output."""

from collections.abc import Callable, Iterator
from functools import partial
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

    kind: Literal["token_embedding"] = "token_embedding"
    dropout: Probability = 0.0
    scaled: bool = False
    multiplier: float = 1.0
    d_embed: Size | None = None

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """The token table (V, D)."""
        yield Weight("weight", "lookup", _table(spec, "embedding", self.d_embed))

    def table(self, setting: "Setting") -> "Tensor":
        """The token table as it is read inside the module."""
        width = setting.width if self.d_embed is None else Dim("W", self.d_embed)
        return setting.weight("token table", "weight", setting.n_vocab, width)

    def ops(self, setting: "Setting", ids: "Tensor") -> "tuple[Op, ...]":
        """The rows of `ids` (M) to (M, D), and where there is a factor their product with it."""
        from gptcalc import tape

        rows = tape.Rows(setting)
        x = rows(tape.embedding(ids, self.table(setting), setting.unique, "token rows"))
        if self.scaled or self.multiplier != 1.0:
            rows(tape.scale(x, "scaled token rows"))
            rows.drop(x)
        return tuple(rows)


class Projection(Weighted):
    """A matrix between D and the narrower width W of the token table (Zhang et al. 2022, OPT-350M).

    It widens at the input (`widens`), and narrows before the unembedding.
    """

    kind: Literal["projection"] = "projection"
    d_embed: Size
    widens: bool

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """The matrix (D, W), or (W, D)."""
        wide, narrow = (Dim("D", spec.d_model),), (Dim("W", self.d_embed),)
        axes = (wide, narrow) if self.widens else (narrow, wide)
        yield Weight("weight", "matmul", (Slice("embedding_proj", axes),))

    def ops(self, setting: "Setting", x: "Tensor") -> "tuple[Op, ...]":
        """(…, W) to (…, D), or back."""
        from gptcalc import tape

        rows, narrow = tape.Rows(setting), Dim("W", self.d_embed)
        axes = (setting.width, narrow) if self.widens else (narrow, setting.width)
        out = tape.made(x, f"{'widened' if self.widens else 'narrowed'} {x.label}", *x.dims[:-1], axes[0])
        rows(tape.linear(x, setting.weight("projection", "weight", *axes), None, out))
        return tuple(rows)


class Unembedding(Weighted):
    """D to V: scores for each token. Tied (Press & Wolf 2017): it uses the token table and stores nothing.

    Scores are multiplied by `multiplier`, and then bounded by `softcap`: c·tanh(score/c) (Gemma 2). `d_embed` is the
    width W of a narrower table.
    """

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
        width = setting.width if self.d_embed is None else Dim("W", self.d_embed)
        weight = table if self.tied else setting.weight("unembedding", "weight", n_vocab, width)
        bias = setting.weight("unembedding bias", "bias", n_vocab) if self.bias else None
        after: list[Callable[[Tensor, str], Op]] = []
        if self.multiplier != 1.0:
            after.append(tape.scale)
        if self.softcap is not None:
            after += [tape.over_number, partial(tape.activation, "tanh"), tape.scale]
        labels = {0: ["logits"], 1: ["scores", "logits"], 3: [*_BOUNDED], 4: ["scores", *_BOUNDED]}[len(after)]
        dense = x
        if bias is not None and not tape.is_dense(x):  # the last of several tokens: a bias is added to dense rows alone
            dense = rows(tape.clone(x, f"{x.label}, side by side", *x.dims))
        scores = rows(tape.linear(dense, weight, bias, tape.made(x, labels[0], *x.dims[:-1], n_vocab)))
        if dense is not x:
            rows.drop(dense)
        for op, label in zip(after, labels[1:], strict=True):
            before, scores = scores, rows(op(scores, label))
            rows.drop(before)
        return tuple(rows)


#: What scores are on the way to bounded logits.
_BOUNDED = ("unbounded scores", "scores as shares of the bound", "bounded shares", "logits")
