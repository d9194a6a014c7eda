"""Work on all cores: the same is done with many things, each in one of some processes that are copies of this one."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Thing = TypeVar("Thing")
Made = TypeVar("Made")


def cores() -> int:
    """How many processes may share work: as many as there are cores for this one, where copies of it are safe.

    They are not where other threads run, as torch's do; where there is no `fork`, they cost more than they save.
    """
    alone = threading.active_count() == 1 and "torch" not in sys.modules
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" and alone else 1


def spread(does: Callable[[Thing], Made], things: Sequence[Thing], processes: int) -> Iterator[Made]:
    """What `does` makes of each thing, in their order; that alone is sent from process to process."""
    if min(processes, len(things)) < 2 or not hasattr(os, "fork"):
        yield from map(does, things)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    pool = ProcessPoolExecutor(
        min(processes, len(things)), get_context("fork"), initializer=_begin, initargs=(does, things)
    )
    try:
        yield from pool.map(_make, range(len(things)))
    finally:
        pool.shutdown(cancel_futures=True)


_work: list[tuple[Callable[[Any], Any], Sequence[Any]]] = []


def _begin(does: Callable[[Any], Any], things: Sequence[Any]) -> None:
    """In a copy: this is to be done; it was copied along, so that it may be anything. An interrupt is the first's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _work[:] = [(does, things)]


def _make(number: int) -> Any:
    ((does, things),) = _work
    return does(things[number])
