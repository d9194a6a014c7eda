"""What a GPU's allocator said of a run, held against what was predicted for it: without torch, so that records replay.

The witness on the GPU (`witness.cuda`) makes a `Measured`. `compare` sets its figures beside the predicted ones. `gaps`
names the difference: by the allocator's own record of every request, what was alive at a phase's peak on one side and
not on the other, by size.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple, get_args

from gptcalc.allocator import Allocator, Block, Figures
from gptcalc.ledger.memory import Mode, ModeName, every_phase, is_phase, last_step, record
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.tape.kernels import CudaKernels, target, torch_version
from gptcalc.tape.record import Slot
from gptcalc.tape.replay import Recording, alive_at, fold
from gptcalc.units import format_count

#: How far allocated bytes may be off, as a share of those measured.
TOLERANCE = Fraction(5, 1000)
#: The environment's settings of the caching allocator, old name and new.
ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
#: What stays between steps, where it is listed with the phases.
BETWEEN = "between steps"
SCHEMA = "gptcalc.measured/1"


class Environment(NamedTuple):
    """What the figures depend on beside the plan; `settings` are the environment's variables that change them."""

    device: str
    target: str
    memory_bytes: int
    torch: str
    cuda: str | None
    cudnn: int | None
    driver: str | None
    settings: Mapping[str, str]

    @property
    def release(self) -> str:
        """The release of torch, as a plan has it: `2.13`."""
        found = re.match(r"\d+\.\d+", self.torch)
        return found[0] if found else self.torch

    @property
    def expandable_segments(self) -> bool:
        """Whether the allocator was told to expand its segments."""
        return any(entry.lower() == "expandable_segments:true" for entry in self._allocator())

    @property
    def unknown(self) -> tuple[str, ...]:
        """Settings that the prediction does not know."""
        others = [f"{name}={value}" for name, value in self.settings.items() if name not in ALLOCATOR_SETTINGS]
        entries = [entry for entry in self._allocator() if not entry.lower().startswith("expandable_segments:")]
        return (*entries, *others)

    def _allocator(self) -> list[str]:
        given = (self.settings[name] for name in ALLOCATOR_SETTINGS if name in self.settings)
        return [entry.strip() for text in given for entry in text.split(",") if entry.strip()]


class Taken(NamedTuple):
    """Bytes in torch's words, as its statistics count them: `rounded` is not among them."""

    requested: int
    allocated: int
    reserved: int


#: A request and its end; a segment taken from CUDA and given back.
Action = Literal["alloc", "free", "reserve", "return"]


class Event(NamedTuple):
    """What the allocator did. `request` numbers the requests (segments have none, 0); `bytes` are those asked for."""

    action: Action
    request: int
    bytes: int
    stream: int


class Recorded(NamedTuple):
    """What the allocator did in one phase of one step; steps count from 1, and the build is step 0."""

    name: str
    step: int
    events: tuple[Event, ...]


