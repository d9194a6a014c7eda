"""The memory ledger against measurements and published numbers, and the laws that any answer obeys."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import ALL, FAMILIES, GPT2, LLAMA, OPTIMIZERS, instants, kept, tape_inference, tape_training, toy_plans
from support import DATA, examples, facts, toy_configs

from gptcalc.allocator import round_size
from gptcalc.catalog import resolve
from gptcalc.errors import InvalidValueError, UnknownNameError
from gptcalc.ledger import memory as ledger
from gptcalc.ledger.alive import KINDS
from gptcalc.ledger.memory import memory, record
from gptcalc.ledger.parameters import parameters
from gptcalc.plan import Plan
from gptcalc.spec import LayerGroup, Spec
from gptcalc.tape.kernels import TARGETS
from gptcalc.tape.replay import fold, replay
from gptcalc.units import MIB, bytes_of

if TYPE_CHECKING:
    from gptcalc.ledger.memory import Mode
    from gptcalc.tape.replay import Recording

MODES = ("training", "inference")


def modes(spec: Spec, plan: Plan) -> tuple[Mode, ...]:
    """Training and inference."""
    return memory(spec, plan, MODES).modes


def deeper(spec: Spec, n_layers: int) -> Spec:
    """The same layers, so many of them."""
    (group,) = spec.layers
    return spec.model_copy(update={"layers": (LayerGroup(n_layers=n_layers, block=group.block),)})


def stored(spec: Spec, precision: str) -> int:
    """The bytes of all weights, each once."""
    return bytes_of(parameters(spec).totals.stored, precision)


def total(counts: Counter[str]) -> int:
    """All their bytes."""
    return sum(int(what.split()[1]) * count for what, count in counts.items())


# --- Truth: activations ----------------------------------------------------------------------------------------------

#: GPT-2 Small with one fused GELU, 8 × 1,024 tokens: bytes that one layer more keeps, by attention, precision, dropout
#: [facts/activations.md, "Per-block saved activations": transformers' class on fake CUDA, torch 2.13.0].
GPT2_LAYERS = {
    ("eager", "bf16", 0.1): 717_357_056,
    ("eager", "bf16", 0.0): 402_784_256,
    ("flash", "bf16", 0.1): 214_433_816,
    ("flash", "bf16", 0.0): 201_850_904,
    ("eager", "fp32", 0.1): 1_321_336_832,
    ("efficient", "fp32", 0.0): 403_177_488,
}
#: Outside the layers: the log-probabilities in fp32, the final norm, position IDs, the mask of the embedding's dropout
#: [ibid., "Fixed part total"]; token IDs and labels, which live anyhow, are counted there.
GPT2_OUTSIDE = {
    ("bf16", 0.0): 1_672_192_004,
    ("bf16", 0.1): 1_678_483_460,
    ("fp32", 0.0): 1_697_357_828,
    ("fp32", 0.1): 1_703_649_284,
}


@pytest.mark.parametrize(("attention", "precision", "dropout"), GPT2_LAYERS)
def test_a_layer_of_gpt2_keeps_what_was_measured(attention: str, precision: Any, dropout: float) -> None:
    """One layer more is that many bytes more at the end of the forward pass, the layer's weights aside."""
    fields = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), dropout)
    spec = resolve("gpt2", fields).spec
    plan = Plan(batch=8, seq=1024, precision=precision, attention=attention, optimizer="sgd", optimizer_impl="for-loop")
    found = []
    for n_layers in (5, 6):
        recording = tape_training(deeper(spec, n_layers), plan, n_steps=1, recorded=3)
        build, forward = (end.requested for _, end in replay(recording, expandable=False)[:2])
        found.append(forward - build)
    per_layer = GPT2_LAYERS[attention, precision, dropout]
    assert found[1] - found[0] == per_layer
    ids_and_labels, loss = 2 * 8 * 8 * 1024, 4
    assert found[0] - 5 * per_layer == GPT2_OUTSIDE[precision, dropout] - ids_and_labels + loss


