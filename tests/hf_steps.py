"""Steps of transformers' classes: as the tape has them, and as the class runs them on the meta device."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from steps import kept, of_tape, of_trace, tape_training

from gptcalc.catalog import resolve
from gptcalc.plan import Plan
from gptcalc.tape.replay import replay
from gptcalc.witness import hub_steps
from gptcalc.witness import trace as tracing

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A step of it allocates nothing in the optimizer, which has tests of its own.
PLAN = Plan(batch=3, seq=13, attention="flash", optimizer="sgd", optimizer_impl="fused", implementation="transformers")


def agree(config: Mapping[str, Any], plan: Plan, n_steps: int = 1) -> None:
    """Every allocation and free of a step, in order; what autograd keeps; the figures, folded over layers or not."""
    model = resolve(dict(config), {})
    traced, taped = hub_steps.trace_training(model, plan, n_steps), tape_training(model.spec, plan, n_steps=n_steps)
    for (name, ours), (phase, theirs) in zip(of_tape(taped), of_trace(traced), strict=True):
        assert name == phase
        assert ours == theirs, name
    folded = [
        peak for peak, _ in replay(tape_training(model.spec, plan, n_steps=n_steps, recorded=3), expandable=False)
    ]
    assert folded == [peak.figures for peak in tracing.replay(traced)]
    one_step = taped if n_steps == 1 else tape_training(model.spec, plan, n_steps=1)
    saved = hub_steps.saved(model, plan)
    assert kept(one_step) == Counter(f"{row.dtype.removeprefix('u')} {row.bytes}" for row in saved if row.bytes)
