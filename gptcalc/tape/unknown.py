"""Numbers that may change: what is computed from them is a formula, and what was decided by them holds for some values.

A run is recorded with such a number in place of the batch, say. Sums, products and quotients of it stay formulas. Where
the code asks something of it (is it larger than that?) it is told what holds now, and the question is kept with its
answer. With another number the code would do the very same as long as every question has the same answer: then the
recording stands for that number too, with its sizes computed anew. What needs a plain number (a `range`) fixes it: the
question is then whether it is the same.
"""

import operator
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any, NamedTuple, cast


class Step(NamedTuple):
    """Something computed, or asked, of operands that may be unknown: the result's `name`, or the `answer`."""

    does: Callable[..., Any]
    operands: tuple[Any, ...]
    name: str
    answer: Any


class Unknowns:
    """Numbers above zero by name, and what has been computed and asked of them, in its order."""

    def __init__(self, **values: int) -> None:
        """What they are now."""
        self._names = frozenset(values)
        #: All of them, computed ones too.
        self.now: dict[str, Any] = dict(values)
        self._steps: dict[str, Step] = {}

    def __getitem__(self, name: str) -> int:
        """The number of that name; for all who reckon with it an integer."""
        return cast("int", Unknown(self, 1, (name,), self.now[name]))

    def holds(self, **values: int) -> dict[str, Any] | None:
        """All numbers, computed ones too, for other `values`; None where a question has another answer.

        They are gone through in their order: what was computed later may make sense only where an answer was so.
        """
        found: dict[str, Any] = dict(values)
        for does, operands, name, answer in self._steps.values():
            got = does(*[at(operand, found) for operand in operands])
            if name:
                found[name] = got
            elif got != answer:
                return None
        return found

    def compute(self, does: Callable[..., Any], *operands: Any) -> "Unknown":
        """A result as a formula."""
        name = _written(does, operands)
        if name not in self.now:
            self.now[name] = does(*map(now, operands))
            self._steps[name] = Step(does, operands, name, None)
        return Unknown(self, 1, (name,), self.now[name])

    def ask(self, does: Callable[..., Any], *operands: Any) -> Any:
        """What holds now, as a plain value."""
        name = "?" + _written(does, operands)
        if name not in self._steps:
            self._steps[name] = Step(does, operands, "", does(*map(now, operands)))
        return self._steps[name].answer

    def all_given(self, factors: tuple[str, ...]) -> bool:
        """Whether these are numbers that were given, so that their product is above zero."""
        return self._names.issuperset(factors)


def _written(does: Callable[..., Any], operands: tuple[Any, ...]) -> str:
    return f"{does.__name__}({', '.join(map(str, operands))})"


def now(number: Any) -> Any:
    """What a number is now."""
    return number.now if isinstance(number, Unknown) else number


def identity(number: int) -> object:
    """The same for equal numbers, which are equal formulas where they are unknown."""
    return (number.times, number.factors) if isinstance(number, Unknown) else number


def at(number: Any, values: Mapping[str, Any]) -> Any:
    """What a number is with those values, as `Unknowns.holds` gives them."""
    if not isinstance(number, Unknown):
        return number
    result = number.times
    for factor in number.factors:
        result *= values[factor]
    return result


def computed(does: Callable[..., int], *numbers: int) -> int:
    """What a function makes of numbers; of unknown ones a formula, so that nothing hangs on what is asked within."""
    among = next((number.among for number in cast("tuple[Any, ...]", numbers) if isinstance(number, Unknown)), None)
    return does(*numbers) if among is None else cast("int", among.compute(does, *numbers))


