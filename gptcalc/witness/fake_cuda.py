"""Functions run on fake tensors whose device is "cuda": torch's own autograd, autocast and derivatives, and no GPU.

A CPU-only torch builds no graph over such tensors: a small library, compiled once, lets it. The library must be there
before torch is imported, and afterwards the process does not end as others do: so all this happens in a process of its
own, many calls in one.
"""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from gptcalc.errors import GptcalcError

SOURCE = Path(__file__).with_suffix(".cpp")


class FakeCudaError(GptcalcError):
    """Fake CUDA cannot be had here, or what ran on it failed."""


class Call(NamedTuple):
    """A function that can be imported, and what it is given."""

    function: Callable[..., Any]
    args: tuple[Any, ...]


@cache
def missing() -> str:
    """Why there is no fake CUDA here, in one line; nothing where there is."""
    try:
        _library()
    except FakeCudaError as error:
        return str(error)
    return ""


def run(calls: Sequence[Call]) -> list[Any]:
    """What the calls return, each under a `FakeTensorMode` of its own, in a process that starts anew.

    Arguments and results are pickled. Raises a `FakeCudaError` where that cannot be done.
    """
    library = _library()
    given = pickle.dumps((str(library), sys.path)) + pickle.dumps(list(calls))
    command = [sys.executable, "-m", "gptcalc.witness.fake_cuda"]
    at_home = Path(__file__).parents[2]
    done = subprocess.run(command, input=given, capture_output=True, check=False, cwd=at_home)  # noqa: S603
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise FakeCudaError(f"fake CUDA failed: {said}")
    found: list[Any] = pickle.loads(done.stdout)  # noqa: S301  from our own child
    return found


# --- The library -----------------------------------------------------------------------------------------------------


@cache
def _library() -> Path:
    """What lets a CPU-only torch work on such tensors, compiled for the torch that is installed."""
    import torch

    compiler = shutil.which("g++")
    if torch.version.cuda is not None or torch.version.hip is not None:
        raise FakeCudaError(f"fake CUDA needs a torch without CUDA, and {torch.__version__} has it")
    if compiler is None:
        raise FakeCudaError("fake CUDA needs a C++ compiler (g++), and there is none")
    installed = Path(torch.__file__).parent
    mark = sha256(SOURCE.read_bytes() + f"{installed} {torch.__version__}".encode()).hexdigest()[:16]
    built = _folder() / f"fake_cuda-{mark}.so"
    if not built.exists():
        _compile(compiler, installed, built)
    return built


def _folder() -> Path:
    """The user's own cache; a folder of this process where that cannot be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptcalc"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="gptcalc-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="gptcalc-"))


def _compile(compiler: str, installed: Path, built: Path) -> None:
    """Compile beside the place where it will stand, so that nobody finds half a library there."""
    options = ["-std=c++20", "-O0", "-fPIC", "-shared", "-DAT_PER_OPERATOR_HEADERS", f"-I{installed / 'include'}"]
    libraries = [f"-L{installed / 'lib'}", f"-Wl,-rpath,{installed / 'lib'}", "-Wl,--no-as-needed", "-lc10"]
    libraries += ["-ltorch_cpu", "-ltorch"]
    half = built.with_suffix(f".{os.getpid()}")
    command = [compiler, *options, str(SOURCE), *libraries, "-o", str(half)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if compiled.returncode:
        said = (compiled.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise FakeCudaError(f"fake CUDA: g++ cannot compile against this torch: {said}")
    half.replace(built)


# --- In the child ----------------------------------------------------------------------------------------------------


def _serve() -> None:
    """Load the library, then torch; run what is asked on standard input; answer on what was standard output."""
    import ctypes

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed must not get between
    library, sys.path[:] = pickle.load(sys.stdin.buffer)  # noqa: S301  from our own parent
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise FakeCudaError("fake CUDA needs torch")
    for path in (Path(spec.origin).parent / "lib" / "libtorch_global_deps.so", library):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.cuda.amp import common

    # torch.autocast("cuda") turns itself off where it finds no device.
    common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    found = []
    for function, args in pickle.load(sys.stdin.buffer):  # noqa: S301  as above
        # One thread: the engine calls what watches it as it does on meta.
        with FakeTensorMode(), torch.autograd.set_multithreading_enabled(mode=False):
            found.append(function(*args))
        # Every trace collects garbage: what torch has opened by now need not be looked through again.
        gc.collect()
        gc.freeze()
    pickle.dump(found, answers)
    answers.flush()


if __name__ == "__main__":
    try:
        _serve()
    except BaseException:  # noqa: BLE001  the parent is told, whatever it is
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # the engine's thread for the device would abort an ordinary end