ACTIVATIONS = json.loads((DATA / "facts_activations.json").read_text())["cases"]
LLAMA_1B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_storage_of_a_measured_case_is_kept(name: str) -> None:
    """Storage for storage what transformers' classes keep; Llama less what its norms, written out, keep too.

    In bf16 transformers' eager Llama computes its softmax in fp32 and keeps that. The state of flash's dropout, which
    the tape has as int64, is unsigned.
    """
    model, attention, precision, drop, _ = name.split("|")
    p = float(drop.removeprefix("drop"))
    measured = {what.removeprefix("u"): count for what, count in ACTIVATIONS[name]["two_layers"].items()}
    expected = Counter(measured) - Counter({"int64 65536": 2})
    if model == "gpt2":
        spec = resolve("gpt2", dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), p)).spec
        fused = "flash" if precision == "bf16" else "efficient"
    else:
        spec, fused = resolve(LLAMA_1B, {"attention_dropout": p}).spec, "math"
        expected -= Counter({f"float32 {8 * 1024 * 2048 * 4}": 2 * 2 + 1})
        if (attention, precision) == ("eager", "bf16"):
            scores = 8 * 32 * 1024 * 1024
            expected -= Counter({f"float32 {4 * scores}": 2})
            expected += Counter({f"bfloat16 {2 * scores}": 2 if p else 0})
    plan = Plan(batch=8, seq=1024, precision=precision, attention="eager" if attention == "eager" else fused)
    assert kept(tape_training(deeper(spec, 2), plan, n_steps=1)) == expected


@pytest.mark.parametrize(
    ("b", "s", "h", "a"), [(8, 1024, 768, 12), (4, 2048, 6144, 64), (1, 131, 96, 3), (3, 1, 40, 5)]
)
def test_korthikanti(b: int, s: int, h: int, a: int) -> None:
    """A layer keeps s·b·h·(34 + 5·a·s/h) bytes in 16 bits with dropout, and 16·b·s of statistics [Korthikanti 2022].

    The sizes of the paper's 22B model are among them. With flash attention instead it is 34·s·b·h, 4·b·a·s for the
    sums of the softmax, and 24 for the state of the dropout [facts/gpu_memory.md §1.4].
    """
    config = {"model_type": "gpt2", "n_embd": h, "n_head": a, "n_positions": s}
    found = {}
    for attention in ("eager", "flash"):
        plan = Plan(batch=b, seq=s, attention=attention)
        ours = [total(kept(tape_training(deeper(resolve(config, {}).spec, n), plan, n_steps=1))) for n in (2, 3)]
        found[attention] = ours[1] - ours[0] - 16 * b * s
    assert found["eager"] == 34 * s * b * h + 5 * b * a * s * s
    assert found["flash"] == 34 * s * b * h + 4 * b * a * s + 24


@pytest.mark.parametrize(
    ("b", "s", "h", "a"), [(8, 1024, 768, 12), (4, 2048, 6144, 64), (1, 131, 96, 3), (3, 1, 40, 5)]
)
@pytest.mark.parametrize(("checkpointing", "of_rows", "of_statistics"), [("selective", 34, 16), ("full", 2, 0)])
def test_korthikanti_with_recomputation(  # noqa: PLR0913, PLR0917  sizes
    checkpointing: str, of_rows: int, of_statistics: int, b: int, s: int, h: int, a: int
) -> None:
    """Selective recomputation leaves 34·s·b·h of a layer, full 2·s·b·h [Korthikanti 2022, Table 2, t = 1].

    With the core of attention run again, 16·b·s stay for the statistics of two norms, which the paper leaves out.
    """
    config = {"model_type": "gpt2", "n_embd": h, "n_head": a, "n_positions": s}
    plan = Plan(batch=b, seq=s, attention="eager", checkpointing=checkpointing)
    two, three = (total(kept(tape_training(deeper(resolve(config, {}).spec, n), plan, n_steps=1))) for n in (2, 3))
    assert three - two == of_rows * s * b * h + of_statistics * b * s


# --- Truth: steps ----------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A measured step: rounded to 512 bytes each, the second one; its peaks by phase, and what is left after two."""

    model: str
    precision: Any
    impl: Any
    batch: int
    after_forward: int
    after_backward: int
    forward: int
    backward: int
    optimizer: int


