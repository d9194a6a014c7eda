"""Attention written out op by op: the tape's allocations and frees are those of the traced reference, one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import of_tape, of_trace, tape_inference, tape_training
from support import examples, toy_configs

from gptcalc.catalog import resolve
from gptcalc.formula import Dim
from gptcalc.plan import Plan
from gptcalc.tape import Tensor, joins

torch = pytest.importorskip("torch")

from gptcalc.witness.trace import trace_inference, trace_training  # noqa: E402  it opens torch

if TYPE_CHECKING:
    from gptcalc.spec import Spec

BACKENDS = ["eager", "math"]
#: Layers as GPT-2 has them (one, transposed, biased), as Llama (three), and three with biases.
FORMS = {
    "gpt2": ("gpt2", {}),
    "llama": ("llama-3-8b", {}),
    "biased": ("llms-from-scratch-124m", {"qkv_bias": True}),
}
SIZES = {"n_layers": 2, "d_model": 24, "d_head": 6, "d_ff": 31, "n_vocab": 29, "n_ctx": 7}
#: An update of it allocates nothing.
PLAN = Plan(batch=2, seq=5, optimizer="sgd", optimizer_impl="fused")


pytestmark = pytest.mark.usefixtures("frozen")


def is_torchs_step(spec: Spec, plan: Plan) -> bool:
    """Whether a training step, a prompt and a token allocate and free what torch does, in its order."""
    pairs = (
        (tape_training(spec, plan, n_steps=1), trace_training(spec, plan, 1)),
        (tape_inference(spec, plan), trace_inference(spec, plan)),
    )
    return all(of_tape(recording) == of_trace(trace) for recording, trace in pairs)


@st.composite
def toys(draw: st.DrawFn) -> tuple[Spec, Plan]:
    """A toy model, its heads of odd size where nothing rotates them, with either backend in any precision."""
    config, own = draw(toy_configs())
    if own["positions"] != "rotary":
        own["d_head"] = draw(st.integers(1, 9))
    for field in ("attention_dropout", "residual_dropout"):
        own[field] = draw(st.sampled_from([0.0, 0.1]))
    precision = draw(st.sampled_from(["fp32", "bf16", "fp16"]))
    plan = Plan(
        batch=draw(st.integers(1, 4)),
        seq=draw(st.integers(1, own["n_ctx"])),
        precision=precision,
        attention=draw(st.sampled_from(BACKENDS)),
        kv_dtype=draw(st.sampled_from([precision, "fp16"])),
        logits="all",
    )
    return resolve(config, own).spec, plan


@settings(max_examples=examples(25), deadline=None)
@given(drawn=toys())
def test_attention_written_out_is_what_torch_runs(drawn: tuple[Spec, Plan]) -> None:
    """Of a drawn model every allocation, and what is freed before it, is torch's."""
    assert is_torchs_step(*drawn)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["gpt2", "llama"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1), (1, 1)])
@pytest.mark.parametrize("sizes", [(1, 5), (3, 1), (3, 5)])
def test_axes_of_one_element_spare_copies(
    backend: str, form: str, heads: tuple[int, int], sizes: tuple[int, int]
) -> None:
    """One sequence, one token, one head, or one for all: each spares other copies, in tape and in torch."""
    name, own = FORMS[form]
    spec = resolve(name, SIZES | own | {"n_heads": heads[0], "n_kv_heads": heads[1]}).spec
    assert is_torchs_step(spec, PLAN.model_copy(update={"batch": sizes[0], "seq": sizes[1], "attention": backend}))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("seq", [1, 5])
def test_the_rows_of_a_head_that_flash_computes_wider_are_copied_for_a_bias(
    form: str, checkpointing: str, seq: int
) -> None:
    """One head of 6 features lies 8 apart: a bias is added in the kernel of the product to dense rows alone."""
    name, own = FORMS[form]
    spec = resolve(name, SIZES | own | {"n_heads": 1, "n_kv_heads": 1}).spec
    assert is_torchs_step(
        spec, PLAN.model_copy(update={"attention": "flash", "checkpointing": checkpointing, "seq": seq})
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("positions", ["rotary", "none"])
@pytest.mark.parametrize(("precision", "dropout"), [("fp32", 0.0), ("bf16", 0.1)])
def test_rotations_precision_and_dropout(
    backend: str, form: str, positions: str, precision: str, dropout: float
) -> None:
    """Rotated or not, widened or not, with masks of dropout or without: torch's step."""
    name, own = FORMS[form]
    fields = {"positions": positions, "n_heads": 3, "n_kv_heads": 3, "attention_dropout": dropout}
    spec = resolve(name, SIZES | own | fields).spec
    choices = {"attention": backend, "precision": precision, "kv_dtype": precision}
    assert is_torchs_step(spec, PLAN.model_copy(update=choices))


@given(st.permutations(range(4)), st.lists(st.integers(1, 3), min_size=4, max_size=4), st.integers(0, 2))
def test_axes_join_where_torch_has_a_view(order: list[int], sizes: list[int], first: int) -> None:
    """A value in any order of memory: neighbouring axes join exactly where torch's `view` makes one of them."""
    axes = [Dim(letter, size) for letter, size in zip("BTNH", sizes, strict=True)]
    x = Tensor("x", tuple(axes[place] for place in order), "fp32")
    lies = torch.empty([sizes[place] for place in order]).permute([order.index(axis) for axis in range(4)])
    try:
        lies.view(*sizes[:first], -1, *sizes[first + 2 :])
    except RuntimeError:
        assert not joins(x, *axes[first : first + 2])
    else:
        assert joins(x, *axes[first : first + 2])


@given(st.lists(st.integers(1, 3), min_size=4, max_size=4), st.integers(0, 2), st.integers(0, 2))
def test_the_axes_of_a_cut_join_where_torch_has_a_view(sizes: list[int], more: int, first: int) -> None:
    """Of some heads among others too, whether the axes are then swapped or not."""
    axes = [Dim(letter, size) for letter, size in zip("BTNH", sizes, strict=True)]
    base = Tensor("all heads", (axes[0], axes[1], Dim("N+2K", sizes[2] + more), axes[3]), "fp32")
    cut = Tensor("some heads", tuple(axes), "fp32", base=base)
    lies = torch.empty([dim.size for dim in base.dims])[:, :, : sizes[2]]
    for seen, named in ((lies, axes), (lies.transpose(1, 2), [axes[0], axes[2], axes[1], axes[3]])):
        try:
            seen.view(*seen.shape[:first], -1, *seen.shape[first + 2 :])
        except RuntimeError:
            assert not joins(cut, *named[first : first + 2])
        else:
            assert joins(cut, *named[first : first + 2])
