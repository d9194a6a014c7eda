"""Arithmetic over named amounts, exactly: `(attn_q + attn_k) / L` is a fraction, never a float.

Numbers, names, `+ - * / // **` and parentheses; nothing else is evaluated.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache

from gptcalc.errors import InvalidValueError, UnknownNameError, shown

#: Larger powers are a slip, and could take all memory.
MOST_EXPONENT = 64
#: A formula is a line; a longer one could nest deeper than the interpreter goes.
MOST_CHARACTERS = 400


def evaluate(text: str, names: Mapping[str, int]) -> Fraction:
    """The exact value of `text`, or an error that says what in it is not allowed or not known."""
    try:
        return _value(_parsed(text), text, names)
    except ZeroDivisionError:
        raise InvalidValueError(f"expression {shown(text)}: divides by zero") from None


@cache
def _parsed(text: str) -> ast.expr:
    if len(text) > MOST_CHARACTERS:
        raise InvalidValueError(f"expression: read {len(text)} characters; allowed: at most {MOST_CHARACTERS}")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise InvalidValueError(f"expression {shown(text)}: {str(error).splitlines()[0]}") from None


def _value(node: ast.expr, text: str, names: Mapping[str, int]) -> Fraction:
    if isinstance(node, ast.Name):
        if node.id not in names:
            raise UnknownNameError.near(f"expression {shown(text)}", node.id, names)
        return Fraction(names[node.id])
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        # The literal as it was written: 1.1 is 11/10, whatever the float between would be.
        return Fraction(ast.get_source_segment(text.strip(), node) or "")
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left, text, names), _value(node.right, text, names))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, text, names)
    raise InvalidValueError(
        f"expression {shown(text)}: read {type(node).__name__}; allowed: numbers, names, + - * / // ** and parentheses"
    )


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > MOST_EXPONENT:
        raise InvalidValueError(f"exponent: read {shown(str(exponent))}; allowed: whole, at most {MOST_EXPONENT}")
    return Fraction(base ** int(exponent))


def _floor(dividend: Fraction, divisor: Fraction) -> Fraction:
    return Fraction(dividend // divisor)


_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: _floor,
    ast.Pow: _power,
}
