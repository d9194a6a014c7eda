"""The same harness on a CUDA device."""

import pytest

from gptcalc.bench.plan import CASES, Job
from gptcalc.ledger.profile import Backend, Device, Profile, Shape

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SHAPE = Shape(rows=2048, d_model=768, n_vocab=50257, n_ctx=1024, seq=1024)
ODD = Shape(rows=77, d_model=131, n_vocab=1009, n_ctx=11, seq=11)
KERNELS = [name for name, info in CASES.items() if not info.ceiling]


def run(jobs: list[Job], budget_s: float) -> Profile:
    """A whole run on the GPU."""
    from gptcalc.bench.device import Machine, software
    from gptcalc.bench.run import Bench

    machine = Machine("cuda")
    profile = Profile(
        command="test",
        started="now",
        device=machine.device,
        software=software("test"),
        asked=len(jobs),
        points=(),
    )
    *_, last = Bench(machine, jobs, profile, budget_s, lambda _: None)
    return last


def device() -> Device:
    """The GPU's record."""
    from gptcalc.bench.device import Machine

    return Machine("cuda").device


@pytest.mark.parametrize("backend", ["eager", "compile"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("case", KERNELS)
def test_results_agree_with_float64(case: str, dtype: str, backend: Backend) -> None:
    """Every kernel computes its formula on the GPU too, at odd sizes as well."""
    from gptcalc.bench.cases import prepare

    here = device()
    for shape in (SHAPE, ODD):
        job = Job(case, dtype, backend, shape)
        assert prepare(job, "cuda", cache_bytes=here.cache_bytes, units=here.units).check()


@pytest.mark.parametrize("case", CASES)
def test_nothing_waits_for_the_device(case: str) -> None:
    """A run enqueues its kernels and returns: a wait would be timed as the kernel's."""
    from gptcalc.bench.cases import prepare

    here = device()
    work = prepare(Job(case, "fp32", "eager", SHAPE), "cuda", cache_bytes=here.cache_bytes, units=here.units)
    work.check()
    (one,) = work.sets(1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        one()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_whole_run() -> None:
    """All cases have numbers within what the device can do, and cold is not faster than warm."""
    from gptcalc.ledger.timing import timing

    jobs = [Job(case, "fp32", "eager", SHAPE) for case in CASES]
    read = timing(run(jobs, 20.0))
    assert not read.problems
    assert read.ceiling
    assert read.floor
    assert read.floor < 50_000
    if read.gpu and read.gpu.bandwidth:
        assert 0.5 * read.gpu.bandwidth < read.ceiling < 1.05 * read.gpu.bandwidth
    times = {(result.point.case, result.state): result.time.estimate for result in read.results}
    for case in KERNELS:
        assert times[case, "cold"] > 0.9 * times[case, "warm"]
        assert times[case, "cold"] > read.floor


def test_what_does_not_fit_is_a_problem() -> None:
    """A shape larger than the device is refused before it is allocated, and the run goes on."""
    large = Shape(rows=1 << 22, d_model=1 << 16, n_vocab=10, n_ctx=1024, seq=1024)
    profile = run([Job("layernorm.forward", "fp32", "eager", large), Job("empty", "fp32", "eager", SHAPE)], 2.0)
    assert [point.problem.kind if point.problem else None for point in profile.points] == ["memory", None]
