"""The Python API, and what the command line calls: three lines for the common case.

>>> import gptcalc
>>> gptcalc.count("gpt2").totals.stored
124439808
"""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gptcalc.catalog import Resolved, resolve
from gptcalc.errors import GptcalcError, InvalidValueError, UnknownNameError, shown
from gptcalc.ledger.cache import Cache, cache
from gptcalc.ledger.evidence import Check
from gptcalc.ledger.parameters import Line, Parameters, Totals, parameters
from gptcalc.report.count import count_document
from gptcalc.report.count_data import CountJSON, count_json
from gptcalc.report.document import Document

if TYPE_CHECKING:
    from gptcalc.ledger.answer import Answer
    from gptcalc.ledger.changes import Suggestions
    from gptcalc.ledger.compare import Compared
    from gptcalc.ledger.design import Designs, Shape
    from gptcalc.ledger.embedding import EmbeddingStage
    from gptcalc.ledger.explain import Snapshot
    from gptcalc.ledger.grid import Grid, Progress
    from gptcalc.ledger.memory import Memory, Mode
    from gptcalc.ledger.request import Request
    from gptcalc.ledger.versus import Both
    from gptcalc.reading.records import Record
    from gptcalc.report.compare import CompareJSON
    from gptcalc.report.design import DesignJSON
    from gptcalc.report.explain import ExplainJSON, Predicted
    from gptcalc.report.grid import Asking, GridJSON
    from gptcalc.report.memory_data import MemoryJSON
    from gptcalc.report.versus import Side, VersusJSON


class Count(NamedTuple):
    """The parameters of one model: `totals`, `lines` that add up to them, and every form of the report."""

    model: Resolved
    parameters: Parameters
    kv_cache: Cache
    depth: int = 1
    evidence: Check | None = None

    def __repr__(self) -> str:
        """The model and what it stores; everything else is in the fields."""
        return f"Count({self.model.name!r}, stored={self.totals.stored})"

    @property
    def totals(self) -> Totals:
        """The four totals: stored, matrices, active, non_embedding."""
        return self.parameters.totals

    @property
    def lines(self) -> tuple[Line, ...]:
        """One line for each component."""
        return self.parameters.lines

    def to_dict(self) -> CountJSON:
        """What `gptcalc count --format json` prints."""
        return count_json(self.model, self.parameters, self.kv_cache, self.depth, self.evidence)

    def document(self, *, explain: bool = False) -> Document:
        """The report before it has a format."""
        parts = (self.model, self.parameters, self.kv_cache, self.depth)
        return count_document(*parts, explain=explain, check=self.evidence)

    def _repr_html_(self) -> str:
        """Tables for a notebook."""
        from gptcalc.report.plain import render_html

        return render_html(self.document())


