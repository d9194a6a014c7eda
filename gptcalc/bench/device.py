"""The device that is asked for: whether it is there, what it is, how much of it is free, how fast its clocks run."""

import ctypes
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from time import sleep
from types import ModuleType
from typing import Any

from gptcalc.bench.stopwatch import THROTTLED_BELOW, CpuStopwatch, EventStopwatch, Stopwatch
from gptcalc.errors import InvalidValueError, MissingDependencyError, UnknownNameError
from gptcalc.ledger.profile import Device, DeviceKind, Software
from gptcalc.units import GIB, KIB, MIB

DEVICES = ("auto", "cuda", "cpu", "mps")
#: A last cache that nobody names is taken to be this large, which few are.
ASSUMED_CACHE = 64 * MIB
#: glibc's malloc.h: blocks from this size on are mapped one by one; so much free memory at the end is given back.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
#: The buffer that empties a GPU's L2.
FLUSH = 4


def need_torch() -> ModuleType:
    """torch, or one line that says how to install it."""
    try:
        import torch
    except ImportError:
        raise MissingDependencyError(
            "torch is not installed; install it with: pip install 'gptcalc[bench]'; 'bench show FILE' works without"
        ) from None
    return torch


def choose_device(name: str) -> DeviceKind:
    """`auto` is the best that is there. Raises one line where a device is asked for that is not."""
    if name not in DEVICES:
        raise UnknownNameError.near("--device", name, DEVICES)
    torch = need_torch()
    there: Mapping[DeviceKind, bool] = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(kind for kind, available in there.items() if available)
    for kind, available in there.items():
        if kind == name and available:
            return kind
    why = _why_missing(torch, name)
    others = " or ".join(kind for kind, available in there.items() if available)
    raise InvalidValueError(f"--device: read {name!r}, but {why}; use --device {others}")


def _why_missing(torch: ModuleType, name: str) -> str:
    if name == "mps":
        return "there is no Apple GPU that torch can use"
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} was built without CUDA"
    return f"torch {torch.__version__} finds no CUDA device"


def software(version: str) -> Software:
    """The versions of everything that makes kernels; `version` is gptcalc's."""
    torch = need_torch()
    triton = None
    with suppress(ImportError):
        import triton as found  # type: ignore[import-not-found,unused-ignore]

        triton = str(found.__version__)
    return Software(
        gptcalc=version,
        torch=torch.__version__,
        cuda=torch.version.cuda or torch.version.hip,
        triton=triton,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
    )


class Machine:
    """One device: its record, its stopwatch, its free memory and clocks."""

    def __init__(self, kind: DeviceKind, threads: int | None = None) -> None:
        """`threads` are torch's on a CPU; its own default where nothing is given."""
        self.torch = need_torch()
        if threads is not None:
            self.torch.set_num_threads(threads)
        if kind == "cpu":
            keep_freed_memory()
        self.kind = kind
        self.clock = NvmlClock.of(self.torch) if kind == "cuda" else None
        self.device = _DESCRIBE[kind](self.torch, self.clock)

    def stopwatch(self) -> Stopwatch:
        """A new one."""
        if self.kind == "cpu":
            return CpuStopwatch(self.device.cache_bytes, self.device.threads or 1)
        stream = (CudaStream if self.kind == "cuda" else MpsStream)(self.torch, self.device, self.clock)
        return EventStopwatch(stream)

    def free_bytes(self) -> int | None:
        """Memory that can still be had; `None` where nobody says."""
        if self.kind == "cuda":
            self.torch.cuda.empty_cache()
            return int(self.torch.cuda.mem_get_info()[0])
        if self.kind == "mps":
            return int(self.torch.mps.recommended_max_memory() - self.torch.mps.driver_allocated_memory())
        return available_memory()

    def out_of_memory(self, error: BaseException) -> bool:
        """Whether `error` says that memory ran out; torch's CPU allocator raises a plain `RuntimeError`."""
        return isinstance(error, MemoryError | self.torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError)
            and any(words in str(error) for words in ("allocate memory", "out of memory"))
        )

    def clocks(self) -> tuple[int, int] | None:
        """SM and memory clock at present, in MHz."""
        return self.clock.mhz() if self.clock else None


def _cpu(torch: ModuleType, clock: "NvmlClock | None") -> Device:  # noqa: ARG001  one signature for all
    cache = cpu_cache()
    return Device(
        kind="cpu",
        name=cpu_name(),
        memory_bytes=available_memory(total=True),
        cache_bytes=cache or ASSUMED_CACHE,
        cache_known=cache is not None,
        units=os.cpu_count(),
        capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
    )


def _cuda(torch: ModuleType, clock: "NvmlClock | None") -> Device:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    cache = getattr(properties, "L2_cache_size", 0)
    uuid = str(getattr(properties, "uuid", ""))
    return Device(
        kind="cuda",
        name=properties.name,
        driver=clock.driver() if clock else None,
        memory_bytes=properties.total_memory,
        cache_bytes=cache or ASSUMED_CACHE,
        cache_known=bool(cache),
        units=properties.multi_processor_count,
        capability=getattr(properties, "gcnArchName", "").split(":")[0] or f"{properties.major}.{properties.minor}",
        max_clock_mhz=clock.highest()[0] if clock else None,
        memory_clock_mhz=clock.highest()[1] if clock else None,
        fingerprint=sha256(uuid.encode()).hexdigest()[:12] if uuid else None,
    )


