"""Every field of norms, blocks, networks and tables: the tape's step is torch's, event for event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import GPT2, kept, tape_inference, tape_training, toy_plans
from support import examples

from gptcalc.catalog import resolve
from gptcalc.inventory import inventory
from gptcalc.parts.embedding import Projection
from gptcalc.parts.mlp import DenseMLP, GatedMLP
from gptcalc.parts.norm import LayerNorm, RMSNorm
from gptcalc.parts.positions import LearnedPositions, SinusoidalPositions
from gptcalc.spec import Activation, LayerGroup

torch = pytest.importorskip("torch")

from test_step import PLAN, check, witnessed  # noqa: E402

from gptcalc.witness import trace as tracing  # noqa: E402  it opens torch
from gptcalc.witness.findings import compare  # noqa: E402
from gptcalc.witness.reference import build  # noqa: E402

if TYPE_CHECKING:
    from gptcalc.plan import Plan
    from gptcalc.spec import Spec

pytestmark = pytest.mark.usefixtures("frozen")

#: A single head that is cut back from its padding runs another product, of which the tape does not know.
DRAWN = toy_plans().filter(lambda drawn: drawn[0].layers[0].block.model_dump()["attention"]["n_heads"] > 1)


def varied(spec: Spec, **block: Any) -> Spec:
    """The spec with blocks of which `block` says what is changed."""
    layers = tuple(
        LayerGroup(n_layers=group.n_layers, block=group.block.model_copy(update=block)) for group in spec.layers
    )
    return spec.model_copy(update={"layers": layers})


def norms(name: str) -> st.SearchStrategy[Any]:
    """Any norm of that name."""
    flags = {"learned": st.booleans(), "unit_offset": st.booleans()}
    return st.builds(RMSNorm, name=st.just(name), **flags) | st.builds(
        LayerNorm, name=st.just(name), bias=st.booleans(), **flags
    )


def check_step(spec: Spec, plan: Plan) -> None:
    """Names, shapes and components of the weights; training, what autograd keeps of it, and inference."""
    assert not compare(inventory(spec), build(spec))
    check(tape_training(spec, plan, n_steps=1), tracing.trace_training(spec, plan, 1))
    assert kept(tape_training(spec, plan, n_steps=1)) == witnessed(spec, plan)
    # A bias of the last position's logits is added in place, but on meta out of place.
    plan = plan.model_copy(update={"logits": "all"}) if spec.unembedding.model_dump()["bias"] else plan
    check(tape_inference(spec, plan), tracing.trace_inference(spec, plan))


@settings(max_examples=8, deadline=None)
@given(drawn=DRAWN, data=st.data())
def test_norms_of_any_gain(drawn: tuple[Spec, Plan], data: st.DataObject) -> None:
    """Norms without weights, and with gains of 1 + weight, which are computed and kept."""
    spec, plan = drawn
    spec = varied(spec, attention_norm=data.draw(norms("one")), mlp_norm=data.draw(norms("two")))
    spec = spec.model_copy(update={"final_norm": data.draw(norms("three") | st.none())})
    check_step(spec, plan)


@settings(max_examples=examples(10), deadline=None)
@given(drawn=DRAWN, data=st.data())
def test_blocks_of_any_order(drawn: tuple[Spec, Plan], data: st.DataObject) -> None:
    """Norms before and after each part, or none; attention and MLP one after the other or side by side."""
    spec, plan = drawn
    fields = ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")
    changes = {field: data.draw(norms(field) | st.none()) for field in fields}
    block = spec.layers[0].block
    names = {"attention": ["inner.attn", "one", "a.b.c"], "mlp": ["", "inner.mlp", "two"]}
    for part, allowed in names.items():
        name = data.draw(st.sampled_from(allowed))
        changes[part] = getattr(block, part).model_copy(update={"name": name})
    changes["order"] = data.draw(st.sampled_from(["pre", "post", "parallel", "parallel"]))
    changes["residual_multiplier"] = data.draw(st.sampled_from([1.0, 1.0, 0.22]))
    trunk = data.draw(st.sampled_from(["model", "model.decoder"]))
    check_step(varied(spec, **changes).model_copy(update={"trunk": trunk}), plan)


@settings(max_examples=examples(10), deadline=None)
@given(drawn=DRAWN, data=st.data())
def test_networks_of_any_activation(drawn: tuple[Spec, Plan], data: st.DataObject) -> None:
    """Two layers, three, or a fused one and another, with every activation; shared experts are networks too."""
    spec, plan = drawn
    fields = {
        "name": "mlp",
        "d_ff": data.draw(st.integers(1, 60)),
        "activation": data.draw(st.sampled_from(get_args(Activation))),
        "bias": data.draw(st.booleans()),
        "dropout": data.draw(st.sampled_from([0.0, 0.1])),
    }
    role = data.draw(st.sampled_from(["mlp", "shared_experts"]))
    own = {"fused_name": data.draw(st.sampled_from(["", "gate_up", "a.b"])), "role": role}
    check_step(varied(spec, mlp=data.draw(st.sampled_from([DenseMLP(**fields), GatedMLP(**fields, **own)]))), plan)


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("gated", [False, True])
def test_every_activation_is_what_torch_runs(activation: str, gated: bool) -> None:  # noqa: FBT001  drawn
    """Each alone, and in front of a product, in half precision."""
    fields = {"name": "mlp", "d_ff": 33, "activation": activation, "bias": False}
    mlp = GatedMLP(**fields, fused_name="both") if gated else DenseMLP(**fields)
    check_step(varied(resolve(GPT2, {"n_layers": 1}).spec, mlp=mlp), PLAN)


@settings(max_examples=examples(12), deadline=None)
@given(drawn=DRAWN, data=st.data())
def test_input_and_head_of_any_form(drawn: tuple[Spec, Plan], data: st.DataObject) -> None:
    """Narrow tables with projections, norms on token rows, factors, offsets of positions, bounded logits."""
    spec, plan = drawn
    narrow = data.draw(st.none() | st.integers(1, 40))
    factors = st.sampled_from([1.0, 12.0])
    token = {"d_embed": narrow, "multiplier": data.draw(factors), "scaled": data.draw(st.booleans())}
    scores = {"multiplier": data.draw(factors), "softcap": data.draw(st.none() | st.just(30.0))}
    changes: dict[str, Any] = {
        "embedding": spec.embedding.model_copy(update=token),
        "embedding_norm": data.draw(norms("first_norm") | st.none()),
        "final_norm": data.draw(norms("last_norm") | st.none()),
        "unembedding": spec.unembedding.model_copy(update={"d_embed": narrow, **scores}),
    }
    if narrow is not None:
        changes["embedding_projection"] = Projection(name="project.in", d_embed=narrow, widens=True)
        changes["output_projection"] = Projection(name="project.out", d_embed=narrow, widens=False)
    if isinstance(spec.positions, LearnedPositions):
        changes["positions"] = LearnedPositions(name="places", offset=data.draw(st.sampled_from([0, 2])))
    if isinstance(spec.positions, SinusoidalPositions):
        changes["positions"] = SinusoidalPositions(name="places", halves=data.draw(st.booleans()), offset=2)
    check_step(spec.model_copy(update=changes), plan)


def test_rows_of_width_one_are_scaled_too() -> None:
    """√1 is a factor like any other: Gemma multiplies by it, whatever D is."""
    spec = resolve(GPT2, {"d_model": 1, "d_head": 8, "n_heads": 2, "n_layers": 1}).spec
    scaled = spec.embedding.model_copy(update={"scaled": True})
    check_step(spec.model_copy(update={"embedding": scaled}), PLAN)


def test_weights_in_one_container_are_updated_together() -> None:
    """Optimizers see a module's children in the order in which they were attached, not made."""
    spec = resolve(GPT2, {"n_layers": 2}).spec
    block = spec.layers[0].block
    named = {part: getattr(block, part).model_copy(update={"name": f"inner.{part}"}) for part in ("attention", "mlp")}
    spec = varied(spec, **named)
    check_step(spec, PLAN.model_copy(update={"optimizer": "adamw", "optimizer_impl": "foreach"}))


@pytest.mark.parametrize("width", [34, 35])
@pytest.mark.parametrize("halves", [False, True])
def test_sinusoids_of_even_and_odd_widths(width: int, halves: bool) -> None:  # noqa: FBT001  drawn
    """Sines beside cosines are cut to an odd width, sines before cosines are padded to it."""
    spec = resolve(GPT2, {"n_layers": 1, "positions": "sinusoidal", "d_model": width, "d_head": 8, "n_heads": 4}).spec
    positions = SinusoidalPositions(name="places", halves=halves, offset=2)
    check_step(spec.model_copy(update={"positions": positions}), PLAN)
