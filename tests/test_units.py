"""The only place that turns amounts into text."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gptcalc import units


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0 B"), (1023, "1,023 B"), (1024, "1.00 KiB"), (497_759_232, "474.70 MiB"), (698_417_037_312, "650.45 GiB")],
)
def test_memory_prints_in_binary_units_with_the_label_of_its_divisor(amount: int, text: str) -> None:
    """Bytes are divided by 1024 and labelled KiB, MiB, GiB."""
    assert text == units.format_bytes(amount)


def test_decimals_round_half_up_without_a_float() -> None:
    """A value beyond a float's 53 bits keeps every digit."""
    assert units.format_fixed(Fraction(10**30 + 1, 2), 1) == f"{10**30 // 2:,}.5"
    assert units.format_fixed(Fraction(-1, 8), 2) == "−0.13"
    assert units.format_fixed(Fraction(-1, 1000), 2) == "0.00"
    assert units.format_fixed(Fraction(5, 2), 0) == "3"


def test_bytes_follow_the_bits_of_the_dtype() -> None:
    """Elements times bits, rounded up to whole bytes."""
    assert units.bytes_of(3, "fp32") == 12
    assert units.bytes_of(3, "bf16") == 6
    assert units.ceil_div(7, 2) == 4


def test_counts_and_differences_show_every_digit() -> None:
    """Counts are grouped in threes, differences have a sign, headlines are rounded."""
    assert units.format_count(174_604_259_328) == "174,604,259,328"
    assert units.format_signed(-617_558_016) == "−617,558,016"
    assert units.format_signed(5) == "+5"
    assert units.short_count(174_604_259_328) == "174.60B"


def test_scientific_form_rounds_its_mantissa() -> None:
    """FLOPs of a training run print as a paper prints them."""
    assert units.format_scientific(314_287_666_790_400_000_000_000) == "3.14288E+23"
    assert units.format_scientific(-(10**18), digits=1) == "−1.0E+18"
