"""A recording for all layers of a model: folded into bytes requested, and replayed through the allocator.

Requested and rounded bytes of a stretch that is repeated change by the same amount each time, so that its maximum is in
the first or the last repetition: one layer is folded over L, and within a layer one expert over those of as many rows.
What the allocator hands out depends on all that came before: that needs the whole replay.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate, chain, groupby, islice, product
from typing import NamedTuple

from gptcalc.allocator import Allocator, Block, Figures, round_size
from gptcalc.tape.record import Event, Recorder, Segment, Slot, Stage
from gptcalc.tape.unknown import identity


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
    """A segment, and what it stands for, in the order in which they run: layers of the model, or turns in one layer."""

    segment: Segment
    layers: range
    numbers: range = range(1)

    @property
    def times(self) -> int:
        """How often it runs."""
        return len(self.layers) * len(self.numbers)

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
                yield from (Run(segment, range(1), numbers) for segment, numbers in _in_turn(segments))
                continue
            visits = [list(visit) for _, visit in groupby(segments, lambda segment: segment.layer)]
            for taking in [visits] if turns else [[visit] for visit in visits]:
                numbers = [visit[0].layer or 0 for visit in taking]
                down = before is not None and before > numbers[0]
                layers = [self.actual(number)[:: -1 if down else 1] for number in numbers]
                if len(taking) == len(taking[0]) == 1:
                    yield Run(taking[0][0], layers[0])
                else:
                    for turn in zip(*layers, strict=True):
                        for visit, layer in zip(taking, turn, strict=True):
                            yield from (Run(segment, range(layer, layer + 1), own) for segment, own in _in_turn(visit))
                before = numbers[-1]

    def _turns(self, segment: Segment) -> tuple[int, ...]:
        """The group whose repeated layers take turns, of which the segment's layer is one."""
        for group in self.groups if segment.layer is not None else ():
            place = (segment.layer or 0) - group.first
            if 0 <= place < group.recorded:
                return (group.first,) if len(group.pattern) > 1 and len(group.actual(place)) > 1 else ()
        return () if segment.layer is not None else (-1,)


def _in_turn(segments: Iterable[Segment]) -> Iterator[tuple[Segment, range]]:
    """The segments of one layer with the numbers of each turn: upwards, or after a later one downwards."""
    before: int | None = None
    for segment in segments:
        if segment.turn is None:
            before = None
            yield segment, range(1)
        else:
            numbers = segment.turn.numbers
            down = before is not None and before > numbers[0]
            yield segment, numbers[:: -1 if down else 1]
            before = numbers[0]


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
        times = event.times if event.alloc else -event.times
        size = event.slot.bytes
        alive[kind_of(event.slot)] += times * size
        now += times * size
        rounded += times * round_size(size)
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
            course, n = courses[id(run.segment)], run.times
            if stage_number in wanted:
                _add_points(points, _points(run, course, alive, stage_number, run_number))
            for kind, size in course.added.items():
                alive[kind] += n * size
            rounded_peak = max(rounded_peak, rounded + course.rounded_peak)
            rounded_peak = max(rounded_peak, rounded + (n - 1) * course.rounded_added + course.rounded_peak)
            rounded += n * course.rounded_added
        rounded_peaks.append(rounded_peak)
    return Fold(tuple(points), tuple(rounded_peaks))


def _points(run: Run, course: _Course, alive: Counter[str], stage: int, number: int) -> Iterator[Folded]:
    """The peak of each layer of a run that begins with `alive`; of many turns the first or the last has it."""
    kinds = {kind: (alive[kind] + course.peak[kind], course.added[kind]) for kind in [*alive, *course.peak]}
    last = len(run.numbers) - 1 if sum(course.added.values()) > 0 else 0
    for repetition, layer in enumerate(run.layers, start=last):
        peak = {kind: size for kind, (start, added) in kinds.items() if (size := start + repetition * added)}
        place = Place(stage, number, repetition, course.peak_event)
        yield Folded(stage, run.segment.label, None if run.segment.layer is None else layer, peak, place)


