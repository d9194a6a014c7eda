"""What fits where, and how far: models × devices × ways to run them, each cell the largest batch or sequence.

A cell's number fits for all that is known, and the next one does not: what that means stands in `ledger.fit`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

from gptcalc.allocator import Figures
from gptcalc.catalog import Resolved
from gptcalc.errors import InvalidValueError, UnknownNameError, shown
from gptcalc.ledger.asked import MODES, SETTINGS, Asked, Spelled, UselessError, settle
from gptcalc.ledger.fit import Fit, Room, fit
from gptcalc.ledger.memory import ModeName
from gptcalc.ledger.parameters import parameters
from gptcalc.ledger.published import need_class
from gptcalc.ledger.request import Request
from gptcalc.ledger.solve import Search
from gptcalc.ledger.totals import What
from gptcalc.ledger.workers import spread
from gptcalc.plan import Plan
from gptcalc.spec import MOST
from gptcalc.units import ceil_div

#: What a cell may be the largest of.
WHATS: tuple[What, ...] = get_args(What)
#: The settings that make the ways: one that is given leaves the ways that have it.
MAKE_WAYS = ("mode", "precision", "checkpointing")
#: Told how much of the work is done, and of how much.
Progress = Callable[[int, int, str], None]


class Way(NamedTuple):
    """A way to run a model: a column of the grid. `settings` are what it takes beside what was asked."""

    mode: ModeName
    settings: Mapping[str, str]

    @property
    def key(self) -> str:
        """Its name: `inference`, or what is trained in, and what runs again: `bf16`, `bf16-full`."""
        if self.mode == "inference":
            return self.mode
        recomputed = self.settings["checkpointing"]
        return self.settings["precision"] + ("" if recomputed == "none" else f"-{recomputed}")

    def __reduce__(self) -> tuple[type["Way"], tuple[ModeName, dict[str, str]]]:
        """What of it can be sent from process to process."""
        return Way, (self.mode, dict(self.settings))


#: Every way, as the columns stand.
WAYS = (
    Way("inference", MappingProxyType({"precision": "bf16"})),
    Way("training", MappingProxyType({"precision": "fp32", "checkpointing": "none"})),
    Way("training", MappingProxyType({"precision": "fp32", "checkpointing": "full"})),
    Way("training", MappingProxyType({"precision": "autocast-bf16", "checkpointing": "none"})),
    Way("training", MappingProxyType({"precision": "autocast-bf16", "checkpointing": "full"})),
    Way("training", MappingProxyType({"precision": "bf16", "checkpointing": "none"})),
    Way("training", MappingProxyType({"precision": "bf16", "checkpointing": "full"})),
)


class Wish(NamedTuple):
    """What each cell is the largest of, and what was asked beside it."""

    what: What = "batch"
    asked: Asked = MappingProxyType({})


class Planned(NamedTuple):
    """A model in a way: the plan of the least that can run, and that least; or why it is not known."""

    way: Way
    plan: Plan | None = None
    least: int = 1
    refused: str = ""
    asked: Asked = MappingProxyType({})


class Cell(NamedTuple):
    """A model in a way on a device: the largest `value` that fits, with its `plan` and `fit`.

    Where nothing fits, `value` is `None`, and plan and fit are of the least that can be asked; where the weights alone,
    in training with their gradients, are more than there may be, the fit is that of the `weights_alone`, which is seen
    at once. Where nothing is known, there are none, and `refused` says why. `asked` is what `ledger.asked` makes the
    plan of.
    """

    way: Way
    value: int | None = None
    plan: Plan | None = None
    fit: Fit | None = None
    refused: str = ""
    weights_alone: bool = False
    asked: Asked = MappingProxyType({})

    def __reduce__(self) -> tuple[type["Cell"], tuple[object, ...]]:
        """What of it can be sent from process to process."""
        return Cell, (*self[:-1], dict(self.asked))


class Row(NamedTuple):
    """A model on a device, in every way."""

    model: Resolved
    room: Room
    cells: tuple[Cell, ...]

    @property
    def fits(self) -> bool:
        """Whether it does in any way."""
        return any(cell.value is not None for cell in self.cells)


class Grid(NamedTuple):
    """One model on many devices, or many models on one device (`of`): the largest `what` in each way."""

    of: Literal["model", "gpu"]
    what: What
    ways: tuple[Way, ...]
    rows: tuple[Row, ...]

    @property
    def cells(self) -> list[tuple[Row, Cell]]:
        """Every cell with its row."""
        return [(row, cell) for row in self.rows for cell in row.cells]

    @property
    def fits(self) -> bool:
        """Whether anything does."""
        return any(row.fits for row in self.rows)

    @property
    def closest(self) -> tuple[Row, Cell] | None:
        """Of what does not fit, that which lacks least; `None` where nothing is known."""
        found = [
            (cell.fit.margin.low, row, cell) for row, cell in self.cells if cell.fit is not None and cell.value is None
        ]
        return max(found, key=lambda one: one[0])[1:] if found else None


# --- What was asked --------------------------------------------------------------------------------------------------


def read_what(text: object, what: str = "max") -> What:
    """What a cell shall be the largest of."""
    name = text.strip().lower() if isinstance(text, str) else ""
    for known in WHATS:
        if name == known:
            return known
    if name in ("layers", "d-model", "d_model"):
        raise InvalidValueError(
            f"{what}: read {shown(text)}; allowed here, where the models are what they are: batch or seq ('gptcalc"
            f" memory MODEL --gpu NAME --max {name.replace('_', '-')}' changes the model)"
        )
    raise UnknownNameError.near(what, str(text), WHATS)


def wish(what: What, plan: Request) -> Wish:
    """What was asked. Of a plan file the number that is solved for gives way, and each device has its own kernels.

    Of what it holds but nobody gave, no way is made.
    """
    unmade = {field: value for field, value in plan.defaults.items() if field not in MAKE_WAYS}
    asked = {field: value for field, value in {**unmade, **plan.settings}.items() if value is not None}
    for field in (what, "target", "scope"):
        if plan.file and field not in plan.typed:
            asked.pop(field, None)
    for field in asked:
        if field not in SETTINGS:
            raise UnknownNameError.near("setting of fit", field, SETTINGS)
    return Wish(what, asked)


def ways(asked: Asked) -> tuple[Way, ...]:
    """The columns that are left by what was asked: a precision or a checkpointing that is given is that of all."""
    given = {key: str(asked[key]).strip().lower() for key in MAKE_WAYS if asked.get(key) is not None}
    modes = MODES.get(given.get("mode", "both"), MODES["both"])
    found = [
        Way(way.mode, {key: given.get(key, value) for key, value in way.settings.items()})
        for way in WAYS
        if way.mode in modes
    ]
    return tuple({way.key: way for way in found}.values())


def planned(model: Resolved, wish: Wish, spelled: Spelled = str) -> tuple[Planned, ...]:
    """The model in every way, with what was asked for it.

    Raises what is wrong with the request in every way. A setting is heard by the ways that have a use for it; one for
    which none has a use is an error.
    """
    what, given = wish.what, {field: value for field, value in wish.asked.items() if value is not None}
    if what in given:
        other = next(other for other in WHATS if other != what)
        raise InvalidValueError(
            f"fit: read {spelled(what)} with {spelled('max')} {what}, which is what each cell is the largest of;"
            f" allowed: one of them, or {spelled('max')} {other}"
        )
    found, errors = [], []
    for way in ways(given):
        try:
            found.append(_planned(model, way, given, what, spelled))
        except InvalidValueError as error:
            errors.append(error)
            found.append(Planned(way, refused=str(error)))
    if errors and all(one.refused for one in found):
        raise errors[0]
    heard = {field for one in found for field in one.asked}
    for field in given:
        if field not in heard and field not in MAKE_WAYS:
            settle(model.spec, given, spelled)  # it says what has no use for it
            raise InvalidValueError(
                f"fit: read {spelled(field)}, for which no way here has a use; allowed: no {spelled(field)}"
            )
    return tuple(found)


def _planned(model: Resolved, way: Way, given: Asked, what: What, spelled: Spelled) -> Planned:
    """The plan of a way, without the settings for which it has no use."""
    own = {field: value for field, value in given.items() if SETTINGS[field].used_in in ("", way.mode)}
    own = {**own, **way.settings, "mode": way.mode}
    least = _least(own, model, what)
    while True:
        try:
            plan = settle(model.spec, {**own, what: least}, spelled).plan
        except UselessError as error:
            if error.field not in own or error.field in MAKE_WAYS:
                raise
            del own[error.field]
        else:
            if plan.implementation == "transformers":
                need_class(model)
            return Planned(way, plan, least, asked=own)


def _least(own: Asked, model: Resolved, what: What) -> int:
    """As many as there must be: a loss in chunks needs a token for each."""
    chunks, other = own.get("chunked_loss"), own.get("seq" if what == "batch" else "batch")
    if type(chunks) is not int or chunks < 1:
        return 1
    if other is None:
        other = settle(model.spec, {}).plan.seq if what == "batch" else 1
    return min(ceil_div(chunks, other), MOST) if type(other) is int and other > 0 else 1


# --- The answer ------------------------------------------------------------------------------------------------------


def by_gpu(  # noqa: PLR0913  what a grid depends on, and how it is filled
    model: Resolved,
    where: Iterable[Room],
    wish: Wish,
    *,
    search: Search | None = None,
    processes: int = 1,
    spelled: Spelled = str,
) -> Grid:
    """One model on those devices, the smallest first."""
    search, plans, where = search or Search(), planned(model, wish, spelled), tuple(where)

    def column(one: Planned) -> list[Cell]:
        return [_cell(search, model, room, one, wish) for room in where]

    cells = zip(*spread(column, plans, processes), strict=True)
    rows = [Row(model, room, found) for room, found in zip(where, cells, strict=True)]
    return sort(_with_closest(Grid("model", wish.what, ways(wish.asked), tuple(rows)), search), "memory")


def by_model(  # noqa: PLR0913  what a grid depends on, and how it is filled
    where: Room,
    models: Sequence[Resolved],
    wish: Wish,
    *,
    told: Progress | None = None,
    processes: int = 1,
    spelled: Spelled = str,
) -> Grid:
    """Those models on one device, the smallest first. Raises what is wrong with the request for all of them."""
    rows, errors = [], []

    def fill(model: Resolved) -> _Filled:
        return _fill(model, where, wish, spelled)

    filled = spread(fill, models, processes if len(models) >= WORTH_IT else 1)
    for number, (error, cells) in enumerate(filled):
        if error is not None:
            errors.append(error)
        if told is not None:
            told(number + 1, len(models), models[number].name)
        rows.append(Row(models[number], where, cells))
    if errors and len(errors) == len(models):
        raise errors[0]
    return sort(_with_closest(Grid("gpu", wish.what, ways(wish.asked), tuple(rows)), Search()), "size")


#: What is wrong with the request for a model, and its cells.
_Filled = tuple[InvalidValueError | None, tuple[Cell, ...]]
#: Fewer models than this are no work for several processes.
WORTH_IT = 16


def _fill(model: Resolved, where: Room, wish: Wish, spelled: Spelled) -> _Filled:
    """The cells of one model."""
    error = None
    try:
        plans = planned(model, wish, spelled)
    except InvalidValueError as caught:
        error = caught
        plans = tuple(Planned(way, refused=str(caught)) for way in ways(wish.asked))
    search = Search()
    return error, tuple(_cell(search, model, where, one, wish) for one in plans)


def _cell(search: Search, model: Resolved, where: Room, planned: Planned, wish: Wish) -> Cell:
    way, plan, what = planned.way, planned.plan, wish.what
    if plan is None:
        return Cell(way, refused=planned.refused)
    if model.spec.unknown_ops:
        return Cell(way, refused=f"the ops of {', '.join(model.spec.unknown_ops)} are not modelled")
    if where.target is not None and wish.asked.get("target") is None:
        plan = plan.model_copy(update={"target": where.target})
    weights = search.totals.course(model.spec, plan, way.mode, what).weights
    alone = fit(Figures(weights, weights, weights, weights), where)
    if alone.margin.high < 0:
        own, asked = plan.model_copy(update={what: planned.least}), {**planned.asked, what: planned.least}
        return Cell(way, None, own, alone, weights_alone=True, asked=asked)
    return _solved(search, model, Cell(way, plan=plan, asked=planned.asked), where, (what, planned.least))


def _solved(search: Search, model: Resolved, cell: Cell, where: Room, least: tuple[What, int]) -> Cell:
    """The cell as the engine has it, from the least that can be asked on."""
    what, first = least
    if (plan := cell.plan) is None:
        return cell
    try:
        solved = search(model.spec, plan, cell.way.mode, where, what, least=first, beyond=False)
    except InvalidValueError as error:
        return Cell(cell.way, refused=str(error))
    shown = solved.largest or solved.beyond
    if shown is None:
        return Cell(cell.way, refused="not known")
    own, asked = plan.model_copy(update={what: shown.number}), {**cell.asked, what: shown.number}
    return Cell(cell.way, solved.largest and shown.number, own, shown.fit, asked=asked)


def _with_closest(grid: Grid, search: Search) -> Grid:
    """Where nothing fits, what lacks least is not known by its weights alone."""
    while not grid.fits and (closest := grid.closest) and closest[1].weights_alone:
        row, cell = closest
        known = _solved(search, row.model, cell, row.room, (grid.what, getattr(cell.plan, grid.what)))
        cells = tuple(known if one is cell else one for one in row.cells)
        grid = grid._replace(rows=tuple(one._replace(cells=cells) if one is row else one for one in grid.rows))
    return grid


# --- Order -----------------------------------------------------------------------------------------------------------

#: What the rows may be sorted by beside the ways, the first where nothing is asked.
SORTS: Mapping[str, tuple[str, ...]] = MappingProxyType({"model": ("memory", "name"), "gpu": ("size", "name")})


def read_sort(text: object, of: str, ways: Sequence[Way], what: str = "sort") -> str:
    """By what the rows are sorted."""
    allowed = (*SORTS[of], *(way.key for way in ways))
    if text is None:
        return allowed[0]
    name = text.strip().lower() if isinstance(text, str) else ""
    if name not in allowed:
        raise UnknownNameError.near(what, str(text), allowed)
    return name


def sort(grid: Grid, by: str) -> Grid:
    """The rows by memory or size, the least first, by name, or by a way, the most first."""
    keys: dict[str, Callable[[Row], tuple[int, *tuple[str, ...]]]] = {
        "memory": lambda row: (row.room.usable.low, row.room.name),
        "size": lambda row: (size(row.model), row.model.name),
        "name": lambda row: (0, row.room.name if grid.of == "model" else row.model.name),
    }
    key = keys.get(by) or (lambda row: (-_value(row, by), row.room.name, row.model.name))
    return grid._replace(rows=tuple(sorted(grid.rows, key=key)))


def _value(row: Row, way: str) -> int:
    return next((cell.value or 0 for cell in row.cells if cell.way.key == way), 0)


def size(model: Resolved) -> int:
    """The parameters that a model stores."""
    return parameters(model.spec).totals.stored
