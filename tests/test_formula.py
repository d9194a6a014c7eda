"""Formulas: the number and its text are one object."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from gptcalc.formula import Dim, Formula

L, N, H, D, F = Dim("L", 96), Dim("N", 96), Dim("H", 128), Dim("D", 12288), Dim("F", 49152)


def test_a_product_prints_its_dims_in_the_usual_order() -> None:
    """Layers first, the width last, whatever the order of the tensor's axes."""
    formula = Formula.of([(D, H, N, L)])

    assert formula.letters == "L×N×H×D"
    assert formula.numbers == "96×96×128×12,288"
    assert formula.value == 14_495_514_624


def test_a_sum_factors_out_what_all_terms_share() -> None:
    """Biases of a layer: the layers stand outside, equal terms are counted."""
    formula = Formula.of([(L, N, H), (L, D), (L, F), (L, D)])

    assert formula.letters == "L×(N×H + 2×D + F)"
    assert formula.value == 96 * (96 * 128 + 2 * 12288 + 49152)


def test_a_factor_that_is_a_term_leaves_its_count() -> None:
    """Norms: 2 in each layer and one at the end."""
    assert Formula.of([(L, D), (L, D), (D,)]).letters == "D×(2×L + 1)"


def test_nothing_is_zero() -> None:
    """An empty sum is 0."""
    assert Formula.of([]).value == 0
    assert Formula.of([]).letters == "0"


dims = st.builds(Dim, st.sampled_from("LNKHDFVCE"), st.integers(1, 9))


@given(st.lists(st.lists(dims, max_size=4).map(tuple), min_size=1, max_size=5))
def test_the_printed_numbers_add_up_to_the_value(products: list[tuple[Dim, ...]]) -> None:
    """Whatever is summed: evaluating the printed text gives the value."""
    formula = Formula.of(products)
    text = formula.numbers.replace("×", "*").replace(",", "")

    assert re.fullmatch(r"[0-9*+() ]+", text)
    assert eval(text) == formula.value  # noqa: S307  the text is only digits and operators