def _add_points(points: list[Folded], found: Iterable[Folded]) -> None:
    """Add what was found; of the runs of one stretch the first that has its peak stands for it."""
    for point in found:
        if points and points[-1][:3] == point[:3]:
            points[-1] = max(points[-1], point, key=lambda either: either.requested)
        else:
            points.append(point)


def alive_at(recording: Recording, place: Place) -> list[tuple[Slot, int]]:
    """Every kind of storage that is alive at an instant, with how many there are of it; of a turn each number's own."""
    counts: Counter[int] = Counter()
    of_numbers: Counter[tuple[int, int]] = Counter()
    example: dict[int, Slot] = {}
    first: dict[int, tuple[int, range]] = {}
    for order, (run, times, part) in enumerate(_until(recording, place)):
        for place_in_run, event in enumerate(run.events):
            slot, done = event.slot, times + (place_in_run <= part)
            example.setdefault(slot.index, slot)
            first.setdefault(slot.index, (order, run.numbers))
            sign = 1 if event.alloc else -1
            if len(run.numbers) == 1:
                counts[slot.index] += sign * done
            elif done == len(run.numbers):
                counts[slot.index] += sign
            else:
                of_numbers.update({(slot.index, number): sign for number in run.numbers[:done]})
    return [
        (slot if len(numbers) == 1 else slot.of(number), count)
        for (_, numbers), together in groupby(first, first.__getitem__)
        for number, slot in product(numbers, [example[index] for index in together])
        if (count := counts[slot.index] + of_numbers[slot.index, number])
    ]


def _until(recording: Recording, place: Place) -> Iterator[tuple[Run, int, int]]:
    """The runs up to an instant, with how often each is over, and which of its events is the last in the one under way.

    None is under way but in the last run.
    """
    for stage_number, stage in enumerate(recording.record.stages[: place.stage + 1]):
        here = stage_number == place.stage
        runs = recording.runs(stage)
        yield from ((run, run.times, -1) for run in (islice(runs, place.run) if here else runs))
        if here:
            yield next(runs), place.repetition, place.event


class Script(NamedTuple):
    """A recording unrolled over all layers, a step for each storage that comes or goes.

    Which storage that is says its address, beside the step, which is the place of its bytes in `sizes`, or where it
    goes the place's complement (`~place`). A stage is some `pieces` in a row; `ends` are the numbers of those after it.
    """

    pieces: tuple[tuple[list[int], list[int]], ...]
    ends: tuple[int, ...]
    sizes: tuple[int, ...]


#: Steps of a piece, about: after each it is seen whether too much is held.
STEPS_PER_PIECE = 200


def script(recording: Recording) -> Script:
    """Unroll a recording."""
    places: dict[object, int] = {}
    sizes: list[int] = []
    known: dict[int, tuple[list[int], list[Address]]] = {}
    pieces: list[tuple[list[int], list[int]]] = []
    ends = []

    def step(event: Event) -> int:
        size = event.slot.bytes
        key = identity(size)
        if key not in places:
            places[key] = len(sizes)
            sizes.append(size)
        return places[key] if event.alloc else ~places[key]

    for stage in recording.record.stages:
        pieces.append(([], []))
        for run in recording.runs(stage):
            if id(run.segment) not in known:
                found = [
                    (now, address)
                    for event in run.events
                    for now in [step(event)]
                    for address in _addresses(recording, run.segment, event)
                ]
                known[id(run.segment)] = [now for now, _ in found], [address for _, address in found]
            steps, places_of = known[id(run.segment)]
            for layer in run.layers:
                for number in run.numbers:
                    pieces[-1][0].extend(
                        [base + by_layer * layer + by_number * number for base, by_layer, by_number in places_of]
                    )
                    pieces[-1][1].extend(steps)
                    if len(pieces[-1][1]) >= STEPS_PER_PIECE:
                        pieces.append(([], []))
        ends.append(len(pieces))
    return Script(tuple(pieces), tuple(ends), tuple(sizes))