#: [facts/activations.json, "step_peaks": transformers' classes with their defaults on fake CUDA tensors, 1,024 tokens,
#: torch 2.13.0] All rows without autocast and checkpointing.
STEPS = [
    Step("gpt2", "bf16", "foreach", 8, 6810280448, 995584000, 9280578560, 10103857664, 1244463616),
    Step("gpt2-medium", "bf16", "foreach", 8, 15510604800, 2838650880, 17980902912, 18804182016, 3548297216),
    Step("gpt2-xl", "fp32", "foreach", 8, 92224847360, 24922191872, 93871734784, 95518424576, 31152723456),
    Step("gpt2-xl", "bf16", "foreach", 8, 47594691072, 12461426688, 50064989184, 50888268288, 15576766976),
    Step("gpt2", "fp32", "fused", 8, 11810019328, 1991178240, 13456906752, 15103596544, 1991178240),
    Step("gpt2", "fp32", "for-loop", 8, 11809943552, 1991102464, 13456830976, 15103520768, 2299881472),
    Step("gpt2", "fp32", "foreach", 1, 2782880256, 1991045120, 2988732928, 3194576896, 2488804352),
    Step("gpt2-eager", "fp32", "foreach", 8, 22676848640, 1991102464, 24323736064, 25970425856, 2488861696),
    Step("llama-3.2-1b", "bf16", "foreach", 8, 25997146112, 9886581760, 32301251072, 34402465792, 12358210560),
    Step("llama-3.2-1b", "fp32", "foreach", 1, 21018098176, 19773039616, 21543434752, 22077151232, 24716297216),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: "-".join(map(str, step[:4])))
def test_a_measured_step_is_explained_to_the_byte(step: Step) -> None:
    """Every peak of a measured step is the reference's, and a difference that is known to the byte.

    - transformers' `gelu_new` keeps three tensors (B, T, F) more in each layer; its RMSNorm, written out, an fp32 copy
      of its input's size; rotary angles are two buffers of the model there.
    - There is one tensor of IDs, the labels too, where the reference has targets beside IDs. The loss makes two of it:
      labels padded to T + 1, and a copy of them shifted, kept for the backward pass. For one sequence the copy is a
      view of the padded one. So the loss's gradient is computed with no targets, and no labels are there at the end.
    - The loss is let go before the optimizer's step.
    """
    n = step.batch * 1024
    if step.model.startswith("gpt2"):
        spec, buffers = resolve(step.model.removesuffix("-eager"), {}).spec, 0
        extra = spec.n_layers * 3 * bytes_of(n * 4 * spec.d_model, step.precision)
    else:
        spec, buffers = resolve(LLAMA_1B, {}).spec, 2 * 512
        extra = (2 * spec.n_layers + 1) * 4 * n * spec.d_model
    backend = {"gpt2-eager": "eager", "llama-3.2-1b": "math"}.get(step.model, "efficient")
    plan = Plan(
        batch=step.batch,
        seq=1024,
        precision=step.precision,
        optimizer_impl=step.impl,
        attention="flash" if step.precision == "bf16" else backend,
    )
    recording = record("training", spec, plan, None)
    forward, backward, optimizer, _ = fold(recording, range(5, 9)).rounded[5:]
    ends = [end.rounded for _, end in replay(recording, expandable=False)[5:]]
    targets, padded = 8 * n, round_size(8 * step.batch * 1025)
    labels = padded if step.batch == 1 else targets
    assert step.after_forward - ends[0] == extra + buffers + labels - targets
    assert step.forward - forward == extra + buffers + labels - targets + (0 if step.batch == 1 else padded)
    at_the_loss = max(rounded for stage, label, _, rounded in instants(recording) if (stage, label) == (6, "head"))
    assert step.backward - at_the_loss == extra + buffers - targets
    assert step.after_backward - ends[1] == step.optimizer - optimizer == buffers - targets - 512
    assert backward == at_the_loss or step.model.startswith("llama")


