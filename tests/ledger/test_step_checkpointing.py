"""A step under checkpoints: what runs again in the backward pass is, event for event, what torch computes again."""

from __future__ import annotations

import gc
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from decoders import decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import FAMILIES, OPTIMIZERS, kept, of_tape, of_trace, tape_training, toy_plans
from support import examples

from gptcalc.catalog import resolve
from gptcalc.errors import GptcalcError
from gptcalc.ledger.asked import settle
from gptcalc.plan import Plan
from gptcalc.tape.kernels import CudaKernels, target
from gptcalc.tape.replay import replay

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from gptcalc.modules import build  # noqa: E402  it opens torch
from gptcalc.witness import trace as tracing  # noqa: E402  it opens torch
from gptcalc.witness.saved_tensors import saved  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gptcalc.spec import Spec

#: A step of it allocates nothing in the optimizer.
PLAN = Plan(batch=3, seq=13, attention="eager", optimizer="sgd", optimizer_impl="fused", checkpointing="full")
#: Kinds of attention with masks, angles or states of their own, with a kernel that runs with them.
RARE = [
    ("gemma2", "eager"),
    ("gemma3_text", "math"),
    ("deepseek_v3", "math"),
    ("deepseek_v3", "eager"),
    ("qwen3_next", "eager"),
    ("gpt_oss", "eager"),
    ("bloom", "math"),
    ("gpt2", "efficient"),
]


def toy(model_type: str) -> Spec:
    """A small model of a class of transformers, with plain angles."""
    config = {**decoder(model_type).config, "model_type": model_type}
    if getattr(resolve(config, {}).family, "rope_scaling", None):
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0}
    return resolve(config, {}).spec


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """Every trace collects garbage: what torch opens in the first one need not be looked through each time."""
    tracing.trace_training(resolve(FAMILIES["gpt2"], {}).spec, PLAN)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def check(spec: Spec, plan: Plan, n_steps: int = 1, *, folds: bool = True) -> None:
    """The same events, phase by phase; folded or not, the same figures; and what autograd keeps of the forward pass."""
    trace = tracing.trace_training(spec, plan, n_steps)
    for (name, ours), (_, theirs) in zip(
        of_tape(tape_training(spec, plan, n_steps=n_steps)), of_trace(trace), strict=True
    ):
        assert ours == theirs, name
    if not folds:
        return
    folded = [peak for peak, _ in replay(tape_training(spec, plan, n_steps=n_steps, recorded=3), expandable=False)]
    assert folded == [peak.figures for peak in tracing.replay(trace)]
    witnessed = Counter(f"{row.dtype.removeprefix('u')} {row.bytes}" for row in saved(spec, plan) if row.bytes)
    assert kept(tape_training(spec, plan, n_steps=1)) == witnessed


@settings(max_examples=examples(10), deadline=None)
@given(
    drawn=toy_plans(checkpointing=st.sampled_from(["full", "selective"])),
    update=st.sampled_from(OPTIMIZERS),
)
def test_a_step_that_runs_again_in_part_is_what_torch_runs(drawn: tuple[Spec, Plan], update: dict[str, object]) -> None:
    """Two steps of a drawn model, with any kernel, dropouts and optimizer."""
    spec, plan = drawn
    check(spec, plan.model_copy(update=update), 2)


