"""What would make a run fit: the smallest single changes, pairs of them where no single one is enough, what lacks.

Every candidate is a row of `ROWS`, and is asked of the engine as it would be typed: one that is refused, or that is
there already, is none. A row with a number is solved for the mildest that fits. What is found is ordered by its cost
(nothing, then time, then what is learned or answered), and within a cost as the rows are: what takes least of it first.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from math import isqrt
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

from gptcalc.allocator import Figures
from gptcalc.catalog import resolve
from gptcalc.errors import InvalidValueError
from gptcalc.gpus import gpus
from gptcalc.ledger.asked import SETTINGS, Asked, settle, with_dropout
from gptcalc.ledger.fit import Fit, Room, fit, most_reserved, room_of
from gptcalc.ledger.memory import ModeName
from gptcalc.ledger.parameters import parameters
from gptcalc.ledger.request import Model
from gptcalc.ledger.solve import largest
from gptcalc.ledger.totals import Course, Totals, What
from gptcalc.optimizers import OPTIMIZERS
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.tape.kernels import target
from gptcalc.units import bytes_of

#: The same numbers at the same speed; the same numbers, later; other numbers.
Cost = Literal["nothing", "time", "quality"]
COSTS: tuple[Cost, ...] = get_args(Cost)
Settings = Mapping[str, object]

#: More chunks of a loss are not tried: of its logits, one in 64 is left.
MOST_CHUNKS = 64
#: A sequence is not cut to less than that part of itself.
LEAST_OF_SEQ = 16
#: Dearer pairs are not looked for where there are as many.
ENOUGH_PAIRS = 8
#: No change makes a weight smaller than that.
SMALLEST = "bf16"
#: From here on a GPU multiplies matrices in bf16.
BF16_SINCE = (8, 0)


class Run(NamedTuple):
    """What a request comes to."""

    spec: Spec
    plan: Plan
    modes: tuple[ModeName, ...]
    asked: Asked


class Ways(NamedTuple):
    """The ways to make a change: `at(1)` saves most, `at(most)` least. Bytes are about linear in `load`."""

    most: int
    at: Callable[[int], Settings]
    load: Callable[[int], float] = float


class Row(NamedTuple):
    """A candidate: what it costs, what it sets where it may, and what is to be said of it.

    `note` says what it takes, `alters` what is not the same after it; both may speak of the plan before (`old`) and
    after (`new`). It is left out where an earlier row that fits sets the same, unless it is an `alternative` to that.
    `pairs` is whether it is tried together with others, `is_new` whether no other row comes to the same.
    """

    cost: Cost
    ways: Callable[[Run], Ways | None]
    note: str
    alters: str = ""
    alternative: bool = False
    pairs: bool = True
    is_new: Callable[[Plan, Plan], bool] = lambda _old, _new: True


class Outcome(NamedTuple):
    """A mode in one room, with its figures."""

    mode: ModeName
    fit: Fit
    figures: Figures


class Change(NamedTuple):
    """What is asked instead, what that costs, and how every mode then fits every room."""

    settings: Settings
    cost: Cost
    notes: tuple[str, ...]
    alters: tuple[str, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def tightest(self) -> Outcome:
        """Where least is left over, or most lacks."""
        return _tightest(self.outcomes)


class Suggestions(NamedTuple):
    """What would make a run fit.

    `pairs` are looked for where there are no `singles`, more of them `together` where there are no pairs. Where
    nothing is found `closest` comes closest; it is `None` where the weights alone, in their smallest dtype
    (`weights` bytes), are too large. `larger` is the smallest GPU on which the run fits as it was asked for.
    """

    singles: tuple[Change, ...] = ()
    pairs: tuple[Change, ...] = ()
    together: Change | None = None
    closest: Change | None = None
    weights: int | None = None
    larger: Room | None = None


# --- The candidates --------------------------------------------------------------------------------------------------


def _to(**settings: object) -> Callable[[Run], Ways | None]:
    """One way: these settings."""
    return lambda _: Ways(1, lambda _: settings)


def _away_from(field: str, *values: object, **settings: object) -> Callable[[Run], Ways | None]:
    """One way, where the plan has one of those values."""
    return lambda run: Ways(1, lambda _: settings) if getattr(run.plan, field) in values else None


def _impl(name: str) -> Callable[[Run], Ways | None]:
    """The update in that way, where the optimizer has it."""

    def ways(run: Run) -> Ways | None:
        has = name in OPTIMIZERS[run.plan.optimizer].kind.since
        return Ways(1, lambda _: {"optimizer_impl": name}) if has else None

    return ways


def _optimizer(name: str) -> Callable[[Run], Ways | None]:
    """Another optimizer; an implementation that was asked for gives way where there is none such of it."""

    def ways(run: Run) -> Ways:
        impls = OPTIMIZERS[name].kind.since
        asked = run.asked.get("optimizer_impl")
        own = {} if asked is None or asked in impls else {"optimizer_impl": next(iter(impls))}
        return Ways(1, lambda _: {"optimizer": name, **own})

    return ways


def _half(plan: Plan) -> str:
    """The dtype of 16 bits in which the device multiplies."""
    return "bf16" if target(plan.target).capability >= BF16_SINCE else "fp16"


def _autocast(run: Run) -> Ways | None:
    """Matrices are multiplied in 16 bits, where nothing is so far."""
    precision = f"autocast-{_half(run.plan)}"
    return Ways(1, lambda _: {"precision": precision}) if run.plan.precision == "fp32" else None


def _all_of_16_bits(run: Run) -> Ways | None:
    """Weights and all in 16 bits; training in fp16 without a copy in fp32 is not done."""
    half = run.plan.autocast or _half(run.plan)
    if run.plan.dtype != "fp32" or ("training" in run.modes and half == "fp16"):
        return None
    return Ways(1, lambda _: {"precision": half})


def _kv_of_16_bits(run: Run) -> Ways | None:
    """The KV cache alone."""
    half = run.plan.compute_dtype if run.plan.compute_dtype != "fp32" else _half(run.plan)
    return Ways(1, lambda _: {"kv_dtype": half}) if run.plan.kv_dtype == "fp32" else None


def _chunks(run: Run) -> Ways | None:
    """Few chunks first: what is saved is soon all."""
    plan = run.plan
    most = min(MOST_CHUNKS, plan.batch * plan.seq)
    return Ways(most - plan.chunked_loss, lambda n: {"chunked_loss": most + 1 - n}, lambda n: 1 / (most + 1 - n))


def _micro_batches(run: Run) -> Ways | None:
    """The same sequences in more micro-batches: of every size below that divides them."""
    plan = run.plan
    total = plan.batch * plan.grad_accum
    small = [size for size in range(1, isqrt(total) + 1) if total % size == 0]
    sizes = sorted(size for size in {*small, *(total // size for size in small)} if size < plan.batch)
    return Ways(
        len(sizes), lambda n: {"batch": sizes[n - 1], "grad_accum": total // sizes[n - 1]}, lambda n: sizes[n - 1]
    )


def _fewer_in_micro_batches(run: Run) -> Ways | None:
    """Micro-batches of any smaller size, as many as the sequences are enough for."""
    plan = run.plan
    total = plan.batch * plan.grad_accum
    return Ways(plan.batch - 1, lambda size: {"batch": size, "grad_accum": total // size})


def _batch(run: Run) -> Ways | None:
    return Ways(run.plan.batch - 1, lambda size: {"batch": size}) if "training" in run.modes else None


def _served(run: Run) -> Ways | None:
    return Ways(run.plan.batch - 1, lambda size: {"batch": size}) if "training" not in run.modes else None


def _seq(run: Run) -> Ways | None:
    least = max(run.plan.seq // LEAST_OF_SEQ, 1)
    return Ways(run.plan.seq - least, lambda n: {"seq": least + n - 1})


IN_BACKWARD = Row(
    "nothing",
    _to(optimizer_in_backward=True),
    "the same update from a hook for each weight: no clipping by a norm, no accumulation, no gradient scaler",
)
#: Every candidate. Within a cost the first takes least of it.
ROWS: tuple[Row, ...] = (
    Row("nothing", _to(zero_grads=False), "gradients become None between steps, and are made anew"),
    Row("nothing", _to(keep_outputs=False), "let go of logits and loss before the next forward pass: `del` them"),
    Row("nothing", _to(logits="last"), "one row of logits a sequence, all that the next token takes"),
    Row(
        "nothing",
        _to(attention="auto"),
        "torch's own choice of kernel, faster where it keeps no scores; the same up to rounding",
    ),
    Row("nothing", _impl("fused"), "the same update in one kernel, without copies of all weights"),
    Row(
        "nothing", _to(expandable_segments=True), "segments that grow, with fewer gaps: in PYTORCH_ALLOC_CONF, on Linux"
    ),
    IN_BACKWARD,
    Row(
        "time",
        _chunks,
        "logits and loss in {new.chunked_loss:,} chunks, each made again in the backward pass: one more product with"
        " the unembedding",
    ),
    Row("time", _to(checkpointing="selective"), "the core of attention runs again in the backward pass"),
    Row("time", _impl("for-loop"), "the same update weight by weight: more and smaller kernels"),
    Row(
        "time",
        _micro_batches,
        "the same {tokens:,} tokens a step in {new.grad_accum:,} micro-batches of {new.batch:,}, each less work for the"
        " device; gradients are the same up to rounding, dropout draws others",
    ),
    Row(
        "time",
        _to(checkpointing="full"),
        "each block runs again in the backward pass: one more forward pass, about a third more work a step",
    ),
    Row("time", _served, "{new.batch:,} of {old.batch:,} sequences at once: fewer answers in the same time"),
    Row(
        "quality",
        _autocast,
        "matrices are multiplied in 16 bits, and faster; the weights stay fp32",
        "products are rounded to 16 bits: usual, and seldom seen in the loss",
    ),
    Row(
        "quality",
        _kv_of_16_bits,
        "the KV cache alone has 16 bits",
        "keys and values are rounded to 16 bits",
    ),
    Row(
        "quality",
        _all_of_16_bits,
        "weights and all that is made of them have 16 bits",
        "weights are rounded to 16 bits; in training small updates may be rounded away",
    ),
    Row(
        "quality",
        _optimizer("adamw8bit"),
        "the states have 8 bits (bitsandbytes)",
        "the states are rounded in blocks: close to AdamW, not the same",
    ),
    Row(
        "quality",
        _to(grad_dtype="none"),
        "gradients are added in their own dtype, without buffers",
        "sums of gradients are rounded to the precision",
    ),
    Row(
        "quality",
        _to(master_weights="none"),
        "the weights themselves are updated, without a copy in fp32",
        "small updates may be rounded away",
    ),
    Row("quality", _to(amsgrad=False), "one state less", "another update: without the greatest second moment so far"),
    Row(
        "quality",
        _fewer_in_micro_batches,
        "{new.grad_accum:,} micro-batches of {new.batch:,}, the largest that fit",
        "{sequences:,} of {before:,} sequences a step",
        pairs=False,
        is_new=lambda old, new: (old.batch * old.grad_accum) % new.batch > 0 and new.grad_accum > old.grad_accum,
    ),
    Row(
        "quality",
        _batch,
        "a smaller batch",
        "{sequences:,} of {before:,} sequences a step: noisier gradients, and another learning rate may suit",
    ),
    Row(
        "quality",
        _seq,
        "sequences of {new.seq:,} tokens, not {old.seq:,}",
        "what lies further apart than {new.seq:,} tokens is not seen together",
    ),
    Row("quality", _to(dropout=0.0), "no masks are kept", "trains without dropout: overfits sooner"),
    Row(
        "quality",
        _optimizer("adafactor"),
        "the second moment as a row and a column, and no first",
        "another update, which wants another learning rate",
        alternative=True,
    ),
    Row(
        "quality",
        _optimizer("muon"),
        "one state for matrices in place of two",
        "another update, which wants another learning rate",
        alternative=True,
    ),
    Row("quality", _to(momentum=0.0), "no state is kept", "another update: without momentum"),
    Row(
        "quality",
        _optimizer("sgd"),
        "no state is kept",
        "another update: transformers are seldom trained well with it",
        alternative=True,
    ),
)
#: Those that are tried together.
PAIRED = tuple(row for row in ROWS if row.pairs)


# --- Trying them -----------------------------------------------------------------------------------------------------


class Tried(NamedTuple):
    """A request with changes, asked of the engine."""

    run: Run
    outcomes: tuple[Outcome, ...]

    @property
    def margin(self) -> int:
        """What is surely left over where that is least."""
        return _tightest(self.outcomes).fit.margin.low


class Found(NamedTuple):
    """A row with the settings that it comes to."""

    row: Row
    settings: Settings


class Trials:
    """A request, and what becomes of it with other settings: each asked of the engine once."""

    def __init__(
        self,
        model: Model,
        overrides: Mapping[str, object],
        asked: Asked,
        rooms: Sequence[Room],
        totals: Totals | None = None,
    ) -> None:
        """Nothing is tried yet. Raises `GptcalcError` for what is no request."""
        self._model, self._overrides, self._asked = model, overrides, asked
        self._rooms, self._totals = tuple(rooms), totals or Totals()
        self._specs: dict[object, Spec] = {}
        self._runs: dict[tuple[tuple[str, object], ...], Run | None] = {}
        self.asked = self._settled(asked)
        #: What may be reserved, so that it surely fits.
        self.limit = min(most_reserved(room) for room in self._rooms)
        #: The settings that a mode has no use for, as they were asked for.
        self._unheard = {
            mode: {
                field: getattr(self.asked.plan, field)
                for field, row in SETTINGS.items()
                if row.used_in not in ("", mode) and field in Plan.model_fields
            }
            for mode in self.asked.modes
        }

    def run(self, settings: Settings) -> Run | None:
        """What the request comes to with these settings, or nothing where that is refused."""
        key = tuple(sorted(settings.items()))
        if key not in self._runs:
            try:
                self._runs[key] = self._settled({**self._asked, **settings})
            except InvalidValueError:
                self._runs[key] = None
        return self._runs[key]

    def tried(self, settings: Settings) -> Tried:
        """How it fits with these settings. Raises `InvalidValueError` where they are refused."""
        run = self.run(settings) or self._settled({**self._asked, **settings})
        figures = {mode: course(number) for mode, (course, number) in zip(run.modes, self._courses(run), strict=True)}
        outcomes = [Outcome(mode, fit(own, room), own) for mode, own in figures.items() for room in self._rooms]
        return Tried(run, tuple(outcomes))

    def margin(self, settings: Settings) -> int | None:
        """What is surely left over with these settings, or nothing where they are refused."""
        try:
            return self.tried(settings).margin
        except InvalidValueError:
            return None

    def fits(self, settings: Settings) -> bool:
        """Whether it does; not asked of the engine where the weights alone do not."""
        run = self.run(settings)
        if run is None or not self.may_fit(run.spec, run.plan.dtype):
            return False
        try:
            return all(course.within(number, self.limit) is not None for course, number in self._courses(run))
        except InvalidValueError:
            return False

    def sizes(self, settings: Settings) -> tuple[int, int]:
        """What is at least reserved in the mode with most, quickly found, and what is. Raises where that is refused."""
        run = self.run(settings) or self._settled({**self._asked, **settings})
        course, number = max(self._courses(run), key=lambda own: own[0].at_least(own[1]))
        return course.at_least(number), course(number).reserved

    def at_least(self, settings: Settings) -> int:
        """The first of these alone."""
        run = self.run(settings) or self._settled({**self._asked, **settings})
        return max(course.at_least(number) for course, number in self._courses(run))

    def may_fit(self, spec: Spec, dtype: str) -> bool:
        """Whether there is room for the weights, whatever else there is."""
        return weights_of(spec, dtype) <= self.limit

    def larger(self) -> Room | None:
        """The smallest NVIDIA GPU on which the request fits as it is, where the rooms are devices."""
        if any(room.budgeted for room in self._rooms):
            return None
        found = [(room_of(gpu), gpu.common) for gpu in gpus()]
        found.sort(key=lambda each: (each[0].usable.low, not each[1]))
        for room in (room for room, _ in found if not room.guess):
            trials = Trials(self._model, self._overrides, {**self._asked, "gpu": room.name}, [room], self._totals)
            if room.usable.low > max(each.usable.low for each in self._rooms) and trials.fits({}):
                return room
        return None

    def _settled(self, asked: Asked) -> Run:
        dropout = asked.get("dropout")
        if dropout not in self._specs:
            self._specs[dropout] = resolve(self._model, with_dropout(self._overrides, asked)).spec
        spec = self._specs[dropout]
        plan, modes, _ = settle(spec, asked)
        return Run(spec, plan, modes, asked)

    def _courses(self, run: Run) -> list[tuple[Course, int]]:
        """The figures of each mode, which knows nothing of the settings of the other, and where to find them."""
        return [self._course(run, mode) for mode in run.modes]

    def _course(self, run: Run, mode: ModeName) -> tuple[Course, int]:
        what: What = "batch" if run.plan.seq == self.asked.plan.seq else "seq"
        plan = run.plan.model_copy(update=self._unheard[mode])
        spec = run.spec if mode == "training" else self.asked.spec
        return self._totals.course(spec, plan, mode, what), getattr(plan, what)


def weights_of(spec: Spec, dtype: str) -> int:
    """What the weights take by themselves."""
    return bytes_of(parameters(spec).totals.stored, dtype)


def _tightest(outcomes: Sequence[Outcome]) -> Outcome:
    return min(outcomes, key=lambda outcome: outcome.fit.margin.low)


def solved(trials: Trials, row: Row, others: Settings = MappingProxyType({})) -> Settings | None:
    """The mildest way of a row that fits beside other settings; nothing where none does."""
    ways = _ways(trials, row, others)
    if ways is None or not trials.fits({**others, **ways.at(1)}):
        return None
    fitting = [1]

    def fits(n: int) -> bool:
        does = trials.fits({**others, **ways.at(n)})
        fitting.extend([n] if does else [])
        return does

    found = largest(fits, ways.most, lambda: _hint(trials, ways, others, fitting[-1]))
    old, new = trials.run(others), found and trials.run({**others, **ways.at(found)})
    return ways.at(found) if found and old and new and row.is_new(old.plan, new.plan) else None


def _ways(trials: Trials, row: Row, others: Settings) -> Ways | None:
    """The ways of a row beside other settings, where it is allowed, and is not there already."""
    old = trials.run(others)
    ways = row.ways(old) if old else None
    if old is None or ways is None or ways.most < 1 or _clash(ways.at(1), others):
        return None
    new = trials.run({**others, **ways.at(1)})
    return ways if new is not None and (old.spec, old.plan) != (new.spec, new.plan) else None


def _clash(settings: Settings, others: Settings) -> bool:
    return not settings.keys().isdisjoint(others)


def _hint(trials: Trials, ways: Ways, others: Settings, fitting: int) -> int:
    """Where the limit would be if the bytes were linear in the load, and as much more reserved as where it fits."""
    if ways.most == 1:
        return 1
    try:
        least, reserved = trials.sizes({**others, **ways.at(fitting)})
        first, last = (trials.at_least({**others, **ways.at(n)}) for n in (1, ways.most))
    except InvalidValueError:
        return 1
    if last <= first:
        return ways.most
    share = Fraction(trials.limit * least // reserved - first, last - first)
    load = ways.load(1) + (ways.load(ways.most) - ways.load(1)) * float(share)
    return min(max(bisect_right(range(1, ways.most + 1), load, key=ways.load), 1), ways.most)


def _change(trials: Trials, parts: Sequence[Found]) -> Change:
    """The parts together, each with its note."""
    settings = {field: value for part in parts for field, value in part.settings.items()}
    tried = trials.tried(settings)
    old, new = trials.asked.plan, tried.run.plan
    words = {
        "old": old,
        "new": new,
        "tokens": new.batch * new.grad_accum * new.seq,
        "sequences": new.batch * new.grad_accum,
        "before": old.batch * old.grad_accum,
    }
    return Change(
        settings,
        max((part.row.cost for part in parts), key=COSTS.index, default="nothing"),
        tuple(part.row.note.format(**words) for part in parts),
        tuple(part.row.alters.format(**words) for part in parts if part.row.alters),
        tried.outcomes,
    )


# --- What is suggested -----------------------------------------------------------------------------------------------


def suggest(
    model: Model, overrides: Mapping[str, object], asked: Asked, rooms: Sequence[Room], totals: Totals | None = None
) -> Suggestions:
    """What would make a request fit all `rooms`, where it does not."""
    trials = Trials(model, overrides, asked, rooms, totals)
    larger = trials.larger()
    if not trials.may_fit(trials.asked.spec, SMALLEST):
        return Suggestions(weights=weights_of(trials.asked.spec, SMALLEST), larger=larger)
    if found := list(_singles(trials)):
        return Suggestions(tuple(_change(trials, [part]) for part in found), larger=larger)
    most = [_most(trials, rows) for rows in (PAIRED, [row for row in PAIRED if row is not IN_BACKWARD])]
    does = [parts for parts in most if trials.fits(_settings(parts))]
    if not does:
        closest = max(most, key=lambda parts: trials.tried(_settings(parts)).margin)
        return Suggestions(closest=_change(trials, closest), larger=larger)
    cheapest = min(does, key=lambda parts: PAIRED.index(parts[-1].row))
    pairs = tuple(_change(trials, pair) for pair in _pairs(trials, PAIRED.index(cheapest[-1].row)))
    if pairs:
        return Suggestions(pairs=pairs, larger=larger)
    return Suggestions(together=_change(trials, _without_useless(trials, cheapest)), larger=larger)


def _singles(trials: Trials) -> Iterator[Found]:
    """Every row that fits by itself, but for what goes further than an earlier one."""
    seen: set[frozenset[str]] = set()
    for row in ROWS:
        ways = _ways(trials, row, {})
        fields = frozenset(ways.at(1) if ways else ())
        if ways is None or (fields in seen and not row.alternative and row.pairs):
            continue
        way = solved(trials, row)
        if way is not None:
            seen.add(fields)
            yield Found(row, way)


def _pairs(trials: Trials, first: int) -> Iterator[tuple[Found, Found]]:
    """Pairs that fit, the dearer part deciding; none of rows before `first`, which do not fit even all together."""
    found = 0
    seen: set[frozenset[str]] = set()
    for dearer in range(max(first, 1), len(PAIRED)):
        other = PAIRED[dearer]
        for row in PAIRED[:dearer]:
            ways = [_ways(trials, each, {}) for each in (row, other)]
            fields = frozenset(field for each in ways if each for field in each.at(1))
            if None in ways or (fields in seen and not (row.alternative or other.alternative)):
                continue
            pair = _pair(trials, row, other)
            if pair is not None:
                found += 1
                seen.add(fields)
                yield pair
        if found >= ENOUGH_PAIRS:
            return


def _pair(trials: Trials, one: Row, other: Row) -> tuple[Found, Found] | None:
    """Two rows, the second as mild as the first lets it be where that saves most, then the first as mild as it may."""
    ways = _ways(trials, one, {})
    second = None if ways is None else solved(trials, other, ways.at(1))
    first = None if second is None else solved(trials, one, second)
    return None if first is None or second is None else (Found(one, first), Found(other, second))


def _most(trials: Trials, rows: Sequence[Row]) -> list[Found]:
    """Change after change, each where it saves most, those kept that leave more; no more once it fits."""
    parts: list[Found] = []
    margin = trials.tried({}).margin
    for row in rows:
        run = trials.run(_settings(parts))
        ways = row.ways(run) if run else None
        if ways is None or ways.most < 1:
            continue
        kept = [part for part in parts if not _clash(part.settings, ways.at(1))]
        left = trials.margin({**_settings(kept), **ways.at(1)})
        if left is not None and left > margin:
            parts, margin = [*kept, Found(row, ways.at(1))], left
        if margin >= 0:
            break
    return parts


def _without_useless(trials: Trials, parts: list[Found]) -> list[Found]:
    """The parts that it takes, each as mild as the others let it be, the dearest first."""
    for part in reversed(parts):
        others = [other for other in parts if other is not part]
        parts = others if trials.fits(_settings(others)) else parts
    for part in reversed(parts):
        mildest = solved(trials, part.row, _settings([other for other in parts if other is not part]))
        if mildest is not None:
            parts = [Found(part.row, mildest) if other is part else other for other in parts]
    return parts


def _settings(parts: Sequence[Found]) -> Settings:
    return {field: value for part in parts for field, value in part.settings.items()}
