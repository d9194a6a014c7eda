"""The KV cache: what the layers of a model remember of a sequence, by kind of layer."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from gptcalc.errors import InvalidValueError, UnknownNameError, shown
from gptcalc.formula import Dim, Formula, Product
from gptcalc.parts.block import Block
from gptcalc.parts.remembered import Remembered, Remembers
from gptcalc.spec import MOST, Spec
from gptcalc.units import bytes_of

#: The dtype that a cache is kept in where nobody says otherwise.
DTYPE = "bf16"
DTYPES = ("bf16", "fp16", "fp32", "fp8", "int8")


class CacheLine(NamedTuple):
    """All layers of one kind; formulas are of numbers, in a sequence, over these layers.

    Those `in_fp32` are kept so, whatever the dtype of the cache.
    """

    kind: str
    n_layers: int
    window: int | None
    per_token: Formula
    per_sequence: Formula
    in_fp32: Formula

    def bytes_at(self, seq: int, dtype: str) -> int:
        """What `seq` tokens of one sequence take."""
        tokens = seq if self.window is None else min(seq, self.window)
        return bytes_of(self.per_token.value * tokens, dtype) + self.bytes_of_state(dtype)

    def bytes_of_state(self, dtype: str) -> int:
        """What a sequence takes however long it is."""
        return bytes_of(self.per_sequence.value, dtype) + bytes_of(self.in_fp32.value, "fp32")


class Cache(NamedTuple):
    """Lines that add up; `seq` tokens (T) of one sequence, kept in `dtype`."""

    lines: tuple[CacheLine, ...]
    seq: int
    dtype: str

    @property
    def bytes_per_token(self) -> int:
        """What one more token takes while it is in every layer's sight."""
        return bytes_of(sum(line.per_token.value for line in self.lines), self.dtype)

    @property
    def bytes_at_seq(self) -> int:
        """What T tokens take."""
        return sum(line.bytes_at(self.seq, self.dtype) for line in self.lines)


def cache(spec: Spec, seq: object = None, dtype: str | None = None, spelled: Callable[[str], str] = str) -> Cache:
    """What `spec` remembers of `seq` tokens, or of its whole context. Raises a `GptcalcError` for a bad request."""
    tokens = spec.n_ctx if seq is None else seq
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 1 <= tokens <= MOST:
        raise InvalidValueError(f"{spelled('seq')}: read {shown(seq)}; allowed: a whole number from 1 to {MOST:,}")
    kept_in = DTYPE if dtype is None else dtype
    if kept_in not in DTYPES:
        raise UnknownNameError.near(spelled("kv_dtype"), str(dtype), DTYPES)
    layers: Counter[Remembered] = Counter()
    for group in spec.layers:
        layers[remembered(spec, group.block)] += group.n_layers
    lines = tuple(
        CacheLine(
            kept.kind,
            count,
            kept.window,
            *(_over(count, numbers) for numbers in (kept.per_token, kept.per_sequence, kept.in_fp32)),
        )
        for kept, count in layers.items()
    )
    return Cache(lines, tokens, kept_in)


def remembered(spec: Spec, block: object) -> Remembered:
    """What a layer keeps of a sequence."""
    part = block.attention if isinstance(block, Block) else block
    if not isinstance(part, Remembers):
        raise TypeError(f"{spec.family}: a {type(part).__name__} does not say what it remembers")
    return part.remembered()


def _over(n_layers: int, products: tuple[Product, ...]) -> Formula:
    return Formula.of((Dim("L", n_layers), *product) for product in products)