@pytest.mark.parametrize("attention", ["eager", "math", "flash"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", ["full", "selective"])
def test_blocks_of_every_kind_run_again(checkpointing: str, family: str, attention: str) -> None:
    """Norms before and after, gates, mixtures, grouped and single keys: all but the rows after the last kept value."""
    plan = PLAN.model_copy(update={"attention": attention, "checkpointing": checkpointing})
    check(resolve(FAMILIES[family], {"n_layers": 5}).spec, plan)


@pytest.mark.parametrize("checkpointing", ["full", "selective"])
@pytest.mark.parametrize(("model_type", "attention"), RARE)
def test_rarer_attention_runs_again(checkpointing: str, model_type: str, attention: str) -> None:
    """Windows and soft caps by turns, latent vectors, linear attention, sinks, chunks: masks and angles are held."""
    plan = PLAN.model_copy(update={"attention": attention, "checkpointing": checkpointing, "batch": 2})
    check(toy(model_type), plan, folds=False)


def test_attention_that_runs_again_keeps_what_it_is_called_with() -> None:
    """Of eager attention nothing of T×T is kept, and of query, key and value what was projected, not the copies."""
    spec = resolve(FAMILIES["gpt2"], {}).spec
    plain, again = (
        kept(tape_training(spec, PLAN.model_copy(update={"checkpointing": name}), n_steps=1))
        for name in ("none", "selective")
    )
    square = 3 * 5 * 13 * 13

    assert plain - again == Counter({f"bool {square}": 2, f"bfloat16 {2 * square}": 4, "bfloat16 3120": 6})
    assert again - plain == Counter({"bfloat16 9360": 2})


@pytest.mark.parametrize("n_chunks", [2, 3, 39])
@pytest.mark.parametrize(("family", "checkpointing"), [("gpt2", "none"), ("gpt1", "full"), ("llama", "selective")])
def test_a_loss_in_chunks_is_what_torch_runs(family: str, checkpointing: str, n_chunks: int) -> None:
    """Equal chunks and a shorter last one, of single tokens too; a tied table's gradients are added up by chunks."""
    check(
        resolve(FAMILIES[family], {}).spec,
        PLAN.model_copy(update={"chunked_loss": n_chunks, "checkpointing": checkpointing}),
        folds=False,
    )


@pytest.mark.parametrize("overrides", [{"tied": False, "bias": True}, {"logit_softcap": 30.0}])
def test_any_unembedding_runs_in_chunks(overrides: dict[str, object]) -> None:
    """A table of its own, a bias, bounded logits."""
    config, own = (FAMILIES["gpt2"], overrides) if "tied" in overrides else (decoder("gemma2").config, {})
    spec = resolve({"model_type": "gemma2"} | config, own).spec
    check(spec, PLAN.model_copy(update={"chunked_loss": 4, "checkpointing": "none"}), folds=False)


def test_a_heads_bias_is_no_gradient_to_add_into() -> None:
    """The gradient of a bias is a view of a sum: the chunks' are added into a new tensor, as those of a weight are."""
    spec = resolve(FAMILIES["gpt2"], {}).spec
    head = spec.unembedding.model_copy(update={"tied": False, "bias": True})
    plan = PLAN.model_copy(update={"chunked_loss": 4, "checkpointing": "none"})
    check(spec.model_copy(update={"unembedding": head}), plan, folds=False)


def test_the_loss_in_chunks_is_the_mean_loss() -> None:
    """Numbers: loss and gradients as of all tokens at once, targets that do not count among them."""
    torch.manual_seed(1)
    spec = resolve(
        FAMILIES["gpt2"], dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.0)
    ).spec
    ids, targets = torch.randint(0, 67, (2, 11)), torch.randint(0, 67, (2, 11))
    targets[0, :5] = -100
    found = []
    for n_chunks, checkpointing in ((1, "none"), (4, "full"), (22, "selective")):
        model = build(spec, attention="eager", checkpointing=checkpointing, chunked_loss=n_chunks)
        model.load_state_dict(found[0][2] if found else model.state_dict())
        loss = model.train()(ids, targets).loss
        loss.backward()
        found.append((loss.detach(), [one.grad for one in model.parameters()], model.state_dict()))
    for loss, gradients, _ in found[1:]:
        torch.testing.assert_close(loss, found[0][0])
        torch.testing.assert_close(gradients, found[0][1])


def test_what_runs_again_runs_on_the_backward_thread() -> None:
    """Its first product takes that thread's workspace: before any gradient, after the logits of the last chunk."""
    plan = PLAN.model_copy(update={"chunked_loss": 2, "checkpointing": "none"})
    kernels = CudaKernels(target("sm80"), (2, 13))
    recording = tape_training(resolve(FAMILIES["gpt2"], {}).spec, plan, kernels=kernels, n_steps=1)
    made = [event.slot.tensor.label for run in recording.runs(recording.record.stages[2]) for event in run.events]

    assert made[made.index("logits") + 1] == "cuBLAS workspace (backward)"
    assert made.index("logits") < made.index("gradient of log-probabilities")


def test_more_chunks_than_tokens_are_refused() -> None:
    """It says how many there are, at the door and in the module."""
    spec = resolve(FAMILIES["gpt2"], {}).spec
    with pytest.raises(
        GptcalcError, match=r"^chunked_loss: read 23; allowed: from 1 to 22, the tokens of a step \(2 × 11\)"
    ):
        settle(spec, {"batch": 2, "seq": 11, "chunked_loss": 23})
    with pytest.raises(GptcalcError, match=r"^chunked_loss: read 23; allowed: from 1 to 22, the number of tokens"):
        build(spec, chunked_loss=23)(torch.zeros(2, 11, dtype=torch.int64), torch.zeros(2, 11, dtype=torch.int64))


def test_a_block_under_a_checkpoint_keeps_its_input_alone() -> None:
    """Of each layer autograd keeps B·T·D numbers between forward and backward, beside what input and head keep."""
    three, four = (resolve(FAMILIES["gpt2"], {"n_layers": n}).spec for n in (3, 4))
    recordings = [tape_training(spec, PLAN, n_steps=1) for spec in (three, four)]
    d_model = three.d_model

    assert kept(recordings[1]) - kept(recordings[0]) == Counter([f"bfloat16 {2 * 3 * 13 * d_model}"])