class MemoryReport(NamedTuple):
    """What is alive at the peak of each mode, or the embedding stage by itself, and every form of the report.

    `defaulted` are the settings that nobody gave; `command` is the request as it was made, `request` what it holds.
    `answers` say of each mode whether it fits, where a device or a budget was named, `suggest()` what would make it.
    """

    model: Resolved
    answer: "Memory | EmbeddingStage"
    depth: int = 1
    defaulted: tuple[str, ...] = ()
    command: str = ""
    request: "Request | None" = None
    answers: "tuple[Answer, ...]" = ()
    suggest: "Callable[[], Suggestions] | None" = None

    def __repr__(self) -> str:
        """The model and what it takes at each peak; everything else is in the fields."""
        peaks = "".join(f", {mode.name}={mode.totals.requested}" for mode in self.modes)
        return f"MemoryReport({self.model.name!r}{peaks})"

    @property
    def modes(self) -> "tuple[Mode, ...]":
        """The modes that were asked for; none of the embedding stage."""
        from gptcalc.ledger.memory import Memory

        return self.answer.modes if isinstance(self.answer, Memory) else ()

    @property
    def fits(self) -> bool | None:
        """Whether every mode does for all that is known; `None` where no device and no budget was named."""
        return all(answer.does for answer in self.answers) if self.answers else None

    @property
    def changes(self) -> "Suggestions | None":
        """What would make the run fit, found out when it is first asked; `None` where it does."""
        return self.suggest() if self.suggest else None

    @property
    def training(self) -> "Mode":
        """The training step."""
        return self._mode("training")

    @property
    def inference(self) -> "Mode":
        """Prefill and decode."""
        return self._mode("inference")

    @property
    def embedding(self) -> "EmbeddingStage":
        """The embedding stage by itself."""
        from gptcalc.ledger.embedding import EmbeddingStage

        if isinstance(self.answer, EmbeddingStage):
            return self.answer
        raise InvalidValueError("embedding: was not asked for; allowed with scope='embedding'")

    def _mode(self, name: str) -> "Mode":
        for mode in self.modes:
            if mode.name == name:
                return mode
        raise InvalidValueError(f"{name}: was not asked for; allowed with mode={name!r} or 'both', of the whole model")

    def to_dict(self) -> "MemoryJSON":
        """What `gptcalc memory --format json` prints."""
        from gptcalc.ledger.memory import Memory
        from gptcalc.report.embedding import embedding_json
        from gptcalc.report.memory_data import memory_json

        if isinstance(self.answer, Memory):
            found = memory_json(self.model, self.answer, self.depth, self.command, self.answers, changes=self.changes)
        else:
            found = embedding_json(self.model, self.answer, self.command)
        found["notes"] = [*self._said(), *found["notes"]]
        return found

    def save_plan(self, path: str | os.PathLike[str]) -> None:
        """Keep the request, with every setting that it comes to, in a plan file: `.toml` or `.json`."""
        from gptcalc import __version__
        from gptcalc.ledger.request import save_plan

        if self.request is not None:
            save_plan(path, self.request, version=__version__)

    def versus(self, other: "MemoryReport") -> "Versus":
        """What `other` takes more or less, line by line."""
        return Versus(self, other)

    def _checks(self) -> Iterator[str]:
        """The command lines that ask for what was solved for."""
        from gptcalc.ledger.asked import SOLVED
        from gptcalc.ledger.request import command_line

        for answer in self.answers:
            if self.request and answer.largest is not None and answer.largest.value is not None:
                changes = {SOLVED[answer.largest.what]: answer.largest.value, "max": None, "mode": answer.mode}
                yield from filter(None, [command_line(self.request, changes)])

    def _said(self) -> tuple[str, ...]:
        """What is to be said of the request itself."""
        return self.request.notes() if self.request else ()

    def document(self, *, explain: bool = False, timeline: bool = False) -> Document:
        """The report before it has a format; `timeline` draws the step."""
        from gptcalc.ledger.memory import Memory
        from gptcalc.report.embedding import embedding_document
        from gptcalc.report.memory import View, memory_document

        if isinstance(self.answer, Memory):
            view = View(self.depth, self.defaulted, explain, timeline, tuple(self._checks()))
            found = memory_document(self.model, self.answer, view, self.answers, self.changes)
        else:
            found = embedding_document(self.model, self.answer, self.defaulted, explain=explain)
        return found._replace(heading=(*found.heading, *self._said()))

    def _repr_html_(self) -> str:
        """Tables for a notebook."""
        from gptcalc.report.plain import render_html

        return render_html(self.document())


class Versus(NamedTuple):
    """Two plans against each other, and every form of the report; `words` are what makes the second of the first."""

    first: MemoryReport
    second: MemoryReport
    words: str = ""
    command: str = ""

    def __repr__(self) -> str:
        """Both peaks; everything else is in the fields."""
        return f"Versus({self.first!r}, {self.second!r})"

    @property
    def modes(self) -> "tuple[Both, ...]":
        """Every mode of either, with all figures and lines of both and the difference."""
        from gptcalc.report.versus import both

        return both(*self._sides(), self.first.depth)

    def to_dict(self) -> "VersusJSON":
        """What `gptcalc memory --versus --format json` prints."""
        from gptcalc.report.versus import versus_json

        return versus_json(*self._sides(), self.first.depth, self.words, self.command)

    def document(self) -> Document:
        """The report before it has a format."""
        from gptcalc.report.versus import versus_document

        return versus_document(*self._sides(), self.first.depth, self.words)

    def _sides(self) -> "tuple[Side, Side]":
        from gptcalc.ledger.memory import Memory
        from gptcalc.report.versus import Side

        found = [Side(each.model, each.answer) for each in self[:2] if isinstance(each.answer, Memory)]
        if len(found) < 2:
            raise InvalidValueError("versus: read scope embedding; allowed: plans of the whole model")
        return found[0], found[1]

    def _repr_html_(self) -> str:
        """Tables for a notebook."""
        from gptcalc.report.plain import render_html

        return render_html(self.document())


