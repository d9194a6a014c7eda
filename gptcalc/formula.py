"""Sums of products of labelled dims: the number and its formula are the same object.

`Formula.of([(L, N, H, D)])` has the value 96·96·128·12288 and reads `L×N×H×D`; nothing is written down twice.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from math import prod
from typing import NamedTuple, Self


class Dim(NamedTuple):
    """A size with the letter that stands for it everywhere."""

    letter: str
    size: int


#: Dims multiplied together; the empty product is 1.
Product = tuple[Dim, ...]

_ORDER = {letter: rank for rank, letter in enumerate("LEVCBMUPTkNKHRFWD")}


def product_size(product: Product) -> int:
    """The number that a product stands for."""
    return prod(dim.size for dim in product)


def ordered(product: Iterable[Dim]) -> Product:
    """The dims in the order in which formulas print them: layers and tables first, the width last."""
    return tuple(sorted(product, key=lambda dim: (_rank(dim.letter), dim)))


@cache
def _rank(letters: str) -> int:
    """Where a dim is printed; `(N+2K)` and `(B·T·k/E)` stand where their first letter stands."""
    return next((_ORDER[letter] for letter in letters if letter in _ORDER), len(_ORDER))


class Formula(NamedTuple):
    """`terms` are pairs of a coefficient and a product; their sum is `value`."""

    terms: tuple[tuple[int, Product], ...]

    @classmethod
    def of(cls, products: Iterable[Product]) -> Self:
        """The sum of `products`, equal ones merged."""
        counts = Counter(map(ordered, products))
        return cls(tuple((count, product) for product, count in counts.items()))

    @classmethod
    def sum(cls, formulas: Iterable[Self]) -> Self:
        """All of them in one, equal products merged."""
        counts: Counter[Product] = Counter()
        for formula in formulas:
            for count, product in formula.terms:
                counts[product] += count
        return cls(tuple((count, product) for product, count in counts.items()))

    def times(self, count: int) -> Self:
        """So many of it: the formula of bytes, where this is that of numbers."""
        return type(self)(tuple((count * own, product) for own, product in self.terms))

    @property
    def value(self) -> int:
        """The exact number."""
        return sum(count * product_size(product) for count, product in self.terms)

    @property
    def letters(self) -> str:
        """The formula in dims: `L×N×H×D`."""
        return self._text(lambda dim: dim.letter)

    @property
    def numbers(self) -> str:
        """The formula with its numbers put in: `96×96×128×12,288`."""
        return self._text(lambda dim: f"{dim.size:,}")

    def _text(self, show: Callable[[Dim], str]) -> str:
        if not self.terms:
            return "0"
        common = self._common()
        summands = [_monomial(count, _without(product, common), show) for count, product in self.terms]
        if len(summands) == 1:
            count, product = self.terms[0]
            return _monomial(count, product, show)
        total = " + ".join(summands)
        return f"{_monomial(1, common, show)}×({total})" if common else total

    def _common(self) -> Product:
        """The factors that all terms share, each as often as the term that has it least."""
        shared = Counter(self.terms[0][1])
        for _, product in self.terms[1:]:
            shared &= Counter(product)
        return ordered(shared.elements())


def _without(product: Product, factors: Product) -> Product:
    return ordered((Counter(product) - Counter(factors)).elements())


def _monomial(count: int, product: Product, show: Callable[[Dim], str]) -> str:
    factors = [show(dim) for dim in product]
    if count != 1 or not factors:
        factors.insert(0, f"{count:,}")
    return "×".join(factors)
