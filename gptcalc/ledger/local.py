"""The GPU of this machine, as NVIDIA's management library (NVML) tells: what it has, what is free, who holds the rest.

NVML is asked through NVIDIA's own binding, nvidia-ml-py; torch is not needed, and nothing is allocated or set. What is
free is what a process may still have: NVML counts what the driver keeps for itself as taken.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from gptcalc.errors import InvalidValueError, MissingDependencyError, plain, shown
from gptcalc.ledger.fit import Range, Room, target_for
from gptcalc.units import MIB, format_bytes

#: What else may be asked for.
INSTEAD = "name a GPU ('gptcalc gpus' lists all) or a size (24GiB)"
#: Who holds what no process is said to hold.
UNNAMED = "others that the driver does not name (a display, another container or user)"
#: Which devices CUDA shows a process, and how it counts them.
VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"


class Holder(NamedTuple):
    """A process that holds memory of the device; `bytes` is `None` where the driver does not tell."""

    pid: int
    name: str
    bytes: int | None


class Local(NamedTuple):
    """A device here, and its memory now, in bytes.

    `name` is what was asked for, `place` the device in nvidia-smi's count, `kept` what the driver keeps for itself,
    where it says so. `others` are the devices that were not asked for.
    """

    name: str
    title: str
    place: str
    driver: str
    capability: tuple[int, int]
    capacity: int
    free: int
    kept: int | None
    holders: tuple[Holder, ...]
    others: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def unnamed(self) -> int:
        """Bytes that somebody holds whom the driver does not name: a display, another container or user."""
        named = sum(holder.bytes or 0 for holder in self.holders)
        return max(self.capacity - self.free - (self.kept or 0) - named, 0)

    @property
    def target(self) -> str:
        """The generation whose kernels run."""
        return target_for(self.capability)


class _Card(NamedTuple):
    """A whole GPU, or an instance of one that is divided (MIG), as NVML's handles, with its UUID and the whole's."""

    place: str
    handle: Any
    whole: Any
    uuids: tuple[str, ...]

    @property
    def is_part(self) -> bool:
        return self.handle is not self.whole


def local_room(name: str, what: str = "gpu") -> Room:
    """What is free now on a GPU of this machine: `local` is the first that CUDA shows, `local:1` the next."""
    found = local(name, what)
    return Room(
        name=found.name,
        title=f"{found.title} (local)",
        capacity=found.capacity,
        source="now free",
        usable=Range(found.free, found.free),
        target=found.target,
        notes=(*held(found), *found.notes),
    )


def held(found: Local) -> tuple[str, ...]:
    """Who holds what is not free, in words."""
    words = [f"now free: {format_bytes(found.free)} of {format_bytes(found.capacity)}"]
    if found.kept:
        words.append(f"the driver keeps {format_bytes(found.kept)}")
    words += [f"{named(holder)} holds {_amount(holder.bytes)}" for holder in found.holders]
    if found.unnamed >= MIB:
        words.append(f"{UNNAMED} hold {format_bytes(found.unnamed)}")
    return tuple(words)


def named(holder: Holder) -> str:
    """A process as it is called."""
    return f"{holder.name} (process {holder.pid})" if holder.name else f"process {holder.pid}"


def _amount(n_bytes: int | None) -> str:
    return "an amount that the driver does not tell" if n_bytes is None else format_bytes(n_bytes)


def local(name: str, what: str = "gpu") -> Local:
    """Ask NVML. Raises one line where there is no binding, no driver, no such device, or no answer."""
    wanted = _index(name, what)
    with _nvml(name, what) as nvml:
        every = _every(nvml)
        cards, notes = _visible(nvml, every)
        if wanted >= len(cards):
            raise InvalidValueError(f"{what}: read {shown(name)}, but {_there_are(nvml, every, cards)}; {INSTEAD}")
        card = cards[wanted]
        others = tuple(
            f"local:{place} is {_title(nvml, other)}" for place, other in enumerate(cards) if other is not card
        )
        return _asked(nvml, card, name, notes, others)


def _index(name: str, what: str) -> int:
    """The place among those that CUDA shows: 0 for `local`, N for `local:N`."""
    number = name.strip()[len("local") :].removeprefix(":")
    if name.strip().lower() == "local":
        return 0
    if number.isdecimal() and number.isascii() and len(number) < 10:
        return int(number)
    raise InvalidValueError(f"{what}: read {shown(name)}; allowed: local, or local:N for the device N, counted from 0")


@contextmanager
def _nvml(name: str, what: str) -> Iterator[Any]:
    """NVIDIA's binding, open; what it raises becomes one line."""
    try:
        import pynvml  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        raise MissingDependencyError(
            f"{what}: {shown(name)} needs nvidia-ml-py, NVIDIA's binding of its management library; install it with:"
            f" pip install 'gptcalc[nvml]'; or {INSTEAD}"
        ) from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        why = f"this machine has no NVIDIA driver that answers ({_said(error)})"
        raise InvalidValueError(f"{what}: read {shown(name)}, but {why}; {INSTEAD}") from None
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise InvalidValueError(
            f"{what}: read {shown(name)}, but the NVIDIA driver does not tell: {_said(error)}; {INSTEAD}"
        ) from None
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _said(error: Exception) -> str:
    return str(error).strip().rstrip(".")


# --- Devices ---------------------------------------------------------------------------------------------------------


def _every(nvml: Any) -> list[_Card]:
    """Every device in nvidia-smi's order; one that is divided stands as its instances, or as itself without any."""
    found: list[_Card] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        whole = nvml.nvmlDeviceGetHandleByIndex(index)
        found += list(_parts(nvml, whole, index)) or [_Card(f"GPU {index}", whole, whole, (_uuid(nvml, whole),))]
    return found


