"""Families from GPT-Neo to nanochat: every tensor is the transformers class's, drawn, silent and published alike."""

from __future__ import annotations

import json
from typing import Any

import pytest
from class_oracle import assert_defaults, assert_same, class_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import DATA, examples, facts

from gptcalc.catalog import resolve
from gptcalc.errors import GptcalcError
from gptcalc.ledger.parameters import parameters
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.block import Block
from gptcalc.spec import Spec

Options = dict[str, st.SearchStrategy[Any]]

FLAG, YES, SMALL = st.booleans(), st.just(value=True), st.integers(1, 9)
#: The fields for D, L, N, V, and the head sizes that are drawn.
GPT2_NAMES = ("n_embd", "n_layer", "n_head", "vocab_size", (1, 2, 3, 6))
LLAMA_NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", (2, 4, 6))
#: Where a part of each head is rotated.
WIDE = (*LLAMA_NAMES[:4], (8, 16))
NAMES: dict[str, tuple[str, str, str, str, tuple[int, ...]]] = {
    "gpt_neo": ("hidden_size", "num_layers", "num_heads", "vocab_size", (1, 2, 3)),
    "gptj": (*GPT2_NAMES[:4], (4, 5, 8)),
    "codegen": (*GPT2_NAMES[:4], (4, 5, 8)),
    "gpt_neox": WIDE,
    "opt": LLAMA_NAMES,
    "bloom": ("hidden_size", "n_layer", "n_head", "vocab_size", (1, 2, 5)),
    "falcon": LLAMA_NAMES,
    "mpt": ("d_model", "n_layers", "n_heads", "vocab_size", (1, 2, 5)),
    "gpt_bigcode": GPT2_NAMES,
    "starcoder2": LLAMA_NAMES,
    "phi": WIDE,
    "stablelm": WIDE,
    "persimmon": WIDE,
    "nemotron": WIDE,
    "olmo": LLAMA_NAMES,
    "nanochat": LLAMA_NAMES,
    "biogpt": LLAMA_NAMES,
    "xglm": ("d_model", "num_layers", "attention_heads", "vocab_size", (4, 6)),
}
TIE: Options = {"tie_word_embeddings": FLAG}
GPT2: Options = TIE | {"n_inner": st.none() | SMALL, "n_positions": SMALL, "layer_norm_epsilon": st.just(1e-6)}
LLAMA: Options = TIE | {"intermediate_size": SMALL, "max_position_embeddings": SMALL}
FRACTIONS = st.sampled_from([0.25, 0.5, 1.0])
ROPE: Options = {"rope_parameters": st.just({"rope_type": "default", "rope_theta": 5000.0})}