class Explained(NamedTuple):
    """A memory record of torch at a moment, held against a prediction where there is one, and every form of it."""

    record: "Record"
    taken: "Snapshot"
    predicted: "Predicted | None" = None
    command: str = ""

    def __repr__(self) -> str:
        """The moment and what is alive; everything else is in the fields."""
        return f"Explained({self.record.file!r}, {self.taken.moment}={self.taken.requested})"

    def to_dict(self) -> "ExplainJSON":
        """What `gptcalc explain --format json` prints."""
        from gptcalc.report.explain import explain_json

        return explain_json(self.record.file, self.record.devices, self.taken, self.predicted, self.command)

    def document(self) -> Document:
        """The report before it has a format."""
        from gptcalc.report.explain import explain_document

        return explain_document(self.record.file, self.record.devices, self.taken, self.predicted)

    def _repr_html_(self) -> str:
        """Tables for a notebook."""
        from gptcalc.report.plain import render_html

        return render_html(self.document())


class Comparison(NamedTuple):
    """Models side by side, and every form of the report; of memory where that was asked for."""

    models: "tuple[Compared, ...]"
    command: str = ""

    def __repr__(self) -> str:
        """The models and what they store; everything else is in the fields."""
        return f"Comparison({', '.join(f'{m.name}={m.parameters.totals.stored}' for m in self.models)})"

    def to_dict(self) -> "CompareJSON":
        """What `gptcalc compare --format json` prints."""
        from gptcalc.report.compare import compare_json

        return compare_json(self.models, self.command)

    def document(self) -> Document:
        """The report before it has a format."""
        from gptcalc.report.compare import compare_document

        return compare_document(self.models)

    def _repr_html_(self) -> str:
        """Tables for a notebook."""
        from gptcalc.report.plain import render_html

        return render_html(self.document())


class Fitting(NamedTuple):
    """What is asked of `fit` beside models and settings: GPUs (none: the common ones), what is solved for, the order.

    `family` and `search` choose among the presets where no model is named.
    """

    gpus: tuple[object, ...] = ()
    max: object = "batch"
    sort: object = None
    family: str | None = None
    search: str | None = None


class Fits(NamedTuple):
    """Grids of models and GPUs, each cell the largest batch or sequence that fits, and every form of the report."""

    grids: "tuple[Grid, ...]"
    asking: "Asking"
    command: str = ""

    def __repr__(self) -> str:
        """What fits; everything else is in the grids."""
        rows = [row for grid in self.grids for row in grid.rows]
        return f"Fits({sum(row.fits for row in rows)} of {len(rows)})"

    @property
    def fits(self) -> bool:
        """Whether anything does."""
        return any(grid.fits for grid in self.grids)

    def to_dict(self) -> "GridJSON":
        """What `gptcalc fit --format json` prints."""
        from gptcalc.report.grid import grid_json

        return grid_json(self.grids, self.asking, self.command)

    def document(self) -> Document:
        """The report before it has a format."""
        from gptcalc.report.grid import grid_document

        return grid_document(self.grids, self.asking)

    def _repr_html_(self) -> str:
        """Tables for a notebook."""
        from gptcalc.report.plain import render_html

        return render_html(self.document())


class Design(NamedTuple):
    """Shapes near a number of parameters, the best first, and every form of the report."""

    designs: "Designs"
    command: str = ""

    def __repr__(self) -> str:
        """The target and how many there are; everything else is in the fields."""
        return f"Design({self.designs.target}, shapes={len(self.shapes)})"

    @property
    def shapes(self) -> "tuple[Shape, ...]":
        """The shapes, each with its exact count: `.sizes`, `.stored`, `.parameters`, `.overrides`."""
        return self.designs.shapes

    def to_dict(self) -> "DesignJSON":
        """What `gptcalc design --format json` prints."""
        from gptcalc.report.design import design_json

        return design_json(self.designs, self.command)

    def document(self) -> Document:
        """The report before it has a format."""
        from gptcalc.report.design import design_document

        return design_document(self.designs)

    def _repr_html_(self) -> str:
        """Tables for a notebook."""
        from gptcalc.report.plain import render_html

        return render_html(self.document())


