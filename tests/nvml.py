"""A machine with NVIDIA GPUs, as nvidia-ml-py tells of it: the part of the binding that gptcalc asks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

GIB, MIB = 2**30, 2**20


class NVMLError(Exception):
    """As the binding's: an error that prints NVML's words."""


NO_LIBRARY = NVMLError("NVML Shared Library Not Found")
NOT_SUPPORTED = NVMLError("Not Supported")
NO_PERMISSION = NVMLError("Insufficient Permissions")
NOT_FOUND = NVMLError("Not Found")


def process(pid: int, n_bytes: int | None) -> SimpleNamespace:
    """A process as the binding lists it."""
    return SimpleNamespace(pid=pid, usedGpuMemory=n_bytes)


def card(**changed: Any) -> SimpleNamespace:
    """An RTX 4090 on which nothing runs, or with what is `changed`; an error in place of a value is raised."""
    own: dict[str, Any] = {
        "name": "NVIDIA GeForce RTX 4090",
        "uuid": "GPU-11111111-aaaa",
        "total": 24_564 * MIB,
        "reserved": 347 * MIB,
        "used": 0,
        "capability": (8, 9),
        "mig": NOT_SUPPORTED,
        "parts": [],
        "compute": [],
        "graphics": [],
        "names": {},
    }
    return SimpleNamespace(**own | changed)


class Nvml:
    """`pynvml` on a machine with those cards. With `old`, of a driver that does not tell what it keeps."""

    NVMLError = NVMLError
    nvmlMemory_v2 = 0x02000028

    def __init__(self, *cards: SimpleNamespace, old: bool = False, fails: Exception | None = None) -> None:
        self.cards, self.old, self.fails, self.open = cards, old, fails, 0

    def nvmlInit(self) -> None:
        if self.fails:
            raise self.fails
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.95.05"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> SimpleNamespace:
        return self.cards[index]

    def nvmlDeviceGetName(self, handle: SimpleNamespace) -> str:
        return _told(handle.name)

    def nvmlDeviceGetUUID(self, handle: SimpleNamespace) -> str:
        return _told(handle.uuid)

    def nvmlDeviceGetCudaComputeCapability(self, device: SimpleNamespace) -> tuple[int, int]:
        return _told(device.capability)

    def nvmlDeviceGetMemoryInfo(self, handle: SimpleNamespace, version: int | None = None) -> SimpleNamespace:
        total, reserved, used = _told(handle.total), handle.reserved, handle.used
        free = total - reserved - used
        if not version:
            return SimpleNamespace(total=total, free=free, used=reserved + used)
        if self.old:
            raise NVMLError("Function Not Found")
        return SimpleNamespace(total=total, free=free, used=used, reserved=reserved)

    def nvmlDeviceGetMigMode(self, device: SimpleNamespace) -> list[int]:
        return _told(device.mig)

    def nvmlDeviceGetMaxMigDeviceCount(self, device: SimpleNamespace) -> int:
        return len(device.parts)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: SimpleNamespace, index: int) -> SimpleNamespace:
        part: SimpleNamespace = _told(device.parts[index])
        return part

    def nvmlDeviceGetComputeRunningProcesses(self, handle: SimpleNamespace) -> list[SimpleNamespace]:
        return _told(handle.compute)

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: SimpleNamespace) -> list[SimpleNamespace]:
        return _told(handle.graphics)

    def nvmlSystemGetProcessName(self, pid: int) -> str:
        for each in self.cards:
            if pid in each.names:
                return each.names[pid]
        raise NOT_FOUND


def _told(value: Any) -> Any:
    if isinstance(value, Exception):
        raise value
    return value
