"""Exact amounts and the only place that turns them into text.

Amounts are `int` in base units everywhere in gptcalc: parameters, bytes, bits.
Division happens here, on integers, so that a number is exact at any size.
"""

import re
from decimal import Decimal
from fractions import Fraction

#: Bits of one element, by the short name of its dtype. Bits, so that 4-bit types need no special case.
DTYPE_BITS = {
    "fp64": 64,
    "fp32": 32,
    "bf16": 16,
    "fp16": 16,
    "int64": 64,
    "int32": 32,
    "bool": 8,
    "uint8": 8,
    "fp8": 8,
    "int8": 8,
}

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


#: Units of memory that are read, by their letters in upper case.
SIZES = {"B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": TIB, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_bytes(text: str) -> int | None:
    """Bytes of `24GiB`, `80 GB`, `1.5TiB`, a part of a byte left out; `None` where it is no number with a unit."""
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{0,18})?) ?([kmgt]?i?b)", text.strip().replace(",", ""), re.IGNORECASE)
    if not found or found[2].upper() not in SIZES:
        return None
    return int(Fraction(Decimal(found[1])) * SIZES[found[2].upper()])


def ceil_div(numerator: int, denominator: int) -> int:
    """The quotient rounded up: how many whole blocks hold `numerator`."""
    return -(-numerator // denominator)


def bytes_of(elements: int, dtype: str) -> int:
    """Bytes that `elements` of `dtype` take, packed."""
    return ceil_div(elements * DTYPE_BITS[dtype], 8)


def format_count(amount: int) -> str:
    """Every digit, in groups of three: `174,604,259,328`."""
    return f"{amount:,}"


def format_signed(amount: int) -> str:
    """A difference with its sign, `+` or the typographic minus: `−617,558,016`."""
    return f"{'−' if amount < 0 else '+'}{abs(amount):,}"


def format_fixed(value: Fraction, digits: int) -> str:
    """`value` in decimals, rounded half up, without passing through a float."""
    scale = 10**digits
    units = (abs(value.numerator) * scale * 2 + value.denominator) // (2 * value.denominator)
    sign = "−" if value < 0 and units else ""
    whole, rest = divmod(units, scale)
    return f"{sign}{whole:,}.{rest:0{digits}d}" if digits else f"{sign}{whole:,}"


def format_bytes(amount: int) -> str:
    """Memory in binary units, the label matching the divisor: `650.46 GiB`."""
    for unit, size in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if amount >= size:
            return f"{format_fixed(Fraction(amount, size), 2)} {unit}"
    return f"{amount:,} B"


def format_scientific(amount: int, digits: int = 5) -> str:
    """A number too long for a column, as papers print FLOPs: `3.14288E+23`; rounded, so its label must say so."""
    power = len(str(abs(amount))) - 1
    mantissa = format_fixed(Fraction(amount, 10**power), digits)
    return f"{mantissa}E+{power}"


def short_count(amount: int) -> str:
    """A rounded headline beside an exact number: `174.60B`, `124.44M`."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if amount >= size:
            return f"{format_fixed(Fraction(amount, size), 2)}{unit}"
    return f"{amount:,}"


def format_significant(value: float, digits: int = 4) -> str:
    """An estimate to so many significant digits, without an exponent: `12.35`, `1,235`."""
    return f"{Decimal(f'{value:.{digits - 1}e}'):,f}"


def format_duration(nanoseconds: float) -> str:
    """A time in the largest unit that it fills: `8.214 µs`, `12.04 ms`."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return f"{format_significant(nanoseconds / size)} {unit}"
    return f"{format_significant(nanoseconds)} ns"


def format_bandwidth(bytes_per_second: float) -> str:
    """Memory traffic in powers of ten, as datasheets have it: `4,301 GB/s`."""
    return f"{format_significant(bytes_per_second / 1e9)} GB/s"