# --- Truth: KV caches ------------------------------------------------------------------------------------------------

#: Bytes that a token takes in bf16 [facts/models.json, `kv_cache_bytes_per_token_bf16`], for the models of the
#: first families: GPT-1 to 3, Llama, Mixtral.
KV_BYTES = {
    "openai-community/openai-gpt": 36864,
    "openai-community/gpt2": 36864,
    "openai-community/gpt2-medium": 98304,
    "openai-community/gpt2-large": 184320,
    "openai-community/gpt2-xl": 307200,
    "distilbert/distilgpt2": 18432,
    "gpt3/small-125M": 36864,
    "gpt3/medium-350M": 98304,
    "gpt3/large-760M": 147456,
    "gpt3/xl-1.3B": 196608,
    "gpt3/2.7B": 327680,
    "gpt3/6.7B": 524288,
    "gpt3/13B": 819200,
    "gpt3/175B": 4718592,
    "cerebras/Cerebras-GPT-111M": 30720,
    "cerebras/Cerebras-GPT-256M": 60928,
    "cerebras/Cerebras-GPT-1.3B": 196608,
    "cerebras/Cerebras-GPT-2.7B": 327680,
    "cerebras/Cerebras-GPT-13B": 819200,
    "huggyllama/llama-13b": 819200,
    "huggyllama/llama-30b": 1597440,
    "huggyllama/llama-65b": 2621440,
    "meta-llama/Llama-2-13b-hf": 819200,
    "meta-llama/Llama-2-70b-hf": 327680,
    "meta-llama/CodeLlama-34b-hf": 196608,
    "meta-llama/Meta-Llama-3-8B": 131072,
    "meta-llama/Llama-3.1-8B": 131072,
    "meta-llama/Llama-3.1-70B": 327680,
    "nvidia/Llama-3.1-Nemotron-70B-Instruct-HF": 327680,
    "meta-llama/Llama-3.2-3B": 114688,
    "meta-llama/Llama-3.3-70B-Instruct": 327680,
    "TinyLlama/TinyLlama_v1.1": 22528,
    "mistralai/Mixtral-8x7B-v0.1": 131072,
}


def cache(spec: Spec, plan: Plan) -> int:
    """The KV cache of inference."""
    (mode,) = memory(spec, plan, ("inference",)).modes
    return sum(line.amount for line in mode.lines if line.kind == "kv_cache")


@pytest.mark.parametrize("model", [fact for fact in facts() if fact["id"] in KV_BYTES], ids=lambda model: model["id"])
def test_a_token_takes_what_is_published(model: dict[str, Any]) -> None:
    """2·L·K·H numbers for each token of each sequence, in the dtype of the cache."""
    spec = resolve(str(DATA / "configs" / model["config_file"]), {}).spec
    per_token = KV_BYTES[model["id"]]
    assert cache(spec, Plan(batch=3, seq=50)) == 3 * 50 * per_token
    assert cache(spec, Plan(seq=7, kv_dtype="fp32")) == 7 * 2 * per_token


def test_a_cache_of_llama_3_is_a_gibibyte() -> None:
    """8,192 tokens of Llama-3-8B in 16 bits: 1024.00 MiB in llama.cpp's log [facts/tables.md, KV cache]."""
    assert cache(resolve("llama-3-8b", {}).spec, Plan(seq=8192, kv_dtype="fp16")) == 1024 * MIB


# --- Laws ------------------------------------------------------------------------------------------------------------


