"""The Python API, and what the command line calls: three lines for the common case.

>>> import gptcalc
>>> gptcalc.count("gpt2").totals.stored
124439808
"""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from gptcalc.catalog import Resolved, resolve
from gptcalc.errors import GptcalcError, InvalidValueError, shown
from gptcalc.ledger.cache import Cache, cache
from gptcalc.ledger.evidence import Check
from gptcalc.ledger.parameters import Line, Parameters, Totals, parameters
from gptcalc.report.count import count_document
from gptcalc.report.count_data import CountJSON, count_json
from gptcalc.report.document import Document

if TYPE_CHECKING:
    from gptcalc.ledger.embedding import EmbeddingStage
    from gptcalc.ledger.memory import Memory, Mode
    from gptcalc.report.memory_data import MemoryJSON


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

    `defaulted` are the settings that nobody gave; `command` is the request as it was made.
    """

    model: Resolved
    answer: "Memory | EmbeddingStage"
    depth: int = 1
    defaulted: tuple[str, ...] = ()
    command: str = ""

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
            return memory_json(self.model, self.answer, self.depth, self.command)
        return embedding_json(self.model, self.answer, self.command)

    def document(self, *, explain: bool = False, timeline: bool = False) -> Document:
        """The report before it has a format; `timeline` draws the step."""
        from gptcalc.ledger.memory import Memory
        from gptcalc.report.embedding import embedding_document
        from gptcalc.report.memory import View, memory_document

        if isinstance(self.answer, Memory):
            return memory_document(self.model, self.answer, View(self.depth, self.defaulted, explain, timeline))
        return embedding_document(self.model, self.answer, self.defaulted, explain=explain)

    def _repr_html_(self) -> str:
        """Tables for a notebook."""
        from gptcalc.report.plain import render_html

        return render_html(self.document())


__all__ = [
    "Check",
    "Count",
    "GptcalcError",
    "MemoryReport",
    "check",
    "check_of",
    "count",
    "count_of",
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
    dropout: float | None = None,
    attention: str | None = None,
    kv_dtype: str | None = None,
    logits: str | None = None,
    target: str | None = None,
    torch: str | None = None,
    expandable_segments: bool | None = None,
    implementation: str | None = None,
    scope: str | None = None,
    depth: int = 1,
    **overrides: object,
) -> MemoryReport:
    """What is alive on one device at the peak of a training step and of inference, and at which moment.

    The settings are the options of `gptcalc memory`; `None` is its default. `depth` is the detail of `to_dict()`:
    1 components, 2 ops, 3 tensors. Raises `GptcalcError` on a bad request.
    """
    asked = {
        "mode": mode,
        "batch": batch,
        "seq": seq,
        "precision": precision,
        "optimizer": optimizer,
        "optimizer_impl": optimizer_impl,
        "momentum": momentum,
        "dropout": dropout,
        "attention": attention,
        "kv_dtype": kv_dtype,
        "logits": logits,
        "target": target,
        "torch": torch,
        "expandable_segments": expandable_segments,
        "implementation": implementation,
        "scope": scope,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    named = ({} if depth == 1 else {"depth": depth}) | given | overrides
    arguments = ([] if model is None else [repr(model)]) + [f"{name}={value!r}" for name, value in named.items()]
    report = memory_of(model, overrides, given, depth=depth)
    return report._replace(command=f"gptcalc.memory({', '.join(arguments)})")


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
    from gptcalc.ledger.asked import settle, with_dropout
    from gptcalc.ledger.embedding import embedding_stage

    if type(depth) is not int or depth not in DEPTHS:
        raise InvalidValueError(
            f"{spelled('depth')}: read {shown(depth)}; allowed: 1 (components), 2 (ops), 3 (tensors)"
        )
    resolved = resolve(model, with_dropout(overrides, asked, spelled))
    plan, modes, defaulted = settle(resolved.spec, asked, spelled)
    if modes:
        return MemoryReport(resolved, engine.memory(resolved.spec, plan, modes), depth, defaulted)
    if depth != 1:
        raise InvalidValueError(
            f"memory: read {spelled('depth')} {depth} with {spelled('scope')} embedding; allowed: one of them"
        )
    return MemoryReport(resolved, embedding_stage(resolved.spec, plan), depth, defaulted)


def check(
    model: Model = None,
    *,
    witness: str | None = None,
    settings: Mapping[str, object] | None = None,
    **overrides: object,
) -> Check:
    """Compare `model` with PyTorch: `.agrees`, and `.evidence` of each witness. Needs torch.

    `witness` names one to hear alone. Of parameters: `reference`, gptcalc's own modules, or `transformers`, the
    published class. Of memory, under `settings` as those of `memory`: `saved-tensors`, `trace`, or `cuda`.
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
    from gptcalc.witness.check import MEMORY_WITNESSES, check_memory
    from gptcalc.witness.check import check as hear

    if witness in MEMORY_WITNESSES:
        resolved = resolve(model, with_dropout(overrides, asked, spelled))
        plan, modes, _ = settle(resolved.spec, asked, spelled)
        return check_memory(resolved, witness, plan, modes)
    if asked:
        raise InvalidValueError(
            f"check: read {spelled(next(iter(asked)))} with a witness of parameters, which has no use for it; allowed"
            f" with {spelled('witness')} {', '.join(MEMORY_WITNESSES)}"
        )
    return hear(resolve(model, overrides), witness)
