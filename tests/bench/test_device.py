"""The device: whether it is there, what it is, and its clocks through a binding that is faked."""

import ctypes
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptcalc.bench import device as devices
from gptcalc.bench.device import Machine, NvmlClock, available_memory, choose_device, cpu_cache, out_of_memory, software
from gptcalc.errors import InvalidValueError, UnknownNameError
from gptcalc.ledger.profile import Clocks, Device

torch = pytest.importorskip("torch")


class FakeNvml:
    """The part of nvidia-ml-py that is used: H200 clocks, and the reasons for which they are lowered."""

    class NVMLError(Exception):
        """As the binding's."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
    nvmlClocksThrottleReasonHwSlowdown = 0x8
    nvmlClocksThrottleReasonSwThermalSlowdown = 0x20
    nvmlClocksThrottleReasonHwThermalSlowdown = 0x40
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 0x80

    def __init__(self, sm: int = 1980, reasons: int = 0) -> None:
        self.sm, self.reasons, self.fails = sm, reasons, False

    def nvmlDeviceGetClockInfo(self, _: object, which: int) -> int:
        if self.fails:
            raise self.NVMLError
        return self.sm if which == self.NVML_CLOCK_SM else 3201

    def nvmlDeviceGetMaxClockInfo(self, _: object, which: int) -> int:
        return 1980 if which == self.NVML_CLOCK_SM else 3201

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, _: object) -> int:
        return self.reasons

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.159"


@pytest.mark.parametrize(
    ("sm", "reasons", "throttled"),
    [
        (1980, 0, False),
        (1486, 0, False),
        (1484, 0, True),
        (1980, 0x4, False),  # the software's power cap, with the clock still high
        (1980, 0x8, True),
        (1980, 0x20, True),
        (1980, 0x40, True),
        (1980, 0x80, True),
    ],
)
def test_throttled(sm: int, reasons: int, throttled: bool) -> None:  # noqa: FBT001
    """Throttled is a clock under three quarters of the highest seen, heat, or the board's power brake."""
    nvml = FakeNvml()
    clock = NvmlClock(nvml, None)
    assert not clock.throttled()
    nvml.sm, nvml.reasons = sm, reasons
    assert clock.throttled() is throttled
    assert clock.seen == Clocks(sm=(min(sm, 1980), 1980), memory=(3201, 3201))


def test_card_that_always_runs_slower_is_not_throttled() -> None:
    """A card with a fixed clock, or a small power limit, runs at its own highest clock: what counts is a fall."""
    clock = NvmlClock(FakeNvml(sm=900), None)
    assert not clock.throttled()
    assert not clock.throttled()


def test_clock_that_stops_answering_says_nothing() -> None:
    """Where the binding fails in the middle of a run, samples are not thrown out for it, and nothing ends."""
    nvml = FakeNvml()
    clock = NvmlClock(nvml, None)
    assert clock.highest == (1980, 3201)
    assert clock.seen is None
    assert clock.driver() == "580.159"
    nvml.fails = True
    assert clock.throttled() is False


def test_auto_is_the_best_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA, else Apple's GPU, else the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_missing_device_names_what_is_here(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A device that is not there is an error that says why and what there is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InvalidValueError, match=f"read '{name}', but .*; use --device cpu"):
        choose_device(name)


def test_unknown_device_names_the_nearest() -> None:
    """A name that is no device names the nearest."""
    with pytest.raises(UnknownNameError, match="nearest: cuda"):
        choose_device("cuda0")


def test_this_machine() -> None:
    """The CPU's record has its name, its memory, its last cache and torch's threads."""
    machine = Machine("cpu", threads=1)
    assert machine.device.kind == "cpu"
    assert machine.device.threads == 1
    assert machine.device.name
    assert machine.device.cache_bytes >= 1 << 16
    free = machine.free_bytes()
    assert free is None or 0 < free <= machine.device.memory_bytes
    assert machine.clocks() is None
    assert software("1.2.3").torch == torch.__version__