@st.composite
def asked(draw: st.DrawFn, **fields: st.SearchStrategy[Any]) -> tuple[Spec, Plan]:
    """Any toy model, and any plan that torch can run, with `fields` of its own."""
    config, own = draw(toy_configs())
    for field in ("embedding_dropout", "attention_dropout", "residual_dropout"):
        own[field] = draw(st.sampled_from([0.0, 0.1]))
    own["d_head"] = draw(st.sampled_from([own["d_head"], 8, 16]))
    own["n_layers"] = draw(st.integers(1, 6))
    spec = resolve(config, own).spec
    longest = spec.n_ctx if own["positions"] == "learned" else 24
    plan: dict[str, Any] = {
        "batch": draw(st.integers(1, 4)),
        "seq": draw(st.integers(1, longest)),
        "precision": draw(st.sampled_from(["fp32", "bf16", "fp16"])),
        "kv_dtype": draw(st.sampled_from(["fp32", "bf16", "fp16"])),
        "logits": draw(st.sampled_from(["last", "all"])),
        "target": draw(st.sampled_from(sorted(TARGETS))),
        "torch": draw(st.sampled_from(["2.9", "2.13", "2.15"])),
        "expandable_segments": draw(st.booleans()),
        **draw(st.sampled_from(OPTIMIZERS)),
    }
    return spec, Plan(**plan | {name: draw(values) for name, values in fields.items()})


@settings(max_examples=examples(80), deadline=None)
@given(drawn=asked())
def test_every_answer_adds_up(drawn: tuple[Spec, Plan]) -> None:
    """Lines, tensors, points and phases of a mode say the same, and no byte is negative."""
    spec, plan = drawn
    for mode in modes(spec, plan):
        check_sums(mode)
        check_figures(mode, expandable=plan.expandable_segments)
        assert sum(held.amount for held in mode.held if held.kind == "weights") == stored(spec, plan.precision)
        assert mode.tokens == plan.batch * plan.seq


def check_sums(mode: Mode) -> None:
    """Whatever is added up at the peak is what is requested there."""
    assert sum(line.amount for line in mode.lines) == mode.totals.requested
    assert sum(held.amount for held in mode.held) == mode.totals.requested
    for kind in KINDS:
        of_kind = [[one.amount for one in rows if one.kind == kind] for rows in (mode.lines, mode.held)]
        assert sum(of_kind[0]) == sum(of_kind[1])
    for rows in (mode.lines, mode.held):
        assert len({one.key for one in rows}) == len(rows)
        assert all(one.amount > 0 and one.tensors > 0 and one.why for one in rows)
        assert [one.kind for one in rows] == sorted((one.kind for one in rows), key=KINDS.index)
    highest = max(mode.timeline, key=lambda point: point.requested)
    assert highest.requested == mode.totals.requested
    at_peak = Counter({kind: size for kind, size in highest.alive.items() if size})
    assert at_peak == sum((Counter({line.kind: line.amount}) for line in mode.lines), Counter())
    assert all(size >= 0 for point in mode.timeline for size in point.alive.values())


def check_figures(mode: Mode, *, expandable: bool) -> None:
    """Requested ≤ rounded ≤ allocated ≤ reserved in each phase, and the totals are the largest of each."""
    for phase in mode.phases:
        figures = phase.figures
        assert 0 < figures.requested <= figures.rounded <= figures.allocated <= figures.reserved
        assert max(point.requested for point in mode.timeline if point.phase == phase.name) == figures.requested
        # More is reserved within a step where blocks no longer fit: after it there may be more than in its first phase.
        kept = mode.persistent._replace(reserved=0)
        assert all(stays <= most for stays, most in zip(kept, figures, strict=True))
        assert not expandable or figures.allocated == figures.rounded
    assert mode.totals == tuple(max(amounts) for amounts in zip(*(phase.figures for phase in mode.phases), strict=True))
    assert next(phase.figures.requested for phase in mode.phases if phase.name == mode.phase) == mode.totals.requested
    assert next(phase.moment for phase in mode.phases if phase.name == mode.phase) == mode.moment
    assert mode.device == tuple(mode.totals.reserved + outside for outside in ledger.CONTEXT)


@settings(max_examples=examples(80), deadline=None)
@given(drawn=asked())
def test_inference_needs_less_than_training(drawn: tuple[Spec, Plan]) -> None:
    """At equal dtype, batch and length."""
    spec, plan = drawn
    training, inference = modes(spec, plan.model_copy(update={"kv_dtype": plan.precision, "logits": "last"}))
    assert inference.totals.requested < training.totals.requested
    assert inference.persistent.requested <= training.totals.requested