class Measured(NamedTuple):
    """One mode as it ran: each phase's peaks in the last step, and what stayed after it.

    `plan` is the one that ran: target, torch and expandable segments are the machine's. `attention` are the kernels
    that torch chose. `recorded` holds every phase from the build on, if that was asked for. `skipped` says in which
    phase the run ended and why; then there are no figures.
    """

    mode: ModeName
    plan: Plan
    environment: Environment
    phases: Mapping[str, Taken]
    persistent: Taken | None
    attention: tuple[str, ...] = ()
    recorded: tuple[Recorded, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: str = ""


# --- Figures ---------------------------------------------------------------------------------------------------------


class Compared(NamedTuple):
    """One figure of one phase, both ways."""

    phase: str
    figure: str
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """Percent by which the prediction is above what was measured."""
        return 100 * (self.predicted - self.measured) / self.measured if self.measured else 0.0

    @property
    def agrees(self) -> bool:
        """Whether allocated bytes are within `TOLERANCE`; the other figures explain and decide nothing."""
        return self.figure != "allocated" or abs(self.predicted - self.measured) <= TOLERANCE * self.measured


def compare(predicted: Mode, measured: Measured) -> tuple[Compared, ...]:
    """Each figure of each phase, in order, and of what stays between steps; nothing of a run that was skipped."""
    if measured.persistent is None:
        return ()
    ours = {phase.name: phase.figures for phase in every_phase(predicted.phases)} | {BETWEEN: predicted.persistent}
    theirs = {**measured.phases, BETWEEN: measured.persistent}
    return tuple(
        Compared(phase, figure, getattr(ours[phase], figure), getattr(theirs[phase], figure))
        for phase in theirs
        if phase in ours
        for figure in Taken._fields
    )


# --- The allocator's own record --------------------------------------------------------------------------------------

_ACTIONS: dict[str, Action] = {
    "alloc": "alloc",
    "free_completed": "free",
    "segment_alloc": "reserve",
    "segment_map": "reserve",
    "segment_free": "return",
    "segment_unmap": "return",
}


def recorded(trace: Iterable[Mapping[str, Any]], marks: Sequence[tuple[str, int]]) -> tuple[Recorded, ...]:
    """One device's trace of `torch.cuda.memory._snapshot()`, cut into phases; nothing where it cannot be cut.

    A snapshot was taken where each of the `marks` (phase, step) begins, and torch notes them in the trace. Stack frames
    and times are left behind, and addresses become the numbers of requests. A block is free once its free is completed;
    one that was taken before the record began is left out.
    """
    phases: list[list[Event]] = [[] for _ in marks]
    live: dict[int, Event] = {}
    n_requests, n_snapshots = 0, 0
    for entry in trace:
        what = entry["action"]
        n_snapshots += what == "snapshot"
        if what not in _ACTIONS or n_snapshots > len(marks):
            continue
        action, request, size = _ACTIONS[what], 0, int(entry["size"])
        if action == "alloc":
            request = n_requests = n_requests + 1
        elif action == "free":
            begun = live.pop(entry["addr"], None)
            if begun is None:
                continue
            request, size = begun.request, begun.bytes
        event = Event(action, request, size, int(entry["stream"]))
        if action == "alloc":
            live[entry["addr"]] = event
        phases[max(n_snapshots - 1, 0)].append(event)
    if not marks or n_snapshots < len(marks):
        return ()
    return tuple(Recorded(*mark, tuple(events)) for mark, events in zip(marks, phases, strict=True))


def events_to_figures(phases: Iterable[Recorded], *, expandable: bool = False) -> tuple[Figures, ...]:
    """Each phase's peaks, as the allocator's model serves the recorded requests, all of them on one stream."""
    allocator = Allocator(expandable=expandable)
    blocks: dict[int, Block | None] = {}
    found, streams = [], set[int]()
    for phase in phases:
        allocator.reset_peak()
        for event in phase.events:
            if event.action == "alloc":
                streams.add(event.stream)
                blocks[event.request] = allocator.malloc(event.bytes)
            elif event.action == "free":
                allocator.free(blocks.pop(event.request))
        found.append(allocator.peak())
    if len(streams) > 1:
        raise ValueError(f"a record of {len(streams)} streams: the allocator keeps blocks for each, the model for one")
    return tuple(found)


def segments_held(phases: Iterable[Recorded]) -> tuple[int, ...]:
    """Each phase's peak of what CUDA had given, by the record of segments alone."""
    held, found = 0, []
    for phase in phases:
        most = held
        for event in phase.events:
            held += {"reserve": event.bytes, "return": -event.bytes}.get(event.action, 0)
            most = max(most, held)
        found.append(most)
    return tuple(found)


# --- What the difference is made of ----------------------------------------------------------------------------------


class Gap(NamedTuple):
    """Requests of one size of which one side has more, at its own peak of a phase.

    `labels` are what is predicted of that size, at the peak or ever. Where more was measured, `after` says what was
    requested just before such a one.
    """

    phase: str
    bytes: int
    predicted: int
    measured: int
    labels: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def amount(self) -> int:
        """Bytes by which measured exceeds predicted."""
        return (self.measured - self.predicted) * self.bytes


#: Labels of one size, and predecessors, that are listed.
LISTED = 3


def gaps(spec: Spec, measured: Measured) -> tuple[Gap, ...]:
    """What was alive at the peak of each phase on one side and not on the other, the most bytes first in each."""
    if not measured.recorded:
        return ()
    plan = measured.plan
    kernels = CudaKernels(target(plan.target), torch_version(plan.torch))
    recording = record(measured.mode, spec, plan, kernels)
    labels = _labels(recording)
    found: list[Gap] = []
    for phase, ours in _predicted_alive(recording, measured.mode).items():
        number = max(place for place, one in enumerate(measured.recorded) if one.name == phase)
        theirs = alive_at_peak(measured.recorded, number)
        found += sorted(_differences(phase, ours, theirs, labels), key=lambda gap: -abs(gap.amount))
    return tuple(found)


def alive_at_peak(phases: Sequence[Recorded], number: int) -> list[tuple[Event, int]]:
    """The requests that are alive where most is requested in a phase, each with the bytes requested before it."""
    alive: dict[int, tuple[Event, int]] = {}
    before = 0

    def run(events: Iterable[Event]) -> None:
        nonlocal before
        for event in events:
            if event.action == "alloc":
                alive[event.request] = (event, before)
                before = event.bytes
            elif event.action == "free":
                del alive[event.request]

    for phase in phases[:number]:
        run(phase.events)
    now = most = sum(event.bytes for event, _ in alive.values())
    place = 0
    for count, event in enumerate(phases[number].events, 1):
        now += {"alloc": event.bytes, "free": -event.bytes}.get(event.action, 0)
        if now > most:
            most, place = now, count
    run(phases[number].events[:place])
    return list(alive.values())


def _predicted_alive(recording: Recording, mode: ModeName) -> dict[str, list[tuple[Slot, int]]]:
    """What the tape has alive at the requested peak of each phase of the last step."""
    last, stages = last_step(recording), recording.record.stages
    folded = fold(recording, last)
    return {
        stages[number].name: alive_at(recording, folded.peak([number]).place)
        for number in last
        if is_phase(mode, stages[number].name)
    }


def _labels(recording: Recording) -> dict[int, list[str]]:
    """What the tape ever allocates, by size."""
    found: dict[int, dict[str, None]] = {}
    for stage in recording.record.stages:
        for segment in stage.segments:
            for slot in (event.slot for event in segment.events if event.alloc):
                of_turns = [slot.of(number) for number in slot.turn.numbers] if slot.turn else [slot]
                for own in of_turns:
                    found.setdefault(slot.bytes, {})[f"{slot.op.removeprefix('aten::')}: {own.tensor.label}"] = None
    return {size: list(labels) for size, labels in found.items()}


def _differences(
    phase: str, ours: list[tuple[Slot, int]], theirs: list[tuple[Event, int]], labels: Mapping[int, list[str]]
) -> Iterator[Gap]:
    predicted: Counter[int] = Counter()
    for slot, count in ours:
        predicted[slot.bytes] += count
    measured = Counter(event.bytes for event, _ in theirs)
    for size in predicted.keys() | measured.keys():
        if predicted[size] == measured[size]:
            continue
        after = Counter(before for event, before in theirs if event.bytes == size)
        more = measured[size] > predicted[size]
        yield Gap(
            phase=phase,
            bytes=size,
            predicted=predicted[size],
            measured=measured[size],
            labels=tuple(labels.get(size, [])[:LISTED]),
            after=tuple(_named(before, labels) for before, _ in after.most_common(LISTED)) if more else (),
        )


def _named(size: int, labels: Mapping[int, list[str]]) -> str:
    label = f" ({labels[size][0]})" if size in labels else ""
    return f"{format_count(size)}{label}"


# --- As JSON ---------------------------------------------------------------------------------------------------------


def to_json(measured: Measured) -> dict[str, Any]:
    """A plain form that `from_json` reads: what is kept of a run, so that it can be replayed anywhere."""
    return {
        "schema": SCHEMA,
        "mode": measured.mode,
        "plan": measured.plan.model_dump(),
        "environment": measured.environment._asdict() | {"settings": dict(measured.environment.settings)},
        "phases": {name: taken._asdict() for name, taken in measured.phases.items()},
        "persistent": None if measured.persistent is None else measured.persistent._asdict(),
        "attention": list(measured.attention),
        "recorded": [
            {"name": phase.name, "step": phase.step, "events": [list(event) for event in phase.events]}
            for phase in measured.recorded
        ],
        "notes": list(measured.notes),
        "skipped": measured.skipped,
    }


def from_json(data: Mapping[str, Any]) -> Measured:
    """What `to_json` wrote."""
    if data["schema"] != SCHEMA:
        raise ValueError(f"schema: read {data['schema']!r}; allowed: {SCHEMA}")
    return Measured(
        mode=next(name for name in get_args(ModeName) if name == data["mode"]),
        plan=Plan.model_validate(data["plan"]),
        environment=Environment(**data["environment"]),
        phases={name: Taken(**taken) for name, taken in data["phases"].items()},
        persistent=None if data["persistent"] is None else Taken(**data["persistent"]),
        attention=tuple(data["attention"]),
        recorded=tuple(
            Recorded(phase["name"], phase["step"], tuple(Event(*event) for event in phase["events"]))
            for phase in data["recorded"]
        ),
        notes=tuple(data["notes"]),
        skipped=data["skipped"],
    )