class Unknown:
    """So many times the product of some numbers, given or computed, that are known by their names.

    It reckons as an integer does; it is none, so that what treats it as one without asking fails.
    """

    __slots__ = ("among", "factors", "now", "times")

    def __init__(self, among: Unknowns, times: int, factors: tuple[str, ...], value: Any) -> None:
        """One of many; `value` is what it is now."""
        self.among, self.times, self.factors, self.now = among, times, factors, value

    def __str__(self) -> str:
        """Its formula."""
        return "·".join([str(self.times), *self.factors])

    __repr__ = __str__

    def __format__(self, _spec: str) -> str:
        """Its formula: a name with it in is another for another formula."""
        return str(self)

    def __hash__(self) -> int:
        """The same for all, so that whoever looks one up asks whether they are equal."""
        return 0

    # --- What stays a formula ---

    def __mul__(self, other: Any) -> Any:
        """A product has the factors of both; a list is repeated."""
        if type(other) is int:
            return Unknown(self.among, self.times * other, self.factors, self.now * other) if other else 0
        if isinstance(other, Unknown):
            factors = tuple(sorted(self.factors + other.factors))
            return Unknown(self.among, self.times * other.times, factors, self.now * other.now)
        if isinstance(other, float):
            return self.among.compute(operator.mul, self, other)
        return other * operator.index(self)

    __rmul__ = __mul__

    def __neg__(self) -> Any:
        """The product with −1."""
        return self * -1

    def __floordiv__(self, other: Any) -> Any:
        """A quotient without rest is a product too."""
        if type(other) is int and not self.times % other:
            return Unknown(self.among, self.times // other, self.factors, self.now // other)
        return self.among.compute(operator.floordiv, self, other)

    def __mod__(self, other: Any) -> Any:
        """The rest, which may be none whatever the number is."""
        if type(other) is int and not self.times % other:
            return 0
        return self.among.compute(operator.mod, self, other)

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        """Both."""
        return self // other, self % other

    def __add__(self, other: Any) -> Any:
        """Of equal factors there are more; nothing added is nothing new."""
        if isinstance(other, Unknown) and self.factors == other.factors:
            times = self.times + other.times
            return Unknown(self.among, times, self.factors, self.now + other.now) if times else 0
        return self.among.compute(operator.add, self, other) if isinstance(other, Unknown) or other else self

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        """The sum with what is less."""
        return self + other * -1

    def __rsub__(self, other: Any) -> Any:
        """A sum too."""
        return self * -1 + other

    def __rfloordiv__(self, other: Any) -> Any:
        """A formula."""
        return self.among.compute(operator.floordiv, other, self)

    def __rmod__(self, other: Any) -> Any:
        """A formula."""
        return self.among.compute(operator.mod, other, self)

    def __truediv__(self, other: Any) -> Any:
        """A formula, of a float."""
        return self.among.compute(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        """A formula, of a float."""
        return self.among.compute(operator.truediv, other, self)

    def __ceil__(self) -> Any:
        """A formula."""
        return self.among.compute(ceil, self)

    # --- What is asked ---

    def __eq__(self, other: object) -> bool:
        """Whether they are the same number; equal formulas always are."""
        if isinstance(other, Unknown) and self.times == other.times and self.factors == other.factors:
            return True
        return self._compared(operator.eq, other) if isinstance(other, Unknown | int | float) else NotImplemented

    def __ne__(self, other: object) -> bool:
        """Whether they are not."""
        return not self == other

    def __lt__(self, other: Any) -> bool:
        """Asked."""
        return self._compared(operator.lt, other)

    def __le__(self, other: Any) -> bool:
        """Asked."""
        return self._compared(operator.le, other)

    def __gt__(self, other: Any) -> bool:
        """Asked."""
        return self._compared(operator.gt, other)

    def __ge__(self, other: Any) -> bool:
        """Asked."""
        return self._compared(operator.ge, other)

    def _compared(self, does: Callable[[Any, Any], bool], other: Any) -> bool:
        """A product of the given numbers is above zero: that decides some questions."""
        if self.among.all_given(self.factors):
            if type(other) is int and not other:
                return does(self.times, 0)
            if isinstance(other, Unknown) and other.factors == self.factors:
                return does(self.times, other.times)
        return bool(self.among.ask(does, self, other))

    def __bool__(self) -> bool:
        """Whether it is not zero."""
        return self._compared(operator.ne, 0)

    def __index__(self) -> int:
        """Now it has to be a plain number, so that it is fixed."""
        self.among.ask(operator.eq, self, self.now)
        return int(self.now)

    def bit_length(self) -> int:
        """That of a plain number."""
        return operator.index(self).bit_length()
