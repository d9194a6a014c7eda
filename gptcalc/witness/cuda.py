"""The last witness: the reference decoder runs on the local GPU, and CUDA's caching allocator says what it took.

The scripts are those of `witness.trace`, with numbers in the tensors. What the machine is (its generation, torch's
release, expandable segments) is put into the plan, so that the prediction speaks of it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gptcalc.catalog import Resolved
from gptcalc.errors import InvalidValueError
from gptcalc.ledger.evidence import Evidence, Finding
from gptcalc.ledger.memory import Mode, ModeName, is_phase, memory
from gptcalc.ledger.snapshot import (
    ALLOCATOR_SETTINGS,
    Environment,
    Gap,
    Measured,
    Recorded,
    Taken,
    compare,
    gaps,
    recorded,
)
from gptcalc.modules.checks import trusted
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.units import format_count
from gptcalc.witness.loop import Loop, train
from gptcalc.witness.meta import DTYPES, autocast, decoder

#: Steps of training; the last one is measured. By then the optimizer has its states, and cuBLAS its workspaces.
STEPS = 3
#: Environment variables that change what is allocated.
SETTINGS = (
    *ALLOCATOR_SETTINGS,
    "CUBLAS_WORKSPACE_CONFIG",
    "CUBLASLT_WORKSPACE_SIZE",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "TORCH_CUBLAS_WORKSPACE_CACHE",
)
#: `SDPBackend`, by its numbers.
CHOICES = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}
#: Differences of one phase that a check lists.
SHOWN_GAPS = 4


class Gpu:
    """The local GPU, as a run needs it. `cuda` is `torch.cuda`, and `place` where tensors go: tests have their own."""

    def __init__(self, cuda: Any = torch.cuda, place: str = "cuda") -> None:
        """Nothing is opened yet."""
        self.cuda, self.place = cuda, place

    def environment(self) -> Environment:
        """The card, and what else decides what it allocates."""
        properties = self.cuda.get_device_properties(self.cuda.current_device())
        return Environment(
            device=properties.name,
            target=f"sm{properties.major}{properties.minor}",
            memory_bytes=properties.total_memory,
            torch=str(torch.__version__),
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            driver=_driver(),
            settings={name: os.environ[name] for name in SETTINGS if name in os.environ},
        )

    def clear(self) -> None:
        """Give back all that nobody holds: cuBLAS's workspaces and cached segments, as in a fresh process."""
        gc.collect()
        self.cuda.synchronize()
        if clear := getattr(torch._C, "_cuda_clearCublasWorkspaces", None):  # noqa: SLF001  torch has no public one
            clear()
        self.cuda.empty_cache()

    def reset(self) -> None:
        """Let the peaks be what is current."""
        self.cuda.synchronize()
        self.cuda.reset_peak_memory_stats()

    def taken(self, what: str) -> Taken:
        """The `peak` since the last reset, or what is `current`."""
        self.cuda.synchronize()
        stats = self.cuda.memory_stats()
        return Taken(*(int(stats[f"{figure}_bytes.all.{what}"]) for figure in Taken._fields))

    def record(self) -> None:
        """From now on the allocator notes every request, without stack frames."""
        self.cuda.memory._record_memory_history("all", context=None, max_entries=10_000_000)  # noqa: SLF001

    def mark(self) -> None:
        """Note in the record that a phase begins: a snapshot leaves its name there."""
        self.cuda.memory._snapshot()  # noqa: SLF001

    def history(self) -> list[dict[str, Any]]:
        """What has been noted."""
        traces: list[list[dict[str, Any]]] = self.cuda.memory._snapshot()["device_traces"]  # noqa: SLF001
        device = self.cuda.current_device()
        return traces[device] if device < len(traces) else []

    def forget(self) -> None:
        """Note nothing any more."""
        self.cuda.memory._record_memory_history(None)  # noqa: SLF001


def missing() -> str:
    """Why no GPU can be measured here, in a few words; empty where one can."""
    version = torch.__version__
    if torch.version.hip:
        return f"torch {version} is built for ROCm, whose kernels take other memory"
    if torch.version.cuda is None:
        return f"torch {version} was built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {version} finds no CUDA device"
    if (backend := torch.cuda.get_allocator_backend()) != "native":
        return f"the allocator's backend is {backend}, not native"
    return ""


def local_gpu() -> Gpu:
    """The GPU that torch would use, or one line that says why there is none."""
    if why := missing():
        raise InvalidValueError(
            f"witness: read 'cuda', but {why}; the witnesses trace and saved-tensors run without a GPU"
        )
    torch.cuda.init()  # type: ignore[no-untyped-call]
    return Gpu()


