"""Work that processes share comes out as if one had done it."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from gptcalc.ledger.workers import cores, spread

if TYPE_CHECKING:
    import pytest

#: What cannot be pickled, and so has to be copied; who does it, and grids of one process and of two.
SHARED = """
import os
from gptcalc.catalog import resolve
from gptcalc.ledger.fit import rooms
from gptcalc.ledger.grid import Wish, by_gpu, by_model
from gptcalc.ledger.workers import cores, spread

found = list(spread(lambda thing: (thing(), os.getpid()), [lambda n=n: n * n for n in range(9)], 2))
assert [number for number, _ in found] == [n * n for n in range(9)]
assert os.getpid() not in {process for _, process in found}
toys = [resolve(name, {"n_layers": 1, "d_model": 64, "n_heads": 2, "n_vocab": 500}) for name in ("gpt2", "gpt2-xl")]
where, wish = rooms(("1GiB", "t4")), Wish(asked={"mode": "inference"})
assert by_gpu(toys[0], where, Wish(), processes=2) == by_gpu(toys[0], where, Wish())
assert by_model(where[0], toys * 8, wish, processes=2) == by_model(where[0], toys * 8, wish)
assert by_gpu(toys[0], where, Wish(asked={"chunked_loss": 8, "logits": "all"}), processes=2).rows
print("same", cores() == len(os.sched_getaffinity(0)))
"""


def test_two_processes_find_what_one_does() -> None:
    """Functions and things may be anything; grids are equal; and a process that is alone may be copied."""
    ran = subprocess.run([sys.executable, "-c", SHARED], capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    assert ran.stdout == "same True\n"


def test_one_process_does_it_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one is asked for, or there is but one thing; and it is not copied while other threads run."""
    made: list[int] = []
    assert list(spread(made.append, [1, 2], 1)) == list(spread(made.append, [3], 4)) * 2
    assert made == [1, 2, 3]
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert cores() == 1
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert cores() == 1