def replay(recording: Recording, *, expandable: bool) -> tuple[tuple[Figures, Figures], ...]:
    """Each stage's peaks, and the figures at its end, as the allocator would have them."""
    unrolled_over_layers = script(recording)
    return tuple(stages(unrolled_over_layers, unrolled_over_layers.sizes, expandable=expandable))


def stages(
    script: Script, sizes: Sequence[int], *, expandable: bool, most: int | None = None
) -> Iterator[tuple[Figures, Figures]]:
    """Each stage's peaks, and the figures at its end, with these sizes, until more than `most` bytes are held."""
    allocator = Allocator(expandable=expandable)
    malloc, free = allocator.malloc, allocator.free
    blocks: dict[int, Block | None] = {}
    pop = blocks.pop
    start = 0
    for end in script.ends:
        allocator.reset_peak()
        for addresses, steps in script.pieces[start:end]:
            for address, step in zip(addresses, steps, strict=True):
                if step >= 0:
                    blocks[address] = malloc(sizes[step])
                else:
                    free(pop(address))
            if most is not None and allocator.reserved > most:
                return
        yield allocator.peak(), allocator.current()
        start = end


def most_rounded(script: Script, sizes: Sequence[int]) -> int:
    """The most that is asked for at once, each request rounded: whatever blocks serve them hold no less."""
    rounded = [round_size(size) for size in sizes]
    table = [*rounded, *(-size for size in reversed(rounded))]
    steps = chain.from_iterable(which for _, which in script.pieces)
    return max(accumulate(map(table.__getitem__, steps)))


class Request(NamedTuple):
    """Bytes that are asked for, or 0 to free them; the storage's address: a base, and what layer and number add."""

    size: int
    base: int
    by_layer: int
    by_number: int


def requests(recording: Recording, segment: Segment) -> Iterator[Request]:
    """What a segment asks of the allocator."""
    for event in segment.events:
        yield from _of_event(recording, segment, event)


def _of_event(recording: Recording, segment: Segment, event: Event) -> Iterator[Request]:
    """What an event asks: one thing, or what each number of a turn that is over does."""
    size = event.slot.bytes if event.alloc else 0
    for address in _addresses(recording, segment, event):
        yield Request(size, *address)


#: Of a storage: a base, and what the layer's and the turn's number are multiplied by and add to it.
Address = tuple[int, int, int]


def _addresses(recording: Recording, segment: Segment, event: Event) -> Sequence[Address]:
    """Of what an event is of."""
    stride = recording.record.n_indices
    slot, layer = event.slot, segment.layer
    base, by_layer = slot.index, 0
    if slot.home is not None and layer is None:
        base += stride * (1 + recording.actual(slot.home)[0])
    elif slot.home is not None and layer is not None:
        base, by_layer = base + stride * (1 + slot.home - layer), stride
    if slot.turn is None:
        return ((base, by_layer, 0),)
    of_numbers = stride * (2 + sum(group.n_layers for group in recording.groups))
    if slot.turn == segment.turn:
        return ((base + of_numbers, by_layer, of_numbers),)
    return [(base + of_numbers * (1 + own), by_layer, 0) for own in slot.turn.numbers]


def unrolled(recording: Recording) -> Iterator[tuple[Place, int, Event, int]]:
    """Every storage that comes or goes, in time: where that is, its address, the event, the number whose turn it is.

    What is over for all numbers at once is as many.
    """
    for stage_number, stage in enumerate(recording.record.stages):
        for run_number, run in enumerate(recording.runs(stage)):
            steps = [(event, tuple(_of_event(recording, run.segment, event))) for event in run.events]
            turns = ((layer, number) for layer in run.layers for number in run.numbers)
            for repetition, (layer, number) in enumerate(turns):
                for place_in_run, (event, asked) in enumerate(steps):
                    place = Place(stage_number, run_number, repetition, place_in_run)
                    for _, base, by_layer, by_number in asked:
                        yield place, base + by_layer * layer + by_number * number, event, number
