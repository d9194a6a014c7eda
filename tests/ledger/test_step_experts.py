"""Every field of a mixture: the tape's step is the traced reference's, event for event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from gptcalc.catalog import resolve
from gptcalc.errors import GptcalcError
from gptcalc.inventory import inventory
from gptcalc.ledger.memory import memory
from gptcalc.parts.mlp import GatedMLP, MixtureMLP
from gptcalc.plan import Plan

torch = pytest.importorskip("torch")

from steps import kept, tape_training  # noqa: E402
from test_step import witnessed  # noqa: E402
from test_step_mixture import Case, cases, peaks, taped, traced, worst_load, worst_routing  # noqa: E402
from test_step_parts import varied  # noqa: E402

from gptcalc.witness.findings import compare  # noqa: E402  it opens torch
from gptcalc.witness.reference import build  # noqa: E402

if TYPE_CHECKING:
    from gptcalc.spec import Spec

pytestmark = pytest.mark.usefixtures("frozen")

ACTIVATIONS = ["silu", "gelu", "quick_gelu", "linear"]


@st.composite
def routers(draw: st.DrawFn) -> dict[str, Any]:
    """How experts are chosen, and from how many."""
    n_groups, per_group = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    n_active_groups = draw(st.integers(1, n_groups))
    most = n_active_groups * per_group
    known = ["softmax", "softmax_after", "sigmoid", "sigmoid_after"] + ["sparsemixer"] * (most > 1)
    scores = draw(st.sampled_from(known))
    corrections = ["", "score_bias", "gate.statistics.score_bias"] if scores in ("softmax", "sigmoid") else [""]
    return {
        "n_experts": n_groups * per_group,
        "n_active": 2 if scores == "sparsemixer" else draw(st.integers(1, most)),
        "n_groups": n_groups,
        "n_active_groups": n_active_groups,
        "group_top": draw(st.integers(1, per_group)),
        "scores": scores,
        "normalised": draw(st.booleans()),
        "scale": draw(st.sampled_from([1.0, 2.5])),
        "router_name": draw(st.sampled_from(["gate", "inner.router", "router.layer"])),
        "router_bias": draw(st.booleans()),
        "correction": draw(st.sampled_from(corrections)),
        "correction_row": draw(st.booleans()),
    }


@st.composite
def experts(draw: st.DrawFn) -> dict[str, Any]:
    """What each expert is made of."""
    order = draw(st.sampled_from(["out_in", "in_out", "stacked"]))
    fields = {"order": order, "experts_name": draw(st.sampled_from(["experts", "inner.experts"]))}
    if order == "stacked":
        return fields | {"expert_names": ("w1", "v1", "w2")}
    clamped = draw(st.sampled_from([None, 7.0]))
    return fields | {"experts_bias": draw(st.booleans()), "clamped": clamped}


@st.composite
def shared(draw: st.DrawFn) -> dict[str, Any]:
    """Experts that all tokens use, or none."""
    if draw(st.booleans()):
        return {}
    of_all = GatedMLP(
        name="shared",
        d_ff=draw(st.integers(1, 40)),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        bias=draw(st.booleans()),
        role="shared_experts",
        fused_name=draw(st.sampled_from(["", "both"])),
    )
    return {
        "shared": of_all,
        "shared_gate_name": draw(st.sampled_from(["", "shared_gate"])),
        "averaged": draw(st.booleans()),
    }


def with_mixture(spec: Spec, **fields: Any) -> Spec:
    """The spec with other mixtures."""
    old = spec.layers[0].block.model_dump()["mlp"]
    return varied(spec, mlp=MixtureMLP.model_validate(old | fields))


@st.composite
def mixtures(draw: st.DrawFn, *, busy: bool = False) -> Case:
    """A toy whose layers have mixtures with every field drawn."""
    case = draw(cases(busy=busy))
    own = {"activation": draw(st.sampled_from(ACTIVATIONS)), "weighted_input": draw(st.booleans())}
    fields = own | draw(routers()) | draw(experts()) | draw(shared())
    nameless = [] if fields["correction"] == "score_bias" else [""]  # a part without a name has no tensor of its own
    fields["name"] = draw(st.sampled_from(["mlp", "a.b", *nameless]))
    return case._replace(spec=with_mixture(case.spec, **fields))


@given(mixtures())
@settings(max_examples=examples(16), deadline=None)
def test_a_step_is_what_torch_runs(case: Case) -> None:
    """Weights by name and component; training, what autograd keeps of it, and inference."""
    assert not compare(inventory(case.spec), build(case.spec))
    assert taped(case.training()) == traced(case, training=True)
    assert kept(tape_training(case.spec, case.plan, n_steps=1)) == witnessed(case.spec, case.plan)
    assert taped(case.inference()) == traced(case, training=False)


@given(mixtures())
@settings(max_examples=8, deadline=None)
def test_a_step_with_idle_experts_is_what_torch_runs(case: Case) -> None:
    """Experts without rows run too, with biases and bounds of nothing."""
    with worst_routing(), worst_load():
        assert taped(case.training()) == traced(case, training=True)
        assert taped(case.inference()) == traced(case, training=False)


@given(mixtures(busy=True))
@settings(max_examples=8, deadline=None)
def test_the_worst_routing_needs_no_less(case: Case) -> None:
    """Whatever the experts are, all tokens with the same ones take at least what an even routing takes."""
    even = [*peaks(case.training()), *peaks(case.inference())]
    with worst_routing():
        worst = [*peaks(case.training()), *peaks(case.inference())]
    assert all(less <= more for less, more in zip(even, worst, strict=True))


def test_experts_that_do_not_part_into_groups_have_no_step() -> None:
    """Such a model can be counted; nothing can be run with it, and its memory is refused."""
    config = {"model_type": "deepseek_v3", "hidden_size": 32, "num_hidden_layers": 1, "first_k_dense_replace": 0}
    model = resolve(config | {"n_routed_experts": 12, "n_group": 8, "topk_group": 4}, {})
    assert inventory(model.spec)
    with pytest.raises(GptcalcError, match="n_experts: read 12; allowed: a multiple of n_groups=8"):
        memory(model.spec, Plan(seq=8), ("training",))