__all__ = [
    "Check",
    "Comparison",
    "Count",
    "Design",
    "Explained",
    "GptcalcError",
    "MemoryReport",
    "Versus",
    "check",
    "check_of",
    "compare",
    "compare_of",
    "count",
    "count_of",
    "design",
    "design_of",
    "explain",
    "explain_by",
    "fit",
    "fit_of",
    "memory",
    "memory_of",
]

DEPTHS = (1, 2, 3)

#: A preset name or alias, a path to a config, or a mapping of its fields; nothing is `gpt2-small`.
Model = str | os.PathLike[str] | Mapping[str, object] | None


def count(
    model: Model = None, *, depth: int = 1, seq: int | None = None, kv_dtype: str | None = None, **overrides: object
) -> Count:
    """Count the parameters of `model`, and what it keeps of `seq` tokens (its whole context) in `kv_dtype` (bf16).

    `overrides` are fields under gptcalc's names or Hugging Face's (`n_vocab=50304`, `n_layer=6`, `bias=False`).
    `depth` is the detail of `to_dict()`: 1 components, 2 layer groups, 3 tensors. Raises `GptcalcError`
    on a bad request.
    """
    return count_of(model, overrides, depth=depth, seq=seq, kv_dtype=kv_dtype)


def count_of(  # noqa: PLR0913  what a count depends on
    model: Model,
    overrides: Mapping[str, object],
    *,
    depth: int = 1,
    seq: object = None,
    kv_dtype: str | None = None,
    spelled: Callable[[str], str] = str,
) -> Count:
    """`count` with the model's fields in a mapping."""
    if type(depth) is not int or depth not in DEPTHS:
        raise InvalidValueError(f"depth: read {shown(depth)}; allowed: 1 (components), 2 (layer groups), 3 (tensors)")
    resolved = resolve(model, overrides)
    return Count(resolved, parameters(resolved.spec), cache(resolved.spec, seq, kv_dtype, spelled), depth)


def memory(  # noqa: PLR0913  a setting is an argument
    model: Model = None,
    *,
    mode: str | None = None,
    batch: int | None = None,
    seq: int | None = None,
    precision: str | None = None,
    optimizer: str | None = None,
    optimizer_impl: str | None = None,
    momentum: float | None = None,
    amsgrad: bool | None = None,
    optimizer_in_backward: bool | None = None,
    grad_accum: int | None = None,
    grad_clip: float | None = None,
    zero_grads: bool | None = None,
    keep_outputs: bool | None = None,
    master_weights: str | None = None,
    grad_dtype: str | None = None,
    dropout: float | None = None,
    attention: str | None = None,
    checkpointing: str | None = None,
    chunked_loss: int | None = None,
    kv_dtype: str | None = None,
    logits: str | None = None,
    target: str | None = None,
    torch: str | None = None,
    expandable_segments: bool | None = None,
    compile: bool | None = None,  # noqa: A002  what the option is called
    implementation: str | None = None,
    scope: str | None = None,
    gpu: str | None = None,
    budget: str | None = None,
    max: str | None = None,  # noqa: A002  what the option is called
    plan: str | os.PathLike[str] | Mapping[str, object] | None = None,
    depth: int | None = None,
    **overrides: object,
) -> MemoryReport:
    """What is alive on one device at the peak of a training step and of inference, and at which moment.

    The settings are the options of `gptcalc memory`; `None` is its default, or what `plan` says, a plan file or what
    stands in one. With a `gpu` (a name of `gptcalc gpus`, `24GiB`, `local`) or a `budget` (`40GiB`, for what torch's
    allocator holds) `.fits` says whether it does, `.answers` with what margin; `max` solves for the largest `batch`,
    `seq`, `layers` or `d-model` that fits. `depth` is the detail of `to_dict()`: 1 components, 2 ops, 3 tensors. Raises
    `GptcalcError` on a bad request.
    """
    from gptcalc.ledger.request import RUN, Request, from_table, read_plan

    given = {name: value for name, value in locals().items() if name in RUN and value is not None}
    shown = {} if depth is None else {"depth": depth}
    named = ({} if plan is None else {"plan": plan}) | shown | given | overrides
    arguments = ([] if model is None else [repr(model)]) + [f"{name}={value!r}" for name, value in named.items()]
    request = Request(model, overrides, given, shown)
    if plan is not None:
        request = request.over(from_table(plan, "plan") if isinstance(plan, Mapping) else read_plan(plan))
    report = memory_by(request)
    return report._replace(command=f"gptcalc.memory({', '.join(arguments)})")


