"""What all tests share with pytest."""

from __future__ import annotations

import gc
import os
import pickle
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from _pytest.terminal import TerminalReporter


def pytest_configure() -> None:
    """Output goes into a pipe, which has no width: workers are told one.

    Toys are too small to share: torch's threads would wait for each other, on the cores that other workers need.
    """
    os.environ.pop("COLUMNS", None)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """What tests say with `record_property` is printed, whichever process they ran in."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(scope="session")
def fake_cuda(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[Any]], list[Any]]:
    """`gptcalc.witness.fake_cuda.run`: many calls in one process; tests are skipped, with the reason, where it is not.

    Starting it takes seconds: ask for all cases of a module at once, in a fixture of its own. Whichever worker asks
    first runs them, once in a run of the tests; the others read what it was told.
    """
    from gptcalc.witness import fake_cuda as found

    pytest.importorskip("torch")
    fcntl = pytest.importorskip("fcntl")
    if reason := found.missing():
        pytest.skip(reason)
    own = tmp_path_factory.getbasetemp()
    folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def run(calls: Sequence[Any]) -> list[Any]:
        asked = repr([(function.__module__, function.__name__, args) for function, args in calls])
        at = folder / f"fake_cuda-{sha256(asked.encode()).hexdigest()}"
        with at.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not at.exists():
                at.write_bytes(pickle.dumps(found.run(calls)))
        told: list[Any] = pickle.loads(at.read_bytes())  # noqa: S301  our own
        return told

    return run


@pytest.fixture(scope="module")
def frozen() -> Iterator[None]:
    """Every trace collects garbage: what torch opens in the first one need not be looked through each time."""
    pytest.importorskip("torch")
    from gptcalc.catalog import resolve
    from gptcalc.plan import Plan
    from gptcalc.witness.trace import trace_training

    toy = resolve("gpt2", {"n_layers": 1, "d_model": 64, "n_vocab": 7}).spec
    trace_training(toy, Plan(batch=1, seq=2, attention="eager"), 1)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