#: What a class has beside its sizes, each of which may be left out.
OPTIONS: dict[str, Options] = {
    "gpt_neo": TIE | {"intermediate_size": st.none() | SMALL, "max_position_embeddings": SMALL, "window_size": SMALL},
    "gptj": GPT2,
    "codegen": GPT2,
    "gpt_neox": LLAMA | {"attention_bias": FLAG, "use_parallel_residual": FLAG, "rotary_pct": FRACTIONS},
    "opt": TIE
    | {
        "ffn_dim": SMALL,
        "max_position_embeddings": SMALL,
        "do_layer_norm_before": FLAG,
        "_remove_final_layer_norm": FLAG,
        "word_embed_proj_dim": st.none() | SMALL,
        "enable_bias": FLAG,
        "layer_norm_elementwise_affine": FLAG,
    },
    "bloom": TIE,
    "falcon": TIE
    | {"alibi": FLAG, "bias": FLAG, "ffn_hidden_size": st.none() | SMALL, "max_position_embeddings": SMALL},
    "mpt": TIE
    | {"attn_config": st.fixed_dictionaries({"clip_qkv": st.none() | st.just(6.0), "attn_pdrop": st.just(0)})},
    "gpt_bigcode": GPT2 | {"multi_query": FLAG},
    "starcoder2": LLAMA
    | ROPE
    | {"use_bias": FLAG, "sliding_window": st.none() | SMALL, "head_dim": SMALL.map(lambda n: 2 * n)},
    "phi": LLAMA | ROPE | {"qk_layernorm": FLAG},
    "stablelm": LLAMA | ROPE | {"use_qkv_bias": FLAG, "qk_layernorm": FLAG, "use_parallel_residual": FLAG},
    "persimmon": LLAMA | ROPE | {"qk_layernorm": FLAG},
    "nemotron": LLAMA | ROPE | {"attention_bias": FLAG, "mlp_bias": FLAG, "head_dim": st.sampled_from([8, 16])},
    "olmo": LLAMA | ROPE | {"attention_bias": FLAG, "clip_qkv": st.none() | st.just(8.0)},
    "nanochat": LLAMA | ROPE | {"attention_bias": FLAG, "final_logit_softcapping": st.none() | st.just(15.0)},
    "biogpt": LLAMA | {"scale_embedding": FLAG},
    "xglm": TIE | {"ffn_dim": SMALL, "max_position_embeddings": SMALL, "scale_embedding": FLAG},
}
#: Families with any number of key heads, which some classes do not take from the others.
GROUPED = ("starcoder2", "phi", "stablelm", "nemotron", "olmo", "nanochat")
#: Falcon's architectures: which options go together.
FALCONS: tuple[Options, ...] = (
    {},
    {"multi_query": YES, "num_kv_heads": SMALL},
    {"multi_query": FLAG, "parallel_attn": FLAG},
    {"new_decoder_architecture": YES, "num_ln_in_parallel_attn": st.sampled_from([None, 1, 2])},
)
#: Token ids that classes look for in the token table.
IDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