def test_device_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the stopwatch finds no memory, the first line of what torch says stands in the error."""

    def full(*_: object) -> None:
        raise RuntimeError("out of memory\nand a traceback of the driver's own")

    monkeypatch.setattr(devices, "CpuStopwatch", full)
    with pytest.raises(InvalidValueError, match=r"^--device: cpu cannot be used now: out of memory$"):
        Machine.open("cpu")


def test_system_files_that_are_missing_are_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the system keeps no such files (macOS, a sandbox), nothing is known and nothing fails."""
    monkeypatch.setattr(devices, "Path", lambda _: tmp_path / "nowhere")
    assert cpu_cache() is None
    assert available_memory() is None or available_memory() > 0
    assert devices.cpu_name()


def test_container_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a container's limit, what is used and cannot be dropped is not free."""
    files = {
        "/proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n",
        "/sys/fs/cgroup/memory.max": "4000000000\n",
        "/sys/fs/cgroup/memory.current": "3000000000\n",
        "/sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 500000000\n",
    }
    for name, text in files.items():
        (tmp_path / Path(name).name).write_text(text)
    monkeypatch.setattr(devices, "Path", lambda name: tmp_path / Path(name).name)
    assert available_memory() == 1_500_000_000
    assert available_memory(total=True) == 4_000_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() == 8_000_000 * 1024


def test_freed_memory_is_kept() -> None:
    """A gradient of 154 MB that was freed is reused without asking the system: its pages are not faulted in again."""
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("no glibc")
    code = """
import resource
from gptcalc.bench.cases import prepare
from gptcalc.bench.device import Machine
from gptcalc.bench.plan import Job
from gptcalc.ledger.profile import Shape
Machine("cpu")
shape = Shape(rows=64, d_model=768, n_vocab=50257, n_ctx=64, seq=64)
(run,) = prepare(Job("embedding.backward", "fp32", "eager", shape), "cpu", cache_bytes=1, units=1).sets(1)
run(), run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000  # all of it each time would be 376,930


def test_kept_memory_counts_as_free() -> None:
    """What the process keeps, and does not use, is free for the next kernels."""
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("no glibc")
    code = """
from pathlib import Path
from gptcalc.bench.device import Machine
machine = Machine("cpu")
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
large = [machine.torch.ones(1 << 27) for _ in range(2)]
del large
kept = resident()
machine.free_bytes()
print(kept - resident())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 900 << 20


