"""What a layer remembers of the tokens before, so that they need not be computed again: its share of the KV cache."""

from typing import NamedTuple, Protocol, runtime_checkable

from gptcalc.formula import Product


class Remembered(NamedTuple):
    """`per_token` numbers for each token of a sequence, of the last `window` tokens at most; `per_sequence` once.

    Once too a sequence has what is `in_fp32`, whatever the dtype of the cache. `kind` is `full`, `sliding`, `chunked`,
    `latent`, or `none`, where a state of fixed size stands for all tokens.
    """

    kind: str
    per_token: tuple[Product, ...] = ()
    per_sequence: tuple[Product, ...] = ()
    window: int | None = None
    in_fp32: tuple[Product, ...] = ()


@runtime_checkable
class Remembers(Protocol):
    """A part that looks back."""

    def remembered(self) -> Remembered:
        """What it keeps of a sequence."""