def _parts(nvml: Any, whole: Any, index: int) -> Iterator[_Card]:
    """The instances of a device that is divided; none of one that is not."""
    if not _is_divided(nvml, whole):
        return
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(whole)):
        with suppress(nvml.NVMLError):  # places without an instance
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, place)
            yield _Card(f"MIG instance {place} of GPU {index}", part, whole, (_uuid(nvml, part), _uuid(nvml, whole)))


def _is_divided(nvml: Any, whole: Any) -> bool:
    with suppress(nvml.NVMLError):  # most devices cannot be
        return bool(nvml.nvmlDeviceGetMigMode(whole)[0])
    return False


def _uuid(nvml: Any, handle: Any) -> str:
    with suppress(nvml.NVMLError):
        return _text(nvml.nvmlDeviceGetUUID(handle))
    return ""


def _visible(nvml: Any, every: list[_Card]) -> tuple[list[_Card], tuple[str, ...]]:
    """Those that CUDA shows this process, in its order, and what is to be said of that order."""
    listed = os.environ.get(VISIBLE)
    cards = every if listed is None else _listed(listed, every)
    notes: tuple[str, ...] = () if listed is None else (f"of those that {VISIBLE}={plain(listed)} shows",)
    names = {_title(nvml, card) for card in cards if not card.is_part}
    if len(names) > 1 and os.environ.get(ORDER) != "PCI_BUS_ID":
        notes += (f"devices are counted as nvidia-smi does; torch may count otherwise without {ORDER}=PCI_BUS_ID",)
    if cards and cards[0].is_part:
        notes += (f"torch uses one MIG instance in a process: the first, or that of {VISIBLE}=MIG-...",)
    return cards, notes


def _listed(listed: str, every: list[_Card]) -> list[_Card]:
    """What a list of indices and of UUIDs, or their beginnings, shows: as CUDA reads it, up to the first mistake."""
    found: list[_Card] = []
    for entry in map(str.strip, listed.split(",")):
        of_index = [card for card in every if card.place.split()[-1] == entry]
        of_uuid = [card for card in every if any(_is_short_for(entry, uuid) for uuid in card.uuids)]
        meant = of_index or (of_uuid if len({card.place.split()[-1] for card in of_uuid}) == 1 else [])
        if not meant or meant[0] in found or (entry.startswith("MIG-") and len(meant) > 1):
            break
        found.append(meant[0])
    return found


def _is_short_for(entry: str, uuid: str) -> bool:
    return entry.startswith(("GPU-", "MIG-")) and uuid.startswith(entry)


def _there_are(nvml: Any, every: list[_Card], cards: list[_Card]) -> str:
    """Which devices there are instead."""
    if not every:
        return "the NVIDIA driver finds no GPU here"
    if not cards:
        listed = os.environ.get(VISIBLE, "")
        return f"{VISIBLE}={plain(listed)} shows none of the GPUs here ({len(every)})"
    names = ", ".join(f"local:{place} ({_title(nvml, card)})" for place, card in enumerate(cards))
    return f"there {'is' if len(cards) == 1 else 'are'} {names}"


def _title(nvml: Any, card: _Card) -> str:
    with suppress(nvml.NVMLError):
        return plain(_text(nvml.nvmlDeviceGetName(card.handle)))
    return card.place


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


# --- What one device has ---------------------------------------------------------------------------------------------


def _asked(nvml: Any, card: _Card, name: str, notes: tuple[str, ...], others: tuple[str, ...]) -> Local:
    if _is_divided(nvml, card.whole) and not card.is_part:
        raise InvalidValueError(
            f"{name}: {card.place}, {_title(nvml, card)}, is divided (MIG) and has no instance that a process could"
            f" use; make one with 'nvidia-smi mig', or {INSTEAD}"
        )
    capacity, free, kept = _memory(nvml, card.handle)
    return Local(
        name=name.strip().lower(),
        title=_title(nvml, card),
        place=card.place,
        driver=_text(nvml.nvmlSystemGetDriverVersion()),
        capability=tuple(nvml.nvmlDeviceGetCudaComputeCapability(card.whole)),
        capacity=capacity,
        free=free,
        kept=kept,
        holders=_holders(nvml, card.handle),
        others=others,
        notes=notes,
    )


def _memory(nvml: Any, handle: Any) -> tuple[int, int, int | None]:
    """The total, what is free, and what the driver keeps, where its release says that."""
    version = getattr(nvml, "nvmlMemory_v2", None)
    if version is not None:
        with suppress(nvml.NVMLError):  # drivers before 510
            memory = nvml.nvmlDeviceGetMemoryInfo(handle, version)
            return int(memory.total), int(memory.free), int(memory.reserved)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return int(memory.total), int(memory.free), None


def _holders(nvml: Any, handle: Any) -> tuple[Holder, ...]:
    """The processes on the device, those that hold most first; one that computes and draws is there once."""
    found: dict[int, int | None] = {}
    for process in _processes(nvml, handle):
        before, amount = found.get(process.pid), process.usedGpuMemory
        found[process.pid] = before if amount is None else max(int(amount), before or 0)
    holders = [Holder(pid, _process_name(nvml, pid), amount) for pid, amount in found.items()]
    return tuple(sorted(holders, key=lambda holder: (-(holder.bytes or 0), holder.pid)))


def _processes(nvml: Any, handle: Any) -> Iterable[Any]:
    for look in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        with suppress(nvml.NVMLError):  # not every device, and not every user, is told
            yield from look(handle)


def _process_name(nvml: Any, pid: int) -> str:
    """The program's name without its folder; empty where it runs in another container, or as another user."""
    with suppress(nvml.NVMLError):
        return plain(_text(nvml.nvmlSystemGetProcessName(pid)).rsplit("/", 1)[-1])
    return ""