def test_out_of_memory_is_told_from_other_errors() -> None:
    """Torch's CPU allocator raises a plain RuntimeError; another RuntimeError is not taken for it."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert out_of_memory(error.value)
    assert out_of_memory(torch.OutOfMemoryError())
    assert not out_of_memory(RuntimeError("shapes differ"))


def test_nvml_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the binding, or with one that fails, there are no clocks and no error."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert NvmlClock.of(torch) is None
    fake = SimpleNamespace(nvmlInit=lambda: None, NVMLError=FakeNvml.NVMLError)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace())
    assert NvmlClock.of(torch) is None


H200 = SimpleNamespace(
    name="NVIDIA H200",
    total_memory=150_109_880_320,
    L2_cache_size=62_914_560,
    multi_processor_count=132,
    major=9,
    minor=0,
    uuid="5a1e",
    gcnArchName="NVIDIA H200",  # as torch's CUDA builds have it
)


def fake_torch(properties: SimpleNamespace, calls: list[tuple[object, ...]]) -> SimpleNamespace:
    """As much of torch as describes a CUDA device and fills its queue."""
    cuda = SimpleNamespace(
        current_device=lambda: 0,
        get_device_properties=lambda _: properties,
        Event=lambda **options: calls.append(("event", options)),
        _sleep=lambda cycles: calls.append(("sleep", cycles)),
        synchronize=lambda: calls.append(("synchronize",)),
    )
    buffer = SimpleNamespace(zero_=lambda: calls.append(("zero",)))

    def empty(size: int, **options: object) -> SimpleNamespace:
        calls.append(("empty", size, options["device"]))
        return buffer

    version = SimpleNamespace(hip=None)
    return SimpleNamespace(cuda=cuda, empty=empty, uint8=torch.uint8, version=version)


def test_cuda_record() -> None:
    """A CUDA device is described by what torch and NVML say of it; its UUID is kept as a short hash only."""
    device = devices._cuda(fake_torch(H200, []), NvmlClock(FakeNvml(), None))
    assert (device.name, device.capability, device.units) == ("NVIDIA H200", "9.0", 132)
    assert (device.cache_bytes, device.cache_known) == (62_914_560, True)
    assert (device.driver, device.max_clock_mhz, device.memory_clock_mhz) == ("580.159", 1980, 3201)
    assert device.fingerprint
    assert len(device.fingerprint) == 12
    assert "5a1e" not in device.fingerprint
    bare = SimpleNamespace(**{k: v for k, v in vars(H200).items() if k not in ("L2_cache_size", "uuid")})
    other = devices._cuda(fake_torch(bare, []), None)
    assert (other.cache_known, other.driver, other.fingerprint) == (False, None, None)


def test_cuda_queue() -> None:
    """The queue is held by a spinning kernel for that many cycles, and emptied by a buffer of four times the L2."""
    calls: list[tuple[object, ...]] = []
    fake, clock = fake_torch(H200, calls), NvmlClock(FakeNvml(), None)
    stream = devices.CudaStream(fake, devices._cuda(fake, clock), clock)
    stream.flush()
    stream.hold(1e-3)
    stream.event()
    stream.synchronize()
    assert calls == [
        ("empty", 4 * 62_914_560, "cuda"),
        ("sleep", 198_000_000),
        ("synchronize",),
        ("zero",),
        ("sleep", 1_980_000),
        ("event", {"enable_timing": True}),
        ("synchronize",),
    ]
    assert not stream.throttled()
    clock.nvml.reasons = 0x40
    assert stream.throttled()
    assert not devices.CudaStream(fake, devices._cuda(fake, None), None).throttled()


def test_rocm_record() -> None:
    """On a ROCm build the capability is the architecture's name, without its flags."""
    fake = fake_torch(SimpleNamespace(**{**vars(H200), "gcnArchName": "gfx942:sramecc+:xnack-"}), [])
    fake.version.hip = "6.2"
    assert devices._cuda(fake, None).capability == "gfx942"


def test_mps_queue_is_held_by_writing() -> None:
    """Apple's queue is held by as many writes as its memory cannot do in less, so nothing there is warm."""
    writes: list[int] = []
    fake = SimpleNamespace(
        mps=SimpleNamespace(synchronize=lambda: None),
        empty=lambda size, **_: SimpleNamespace(zero_=lambda: writes.append(size), numel=lambda: size),
        uint8=torch.uint8,
    )
    stream = devices.MpsStream(fake, Device(kind="mps", name="x", cache_bytes=1 << 26), None)
    writes.clear()
    stream.hold(1e-3)
    assert sum(writes) / 1e12 >= 1e-3
    assert not stream.holds_warm


def test_last_caches_of_all_cores_add_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Four cores of which two each share an L3 of 32 MiB have 64 MiB; the inner caches do not count."""
    for core in range(4):
        for index, (level, size, shared) in enumerate([(1, "32K", f"{core}"), (3, "32768K", f"{core // 2}")]):
            folder = tmp_path / f"cpu{core}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, value in (("level", level), ("size", size), ("shared_cpu_list", shared)):
                (folder / name).write_text(f"{value}\n")
    monkeypatch.setattr(devices, "Path", lambda name: tmp_path / Path(name).relative_to("/sys/devices/system/cpu"))
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert cpu_cache() == 64 << 20
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert cpu_cache() == 32 << 20


def test_macos_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS the name is that of the chip, under which its datasheet stands."""
    monkeypatch.setattr(devices, "Path", lambda _: Path("/nowhere"))
    monkeypatch.setattr(devices.platform, "system", lambda: "Darwin")
    said = {"machdep.cpu.brand_string": "Apple M2 Max\n"}
    monkeypatch.setattr(devices.subprocess, "run", lambda line, **_: SimpleNamespace(stdout=said[line[-1]]))
    assert devices.cpu_name() == "Apple M2 Max"