@settings(max_examples=examples(40), deadline=None)
@given(drawn=toy_plans())
def test_what_is_kept_is_affine_in_the_batch(drawn: tuple[Spec, Plan]) -> None:
    """Each sequence more keeps as much more as the one before; a single one, whose axes join, is copied less often."""
    spec, plan = drawn
    start = 1 if plan.attention in ("flash", "cudnn", "efficient") else 2
    found = [
        total(kept(tape_training(spec, plan.model_copy(update={"batch": batch}), n_steps=1, recorded=3)))
        for batch in range(start, start + 4)
    ]
    steps = {after - before for before, after in pairwise(found)}
    assert len(steps) == 1
    assert steps.pop() > 0


def peaks(recording: Recording) -> tuple[int, int]:
    """Requested and rounded bytes where most is alive."""
    found = fold(recording, range(len(recording.record.stages)))
    return max(point.requested for point in found.points), max(found.rounded)


@settings(max_examples=examples(40), deadline=None)
@given(
    drawn=toy_plans(), update=st.sampled_from(OPTIMIZERS), what=st.sampled_from(["deeper", "longer", "wider", "more"])
)
def test_more_needs_more(drawn: tuple[Spec, Plan], update: dict[str, object], what: str) -> None:
    """A layer more, a token more, a wider MLP, a sequence more: each takes more bytes, in training and in inference."""
    spec, plan = drawn[0], drawn[1].model_copy(update=update)
    spec = spec.model_copy(update={"n_ctx": max(spec.n_ctx, plan.seq + 1)})
    other, other_plan = spec, plan
    if what == "deeper":
        other = deeper(spec, spec.n_layers + 1)
    elif what == "wider":
        block = spec.layers[0].block
        mlp = block.mlp.model_copy(update={"d_ff": block.mlp.d_ff + 1})  # type: ignore[attr-defined]
        wider = LayerGroup(n_layers=spec.n_layers, block=block.model_copy(update={"mlp": mlp}))
        other = spec.model_copy(update={"layers": (wider,)})
    else:
        field = "seq" if what == "longer" else "batch"
        other_plan = plan.model_copy(update={field: getattr(plan, field) + 1})
    for run in (tape_training, tape_inference):
        less, more = peaks(run(spec, plan, recorded=3)), peaks(run(other, other_plan, recorded=3))
        assert less[0] < more[0]
        assert less[1] <= more[1]


# --- What an answer says ---------------------------------------------------------------------------------------------


def test_persistent_is_what_stays_between_steps() -> None:
    """Weights, moments and inputs, and the workspaces, if torch keeps them; in inference weights, cache, IDs."""
    spec = resolve(GPT2, {}).spec
    weights, workspace = stored(spec, "bf16"), 8_519_680
    training, inference = modes(spec, Plan(batch=3, seq=13, target="sm80"))
    assert training.persistent.requested == 3 * weights + 2 * 8 * 39 + 2 * workspace
    n_layers, both, width = 2, 2, 40
    assert inference.persistent.requested == weights + n_layers * both * 39 * width * 2 + 8 * (39 + 3) + workspace
    per_call = modes(spec, Plan(batch=3, seq=13, torch="2.15"))
    assert training.persistent.requested - per_call[0].persistent.requested == 2 * workspace
    assert inference.persistent.requested - per_call[1].persistent.requested == workspace


def test_a_peak_says_when_and_why() -> None:
    """GPT-2's step peaks in the loss's backward pass, its inference in prefill; auto attention has its reason."""
    spec = resolve("gpt2", {}).spec
    training, inference = modes(spec, Plan(batch=8, seq=1024))
    assert (training.phase, training.moment) == ("backward", "head: _log_softmax_backward_data")
    assert inference.phase == "prefill"
    assert (training.attention[0], inference.attention[0]) == ("flash", "cudnn")
    assert training.attention[1].endswith("; cudnn does not with a dropout of 0.1 (multiples of 1/16)")
    assert [phase.name for phase in training.phases] == ["forward", "backward", "optimizer"]
    assert [phase.name for phase in inference.phases] == ["prefill", "decode"]
    assert [any("cuDNN" in note for note in mode.notes) for mode in (training, inference)] == [False, True]
    assert {point.label for point in training.timeline} >= {"input", "layer 0", "layer 11", "head", "optimizer"}
    labels = [point.label for point in training.timeline if point.phase == "backward" and "layer" in point.label]
    assert labels == [f"layer {layer}" for layer in reversed(range(12))]


