"""What autograd keeps: published measurements to the byte, and fake CUDA tensors storage by storage."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from support import DATA

from gptcalc.catalog import resolve
from gptcalc.plan import Plan
from gptcalc.witness.fake_cuda import Call

torch = pytest.importorskip("torch")

from gptcalc.witness.saved_tensors import Saved, saved  # noqa: E402  it opens torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

FACTS = json.loads((DATA / "facts_activations.json").read_text())["cases"]
BATCH, SEQ = 8, 1024
#: Token IDs and labels: the measurements count them, the witness does not, since they live anyhow.
GIVEN = 2 * BATCH * SEQ * 8
GPT2 = {"model_type": "gpt2", "activation_function": "gelu_pytorch_tanh"}
LLAMA_1B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "tie_word_embeddings": True,
}


def _case(name: str, n_layers: int) -> tuple[Saved, ...]:
    """The case of that name with gptcalc's own decoder."""
    model, attention, precision, drop, _ = name.split("|")
    p = float(drop.removeprefix("drop"))
    if model == "gpt2":
        dropout = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), p)
        spec = resolve(GPT2 | {"n_layer": n_layers}, dropout).spec
        fused = "flash" if precision == "bf16" else "efficient"
    else:
        spec = resolve(LLAMA_1B | {"num_hidden_layers": n_layers}, {"attention_dropout": p}).spec
        fused = "math"  # what torch picks for fp32 with grouped heads
    backend = "eager" if attention == "eager" else fused
    return saved(spec, Plan(batch=BATCH, seq=SEQ, precision=precision, attention=backend))


def _counted(rows: Iterable[Saved]) -> Counter[str]:
    return Counter(f"{row.dtype} {row.bytes}" for row in rows)


def _total(rows: Iterable[Saved]) -> int:
    return sum(row.bytes for row in rows)


@pytest.mark.parametrize("name", [name for name in FACTS if name.startswith("gpt2")])
def test_gpt2_keeps_what_was_measured(name: str) -> None:
    """GPT-2 with fused GELU keeps, storage for storage, what transformers' class keeps on fake CUDA tensors."""
    two, three = _case(name, 2), _case(name, 3)
    per_layer = _total(three) - _total(two)
    assert per_layer == FACTS[name]["per_layer"]
    assert _total(two) - 2 * per_layer + GIVEN == FACTS[name]["outside_layers"]
    ids = Counter({f"int64 {BATCH * SEQ * 8}": 2})
    assert _counted(two) + ids == Counter(FACTS[name]["two_layers"])


@pytest.mark.parametrize("name", [name for name in FACTS if name.startswith("llama")])
def test_llama_differs_in_its_norms_alone(name: str) -> None:
    """Llama keeps what transformers' class keeps, less one fp32 copy a norm, which the fused kernel does without.

    In bf16 transformers' eager Llama also computes its softmax in fp32, and keeps that: gptcalc's eager attention is
    GPT-2's, in the dtype of the model.
    """
    ids = Counter({f"int64 {BATCH * SEQ * 8}": 2})
    norms = Counter({f"float32 {BATCH * SEQ * 2048 * 4}": 2 * 2 + 1})
    expected = Counter(FACTS[name]["two_layers"]) - ids - norms
    if "|eager|bf16|" in name:
        scores = BATCH * 32 * SEQ * SEQ
        expected -= Counter({f"float32 {4 * scores}": 2})
        expected += Counter({f"bfloat16 {2 * scores}": 2 if "drop0.1" in name else 0})
    assert _counted(_case(name, 2)) == expected


@pytest.mark.parametrize(("batch", "seq", "width", "n_heads"), [(8, 1024, 768, 12), (2, 131, 96, 4)])
def test_korthikanti(batch: int, seq: int, width: int, n_heads: int) -> None:
    """A layer in bf16 with dropout keeps s·b·h·(34 + 5·a·s/h), and the norms' statistics that the paper leaves out."""
    kept = []
    for n_layers in (2, 3):
        config = GPT2 | {"n_layer": n_layers, "n_embd": width, "n_head": n_heads}
        plan = Plan(batch=batch, seq=seq, precision="bf16", attention="eager")
        kept.append(_total(saved(resolve(config, {}).spec, plan)))
    statistics = 2 * 2 * 4 * batch * seq
    assert kept[1] - kept[0] == 34 * seq * batch * width + 5 * n_heads * seq * seq * batch + statistics


