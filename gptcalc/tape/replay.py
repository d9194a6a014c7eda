"""A recording for all layers of a model: folded into bytes requested, and replayed through the allocator.

Requested and rounded bytes of a stretch that is repeated change by the same amount each time, so that its maximum is in
the first or the last repetition: one layer is folded over L. What the allocator hands out depends on all that came
before: that needs the whole replay.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from itertools import groupby
from typing import NamedTuple

from gptcalc.allocator import Allocator, Block, Figures, round_size
from gptcalc.tape.record import Event, Recorder, Segment, Slot, Stage


class Group(NamedTuple):
    """Layers that repeat: `recorded` of them are recorded, from number `first` on; the model has `n_layers`.

    `pattern` names the layers of one repetition, by their place in the spec: one kind, or several that take turns.
    """

    first: int
    recorded: int
    n_layers: int
    pattern: tuple[int, ...] = (0,)

    @property
    def kinds(self) -> Iterator[tuple[int, int]]:
        """The number of each recorded layer, and its place in the spec."""
        period = len(self.pattern)
        return ((self.first + place, self.pattern[place % period]) for place in range(self.recorded))

    def actual(self, place: int) -> range:
        """Which of the model's layers the recorded one at `place` stands for, counted from the group's first."""
        period = len(self.pattern)
        repetition, last = place // period, self.recorded // period - 1
        if self.recorded == self.n_layers or not repetition:
            return range(place, place + 1)
        if repetition == last:
            actual = self.n_layers - period + place % period
            return range(actual, actual + 1)
        return range(period + place % period, self.n_layers - period, period)


class Run(NamedTuple):
    """A segment, and the layers of the model that it stands for, in the order in which they run."""

    segment: Segment
    layers: range

    @property
    def events(self) -> list[Event]:
        """What happens in each."""
        return self.segment.events


class Recording(NamedTuple):
    """A run of a model: its stages, and how the recorded layers stand for all."""

    record: Recorder
    groups: tuple[Group, ...]

    def actual(self, layer: int) -> range:
        """The layers of the model that a recorded one stands for."""
        start = 0
        for group in self.groups:
            place = layer - group.first
            if 0 <= place < group.recorded:
                found = group.actual(place)
                return range(start + found.start, start + found.stop, found.step)
            start += group.n_layers
        raise IndexError(layer)

    def runs(self, stage: Stage) -> Iterator[Run]:
        """The segments of a stage with the layers that they stand for: upwards, or after a later layer downwards."""
        before: int | None = None
        for turns, together in groupby(stage.segments, self._turns):
            segments = list(together)
            if segments[0].layer is None:
                yield from (Run(segment, range(1)) for segment in segments)
                continue
            for taking in [segments] if turns else [[segment] for segment in segments]:
                numbers = [segment.layer or 0 for segment in taking]
                down = before is not None and before > numbers[0]
                layers = [self.actual(number)[:: -1 if down else 1] for number in numbers]
                if len(taking) == 1:
                    yield Run(taking[0], layers[0])
                else:
                    for turn in zip(*layers, strict=True):
                        pairs = zip(taking, turn, strict=True)
                        yield from (Run(segment, range(layer, layer + 1)) for segment, layer in pairs)
                before = numbers[-1]

    def _turns(self, segment: Segment) -> tuple[int, ...]:
        """The group whose repeated layers take turns, of which the segment's layer is one."""
        for group in self.groups if segment.layer is not None else ():
            place = (segment.layer or 0) - group.first
            if 0 <= place < group.recorded:
                return (group.first,) if len(group.pattern) > 1 and len(group.actual(place)) > 1 else ()
        return () if segment.layer is not None else (-1,)


class Place(NamedTuple):
    """An instant: in the stage, the run, its repetition, and after which event."""

    stage: int
    run: int
    repetition: int
    event: int


class Folded(NamedTuple):
    """The requested bytes of a stretch, where most is alive in it: by kind, and when."""

    stage: int
    label: str
    layer: int | None
    alive: dict[str, int]
    place: Place

    @property
    def requested(self) -> int:
        """Their sum."""
        return sum(self.alive.values())


def kind_of(slot: Slot) -> str:
    """What a storage is for: a value that autograd keeps is an activation."""
    return "activations" if slot.kind == "temporary" and (slot.keepers or slot.again) else slot.kind


class _Course(NamedTuple):
    """What a segment adds to each kind, at its end and at its peak; and to the rounded bytes."""

    added: Counter[str]
    peak: Counter[str]
    peak_event: int
    rounded_added: int
    rounded_peak: int