def memory_by(request: "Request", *, spelled: Callable[[str], str] = str) -> MemoryReport:
    """`memory` of a request as a plan file holds one; errors call a setting as it is `spelled`, or in the file."""
    depth: Any = request.view.get("depth", 1)
    asked, spelled = request.asked, request.spelled(spelled)
    return memory_of(request.model, request.overrides, asked, depth=depth, spelled=spelled)._replace(request=request)


def memory_of(
    model: Model,
    overrides: Mapping[str, object],
    asked: Mapping[str, object],
    *,
    depth: int = 1,
    spelled: Callable[[str], str] = str,
) -> MemoryReport:
    """`memory` with the model's fields and the settings each in a mapping; errors call a setting as it is `spelled`."""
    from gptcalc.ledger import memory as engine
    from gptcalc.ledger.asked import has_questions, settle, solved_for, with_dropout
    from gptcalc.ledger.embedding import embedding_stage
    from gptcalc.ledger.published import need_class
    from gptcalc.ledger.request import Request

    if type(depth) is not int or depth not in DEPTHS:
        raise InvalidValueError(
            f"{spelled('depth')}: read {shown(depth)}; allowed: 1 (components), 2 (ops), 3 (tensors)"
        )
    request = Request(model, overrides, asked, {"depth": depth})
    overrides = with_dropout(overrides, asked, spelled)
    resolved = resolve(model, overrides)
    if solved_for(asked, spelled):
        return _solved(model, overrides, asked, spelled)._replace(depth=depth, request=request)
    plan, modes, defaulted = settle(resolved.spec, asked, spelled)
    if plan.implementation == "transformers":
        need_class(resolved)
    if modes:
        found = engine.memory(resolved.spec, plan, modes)
        report = MemoryReport(resolved, found, depth, defaulted, request=request)
        if not has_questions(asked):
            return report
        report = report._replace(answers=_answers(found, asked, spelled))
        return report if report.fits else report._replace(suggest=_suggest(model, request.overrides, asked))
    if depth != 1:
        raise InvalidValueError(
            f"memory: read {spelled('depth')} {depth} with {spelled('scope')} embedding; allowed: one of them"
        )
    return MemoryReport(resolved, embedding_stage(resolved.spec, plan), depth, defaulted, request=request)


def _answers(found: "Memory", asked: Mapping[str, object], spelled: Callable[[str], str]) -> "tuple[Answer, ...]":
    """Whether each mode fits where it was asked to."""
    from gptcalc.ledger.answer import answer, questions

    rooms = questions(asked, spelled).rooms
    return tuple(answer(mode, rooms) for mode in found.modes)


def _solved(
    model: Model, overrides: Mapping[str, object], asked: Mapping[str, object], spelled: Callable[[str], str]
) -> MemoryReport:
    """The largest that fits in each mode; what is shown is the run of that size where all modes have the same."""
    from gptcalc.ledger.answer import answer, questions
    from gptcalc.ledger.asked import SOLVED, solved_twice
    from gptcalc.ledger.largest import Question, builder, mode_of, shown_of, sizes_of, solve
    from gptcalc.ledger.memory import Memory
    from gptcalc.ledger.published import need_class
    from gptcalc.ledger.totals import Totals

    asks, totals, build = questions(asked, spelled), Totals(), builder(model, overrides)
    names = build({}).family.names()
    if any(SOLVED[asks.max] in names.get(name, ()) for name in overrides):
        raise solved_twice(asks.max, SOLVED[asks.max], spelled)
    run = {field: value for field, value in asked.items() if field != "max"}
    question = Question(asks.max, build, run, asks.rooms, spelled)
    resolved, settled = question.settled(sizes_of(question).first)
    if settled.plan.implementation == "transformers":
        need_class(resolved)
    itemised = functools.cache(mode_of)
    largest = [solve(question, mode, totals, itemised) for mode in settled.modes]
    resolved, settled = shown_of(question, largest)
    plan = settled.plan
    memory = Memory(resolved.spec, plan, tuple(itemised(resolved.spec, plan, mode) for mode in settled.modes))
    answers = tuple(answer(mode, asks.rooms, own) for mode, own in zip(memory.modes, largest, strict=True))
    return MemoryReport(resolved, memory, defaulted=settled.defaulted, answers=answers)