def _mps(torch: ModuleType, clock: "NvmlClock | None") -> Device:  # noqa: ARG001  one signature for all
    return Device(
        kind="mps",
        name=cpu_name(),
        driver=platform.mac_ver()[0] or None,
        memory_bytes=int(torch.mps.recommended_max_memory()),
        cache_bytes=ASSUMED_CACHE,
        cache_known=False,
    )


_DESCRIBE = {"cpu": _cpu, "cuda": _cuda, "mps": _mps}


class NvmlClock:
    """Clocks through NVIDIA's own binding of its management library (nvidia-ml-py); never sets anything."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        """`handle` is the card."""
        self.nvml, self.handle = nvml, handle

    @classmethod
    def of(cls, torch: ModuleType) -> "NvmlClock | None":
        """The clock of torch's current device; `None` without the binding, or where the card does not answer."""
        try:
            import pynvml  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
            clock = cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
            clock.mhz()
            clock.highest()
        except (pynvml.NVMLError, AttributeError):
            return None
        return clock

    def driver(self) -> str:
        """The driver's version."""
        version = self.nvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else str(version)

    def mhz(self) -> tuple[int, int]:
        """SM and memory clock at present."""
        return self._read(self.nvml.nvmlDeviceGetClockInfo)

    def highest(self) -> tuple[int, int]:
        """SM and memory clock at most."""
        return self._read(self.nvml.nvmlDeviceGetMaxClockInfo)

    def _read(self, look: Any) -> tuple[int, int]:
        return int(look(self.handle, self.nvml.NVML_CLOCK_SM)), int(look(self.handle, self.nvml.NVML_CLOCK_MEM))

    def throttled(self) -> bool:
        """Whether the SM clock is far below its highest, or heat or the board's power brake holds it down."""
        try:
            reasons = self.nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle)
            now, highest = self.mhz()[0], self.highest()[0]
        except self.nvml.NVMLError:
            return False
        slowed = (
            self.nvml.nvmlClocksThrottleReasonHwSlowdown
            | self.nvml.nvmlClocksThrottleReasonSwThermalSlowdown
            | self.nvml.nvmlClocksThrottleReasonHwThermalSlowdown
            | self.nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
        )
        return bool(reasons & slowed) or now < THROTTLED_BELOW * highest


class CudaStream:
    """torch's current CUDA stream."""

    def __init__(self, torch: ModuleType, device: Device, clock: NvmlClock | None) -> None:
        """Allocate the buffer that empties the L2."""
        self.torch, self.clock = torch, clock
        self.cycles_per_s = 1e6 * (device.max_clock_mhz or 2000)
        self.buffer = torch.empty(FLUSH * device.cache_bytes, dtype=torch.uint8, device="cuda")

    def event(self) -> Any:
        """A CUDA event with a time."""
        return self.torch.cuda.Event(enable_timing=True)

    def flush(self) -> None:
        """Write over all of the L2."""
        self.buffer.zero_()

    def hold(self, seconds: float) -> None:
        """A kernel that spins: nothing behind it starts."""
        self.torch.cuda._sleep(int(seconds * self.cycles_per_s))  # noqa: SLF001  torch has no public one

    def synchronize(self) -> None:
        """Wait for the device."""
        self.torch.cuda.synchronize()

    def throttled(self) -> bool:
        """By NVML."""
        return self.clock is not None and self.clock.throttled()

    def rest(self, seconds: float) -> None:
        """Let it cool."""
        sleep(seconds)


class MpsStream:
    """Apple's command queue: it starts when it is told to, so that no hold is needed."""

    def __init__(self, torch: ModuleType, device: Device, clock: NvmlClock | None) -> None:  # noqa: ARG002  as CudaStream
        """Allocate the buffer that empties the cache."""
        self.torch = torch
        self.buffer = torch.empty(FLUSH * device.cache_bytes, dtype=torch.uint8, device="mps")

    def event(self) -> Any:
        """A Metal event with a time."""
        return self.torch.mps.event.Event(enable_timing=True)

    def flush(self) -> None:
        """Write over all of the cache."""
        self.buffer.zero_()

    def hold(self, seconds: float) -> None:
        """Nothing to do."""

    def synchronize(self) -> None:
        """Wait for the device."""
        self.torch.mps.synchronize()

    def throttled(self) -> bool:
        """Nobody says."""
        return False

    def rest(self, seconds: float) -> None:
        """Let it cool."""
        sleep(seconds)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, as torch's allocators on GPUs do; elsewhere nothing happens.

    By default it gives large blocks back to the system, and a run that allocates its output is timed with the page
    faults of all of it.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(parameter, 2**31 - 1)


def cpu_name() -> str:
    """The processor's name as the system has it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_cache() -> int | None:
    """The largest cache of the first core in bytes; `None` where the system does not say."""
    sizes = []
    with suppress(OSError, ValueError):
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
            text = path.read_text(encoding="ascii").strip()
            sizes.append(int(text.rstrip("KMG")) * {"K": KIB, "M": MIB, "G": GIB}.get(text[-1:], 1))
    return max(sizes, default=None)


def available_memory(*, total: bool = False) -> int | None:
    """Memory of the machine in bytes, what is available or all of it; a container's limit counts. Linux and macOS."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        wanted = "MemTotal:" if total else "MemAvailable:"
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(next(int(line.split()[1]) * KIB for line in lines if line.startswith(wanted)))
    with suppress(OSError, ValueError, StopIteration):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        lines = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines()
        reclaimable = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        found.append(limit if total else limit - used + reclaimable)
    if not found:
        with suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)