def test_saved_activations_are_listed_by_op() -> None:
    """What each op of GPT-2 leaves for the backward pass, with its own formula, and what will read it."""
    spec = resolve("gpt2", {}).spec
    (mode,) = memory(spec, Plan(batch=8, seq=1024, attention="flash"), ("training",)).modes
    rows, d, layers = 8 * 1024, 768, 12
    found = {line.label: line for line in mode.lines if line.kind == "activations"}
    assert {label: line.amount for label, line in found.items()} == {
        "positions: arange": 8 * 1024,
        "residual stream: dropout": 3 * rows * d,
        "residual stream: add": 2 * layers * 2 * rows * d,
        "norms: layer norm": (2 * layers + 1) * rows * (2 * d + 8),
        "attention: addmm": layers * 2 * rows * 3 * d,
        "attention: flash attention": layers * (2 * rows * d + 4 * rows * 12 + 24),
        "attention: dropout": layers * rows * d,
        "MLP: addmm": layers * 2 * rows * 4 * d,
        "MLP: gelu": layers * 2 * rows * 4 * d,
        "MLP: dropout": layers * rows * d,
    }
    assert found["MLP: addmm"].formula.letters == "2×L×B×T×F"
    assert found["MLP: gelu"].why == "kept for the backward pass of addmm"
    assert found["MLP: gelu"].key == "activations.MLP.gelu"


def test_what_is_kept_under_checkpoints_says_so() -> None:
    """A block keeps its input, attention its query, key and value and a mask; what is made anew says that too."""
    spec = resolve("gpt2", {}).spec
    again = "kept so that the {} can be computed again from it"
    for fields, said in (
        ({"checkpointing": "full"}, {"x after MLP": again.format("block")}),
        (
            {"checkpointing": "selective", "attention": "eager"},
            {label: again.format("attention") for label in ("query, key, value", "causal mask")},
        ),
        (
            {"chunked_loss": 8},
            {
                "normalised x": again.format("loss"),
                "log-probabilities": "computed again in the backward pass, for that of _log_softmax, nll_loss_forward",
            },
        ),
    ):
        plan = Plan.model_validate({"batch": 8, "seq": 1024} | fields)
        (mode,) = memory(spec, plan, ("training",)).modes
        assert said.items() <= {(held.label, held.why) for held in mode.held}


def test_a_step_is_the_second_one() -> None:
    """In the forward pass the optimizer's states are there already, as in every step but the first."""
    spec = resolve(GPT2, {}).spec
    (adam,), (sgd,) = (
        memory(spec, Plan(batch=3, seq=13, optimizer=name, attention="flash"), ("training",)).modes
        for name in ("adamw", "sgd")
    )
    for ours, other in zip(adam.phases[:2], sgd.phases[:2], strict=True):
        assert ours.figures.requested - other.figures.requested == 2 * stored(spec, "bf16")


def test_a_group_of_layers_has_a_kernel_of_its_own() -> None:
    """Heads of another size may run in another kernel; both are named, each once."""
    one, other = (resolve(GPT2, {"d_head": size}).spec.layers[0].block for size in (8, 12))
    groups = (LayerGroup(n_layers=2, block=one), LayerGroup(n_layers=2, block=other), LayerGroup(n_layers=1, block=one))
    spec = resolve(GPT2, {}).spec.model_copy(update={"layers": groups})
    found = ledger.attention_choices(spec, Plan(seq=13, precision="fp32"), training=True)
    assert [choice.backend for choice in found] == ["efficient", "efficient", "efficient"]
    found = ledger.attention_choices(spec, Plan(seq=13), training=False)
    assert [choice.backend for choice in found] == ["cudnn", "flash", "cudnn"]
    (mode,) = memory(spec, Plan(seq=13), ("inference",)).modes
    assert mode.attention[0] == "cudnn, flash"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_kernels_is_less(family: str) -> None:
    """What the callers of the ops see is part of what the device sees: workspaces and buffers come on top."""
    spec, plan = resolve(FAMILIES[family], {}).spec, Plan(batch=3, seq=13, attention="flash")
    for mode in modes(spec, plan):
        assert peaks(record(mode.name, spec, plan, None))[0] < mode.totals.requested
        seen = {held.label for held in mode.held if held.kind == "workspace"}
        assert "cuBLAS workspace (forward)" in seen


