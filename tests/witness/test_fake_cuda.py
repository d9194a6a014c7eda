"""Fake CUDA: what is traced there is what is traced on meta, and where it cannot be had, one line says why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from steps import FAMILIES, OPTIMIZERS, of_trace

from gptcalc.catalog import resolve
from gptcalc.plan import Plan
from gptcalc.witness import fake_cuda as fake
from gptcalc.witness.fake_cuda import Call

torch = pytest.importorskip("torch")

from gptcalc.witness.trace import trace_inference, trace_training  # noqa: E402  it opens torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gptcalc.spec import Spec

DROPOUT = {"embedding_dropout": 0.1, "attention_dropout": 0.1, "residual_dropout": 0.1}
#: Every family with every kernel of attention that runs in that precision; every optimizer with the first one.
CASES = [
    (name, backend, precision, update)
    for name in FAMILIES
    for backend, precision in (("eager", "fp32"), ("math", "bf16"), ("flash", "fp16"), ("efficient", "fp32"))
    for update in (OPTIMIZERS if (name, backend) == ("gpt2", "eager") else OPTIMIZERS[1:2])
    if backend != "efficient" or name in ("gpt2", "gpt1")
]


def _asked(case: tuple[str, str, str, dict[str, Any]]) -> tuple[Spec, Plan]:
    name, backend, precision, update = case
    plan = {"batch": 3, "seq": 13, "precision": precision, "kv_dtype": precision, "attention": backend} | update
    return resolve(FAMILIES[name], DROPOUT).spec, Plan.model_validate(plan)


@pytest.fixture(scope="module")
def found(fake_cuda: Callable[[Sequence[Call]], list[Any]]) -> list[Any]:
    """Training and inference of each case on fake CUDA."""
    asked = [_asked(case) for case in CASES]
    calls = [Call(trace_training, (*one, 2, "cuda")) for one in asked]
    return fake_cuda([*calls, *(Call(trace_inference, (*one, "cuda")) for one in asked)])


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_step_on_meta_is_that_on_fake_cuda(found: list[Any], number: int) -> None:
    """In plain precision the same storages come and go in the same order, whichever kernels and optimizer run."""
    spec, plan = _asked(CASES[number])
    assert of_trace(trace_training(spec, plan)) == of_trace(found[number])
    assert of_trace(trace_inference(spec, plan)) == of_trace(found[number + len(CASES)])


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no fake CUDA without g++."""
    monkeypatch.setattr(fake.shutil, "which", lambda _: None)
    fake._library.cache_clear()
    fake.missing.cache_clear()
    try:
        reason = fake.missing()
    finally:
        fake._library.cache_clear()
        fake.missing.cache_clear()
    if torch.version.cuda is None:
        assert reason == "fake CUDA needs a C++ compiler (g++), and there is none"


def test_what_fails_there_is_told(fake_cuda: Callable[[Sequence[Call]], list[Any]]) -> None:
    """An error in the other process is one here, with its text."""
    with pytest.raises(fake.FakeCudaError, match="ZeroDivisionError"):
        fake_cuda([Call(divmod, (1, 0))])


def test_what_cannot_be_written_is_compiled_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that is no folder is done without."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fake._folder().is_dir()