def as_here(plan: Plan, environment: Environment) -> Plan:
    """The plan as this machine runs it."""
    here = {
        "target": environment.target,
        "torch": environment.release,
        "expandable_segments": environment.expandable_segments,
    }
    return plan.model_copy(update=here)


# --- Measuring -------------------------------------------------------------------------------------------------------


class _Run:
    """What is seen of a run, phase by phase; `where` is the phase that it is in."""

    def __init__(self, gpu: Gpu, *, records: bool) -> None:
        """Nothing has run."""
        self.gpu, self.records = gpu, records
        self.where = "build"
        self.taken: dict[str, Taken] = {}
        self.marks: list[tuple[str, int]] = []
        self.attention: dict[str, None] = {}

    @contextmanager
    def phase(self, name: str, step: int = 0) -> Iterator[None]:
        """What happens within belongs to `name`; a later step's figures take the place of an earlier one's."""
        self.where = f"{name} of step {step}" if step else name
        if self.records:
            self.gpu.mark()
            self.marks.append((name, step))
        self.gpu.reset()
        yield
        self.taken[name] = self.gpu.taken("peak")

    def stays(self) -> Taken:
        """What is there when all phases are over."""
        if self.records:
            self.gpu.mark()
            self.marks.append(("after", 0))
        return self.gpu.taken("current")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Ask torch, at every fused attention within, which kernel it chooses."""
        run = functional.scaled_dot_product_attention

        def asked(*args: Any, **kwargs: Any) -> Tensor:
            self.attention[CHOICES.get(torch._fused_sdp_choice(*args, **kwargs), "none")] = None  # noqa: SLF001
            return run(*args, **kwargs)

        functional.scaled_dot_product_attention = asked
        try:
            yield
        finally:
            functional.scaled_dot_product_attention = run


def measure(  # noqa: PLR0913  the last two are for tests
    spec: Spec, plan: Plan, mode: ModeName, *, records: bool = False, steps: int = STEPS, gpu: Gpu | None = None
) -> Measured:
    """Run a mode of `plan` and measure each phase; with `records`, keep the allocator's own record of it.

    Raises `InvalidValueError` where there is no GPU. Memory that runs out, or a kernel that the card does not have, is
    a result: `skipped` says so.
    """
    gpu = local_gpu() if gpu is None else gpu
    environment = gpu.environment()
    plan = as_here(plan, environment)
    gpu.clear()
    notes = [*_notes(environment)]
    if held := gpu.taken("current").allocated:
        notes.append(f"{format_count(held)} bytes were allocated before the run; they are in every figure")
    run = _Run(gpu, records=records)
    persistent: Taken | None = None
    history: tuple[Recorded, ...] = ()
    skipped, collecting = "", gc.isenabled()
    gc.disable()
    try:
        if records:
            gpu.record()
        with trusted():
            persistent = _train(run, spec, plan, steps) if mode == "training" else _infer(run, spec, plan)
        history = recorded(gpu.history(), run.marks) if records else ()
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        skipped = _failure(error, run.where)
    finally:
        if records:
            gpu.forget()
        if collecting:
            gc.enable()
        gpu.clear()
    if records and not history and not skipped:
        notes.append("the allocator's record could not be cut into phases")
    return Measured(
        mode=mode,
        plan=plan,
        environment=environment,
        phases={} if skipped else {name: taken for name, taken in run.taken.items() if is_phase(mode, name)},
        persistent=persistent,
        attention=tuple(run.attention) or ("eager",),
        recorded=history,
        notes=tuple(notes),
        skipped=skipped,
    )


def _notes(environment: Environment) -> Iterator[str]:
    for setting in environment.unknown:
        yield f"{setting} is set, which the prediction does not know"


def _failure(error: RuntimeError, where: str) -> str:
    """One line; the traceback, which holds the run's tensors, ends with the caller's handler."""
    text = str(error).strip().partition("\n")[0]
    short = text.partition(". GPU ")[0]
    out = isinstance(error, torch.OutOfMemoryError) or "CUBLAS_STATUS_ALLOC_FAILED" in text
    return f"out of memory in {where}: {short}" if out else f"{where} failed: {text}"


def _tokens(spec: Spec, batch: int, seq: int, place: str) -> Tensor:
    return torch.randint(spec.n_vocab, (batch, seq), device=place)


def _train(run: _Run, spec: Spec, plan: Plan, steps: int) -> Taken:
    """`steps` steps as a user writes them; what stays after the last."""
    place = run.gpu.place
    stays: list[Taken] = []

    def build() -> Loop:
        model = decoder(spec, plan, place).train()
        ids, targets = (_tokens(spec, plan.batch, plan.seq, place) for _ in range(2))
        return Loop(model, lambda: model(ids, targets))

    @contextmanager
    def phase(name: str, step: int) -> Iterator[None]:
        with run.phase(name, step), run.watching() if name.startswith("forward") and step == 1 else nullcontext():
            yield

    train(phase, build, plan, steps, lambda: stays.append(run.stays()))
    return stays[0]


def _infer(run: _Run, spec: Spec, plan: Plan) -> Taken:
    """A prompt of T tokens, and the T-th token of an answer, without gradients; what stays after both."""
    place, last_only = run.gpu.place, plan.logits == "last"
    with torch.no_grad(), run.watching():
        with run.phase("build"):
            model = decoder(spec, plan, place).eval()
            cache = model.make_cache(plan.batch, plan.seq, DTYPES[plan.kv_dtype])
            prompt, token = (_tokens(spec, plan.batch, seq, place) for seq in (plan.seq, 1))
        with run.phase("prefill", 1):
            with autocast(plan):
                logits = model(prompt, cache=cache, last_only=last_only).logits
            del logits
        with run.phase("decode", 1):
            with autocast(plan):
                logits = model(token, cache=cache, start=plan.seq - 1, last_only=last_only).logits
            del logits
        return run.stays()


def _driver() -> str | None:
    """The driver's version by NVIDIA's own binding, where it is installed and answers."""
    try:
        import pynvml  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return None
    return version.decode() if isinstance(version, bytes) else str(version)


# --- As evidence -----------------------------------------------------------------------------------------------------


def predict(spec: Spec, measured: Measured) -> Mode:
    """What the ledger says of the plan that ran."""
    return memory(spec, measured.plan, (measured.mode,)).modes[0]


def cuda(model: Resolved, plan: Plan, modes: Sequence[ModeName], gpu: Gpu | None = None) -> tuple[Evidence, ...]:
    """Each mode on the local GPU: where allocated bytes are off by more than the tolerance, and by which requests."""
    gpu = local_gpu() if gpu is None else gpu
    return tuple(_evidence(model, measure(model.spec, plan, mode, records=True, gpu=gpu)) for mode in modes)


def _evidence(model: Resolved, measured: Measured) -> Evidence:
    plan, here = measured.plan, measured.environment
    subject = (
        f"{measured.mode} on {here.device}, torch {here.torch}, {plan.batch} × {plan.seq} tokens, {plan.precision},"
        f" {', '.join(measured.attention)} attention"
    )
    if measured.mode == "training":
        subject += f", {plan.optimizer} {plan.optimizer_impl}"
    if measured.skipped:
        return Evidence("cuda", subject, skipped=measured.skipped)
    return Evidence(
        "cuda",
        "; ".join([subject, *measured.notes]),
        sum(len(phase.events) for phase in measured.recorded),
        findings=tuple(_findings(model.spec, predict(model.spec, measured), measured)),
        bytes=max(taken.requested for taken in measured.phases.values()),
    )


def _findings(spec: Spec, predicted: Mode, measured: Measured) -> Iterator[Finding]:
    """Figures that are off, each phase's with the buckets of its gap."""
    foreseen = predicted.attention[0].split(", ")
    if not set(measured.attention) <= set(foreseen):
        chosen = ", ".join(measured.attention)
        yield Finding("attention", f"{measured.mode} step", predicted.attention[0], chosen)
    off = [row for row in compare(predicted, measured) if not row.agrees]
    buckets = gaps(spec, measured) if off else ()
    for row in off:
        what = f"{measured.mode} step, {row.error:+.2f} %"
        yield Finding(f"{row.phase}, {row.figure}", what, format_count(row.predicted), format_count(row.measured))
        for gap in [gap for gap in buckets if gap.phase == row.phase][:SHOWN_GAPS]:
            yield Finding(f"{row.phase}, alive at the peak", _name(gap), str(gap.predicted), str(gap.measured))


def _name(gap: Gap) -> str:
    labels = f" ({'; '.join(gap.labels)})" if gap.labels else ""
    after = f", requested after {' or '.join(gap.after)}" if gap.after else ""
    return f"of {format_count(gap.bytes)} bytes{labels}{after}"