def test_rows_name_the_module_and_come_in_order() -> None:
    """Each storage is listed once, with the module that keeps it first, in the order of the forward pass."""
    config = GPT2 | {"n_layer": 1, "n_embd": 24, "n_head": 3, "vocab_size": 61}
    spec = resolve(config, {"attention_dropout": 0.0, "residual_dropout": 0.0}).spec
    rows = saved(spec, Plan(batch=2, seq=5, precision="fp32", attention="efficient"))
    assert [(row.module.removeprefix("transformer."), row.shape, row.dtype) for row in rows] == [
        ("wpe", (5,), "int64"),
        ("transformer", (2, 5, 24), "bool"),
        ("h.0.ln_1", (2, 5, 24), "float32"),
        ("h.0.ln_1", (2, 5, 1), "float32"),
        ("h.0.ln_1", (2, 5, 1), "float32"),
        ("h.0.attn.c_attn", (10, 24), "float32"),
        ("h.0.attn", (2, 3, 5, 8), "float32"),
        ("h.0.attn", (2, 3, 32), "float32"),
        ("h.0.attn", (2, 3, 5, 8), "float32"),
        ("h.0.attn", (), "int64"),
        ("h.0.attn", (), "int64"),
        ("h.0.ln_2", (2, 5, 24), "float32"),
        ("h.0.ln_2", (2, 5, 1), "float32"),
        ("h.0.ln_2", (2, 5, 1), "float32"),
        ("h.0.mlp.c_fc", (10, 24), "float32"),
        ("h.0.mlp", (2, 5, 96), "float32"),
        ("h.0.mlp.c_proj", (10, 96), "float32"),
        ("ln_f", (2, 5, 24), "float32"),
        ("ln_f", (2, 5, 1), "float32"),
        ("ln_f", (2, 5, 1), "float32"),
        ("lm_head", (10, 24), "float32"),
        ("", (10, 61), "float32"),
        ("", (), "float32"),
    ]
    fused, _, joined = rows[6:9]
    assert (fused.bytes, joined.bytes) == (3 * 10 * 24 * 4, 10 * 24 * 4)  # query is a view of all three


TOY_GPT2 = {"model_type": "gpt2", "vocab_size": 67, "n_positions": 19, "n_embd": 30, "n_layer": 2, "n_head": 5}
TOY_LLAMA = LLAMA_1B | {"vocab_size": 71, "hidden_size": 42, "num_attention_heads": 6, "num_key_value_heads": 2}
TOY_LLAMA |= {"head_dim": 10, "intermediate_size": 47, "num_hidden_layers": 2}
DROPOUT = {"attention_dropout": 0.1, "residual_dropout": 0.1}
CASES = [
    (config, backend, precision)
    for config in (TOY_GPT2, TOY_LLAMA)
    for backend in ("eager", "math")
    for precision in ("bf16", "fp32")
]


@pytest.fixture(scope="module")
def found(fake_cuda: Callable[[Sequence[Call]], list[Any]]) -> list[tuple[Saved, ...]]:
    """What each case keeps on fake CUDA: rms_norm, dropout and math attention take torch's own way there."""
    return fake_cuda([Call(saved, (resolve(config, DROPOUT).spec, _plan(*how), "cuda")) for config, *how in CASES])


def _plan(backend: str, precision: str) -> Plan:
    return Plan.model_validate({"batch": 3, "seq": 13, "precision": precision, "attention": backend})


@pytest.mark.parametrize("number", range(len(CASES)))
def test_meta_keeps_what_fake_cuda_keeps(found: list[tuple[Saved, ...]], number: int) -> None:
    """On meta, storage for storage, a decoder keeps what it keeps where torch's own derivatives decide it.

    RMSNorm is there the fused op of a CUDA build, dropout its `native_dropout`.
    """
    config, *how = CASES[number]
    assert saved(resolve(config, DROPOUT).spec, _plan(*how)) == found[number]
    embedding = config is TOY_GPT2
    assert sum(row.dtype == "bool" for row in found[number]) == 2 * 3 + embedding
