"""A layer: the order of norms, attention, MLP and residual adds."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from gptcalc.inventory import Weight, Weighted, part_weights
from gptcalc.spec import AnyPart, Spec

if TYPE_CHECKING:
    from gptcalc.tape import Op, Setting, Tensor


class Block(Weighted):
    """Attention and MLP, each with its norms and a residual add.

    `order` is `pre` (GPT-2 on: norm, part, add; Xiong et al. 2020), `post` (GPT-1: part, add, norm), or `parallel`
    (GPT-J: both read x and are added to it). A part may have no norm of its own (in parallel, the MLP then
    shares that of attention), and a second one after it, before the add (Gemma 2; OLMo 2 has that alone). What is
    added is multiplied by `residual_multiplier` (Granite).
    """

    without_ops = ("attention_post_norm", "mlp_post_norm", "residual_multiplier")
    kind: Literal["block"] = "block"
    name: str = ""
    order: Literal["pre", "post", "parallel"] = "pre"
    attention_norm: AnyPart | None
    attention: AnyPart
    attention_post_norm: AnyPart | None = None
    mlp_norm: AnyPart | None
    mlp: AnyPart
    mlp_post_norm: AnyPart | None = None
    residual_multiplier: float = 1.0

    @property
    def parts(self) -> tuple[AnyPart, ...]:
        """Its parts in the order in which they run."""
        halves: tuple[tuple[AnyPart | None, ...], ...] = (
            (self.attention_norm, self.attention, self.attention_post_norm),
            (self.mlp_norm, self.mlp, self.mlp_post_norm),
        )
        if self.order == "post":
            halves = ((self.attention, self.attention_norm), (self.mlp, self.mlp_norm))
        return tuple(part for half in halves for part in half if part is not None)

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """The rows of its parts, in the order in which they run."""
        for part in self.parts:
            yield from part_weights(part, spec)

    def ops(self, setting: "Setting", x: "Tensor") -> "tuple[Op, ...]":
        """(B, T, D) to the same; the caller holds x until the block returns."""
        from gptcalc import tape

        rows, held = tape.Rows(setting), x
        for norm, part, label in (
            (self.attention_norm, self.attention, "x after attention"),
            (self.mlp_norm, self.mlp, "x after MLP"),
        ):
            before = x
            if self.order == "pre":
                rows += tape.ops_of(norm, setting, x)
                normalised = rows[-1].output
                rows += tape.ops_of(part, setting, normalised)
                out = rows[-1].output
                rows.drop(normalised)
                x = rows(tape.add(x, out, label))
                rows.drop(out)
            else:
                rows += tape.ops_of(part, setting, x)
                out = rows[-1].output
                total = rows(tape.add(x, out, label))
                rows.drop(out)
                rows += tape.ops_of(norm, setting, total)
                x = rows[-1].output
                rows.drop(total)
            if before is not held:
                rows.drop(before)
        rows.drop(held)
        return tuple(rows)