def _suggest(model: Model, overrides: Mapping[str, object], asked: Mapping[str, object]) -> "Callable[[], Suggestions]":
    """What would make a request fit where it was asked to: a search, made once, when somebody wants to know."""
    from gptcalc.ledger.answer import questions
    from gptcalc.ledger.changes import suggest

    return functools.cache(lambda: suggest(model, overrides, asked, questions(asked).rooms))


def explain(  # noqa: PLR0913  a choice is an argument
    record: str | os.PathLike[str],
    model: Model = None,
    *,
    at: str | None = None,
    device: int | None = None,
    settings: Mapping[str, object] | None = None,
    depth: int = 1,
    **overrides: object,
) -> Explained:
    """What a memory record of torch has alive: the file that `torch.cuda.memory._dump_snapshot` wrote, or JSON.

    With a `model`, or `settings` as those of `memory`, each block is matched to a predicted tensor. `at` is `peak`,
    `oom` or `end`: by default the last out-of-memory error where there is one. The file is read, never run.
    """
    from gptcalc.ledger.request import Request

    return explain_by(Path(record), Request(model, overrides, settings or {}, {"depth": depth}), at=at, device=device)


def explain_by(
    file: Path,
    request: "Request",
    *,
    at: str | None = None,
    device: int | None = None,
    spelled: Callable[[str], str] = str,
) -> Explained:
    """`explain` of a request as a plan file holds one; one that says nothing asks for no prediction."""
    from gptcalc.ledger.explain import match, snapshot
    from gptcalc.reading.records import read_record
    from gptcalc.report.explain import Predicted

    record = read_record(file)
    taken = snapshot(record, device, at, spelled("at"))
    if not (request.model is not None or request.overrides or request.asked or request.file):
        return Explained(record, taken)
    report = memory_by(request, spelled=spelled)
    if not report.modes:
        raise InvalidValueError(f"explain: read {spelled('scope')} embedding; allowed: a run of the whole model")
    found = match(report.model.spec, report.answer.plan, report.modes, taken, depth=report.depth)
    return Explained(record, taken, Predicted(report.model, report.answer.plan, found))


def check(
    model: Model = None,
    *,
    witness: str | None = None,
    settings: Mapping[str, object] | None = None,
    **overrides: object,
) -> Check:
    """Compare `model` with PyTorch: `.agrees`, and `.evidence` of each witness. Needs torch.

    `witness` names one to hear alone. Of parameters: `reference`, gptcalc's own modules, or `transformers`, the
    published class. Of memory, under `settings` as those of `memory`: `saved-tensors`, `trace`, or `cuda`, and
    `transformers` too.
    """
    return check_of(model, overrides, witness, settings or {})