def _course(events: list[Event]) -> _Course:
    alive: Counter[str] = Counter()
    at_peak: Counter[str] = Counter()
    now = most = rounded = most_rounded = 0
    place = -1
    for number, event in enumerate(events):
        sign = 1 if event.alloc else -1
        size = event.slot.bytes
        alive[kind_of(event.slot)] += sign * size
        now += sign * size
        rounded += sign * round_size(size)
        most_rounded = max(most_rounded, rounded)
        if now > most:
            most, place, at_peak = now, number, Counter(alive)
    return _Course(alive, at_peak, place, rounded, most_rounded)


class Fold(NamedTuple):
    """Every stretch of a run with its peak, and the rounded peak of each stage."""

    points: tuple[Folded, ...]
    rounded: tuple[int, ...]

    def peak(self, stages: Collection[int]) -> Folded:
        """The stretch of `stages` where most is alive, the earliest of equals."""
        return max((point for point in self.points if point.stage in stages), key=lambda point: point.requested)


def fold(recording: Recording, wanted: range) -> Fold:
    """Fold the recording over all layers, with the points of the stages that are `wanted`."""
    points: list[Folded] = []
    rounded_peaks: list[int] = []
    alive: Counter[str] = Counter()
    courses: dict[int, _Course] = {}
    rounded = 0
    for stage_number, stage in enumerate(recording.record.stages):
        rounded_peak = rounded
        for run_number, run in enumerate(recording.runs(stage)):
            if id(run.segment) not in courses:
                courses[id(run.segment)] = _course(run.events)
            course, n = courses[id(run.segment)], len(run.layers)
            if stage_number in wanted:
                points += _points(run, course, alive, stage_number, run_number)
            for kind, size in course.added.items():
                alive[kind] += n * size
            rounded_peak = max(rounded_peak, rounded + course.rounded_peak)
            rounded_peak = max(rounded_peak, rounded + (n - 1) * course.rounded_added + course.rounded_peak)
            rounded += n * course.rounded_added
        rounded_peaks.append(rounded_peak)
    return Fold(tuple(points), tuple(rounded_peaks))


def _points(run: Run, course: _Course, alive: Counter[str], stage: int, number: int) -> Iterator[Folded]:
    """The peak of each repetition of a run that begins with `alive`."""
    kinds = {kind: (alive[kind] + course.peak[kind], course.added[kind]) for kind in [*alive, *course.peak]}
    for repetition, layer in enumerate(run.layers):
        peak = {kind: size for kind, (start, added) in kinds.items() if (size := start + repetition * added)}
        place = Place(stage, number, repetition, course.peak_event)
        yield Folded(stage, run.segment.label, None if run.segment.layer is None else layer, peak, place)


def alive_at(recording: Recording, place: Place) -> list[tuple[Slot, int]]:
    """Every kind of storage that is alive at an instant, with how many there are of it."""
    counts: Counter[int] = Counter()
    example: dict[int, Slot] = {}
    for stage_number, stage in enumerate(recording.record.stages[: place.stage + 1]):
        for run_number, run in enumerate(recording.runs(stage)):
            here = stage_number == place.stage
            if here and run_number > place.run:
                break
            times, part = len(run.layers), -1
            if here and run_number == place.run:
                times, part = place.repetition, place.event
            for number, event in enumerate(run.events):
                example[event.slot.index] = event.slot
                counts[event.slot.index] += (1 if event.alloc else -1) * (times + (number <= part))
    return [(example[index], count) for index, count in counts.items() if count]


def replay(recording: Recording, *, expandable: bool) -> tuple[tuple[Figures, Figures], ...]:
    """Each stage's peaks, and the figures at its end, as the allocator would have them."""
    allocator = Allocator(expandable=expandable)
    malloc, free = allocator.malloc, allocator.free
    stride = recording.record.n_indices
    blocks: dict[int, Block | None] = {}
    known: dict[int, list[tuple[int, int, int]]] = {}
    found = []
    for stage in recording.record.stages:
        allocator.reset_peak()
        for run in recording.runs(stage):
            if id(run.segment) not in known:
                known[id(run.segment)] = [_address(recording, event, run.segment.layer, stride) for event in run.events]
            steps = known[id(run.segment)]
            for layer in run.layers:
                for size, base, times in steps:
                    address = base + times * layer
                    if size:
                        blocks[address] = malloc(size)
                    else:
                        free(blocks.pop(address))
        found.append((allocator.peak(), allocator.current()))
    return tuple(found)


def _address(recording: Recording, event: Event, layer: int | None, stride: int) -> tuple[int, int, int]:
    """Bytes (0 to free), and the address of a storage as base and factor of the layer that runs."""
    slot = event.slot
    size = slot.bytes if event.alloc else 0
    if slot.home is None:
        return size, slot.index, 0
    if layer is None:
        return size, slot.index + stride * (1 + recording.actual(slot.home)[0]), 0
    return size, slot.index + stride * (1 + slot.home - layer), stride
