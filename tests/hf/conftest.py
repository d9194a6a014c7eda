"""What the tests of transformers' code share."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """Every trace collects garbage: what torch and transformers open need not be looked through each time."""
    import transformers

    transformers.GPT2LMHeadModel.__name__  # noqa: B018  opened, not used
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
