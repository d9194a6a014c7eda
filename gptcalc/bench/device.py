"""The device that is asked for: whether it is there, what it is, how much of it is free, how fast its clocks run."""

import ctypes
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from time import sleep
from types import ModuleType
from typing import Any, Self

from gptcalc.bench.stopwatch import THROTTLED_BELOW, CpuStopwatch, EventStopwatch, Stopwatch
from gptcalc.errors import InvalidValueError, UnknownNameError
from gptcalc.installed import need_torch
from gptcalc.ledger.profile import Clocks, Device, DeviceKind, Software
from gptcalc.units import GIB, KIB, MIB

DEVICES = ("auto", "cuda", "cpu", "mps")
#: A last cache that nobody names is taken to be this large, which few are.
ASSUMED_CACHE = 64 * MIB
#: glibc's malloc.h: blocks from this size on are mapped one by one; so much free memory at the end is given back.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
#: The buffer that empties a GPU's L2, in L2s.
FLUSH = 4
#: A GPU spins so long before the first sample, since idle clocks are low.
WAKE_S = 0.1
#: Bytes a second that no Apple GPU's memory exceeds (M3 Ultra: 819 GB/s).
FASTEST_MPS = 1e12

_torch = partial(need_torch, "bench", "'bench show FILE' works without")


def choose_device(name: str) -> DeviceKind:
    """`auto` is the best that is there. Raises one line where a device is asked for that is not."""
    if name not in DEVICES:
        raise UnknownNameError.near("--device", name, DEVICES)
    torch = _torch()
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
    torch = _torch()
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


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out; torch's CPU allocator raises a plain `RuntimeError`."""
    return isinstance(error, MemoryError | _torch().OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in ("allocate memory", "out of memory"))
    )


class Machine:
    """One device: its record, its stopwatch, its free memory and clocks."""

    def __init__(self, kind: DeviceKind, threads: int | None = None) -> None:
        """`threads` are torch's on a CPU; its own default where nothing is given."""
        self.torch = _torch()
        if threads is not None:
            self.torch.set_num_threads(threads)
        if kind == "cpu":
            keep_freed_memory()
        self.kind = kind
        self.clock = NvmlClock.of(self.torch) if kind == "cuda" else None
        self.device = _DESCRIBE[kind](self.torch, self.clock)

    @classmethod
    def open(cls, name: str, threads: int | None = None) -> Self:
        """The device of that name, with its stopwatch ready. Raises one line where it is not there or cannot be had."""
        kind = choose_device(name)
        try:
            machine = cls(kind, threads)
            machine.stopwatch  # noqa: B018  what it allocates may be more than is free
        except RuntimeError as error:
            why = str(error).strip().splitlines()[0]
            raise InvalidValueError(f"--device: {kind} cannot be used now: {why}") from None
        return machine

    @cached_property
    def stopwatch(self) -> Stopwatch:
        """What times its kernels. Raises torch's `RuntimeError` where the device cannot be had."""
        if self.kind == "cpu":
            return CpuStopwatch(self.device.cache_bytes, self.device.threads or 1)
        stream = (CudaStream if self.kind == "cuda" else MpsStream)(self.torch, self.device, self.clock)
        return EventStopwatch(stream, self.device.cache_bytes)

    def free_bytes(self) -> int | None:
        """Memory that can still be had; `None` where nobody says."""
        if self.kind == "cuda":
            self.torch.cuda.empty_cache()
            return int(self.torch.cuda.mem_get_info()[0])
        if self.kind == "mps":
            return int(self.torch.mps.recommended_max_memory() - self.torch.mps.driver_allocated_memory())
        give_back_freed_memory()
        return available_memory()

    def load(self) -> float | None:
        """How many processes want a core, a minute's mean; on a CPU they are what disturbs a measurement."""
        return os.getloadavg()[0] if self.kind == "cpu" and hasattr(os, "getloadavg") else None

    def clocks(self) -> Clocks | None:
        """What has been seen of the clocks while samples were taken."""
        return self.clock.seen if self.clock else None


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
        # On CUDA builds this attribute is there too, and holds the card's name.
        capability=properties.gcnArchName.split(":")[0]
        if torch.version.hip
        else f"{properties.major}.{properties.minor}",
        max_clock_mhz=clock.highest[0] if clock else None,
        memory_clock_mhz=clock.highest[1] if clock else None,
        fingerprint=sha256(uuid.encode()).hexdigest()[:12] if uuid else None,
    )


def _mps(torch: ModuleType, clock: "NvmlClock | None") -> Device:  # noqa: ARG001  one signature for all
    return Device(
        kind="mps",
        name=cpu_name(),
        driver=platform.mac_ver()[0] or None,
        memory_bytes=int(_sysctl("hw.memsize") or torch.mps.recommended_max_memory()),
        cache_bytes=ASSUMED_CACHE,
        cache_known=False,
    )


_DESCRIBE = {"cpu": _cpu, "cuda": _cuda, "mps": _mps}


