"""A layer: the order of norms, attention, MLP and residual adds."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from gptcalc.inventory import Weight, Weighted, part_weights
from gptcalc.spec import AnyPart, Spec

if TYPE_CHECKING:
    from gptcalc.tape import Op, Setting, Tensor


class Block(Weighted):
    """Attention, then MLP, each with a norm and a residual add.

    `order` is `pre` (GPT-2 on: norm, part, add; Xiong et al. 2020) or `post` (GPT-1: part, add, norm).
    """

    kind: Literal["block"] = "block"
    name: str = ""
    order: Literal["pre", "post"] = "pre"
    attention_norm: AnyPart
    attention: AnyPart
    mlp_norm: AnyPart
    mlp: AnyPart

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """The rows of its four parts, in the order in which they run."""
        before, after = (self.attention_norm, self.attention), (self.mlp_norm, self.mlp)
        for part in before + after if self.order == "pre" else before[::-1] + after[::-1]:
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