def check_of(
    model: Model,
    overrides: Mapping[str, object],
    witness: str | None,
    asked: Mapping[str, object],
    *,
    spelled: Callable[[str], str] = str,
) -> Check:
    """`check` with the model's fields and the settings each in a mapping; errors call a setting as it is `spelled`."""
    from gptcalc.ledger.asked import settle, with_dropout
    from gptcalc.ledger.published import need_class
    from gptcalc.witness.check import MEMORY_WITNESSES, TRANSFORMERS, check_memory
    from gptcalc.witness.check import check as hear

    if witness in MEMORY_WITNESSES and (asked or witness != TRANSFORMERS):
        resolved = resolve(model, with_dropout(overrides, asked, spelled))
        asked = {**asked, "implementation": TRANSFORMERS} if witness == TRANSFORMERS else asked
        plan, modes, _ = settle(resolved.spec, asked, spelled)
        if plan.compile:
            raise InvalidValueError(
                f"check: read {spelled('compile')} with {spelled('witness')} {witness}, which runs eager code; allowed:"
                " one of them"
            )
        if plan.implementation == TRANSFORMERS:
            need_class(resolved)
        return check_memory(resolved, witness, plan, modes)
    if asked:
        raise InvalidValueError(
            f"check: read {spelled(next(iter(asked)))} with a witness of parameters, which has no use for it; allowed"
            f" with {spelled('witness')} {', '.join(MEMORY_WITNESSES)}"
        )
    return hear(resolve(model, overrides), witness)


def compare(
    *models: Model | tuple[Model, Mapping[str, object]], memory: bool = False, **settings: object
) -> Comparison:
    """Set two or more models side by side.

    Each is what `count` takes, or a pair of that and its overrides: `("gpt2", {"n_layers": 24})`. With `memory`, or
    with any of `settings` (those of `gptcalc.memory`: `batch=8, seq=1024`), memory is compared too. Raises
    `GptcalcError` on a bad request.
    """
    pairs = [each if isinstance(each, tuple) else (each, {}) for each in models]
    given = {name: value for name, value in settings.items() if value is not None}
    arguments = [*map(repr, models), *(["memory=True"] if memory else [])]
    arguments += [f"{name}={value!r}" for name, value in given.items()]
    compared = compare_of(pairs, given if given or memory else None)
    return compared._replace(command=f"gptcalc.compare({', '.join(arguments)})")


def compare_of(
    models: Sequence[tuple[Model, Mapping[str, object]]],
    settings: Mapping[str, object] | None,
    *,
    spelled: Callable[[str], str] = str,
) -> Comparison:
    """`compare` with each model's overrides in a mapping; memory is compared where there are `settings`, even none."""
    from gptcalc.ledger.asked import SETTINGS
    from gptcalc.ledger.compare import Compared, named

    if len(models) < 2:
        raise InvalidValueError(f"compare: read {len(models)} model; allowed: two or more")
    for key in settings or {}:
        if key not in SETTINGS:
            raise UnknownNameError.near("setting of compare", key, SETTINGS)
    counts = [count_of(model, overrides) for model, overrides in models]
    titles = named([count.model for count in counts])
    compared = [Compared(name, *count[:2]) for name, count in zip(titles, counts, strict=True)]
    if settings is not None:
        compared = [_with_memory(each, model, settings, spelled) for each, model in zip(compared, models, strict=True)]
        if all(each.refused for each in compared):
            raise InvalidValueError(compared[0].refused)
    return Comparison(tuple(compared))


def _with_memory(
    each: "Compared",
    model: tuple[Model, Mapping[str, object]],
    settings: Mapping[str, object],
    spelled: Callable[[str], str],
) -> "Compared":
    """The model with what a run of it takes, or with the reason why that is not known."""
    from gptcalc.ledger.memory import Memory

    try:
        found = memory_of(*model, settings, spelled=spelled).answer
    except GptcalcError as error:
        return each._replace(refused=str(error))
    return each._replace(memory=found) if isinstance(found, Memory) else each


def design(
    params: str | float,
    *,
    family: str = "gpt2",
    tolerance: float | str = "5%",
    top: int = 10,
    **overrides: object,
) -> Design:
    """Find shapes near `params` parameters, the nearest of usual aspect first, with their exact counts.

    `family` is a model type or a preset: what is not shape stays as it is there, but for `overrides`, as those of
    `count`. A dim of the shape that is given is kept: `n_layers=24`. Raises `GptcalcError` on a bad request.
    """
    given = {"family": family, "tolerance": tolerance, "top": top} | overrides
    found = design_of(params, family, overrides, tolerance=tolerance, top=top)
    arguments = [repr(params), *(f"{name}={value!r}" for name, value in given.items())]
    return found._replace(command=f"gptcalc.design({', '.join(arguments)})")