class NvmlClock:
    """Clocks through NVIDIA's own binding of its management library (nvidia-ml-py); never sets anything."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        """`handle` is the card. Raises the binding's error where it does not answer."""
        self.nvml, self.handle = nvml, handle
        self.highest = self._read(nvml.nvmlDeviceGetMaxClockInfo)
        self.seen: Clocks | None = None

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
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
        except (pynvml.NVMLError, AttributeError):
            return None

    def driver(self) -> str:
        """The driver's version."""
        version = self.nvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else str(version)

    def _read(self, look: Any) -> tuple[int, int]:
        return int(look(self.handle, self.nvml.NVML_CLOCK_SM)), int(look(self.handle, self.nvml.NVML_CLOCK_MEM))

    def throttled(self) -> bool:
        """Look at the clocks: whether the SM clock fell far below the highest seen, or heat or a power brake holds it.

        A card that always runs below its highest clock (a fixed clock, a small power limit) is not throttled.
        """
        try:
            reasons = self.nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle)
            sm, memory = self._read(self.nvml.nvmlDeviceGetClockInfo)
        except self.nvml.NVMLError:
            return False
        seen = self.seen or Clocks(sm=(sm, sm), memory=(memory, memory))
        self.seen = Clocks(
            sm=(min(sm, seen.sm[0]), max(sm, seen.sm[1])),
            memory=(min(memory, seen.memory[0]), max(memory, seen.memory[1])),
        )
        slowed = (
            self.nvml.nvmlClocksThrottleReasonHwSlowdown
            | self.nvml.nvmlClocksThrottleReasonSwThermalSlowdown
            | self.nvml.nvmlClocksThrottleReasonHwThermalSlowdown
            | self.nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
        )
        return bool(reasons & slowed) or sm < THROTTLED_BELOW * self.seen.sm[1]


class CudaStream:
    """torch's current CUDA stream."""

    holds_warm = True

    def __init__(self, torch: ModuleType, device: Device, clock: NvmlClock | None) -> None:
        """Allocate the buffer that empties the L2, and wake the clocks up."""
        self.torch, self.clock = torch, clock
        self.cycles_per_s = 1e6 * (device.max_clock_mhz or 2000)
        self.buffer = torch.empty(FLUSH * device.cache_bytes, dtype=torch.uint8, device=device.kind)
        self.hold(WAKE_S)
        self.synchronize()

    def event(self) -> Any:
        """An event with a time."""
        return self.torch.cuda.Event(enable_timing=True)

    def flush(self) -> None:
        """Write over all of the cache."""
        self.buffer.zero_()

    def hold(self, seconds: float) -> None:
        """A kernel that spins: nothing behind it starts."""
        self.torch.cuda._sleep(int(seconds * self.cycles_per_s))  # noqa: SLF001  torch has no public one

    def synchronize(self) -> None:
        """Wait for the device."""
        self.torch.cuda.synchronize()

    def throttled(self) -> bool:
        """By NVML; no, where nobody says."""
        return self.clock is not None and self.clock.throttled()

    def rest(self, seconds: float) -> None:
        """Let it cool."""
        sleep(seconds)


class MpsStream(CudaStream):
    """Apple's command queue, which is held by writing over the cache: cold numbers only."""

    holds_warm = False

    def event(self) -> Any:
        """A Metal event with a time."""
        return self.torch.mps.event.Event(enable_timing=True)

    def hold(self, seconds: float) -> None:
        """As many writes as take that long at the most that Apple's memory does."""
        for _ in range(1 + int(seconds * FASTEST_MPS / self.buffer.numel())):
            self.buffer.zero_()

    def synchronize(self) -> None:
        """Wait for the device."""
        self.torch.mps.synchronize()


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, as torch's allocators on GPUs do; elsewhere nothing happens.

    By default it gives large blocks back to the system, and a run that allocates its output is timed with the page
    faults of all of it.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(parameter, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Let glibc return now what it was told to keep: what is free is asked of the system."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def cpu_name() -> str:
    """The processor's name as the system has it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def _sysctl(name: str) -> str | None:
    """What macOS says of itself; `None` elsewhere."""
    if platform.system() != "Darwin":
        return None
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=True, timeout=5)  # noqa: S603
        return done.stdout.strip() or None
    return None


def cpu_cache() -> int | None:
    """The last caches of all cores that this process may use, together, in bytes; `None` where the system is silent."""
    last: dict[str, int] = {}
    for core in os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ():
        levels = []
        with suppress(OSError, ValueError):
            for folder in Path(f"/sys/devices/system/cpu/cpu{core}/cache").glob("index*"):
                level, size, shared = (
                    (folder / name).read_text(encoding="ascii").strip() for name in ("level", "size", "shared_cpu_list")
                )
                levels.append((int(level), shared, int(size.rstrip("KMG")) * _SCALE.get(size[-1:], 1)))
        if levels:
            _, shared, n_bytes = max(levels)
            last[shared] = n_bytes
    return sum(last.values()) or None


_SCALE = {"K": KIB, "M": MIB, "G": GIB}


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
