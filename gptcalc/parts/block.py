"""A layer: the order of norms, attention, MLP and residual adds."""

from collections.abc import Iterator
from typing import Literal

from gptcalc.inventory import Weight, Weighted, part_weights
from gptcalc.spec import AnyPart, Spec


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
