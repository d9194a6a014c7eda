"""How large a run may be where it must fit: the largest batch, length, depth or width, and what of it grows.

Every size that is tried is built as if it had been typed, and its figures are the engine's.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple, cast, get_args

from gptcalc.allocator import Figures
from gptcalc.catalog import Resolved, resolve
from gptcalc.errors import GptcalcError, InvalidValueError
from gptcalc.ledger.alive import KINDS, Kind
from gptcalc.ledger.asked import SEQ, SOLVED, Asked, Settled, Spelled, settle
from gptcalc.ledger.fit import Fit, Room, fit, most_reserved
from gptcalc.ledger.memory import MOST_LAYERS, Mode, ModeName, Point, memory
from gptcalc.ledger.solve import Search, largest, most_of
from gptcalc.ledger.totals import Totals, What
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.units import ceil_div

Model = Callable[[Mapping[str, object]], Resolved]
#: What gives a mode with its lines.
Itemised = Callable[[Spec, Plan, ModeName], Mode]
#: Secants that are drawn to come near the largest.
TRIES = 6


class Step(NamedTuple):
    """A run of one size: what it takes, and how that fits each room."""

    value: int
    model: Resolved
    settled: Settled
    totals: Figures
    fits: tuple[Fit, ...]

    @property
    def does(self) -> bool:
        """Whether it fits everywhere."""
        return all(each.fits for each in self.fits)

    @property
    def excess(self) -> int:
        """What it may need beyond what there surely is, where that is most; below zero what is left at the least."""
        return -min(each.margin.low for each in self.fits)


class Largest(NamedTuple):
    """The largest of `what` that fits in a mode, and the next one, which does not.

    `here` is `None` where not even the smallest fits: then that is `beyond`. `beyond` is `None` where there is no next
    one, and `limit` says why. `binding` are the kinds that grow from one to the other, with by how many bytes, the
    fastest first: at the peak of the phase in which as much is reserved as ever. Where nothing fits they are the
    kinds of the smallest's peak, with their bytes.
    """

    what: str
    mode: ModeName
    here: Step | None
    beyond: Step | None
    binding: tuple[tuple[Kind, int], ...]
    limit: str = ""

    @property
    def value(self) -> int | None:
        """The number, where anything fits."""
        return self.here.value if self.here else None


class Question(NamedTuple):
    """What is solved for, of a model (`build` makes it with further fields) under the settings of a run."""

    what: str
    build: Model
    settings: Asked
    rooms: tuple[Room, ...]
    spelled: Spelled = str

    @property
    def field(self) -> str:
        """The setting, or the field of the model."""
        return SOLVED[self.what]

    def settled(self, value: int) -> tuple[Resolved, Settled]:
        """The model and the plan with that value, as if it had been typed."""
        if self.field in ("batch", "seq"):
            model = self.build({})
            return model, settle(model.spec, {**self.settings, self.field: value}, self.spelled)
        model = self.build({self.field: value})
        return model, settle(model.spec, self.settings, self.spelled)


class Sizes(NamedTuple):
    """The values that there are: `first`, and on in steps of `step`, up to `most`."""

    first: int
    step: int
    most: int
    limit: str

    def __len__(self) -> int:
        """How many."""
        return max(0, (self.most - self.first) // self.step + 1)

    def value(self, number: int) -> int:
        """The value of that number, from 1."""
        return self.first + (number - 1) * self.step


def shown_of(question: Question, found: Sequence[Largest]) -> tuple[Resolved, Settled]:
    """The run to show: of the size that all modes have in common, else of the size that nobody gave."""
    steps = {each.value: each.here or each.beyond for each in found}
    if len(steps) == 1 and (step := next(iter(steps.values()))) is not None:
        return step.model, step.settled
    model = question.build({})
    try:
        return model, settle(model.spec, question.settings, question.spelled)
    except GptcalcError:  # a loss in more chunks than that has tokens
        return question.settled(sizes_of(question).first)


def mode_of(spec: Spec, plan: Plan, mode: ModeName) -> Mode:
    """One mode with its lines, by the engine."""
    return memory(spec, plan, (mode,)).modes[0]


def solve(question: Question, mode: ModeName, totals: Totals, modes: Itemised = mode_of) -> Largest:
    """The largest that fits all rooms. Raises `GptcalcError` where not even the smallest can be."""
    sizes = sizes_of(question)

    @cache
    def step(number: int) -> Step:
        value = sizes.value(number)
        model, settled = question.settled(value)
        found = totals(model.spec, settled.plan, mode)
        return Step(value, model, settled, found, tuple(fit(found, room) for room in question.rooms))

    def does(number: int) -> bool:
        try:
            return step(number).does
        except GptcalcError:
            if number == 1:
                raise
            return False

    count = len(sizes)
    if question.field in get_args(What):
        number = _as_in_a_grid(question, mode, totals, sizes.first)
    else:
        number = largest(does, count, near(lambda number: step(number).excess, count))
    here = step(number) if number else None
    beyond, limit = None, sizes.limit
    if (number or 0) < count:
        try:
            beyond, limit = step((number or 0) + 1), ""
        except GptcalcError as error:
            limit = str(error)
    return Largest(question.what, mode, here, beyond, tuple(binding(here, beyond, mode, modes)), limit)


def _as_in_a_grid(question: Question, mode: ModeName, totals: Totals, first: int) -> int | None:
    """The number of the batch or length that `gptcalc fit` has for the room where there is least."""
    model, settled = question.settled(first)
    least, what = min(question.rooms, key=most_reserved), cast(What, question.field)
    found = Search(totals)(model.spec, settled.plan, mode, least, what, least=first, beyond=False).largest
    return found and found.number - first + 1


def near(excess: Callable[[int], int], most: int) -> int:
    """A number from 1 to `most` near the last that fits, by the secants of what few of them need too much."""
    first, at_first = 1, excess(1)
    last, at_last = first, at_first
    try:
        while at_last <= at_first <= 0 and last < most:  # what few need may all be in the same segment
            last = min(last * 2, most)
            at_last = excess(last)
        for _ in range(TRIES):
            if at_last == at_first:
                break
            guess = min(max(first - at_first * (last - first) // (at_last - at_first), 1), most)
            if guess in (first, last):
                return guess
            first, at_first, last, at_last = last, at_last, guess, excess(guess)
    except GptcalcError:
        return first  # there is none that far
    return last


def binding(here: Step | None, beyond: Step | None, mode: ModeName, modes: Itemised) -> list[tuple[Kind, int]]:
    """The kinds whose bytes grow from one to the next, or all of the smallest's, the greatest first.

    Both are looked at in the same stretch: where most is alive in the phase of the next one that reserves the most.
    """
    if beyond is None:
        return []
    found = modes(beyond.model.spec, beyond.settled.plan, mode)
    first = next(phase.name for phase in found.phases if phase.figures.reserved == found.totals.reserved)
    peak = _greatest([point for point in found.timeline if point.phase == first])
    more = Counter(peak.alive)
    if here is not None:
        before = modes(here.model.spec, here.settled.plan, mode).timeline
        phase = [point for point in before if point.phase == first]
        more.subtract(_greatest([point for point in phase if point.label == peak.label] or phase).alive)
    grown = [(kind, more[kind]) for kind in KINDS if more[kind] > 0]
    return sorted(grown, key=lambda pair: -pair[1])


def _greatest(points: Sequence[Point]) -> Point:
    return max(points, key=lambda point: point.requested)


# --- Sizes -----------------------------------------------------------------------------------------------------------


def sizes_of(question: Question) -> Sizes:
    """The values that what is solved for may have."""
    what, spec = question.what, question.build({}).spec
    if what == "layers":
        return Sizes(1, 1, MOST_LAYERS, f"memory replays every layer, {MOST_LAYERS:,} at most")
    if what == "d-model":
        step = width_step(question.build, spec.d_model)
        most = most_of(spec, "batch")
        return Sizes(step, step, most - most % step, f"a size is at most {most:,}")
    first = _least(question, spec.n_ctx)
    if what == "batch":
        most = most_of(spec, "batch")
        return Sizes(first, 1, most, f"a size is at most {most:,}")
    most = most_of(spec, "seq")
    learned = most == spec.n_ctx
    limit = f"the model has {most:,} learned positions" if learned else f"a size is at most {most:,}"
    return Sizes(first, 1, most, limit)


def _least(question: Question, context: int) -> int:
    """The least batch or length: a loss in chunks needs a token for each."""
    settings = question.settings
    chunks = settings.get("chunked_loss")
    other = (settings.get("seq") or min(context, SEQ)) if question.what == "batch" else (settings.get("batch") or 1)
    if not isinstance(chunks, int) or not isinstance(other, int) or min(chunks, other) < 1:
        return 1
    return ceil_div(chunks, other)


def width_step(build: Model, own: int) -> int:
    """The least step of widths that the model can have, where heads keep their size and d_ff its ratio.

    A width that is given alone sets the number of heads, which must be whole, as must groups of heads and d_ff: all of
    them divide, so that the widths are the multiples of one of those that divides the model's own.
    """

    def can(width: int) -> bool:
        try:
            build({"d_model": width})
        except GptcalcError:
            return False
        return True

    for step in (number for number in range(1, own + 1) if own % number == 0):
        if can(step) and can(2 * step) and can(own + step):
            return step
    try:
        build({"d_model": 2 * own})
    except GptcalcError as error:
        raise InvalidValueError(f"max d-model: the width of this model alone cannot be changed: {error}") from None
    return own


def builder(model: object, overrides: Mapping[str, object]) -> Model:
    """`resolve` of the model, with fields over its overrides."""
    return lambda fields: resolve(model, {**overrides, **fields})  # type: ignore[arg-type]