def design_of(  # noqa: PLR0913  a wish is an argument
    params: object,
    family: str,
    overrides: Mapping[str, object],
    *,
    tolerance: object = "5%",
    top: object = 10,
    spelled: Callable[[str], str] = str,
) -> Design:
    """`design` with the model's fields in a mapping; errors call a setting as it is `spelled`."""
    from gptcalc.ledger import design as engine

    wish = engine.Wish(
        target=engine.read_amount(params, spelled("params")),
        tolerance=engine.read_tolerance(tolerance, spelled("tolerance")),
        top=engine.read_top(top, spelled("top")),
        base=engine.base_of(family, spelled("family")),
        overrides=overrides,
        what=spelled("params"),
    )
    return Design(engine.design(wish))


def fit(
    *models: Model | tuple[Model, Mapping[str, object]],
    gpu: object = None,
    max: str = "batch",  # noqa: A002  what the option is called
    sort: str | None = None,
    family: str | None = None,
    search: str | None = None,
    **settings: object,
) -> Fits:
    """Find the largest batch, or with `max="seq"` the longest sequence, of each model on each GPU in each way.

    `gpu` is a name, a size (`"24GiB"`), a vendor, `"all"`, or a list of such; without it the rows are the common ones.
    A `gpu` without models asks for all presets, or those of a `family` or with the words of `search`. `settings` are
    those of `gptcalc.memory`. Raises `GptcalcError` on a bad request.
    """
    from gptcalc.ledger.request import Request

    pairs = [each if isinstance(each, tuple) else (each, {}) for each in models]
    names = () if gpu is None else tuple(gpu) if isinstance(gpu, list | tuple) else (gpu,)
    given = {name: value for name, value in settings.items() if value is not None}
    named = {"gpu": gpu, "max": max, "sort": sort, "family": family, "search": search, **given}
    defaults: dict[str, object] = {"max": "batch"}
    arguments = [
        *map(repr, models),
        *(f"{name}={value!r}" for name, value in named.items() if value != defaults.get(name)),
    ]
    found = fit_of(pairs, Request(settings=given), Fitting(names, max, sort, family, search))
    return found._replace(command=f"gptcalc.fit({', '.join(arguments)})")


def fit_of(  # noqa: PLR0913  a wish is an argument
    models: Sequence[tuple[Model, Mapping[str, object]]],
    plan: "Request",
    fitting: Fitting,
    *,
    spelled: Callable[[str], str] = str,
    told: "Progress | None" = None,
    processes: int = 1,
) -> Fits:
    """`fit` with each model's overrides in a mapping, and the settings as a plan file holds them.

    `told` hears how far it is; the cells may be the work of several `processes`, which are forked.
    """
    from gptcalc import catalog
    from gptcalc.gpus import gpus
    from gptcalc.ledger import grid as engine
    from gptcalc.ledger.asked import with_dropout
    from gptcalc.ledger.fit import rooms
    from gptcalc.report.grid import Asking

    what = engine.read_what(fitting.max, spelled("max"))
    wish, spelled = engine.wish(what, plan), plan.spelled(spelled)
    where = rooms(fitting.gpus or ("common",), spelled("gpu"))
    chosen = fitting.family is not None or fitting.search is not None
    if models and chosen:
        raise InvalidValueError(
            f"fit: read {spelled('family' if fitting.family is not None else 'search')} with a MODEL; allowed: one of"
            " them"
        )
    by_gpu = bool(models) or plan.model is not None or not fitting.gpus
    if not models and not chosen and by_gpu:
        models = [(plan.model, plan.overrides)]
    elif not models:
        models = [(preset.name, {}) for preset in catalog.search_presets(fitting.family, fitting.search)]
    found = [resolve(model, with_dropout(overrides, wish.asked, spelled)) for model, overrides in models]
    order = engine.read_sort(fitting.sort, "model" if by_gpu else "gpu", engine.ways(wish.asked), spelled("sort"))
    if by_gpu:
        grids = [engine.by_gpu(model, where, wish, processes=processes, spelled=spelled) for model in found]
    else:
        grids = [engine.by_model(room, found, wish, told=told, processes=processes, spelled=spelled) for room in where]
    grids = [engine.sort(grid, order) for grid in grids]
    return Fits(tuple(grids), Asking(wish.asked, 0 if fitting.gpus else len(gpus()) - len(where)))
