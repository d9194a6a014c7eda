"""The inventory against modules that PyTorch builds, at toy sizes, and against errors planted in every row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import examples, toy_configs

from gptcalc.catalog import Resolved, resolve
from gptcalc.formula import Dim
from gptcalc.inventory import Slice, Weight, expand, inventory
from gptcalc.witness.findings import Finding, compare
from gptcalc.witness.hub import transformers_class
from gptcalc.witness.reference import build

pytest.importorskip("torch")

#: Toy models in which every dim has a size of its own, so that any exchange changes a shape or a sum.
DISTINCT = {
    "gpt2": {"n_ctx": 13, "n_kv_heads": 3, "d_ff": 31, "unembedding_bias": True},
    "openai-gpt": {"n_ctx": 13, "n_kv_heads": 3, "d_ff": 31},
    "llama": {"n_ctx": 13, "n_kv_heads": 3, "d_ff": 31, "bias": True, "tied": True, "positions": "learned"},
    "mixtral": {"n_kv_heads": 3, "d_ff": 31, "n_experts": 7, "n_active": 2},
}
COMMON = {"n_vocab": 53, "d_model": 17, "n_layers": 2, "n_heads": 6, "d_head": 4}


def toy(model_type: str) -> Resolved:
    """The toy model of a family."""
    return resolve({"model_type": model_type, **COMMON, **DISTINCT[model_type]}, {})


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(toy_configs())
def test_inventory_equals_the_reference_module(drawn: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """For any dims, biases, ties and positions: the same names, shapes, ties, components and totals."""
    config, own = drawn
    model = resolve(config | own, {})

    assert compare(inventory(model.spec), build(model.spec)) == ()


@st.composite
def published_configs(draw: st.DrawFn) -> dict[str, Any]:
    """A small config that the transformers class of its family can build."""
    model_type = draw(st.sampled_from(["gpt2", "openai-gpt", "llama", "mixtral"]))
    n_kv_heads, group, half_head = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    n_heads = n_kv_heads * group
    config = {
        "model_type": model_type,
        "vocab_size": draw(st.integers(2, 50)),
        "tie_word_embeddings": draw(st.booleans()),
    }
    layers = draw(st.integers(2, 3))
    if model_type in ("gpt2", "openai-gpt"):
        width = n_heads * draw(st.integers(1, 7))
        config |= {"n_embd": width, "n_head": n_heads, "n_layer": layers, "n_positions": draw(st.integers(1, 20))}
        return config | ({"n_inner": draw(st.none() | st.integers(1, 50))} if model_type == "gpt2" else {})
    config |= {
        "hidden_size": n_heads * draw(st.integers(1, 7)),
        "head_dim": 2 * half_head,
        "num_attention_heads": n_heads,
    }
    config |= {"num_key_value_heads": n_kv_heads, "intermediate_size": draw(st.integers(1, 50))}
    config |= {"num_hidden_layers": layers}
    if model_type == "mixtral":
        experts = draw(st.integers(1, 5))
        return config | {"num_local_experts": experts, "num_experts_per_tok": draw(st.integers(1, experts))}
    return config | {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(published_configs())
def test_inventory_equals_the_transformers_class(config: dict[str, Any]) -> None:
    """For any published hyperparameters: the same tensors, components and totals as transformers builds from them."""
    pytest.importorskip("transformers")
    model = resolve(config, {})
    evidence = transformers_class(model, inventory(model.spec))

    assert (evidence.skipped, evidence.findings) == ("", ())


@pytest.mark.parametrize("model_type", DISTINCT)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    """A config that says nothing but its type is the model that transformers builds from it."""
    pytest.importorskip("transformers")
    model = resolve({"model_type": model_type}, {})
    evidence = transformers_class(model, inventory(model.spec))

    assert (evidence.skipped, evidence.findings) == ("", ())


def mutations(rows: tuple[Weight, ...]) -> Iterator[tuple[str, str, tuple[Weight, ...]]]:
    """Every row with each error that can be planted in it: (what, the row's name, the wrong inventory)."""
    for index, row in enumerate(rows):

        def put(*wrong: Weight, at: int = index) -> tuple[Weight, ...]:
            return (*rows[:at], *wrong, *rows[at + 1 :])

        yield "drop", row.name, put()
        yield "double", row.name, put(row, row)
        yield "rename", row.name, put(row._replace(name=row.name.replace(".", ".x_", 1)))
        yield "grow", row.name, put(_grown(row))
        if len(row.slices[0].axes) > 1:
            yield "transpose", row.name, put(_transposed(row))
        yield "relabel", row.name, put(_relabelled(row))
        yield "role", row.name, put(row._replace(role="bias" if row.is_matrix or row.role == "lookup" else "matmul"))
        if row.tied_to:
            yield "untie", row.name, put(row._replace(tied_to=None))
        else:
            yield "tie", row.name, put(row._replace(tied_to="nowhere.weight"))
        if row.active != (1, 1):
            yield "activate all", row.name, put(row._replace(active=(1, 1)))
        if row.layers:
            yield "lose a layer", row.name, put(row._replace(layers=range(row.layers.start, row.layers.stop - 1)))


def _grown(row: Weight) -> Weight:
    first = row.slices[0]
    axes = ((*first.axes[0], Dim("X", 2)), *first.axes[1:])
    return row._replace(slices=(first._replace(axes=axes), *row.slices[1:]), axis=0)


def _transposed(row: Weight) -> Weight:
    return row._replace(
        slices=tuple(part._replace(axes=part.axes[::-1]) for part in row.slices),
        axis=len(row.slices[0].axes) - 1 - row.axis,
    )


def _relabelled(row: Weight) -> Weight:
    return row._replace(slices=tuple(Slice("router_bias", part.axes) for part in row.slices))


@pytest.mark.parametrize("model_type", DISTINCT)
def test_every_planted_error_is_found_and_named(model_type: str) -> None:
    """Whatever is done to whichever row, the comparison with the module reports it under a name of that row."""
    model = toy(model_type)
    rows, built = inventory(model.spec), build(model.spec)

    assert compare(rows, built) == ()
    for what, name, wrong in mutations(rows):
        findings = compare(wrong, built)
        assert findings, f"{what} {name}"
        assert _names(findings, rows, name), f"{what} {name}: {findings}"


def _names(findings: tuple[Finding, ...], rows: tuple[Weight, ...], name: str) -> bool:
    row = next(row for row in rows if row.name == name)
    tensors = {full for full, weight in expand(rows) if weight is row}
    components = {part.component for part in row.slices}
    active = {"active"} if row.active != (1, 1) else set()
    return bool({finding.name for finding in findings} & (tensors | components | active))


def test_a_swap_inside_a_fused_tensor_is_found() -> None:
    """Query and key of a fused tensor are told apart where their sizes differ."""
    model = toy("gpt2")
    rows = inventory(model.spec)
    index = next(index for index, row in enumerate(rows) if row.name.endswith("c_attn.weight"))
    query, key, value = rows[index].slices
    swapped = (query._replace(component="attn_k"), key._replace(component="attn_q"), value)
    findings = compare((*rows[:index], rows[index]._replace(slices=swapped), *rows[index + 1 :]), build(model.spec))

    assert {finding.name for finding in findings} == {"attn_q", "attn_k"}