def test_what_torch_does_not_have_is_an_error() -> None:
    """Targets, versions, kernels, optimizers and depths: what was read, and what is allowed."""
    spec = resolve(LLAMA, {}).spec
    with pytest.raises(UnknownNameError, match="target"):
        memory(spec, Plan(seq=4, target="sm91"), MODES)
    for wrong, said in (
        ({"torch": "1.9"}, "torch: read '1.9'"),
        ({"attention": "efficient"}, "grouped heads"),
    ):
        with pytest.raises(InvalidValueError, match=said):
            memory(spec, Plan(seq=4, **wrong), MODES)
    with pytest.raises(InvalidValueError, match=r"torch 2\.2 has no fused sgd"):
        memory(resolve(GPT2, {}).spec, Plan(seq=4, optimizer="sgd", optimizer_impl="fused", torch="2.2"), MODES)
    with pytest.raises(InvalidValueError, match=r"n_layers: read 10,001; allowed for memory.* at most 10,000"):
        memory(deeper(spec, 10_001), Plan(seq=4), MODES)


@pytest.mark.parametrize(
    ("config", "own", "plan", "since"),
    [
        (LLAMA, {"n_kv_heads": 6}, {}, "2.9"),
        (GPT2, {"n_kv_heads": 1}, {}, "2.5"),
        (GPT2, {"n_kv_heads": 1}, {"attention": "eager"}, "2.0"),
        (GPT2, {}, {}, "2.0"),
    ],
)
def test_a_release_that_runs_other_ops_is_an_error(
    config: dict[str, Any], own: dict[str, Any], plan: dict[str, Any], since: str
) -> None:
    """RMSNorm became one kernel in 2.9, attention took grouped heads in 2.5; before, an answer would be a guess."""
    spec = resolve(config, own).spec
    assert memory(spec, Plan(seq=4, torch=since, **plan), MODES).modes
    if since != "2.0":
        before = f"2.{int(since[2:]) - 1}"
        with pytest.raises(
            InvalidValueError, match=f"torch: read {before}, .* allowed for this model: {since} and later"
        ):
            memory(spec, Plan(seq=4, torch=before, **plan), MODES)


def test_lt_workspace_is_kept_in_some_releases() -> None:
    """2.9 to 2.11 keep 1 MiB for products with a bias, in the forward thread alone: backward ones have none."""
    spec = resolve(GPT2, {}).spec
    new, old = (modes(spec, Plan(batch=3, seq=13, attention="flash", torch=torch)) for torch in ("2.12", "2.11"))
    for ours, theirs in zip(old, new, strict=True):
        assert ours.persistent.requested - theirs.persistent.requested == MIB
    labels = [held.label for held in old[0].held if "workspace" in held.label]
    assert labels == ["cuBLAS workspace (forward)", "cuBLASLt workspace (forward)", "cuBLAS workspace (backward)"]


def test_a_folded_answer_is_the_answer() -> None:
    """The numbers of a mode are those of a recording of all layers, with the buffers of its kernels."""
    spec, plan = deeper(resolve(LLAMA, {}).spec, 6), Plan(batch=3, seq=13, attention="flash", target="sm80")
    (mode,) = memory(spec, plan, ("training",)).modes
    kernels = ledger.CudaKernels(TARGETS["sm80"], (2, 13))
    full = replay(tape_training(spec, plan, kernels=kernels, recorded=ALL), expandable=False)
    assert [phase.figures for phase in mode.phases] == [peak for peak, _ in full[5:8]]
    assert mode.persistent == full[8][1]