@st.composite
def toys(draw: st.DrawFn, model_type: str) -> dict[str, Any]:
    """A small config of `model_type`, from which fields are left out."""
    width, layers, heads, vocab, sizes = NAMES[model_type]
    options, config = dict(OPTIONS[model_type]), {"model_type": model_type, **IDS}
    n_kv_heads = draw(st.integers(1, 3))
    n_heads = n_kv_heads * draw(st.integers(1, 3)) * (4 if model_type == "codegen" else 1)
    size, n_layers = draw(st.sampled_from(sizes)), draw(st.integers(1, 5))
    if model_type in GROUPED:
        config["num_key_value_heads"] = n_kv_heads
    if model_type in ("gptj", "codegen"):
        config["rotary_dim"] = 2 * draw(st.integers(1, size // 2))
    if model_type == "gpt_neo":
        kinds = st.lists(st.sampled_from(["global", "local"]), min_size=1, max_size=2)
        patterns = draw(st.lists(st.tuples(kinds, st.integers(1, 2)), min_size=1, max_size=2))
        config["attention_types"] = [list(pattern) for pattern in patterns]
        n_layers = sum(len(kinds) * count for kinds, count in patterns)
    if model_type == "falcon":
        options |= (falcon := draw(st.sampled_from(FALCONS)))
        config |= {key: draw(value) for key, value in falcon.items()}
        if "new_decoder_architecture" in falcon:
            config["num_kv_heads"] = n_kv_heads
    config |= {width: n_heads * size, layers: n_layers, heads: n_heads, vocab: draw(st.integers(3, 50))}
    kept = draw(st.sets(st.sampled_from(sorted(options)), min_size=max(len(options) - 3, 0)))
    return {key: draw(options[key]) for key in sorted(kept)} | config


@pytest.mark.parametrize("model_type", OPTIONS)
@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_a_drawn_config_has_the_tensors_of_the_class(data: st.DataObject, model_type: str) -> None:
    """Names, shapes and total are the class's for any config of these model types, fields left out included."""
    assert_same(data.draw(toys(model_type)))


@pytest.mark.parametrize("model_type", OPTIONS)
def test_a_silent_file_is_read_as_the_class_reads_it(model_type: str) -> None:
    """A file that gives nothing means what the class takes for everything."""
    # transformers' own Nemotron cannot be made without it.
    needed = {"num_key_value_heads": 48} if model_type == "nemotron" else {}
    assert_defaults(model_type, needed)


FACTS = [fact for fact in facts() if fact["model_type"] in OPTIONS]


def published(name: str) -> dict[str, Any]:
    """The config.json of a published model."""
    fields: dict[str, Any] = json.loads((DATA / "configs" / f"{name.replace('/', '__')}.json").read_text())
    return fields


@pytest.mark.parametrize("fact", FACTS, ids=[fact["id"] for fact in FACTS])
def test_a_published_model_has_the_counts_of_the_facts(fact: dict[str, Any]) -> None:
    """Stored, by component and outside the embeddings are the class's, and nothing in its config goes unread."""
    model = resolve(published(fact["id"]), {})
    ledger = parameters(model.spec)

    assert model.notes == ()
    assert ledger.totals.stored == fact["params"]
    assert ledger.totals.non_embedding == fact["non_embedding_params"]
    assert {line.key: line.stored for line in ledger.lines if line.stored} == fact["breakdown"]


# --- How they compute ------------------------------------------------------------------------------------------------


def first(spec: Spec) -> tuple[Block, MultiHeadAttention]:
    """The first block, and its attention."""
    block = spec.layers[0].block
    assert isinstance(block, Block)
    assert isinstance(block.attention, MultiHeadAttention)
    return block, block.attention


#: What attention does beside scaled dot products of its own heads.
ATTENTION: dict[str, dict[str, Any]] = {
    "EleutherAI/gpt-neo-125m": {"scale": 1.0, "fused_by": "parts", "rotary": None},
    "EleutherAI/pythia-160m": {"fused_by": "groups"},
    "bigscience/bloom-560m": {"alibi": True, "fused_by": "groups", "rotary": None},
    "mosaicml/mpt-30b": {"alibi": True, "fused_by": "parts", "clip": None, "scale": None},
    "bigcode/starcoder": {"fused_by": "parts", "n_kv_heads": 1},
    "bigcode/starcoder2-15b": {"window": 4096, "n_kv_heads": 4},
    "tiiuae/falcon-7b": {"fused_by": "groups", "n_kv_heads": 1, "alibi": False},
    "tiiuae/falcon-180B": {"fused_by": "groups", "n_kv_heads": 8},
    "stabilityai/stablelm-2-12b": {"norm_over": "list", "norm_after_rotary": False},
    "karpathy/nanochat-d32": {"norm_over": "head", "norm_after_rotary": True},
}
ORDERS = {
    "EleutherAI/gpt-j-6b": "parallel",
    "EleutherAI/gpt-neox-20b": "parallel",
    "facebook/opt-125m": "pre",
    "facebook/opt-350m": "post",
    "tiiuae/falcon-40b": "parallel",
    "microsoft/phi-2": "parallel",
    "stabilityai/stablelm-2-1_6b": "pre",
    "stabilityai/stablelm-2-12b": "parallel",
    "bigscience/bloom-560m": "pre",
}
#: How much of each head is rotated, and whether neighbours are paired.
ROTATED = {
    "EleutherAI/gpt-j-6b": (64, True),
    "EleutherAI/pythia-160m": (16, False),
    "microsoft/phi-2": (32, False),
    "stabilityai/stablelm-2-1_6b": (16, False),
    "tiiuae/falcon-7b": (64, False),
    "bigcode/starcoder2-3b": (128, False),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_of_a_published_model(name: str) -> None:
    """What its scores are made of is in the part."""
    _, attention = first(resolve(published(name), {}).spec)
    assert {key: getattr(attention, key) for key in ATTENTION[name]} == ATTENTION[name]


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_a_published_model(name: str) -> None:
    """Norms stand before the parts or after the adds, or both parts read x."""
    assert first(resolve(published(name), {}).spec)[0].order == ORDERS[name]


@pytest.mark.parametrize("name", ROTATED)
def test_rotations_of_a_published_model(name: str) -> None:
    """As many features of each head are rotated as the config says."""
    _, attention = first(resolve(published(name), {}).spec)
    assert attention.rotary is not None
    assert (int(attention.d_head * attention.rotary.fraction), attention.rotary.interleaved) == ROTATED[name]


@pytest.mark.parametrize("size", range(2, 130))
def test_every_rotary_dim_is_a_fraction_of_a_head(size: int) -> None:
    """The fraction of a head that is rotated gives back the number of features, whatever floats make of it."""
    config = {"model_type": "gptj", "n_embd": size, "n_head": 1}
    for rotary_dim in range(2, size + 1, 2):
        rotary = first(resolve(config | {"rotary_dim": rotary_dim}, {}).spec)[1].rotary
        assert rotary is not None
        assert int(size * rotary.fraction) == rotary_dim


def test_every_other_layer_of_gpt_neo_sees_a_window() -> None:
    """Layers alternate as the file's patterns say, and go on so where there are more."""
    model = resolve(published("EleutherAI/gpt-neo-125m"), {})
    longer = resolve(published("EleutherAI/gpt-neo-125m"), {"n_layers": 13})

    assert [first_window(group.block) for group in model.spec.layers] == [None, 256] * 6
    assert [first_window(group.block) for group in longer.spec.layers] == [*([None, 256] * 6), None]


def first_window(block: Any) -> int | None:
    """The window of a block's attention."""
    window: int | None = block.attention.window
    return window


# --- Old names -------------------------------------------------------------------------------------------------------

FALCON_40B = {"hidden_size": 64, "bias": False, "alibi": False, "parallel_attn": True, "vocab_size": 30}
#: A file as it was published first, and as transformers' class has it.
RENAMED = [
    (
        FALCON_40B | {"model_type": "RefinedWeb", "n_layer": 2, "n_head": 8, "n_head_kv": 2},
        FALCON_40B
        | {"model_type": "falcon", "num_hidden_layers": 2, "num_attention_heads": 8, "num_kv_heads": 2}
        | {"new_decoder_architecture": True},
    ),
    (
        FALCON_40B | {"model_type": "RefinedWebModel", "n_layer": 2, "n_head": 8, "multi_query": True},
        FALCON_40B | {"model_type": "falcon", "num_hidden_layers": 2, "num_attention_heads": 8, "multi_query": True},
    ),
    (
        {"model_type": "stablelm_epoch", "hidden_size": 64, "num_heads": 4, "rope_pct": 0.5, "norm_eps": 1e-6}
        | {"num_key_value_heads": 4},
        {"model_type": "stablelm", "hidden_size": 64, "num_attention_heads": 4, "layer_norm_eps": 1e-6}
        | {"partial_rotary_factor": 0.5, "num_key_value_heads": 4},
    ),
    (
        {"model_type": "bloom", "n_embed": 48, "num_attention_heads": 4, "n_layer": 3, "seq_length": 20},
        {"model_type": "bloom", "hidden_size": 48, "n_head": 4, "num_hidden_layers": 3, "seq_length": 20},
    ),
    (
        {"model_type": "gpt_neox", "hidden_size": 64, "num_attention_heads": 4, "rotary_pct": 0.5}
        | {"rotary_emb_base": 5000},
        {"model_type": "gpt_neox", "hidden_size": 64, "num_attention_heads": 4}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 5000, "partial_rotary_factor": 0.5}},
    ),
    (
        {"model_type": "gpt-sw3", "n_embd": 12, "n_head": 3},
        {"model_type": "gpt2", "hidden_size": 12, "num_attention_heads": 3},
    ),
]


@pytest.mark.parametrize(("old", "new"), RENAMED, ids=[old["model_type"] for old, _ in RENAMED])
def test_an_old_file_is_the_model_that_the_class_makes(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Old names of model types and fields mean what they are called now, and are handed to transformers so."""
    ours = resolve(old, {})

    assert ours.notes == ()
    assert ours.spec == assert_same(new).spec
    theirs = {key: value for key, value in ours.huggingface.items() if key != "model_type"}
    assert class_config(theirs | {"model_type": ours.family.model_type}).to_dict() == class_config(new).to_dict()


def test_an_old_name_and_a_new_one_must_agree() -> None:
    """Two names of one field with two values are an error that quotes both."""
    with pytest.raises(GptcalcError, match=r"n_head=4 .*num_attention_heads=8"):
        resolve({"model_type": "falcon", "n_head": 4, "num_attention_heads": 8}, {})


# --- What is refused, or said ----------------------------------------------------------------------------------------

REFUSED = [
    ({"model_type": "falcon", "new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn: read False"),
    ({"model_type": "falcon", "num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn: read 2"),
    ({"model_type": "gptj", "rotary_dim": 3}, "rotary_dim: read 3; allowed: an even size up to d_head = 256"),
    ({"model_type": "gptj", "rotary_dim": 258}, "rotary_dim: read 258"),
    ({"model_type": "codegen", "n_head": 2}, "n_heads: read 2; allowed: a multiple of"),
    ({"model_type": "gpt_neo", "attention_types": [["global", 2]]}, "attention_types: read"),
    ({"model_type": "gpt_neo", "attention_types": [[["far"], 24]]}, "attention_types: read 'far'"),
    ({"model_type": "gpt_neo", "num_layers": 3, "attention_types": [[["global"], 2]]}, "layer_types: read 2 entries"),
    ({"model_type": "phi", "qk_layernorm": True, "head_dim": 8}, "d_head: read 8"),
    ({"model_type": "mpt", "attn_config": 3}, "attn_config: read 3; allowed: an object"),
    (
        {"model_type": "gpt_neo", "attention_types": [[["global"], 24]], "attention_layers": ["local"] * 24},
        "attention_types and attention_layers disagree",
    ),
]


@pytest.mark.parametrize(("config", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_no_class_can_run_is_refused(config: dict[str, Any], message: str) -> None:
    """The error says what was read and what is allowed."""
    with pytest.raises(GptcalcError, match=message):
        resolve(config, {})


COMPUTES = "changes how the model computes, not what it stores; that is not modelled"
SAID = [
    ({"model_type": "mpt", "no_bias": False}, "no_bias = False was not read: transformers' class has True alone"),
    ({"model_type": "mpt", "expansion_ratio": 2}, "expansion_ratio = 2 was not read: transformers' class has 4 alone"),
    (
        {"model_type": "mpt", "attn_config": {"qk_ln": True}},
        "attn_config.qk_ln = True was not read: transformers' class has False alone",
    ),
    (
        {"model_type": "bloom", "apply_residual_connection_post_layernorm": True},
        f"apply_residual_connection_post_layernorm = True {COMPUTES}",
    ),
    (
        {"model_type": "opt", "layerdrop": 0.1},
        f"layerdrop = 0.1 {COMPUTES}",
    ),
]


@pytest.mark.parametrize(("config", "note"), SAID, ids=[next(reversed(config)) for config, _ in SAID])
def test_what_is_not_modelled_is_said(config: dict[str, Any], note: str) -> None:
    """A field that would change the model, and does not change ours, has a note; the tensors are the class's."""
    assert assert_same(config, notes=True).notes == (note,)


# --- Overrides -------------------------------------------------------------------------------------------------------


def test_the_width_of_opt_changes_its_token_table() -> None:
    """A table as wide as the model stays so; the 350M model's narrow one stays as it is."""
    wide = resolve(published("facebook/opt-125m"), {"d_model": 512}).spec
    narrow = resolve(published("facebook/opt-350m"), {"d_model": 768}).spec

    assert wide.embedding_projection is None
    assert narrow.embedding_projection is not None
    assert {line.key: line.stored for line in parameters(narrow).lines}["embedding_proj"] == 2 * 768 * 512


@pytest.mark.parametrize(("name", "n_heads"), [("bigcode/starcoder", 48), ("tiiuae/falcon-7b", 71)])
def test_one_key_or_all(name: str, n_heads: int) -> None:
    """`n_kv_heads` switches a model of one key to all keys and back; nothing between has a class."""
    everything = resolve(published(name), {"n_kv_heads": n_heads})

    assert everything.family.heads[1] == n_heads
    assert resolve(published(name), {"n_kv_heads": 1}).changed == {}
    with pytest.raises(GptcalcError, match=f"n_kv_heads: read 5; allowed: 1 .multi_query., or n_heads = {n_heads}"):
        resolve(published(name), {"n_kv_heads": 5})


def test_the_new_falcons_have_any_number_of_keys() -> None:
    """Groups of heads share a key where the architecture is the newer one."""
    assert resolve(published("tiiuae/falcon-40b"), {"n_kv_heads": 16}).family.heads == (128, 16, 64)
