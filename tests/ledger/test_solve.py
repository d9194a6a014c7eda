"""The largest number that does, from any hint, with few questions."""

from hypothesis import given
from hypothesis import strategies as st

from gptcalc.ledger.solve import largest


@given(st.integers(0, 500), st.integers(1, 400), st.integers(-5, 1000))
def test_the_largest_number_that_does_is_found_from_any_hint(limit: int, most: int, hint: int) -> None:
    """It does, the next one does not, and nothing beyond `most` is asked."""
    asked: list[int] = []

    def does(number: int) -> bool:
        assert 1 <= number <= most
        asked.append(number)
        return number <= limit

    assert largest(does, most, hint) == (min(limit, most) or None)
    assert len(asked) == len(set(asked)) <= 24


@given(st.sets(st.integers(1, 64)), st.integers(1, 64))
def test_what_is_found_does_and_the_next_does_not_whatever_does(fine: set[int], hint: int) -> None:
    """Also where what does is no stretch from 1 on."""
    found = largest(lambda number: number in fine, 64, hint)
    if found is None:
        assert 1 not in fine
    else:
        assert found in fine
        assert found == 64 or found + 1 not in fine
