"""Requests and frees laid out as torch lays out a snapshot: events, and the segments that are left at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gptcalc.allocator import Allocator, Block, round_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gptcalc.ledger.memory import ModeName
    from gptcalc.plan import Plan
    from gptcalc.spec import Spec

#: Where the pools begin, so far apart that no address is in both.
BASES = (0x7F0000000000, 0x7F8000000000)


class Request(NamedTuple):
    """A request of so many bytes under a name, or with none its end; `line` of the user's code asks for it."""

    name: int
    bytes: int
    line: int = 0


class Machine:
    """A device: what its allocator does as torch would write it down."""

    def __init__(self, *, device: int = 0, framed: bool = True) -> None:
        self.allocator = Allocator()
        self.pools = (self.allocator._small, self.allocator._large)
        self.device, self.framed = device, framed
        self.blocks: dict[int, tuple[Block, int]] = {}
        self.trace: list[dict[str, Any]] = []
        self.segments: list[tuple[int, int]] = []

    def address(self, block: Block) -> int:
        return BASES[self.pools.index(block.pool)] + block.address

    def run(self, requests: Iterable[Request]) -> Machine:
        for request in requests:
            if request.bytes:
                self.take(request)
            elif request.name in self.blocks:
                block, line = self.blocks.pop(request.name)
                size, address = block.requested, self.address(block)
                self.note("free_requested", address, size, line)
                self.allocator.free(block)
                self.note("free_completed", address, size, line)
        return self

    def take(self, request: Request) -> None:
        before = [pool.reserved for pool in self.pools]
        block = self.allocator.malloc(request.bytes)
        assert block is not None
        for pool, (base, held) in zip(self.pools, zip(BASES, before, strict=True), strict=True):
            if pool.reserved > held:
                self.segments.append((base + held, pool.reserved - held))
                self.note("segment_alloc", base + held, pool.reserved - held, request.line)
        self.note("alloc", self.address(block), request.bytes, request.line)
        self.blocks[request.name] = block, request.line

    def fail(self, size: int, free: int) -> Machine:
        """An out-of-memory error, which torch writes down with the rounded size."""
        size = round_size(size)
        self.trace.append({"action": "oom", "device_free": free, "size": size, "stream": 0, "frames": [], "time_us": 1})
        return self

    def note(self, action: str, address: int, size: int, line: int) -> None:
        entry = {"action": action, "addr": address, "size": size, "stream": 0, "time_us": len(self.trace)}
        self.trace.append({**entry, "segment_pool_id": (0, 0), "compile_context": "N/A", "frames": self.frames(line)})

    def frames(self, line: int) -> list[dict[str, Any]]:
        """Torch's own code first, as torch lists it, then the user's."""
        if not self.framed:
            return []
        torch = {
            "filename": "/v/lib/python3.11/site-packages/torch/nn/modules/linear.py",
            "line": 125,
            "name": "forward",
        }
        native = {"filename": "??", "line": 0, "name": "at::native::empty_cuda"}
        return [native, torch, {"filename": "/home/user/train.py", "line": line, "name": "step"}]

    def laid_out(self) -> list[dict[str, Any]]:
        """The segments with all their blocks, as they are now."""
        live = {self.address(block): (block, line) for block, line in self.blocks.values()}
        found = []
        for start, size in self.segments:
            blocks, place = [], start
            for address in sorted(address for address in live if start <= address < start + size):
                block, line = live[address]
                if address > place:
                    blocks.append(self.block(place, address - place))
                blocks.append(self.block(address, block.size, block.requested, self.frames(line)))
                place = address + block.size
            if place < start + size:
                blocks.append(self.block(place, start + size - place))
            active = sum(one["size"] for one in blocks if one["state"] == "active_allocated")
            found.append(
                {
                    "device": self.device,
                    "address": start,
                    "total_size": size,
                    "allocated_size": active,
                    "active_size": active,
                    "requested_size": sum(one["requested_size"] for one in blocks),
                    "stream": 0,
                    "segment_type": "small" if start < BASES[1] else "large",
                    "segment_pool_id": (0, 0),
                    "is_expandable": False,
                    "frames": [],
                    "blocks": blocks,
                }
            )
        return found

    def block(
        self, address: int, size: int, requested: int = 0, frames: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """A stretch of a segment, free where nothing is requested of it."""
        state = "active_allocated" if requested else "inactive"
        return {"address": address, "size": size, "requested_size": requested, "state": state, "frames": frames or []}


def snapshot(*machines: Machine, last: int | None = None) -> dict[str, Any]:
    """What `_snapshot` gives of the machines; with `last`, only so many events are kept, as in a ring buffer."""
    traces = [machine.trace if last is None else machine.trace[len(machine.trace) - last :] for machine in machines]
    return {
        "segments": [segment for machine in machines for segment in machine.laid_out()],
        "device_traces": traces,
        "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": "", "max_split_size": -1, "expandable_segments": False},
        "external_annotations": [],
    }


def of_tape(mode: ModeName, spec: Spec, plan: Plan) -> list[Request]:
    """What the tape requests in a run of a mode, each stage on a line of its own."""
    from gptcalc.ledger.memory import record
    from gptcalc.tape.kernels import CudaKernels, target, torch_version
    from gptcalc.tape.replay import unrolled

    recording = record(mode, spec, plan, CudaKernels(target(plan.target), torch_version(plan.torch)))
    return [
        Request(address, event.slot.bytes if event.alloc else 0, 10 + place.stage)
        for place, address, event, _ in unrolled(recording)
        if event.slot.bytes
    ]


def of_trace(mode: ModeName, spec: Spec, plan: Plan) -> list[Request]:
    """What torch itself requests in a run of gptcalc's module on the meta device."""
    from gptcalc.witness.trace import trace_inference, trace_training

    trace = trace_training(spec, plan) if mode == "training" else trace_inference(spec, plan)
    return [
        Request(event.storage, event.bytes if event.kind == "alloc" else 0, 10 + number)
        for number, phase in enumerate(trace.phases)
        for event in phase.events
        if event.bytes
    ]
