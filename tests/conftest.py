"""What all tests share with pytest."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Timed kernels come last: what they leave in torch's state changes when a traced tensor is let go of."""
    items.sort(key=lambda item: "tests/bench/" in item.path.as_posix())
