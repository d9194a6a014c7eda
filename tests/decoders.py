"""The causal decoders of the installed transformers, each at toy size on the meta device; run it for the table."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from gptcalc.witness.findings import stored_elements
from gptcalc.witness.tensor_names import active, components

#: Sizes of a toy by field name (a pattern of the whole name, lower case); the first that matches counts.
SIZES = (
    (r"(num_(hidden_|decoder_)?|decoder_|n_)layers?", 4),
    (r"hidden_size|n_embd|d_model|dim|emb(edding)?_dim|word_embed_proj_dim|lru_width|attention_hidden_size", 64),
    (r"\w*vocab_size\w*", 101),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|original_max_position_embeddings", 40),
    (r"(num_|n_|decoder_)?(attention_)?heads?|(swa_|linear_)?num_(attention_|global_)?heads|linear_num_value_heads", 4),
    (r"\w*(num_key_value_heads|num_global_key_value_heads|num_kv_heads|kv_n_heads)|linear_num_key_heads", 2),
    (r"(swa_|global_)?(v_)?head_dim|attention_head_dim|kv_channels", 16),
    (r"(qk_(nope|rope)|linear_(key|value))_head_dim|rotary_dim", 8),
    (r"\w*lora_rank", 24),
    (r"intermediate_size(_mlp)?|n_inner|d_ff|dff|dim_ff|\w*ffn_dim|ffn_hidden_size|feed_forward_size", 96),
    (r"(moe|expert|shared|dense)_\w*(size|dim)", 48),
    (r"num_(local_)?experts|n_routed_experts|moe_num_experts|num_routed_experts", 8),
    (r"(moe_)?num_experts_per_tok(en)?|moe_top_?k|moe_k|num_selected_experts|top_?k_experts", 2),
    (r"first_k_dense_replace|num_dense_layers|n_group|topk_group|(n|num|moe_num)_shared_experts", 1),
    (r"sliding_window(_size)?|attention_chunk_size|\w*window_size", 8),
)
#: What a class cannot be built without, and its config leaves open.
NEEDED = re.compile(r"head_dim|num_key_value_heads|n_(routed|shared)_experts|num_experts_per_tok")
#: What only this class needs to be small, or to be built at all.
OWN: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10_000.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 48, "moe_num_experts": 8, "moe_top_k": 2},
    },
    "gemma3n_text": {"intermediate_size": [96] * 4, "num_kv_shared_layers": 0, "num_key_value_heads": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoeshared": {"shared_intermediate_size": 48},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
        "num_key_value_heads": 2,
    },
}
#: How much of a class is made small, tried in this order: (sizes, whether what is left open is filled).
ATTEMPTS = ((SIZES, True), (SIZES, False), ((SIZES[0], SIZES[2]), True), ((SIZES[2],), False), ((), False))
#: A toy that is no larger than this is run to see whether it is causal.
RUN = 20_000_000

#: Parts of a config that are no configs of models.
PARTS = {"attn_config", "ffn_config"}
CROSS = re.compile(r"encoder_attn|cross_?attn|cross_?attention")
#: What the names of tensors say of layers that are neither attention, linear or not, nor MLP.
RECURRENT = re.compile(r"mamba|ssm|rg_lru|time_mix|mlstm|\.mixer\.(A_log|conv1d)")


DECODER_OF_TWO = "an encoder-decoder, of which the class is the decoder with its cross-attention"


class Decoder(NamedTuple):
    """What a `model_type` of transformers' causal language models is, and what its toy holds.

    `reason` says why it is no plain decoder of text; empty where it is one. Everything after it is empty or 0 where
    the class was not built. `config` are the keywords of the toy's config class, `breakdown` sums to the unique
    `parameters`, `causal` is what a run of the toy showed, None where it was not run.
    """

    model_type: str
    class_name: str
    reason: str
    config: Mapping[str, Any] = {}
    parameters: int = 0
    breakdown: Mapping[str, int] = {}
    active: int | None = None
    causal: bool | None = None

    @property
    def unknown(self) -> tuple[str, ...]:
        """Tensors that the witness cannot assign to a component, by name, with N for the layer."""
        names = (key.removeprefix("unknown: ") for key in self.breakdown if key.startswith("unknown: "))
        return tuple(dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".N", name) for name in names))


def model_types() -> dict[str, str]:
    """Every `model_type` that transformers lists as a causal language model, and the name of its class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@cache
def decoder(model_type: str) -> Decoder:
    """What `model_type` is, with the counts of its toy; whatever transformers raises becomes the reason."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    name = model_types()[model_type]
    try:
        config_class: Any = CONFIG_MAPPING[model_type]
        reason = _by_config(config_class)
        if reason:
            return Decoder(model_type, name, reason)
        config, module = toy(config_class, name)
    except Exception as error:  # noqa: BLE001  189 classes have 189 ways to fail, and each is an answer
        reason = f"cannot be built: {type(error).__name__}: {_first_line(error)}"
        return Decoder(model_type, name, (_by_default(config_class) if "is_decoder" in str(error) else "") or reason)
    tensors = dict(module.named_parameters())
    stored = stored_elements(tensors.values())
    reason = _by_tensors(tensors)
    causal = is_causal(config_class, name, config) if stored < RUN and not reason else None
    if not causal:
        reason = reason or _by_default(config_class)
    if causal is False:
        reason = reason or "not causal: a later token changes what is said of earlier ones"
    counts = stored, components(tensors), active(tensors, module.config)
    return Decoder(model_type, name, reason, config, *counts, causal)


def toy(config_class: Any, name: str) -> tuple[dict[str, Any], Any]:
    """The smallest config of a class that it accepts, as keywords, and the module on the meta device."""
    refused: Exception | None = None
    for sizes, fill in ATTEMPTS:
        try:
            fields = _shrunk(config_class, sizes, fill=fill)
            return fields, _build(config_class, name, fields, "meta")
        except Exception as error:  # noqa: BLE001  see decoder()
            refused = refused or error
    raise refused or AssertionError


def is_causal(config_class: Any, name: str, fields: Mapping[str, Any]) -> bool | None:
    """Whether a toy with random weights says the same of earlier tokens when the last one changes; None if unknown."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for toys, several cost more than they save
    try:
        torch.manual_seed(0)
        module = _build(config_class, name, fields, "cpu").eval()
        tokens = torch.arange(3, 12)[None]
        changed = tokens.clone()
        changed[0, -1] = 20
        with torch.no_grad():
            before, after = (module(input_ids=ids, use_cache=False).logits[0, :-1] for ids in (tokens, changed))
    except Exception:  # noqa: BLE001  it could not be run; its tensors are known all the same
        return None
    finally:
        torch.set_num_threads(threads)
    return bool(torch.allclose(before, after, atol=1e-5)) if bool(before.isfinite().all()) else None


def _build(config_class: Any, name: str, fields: Mapping[str, Any], device: str) -> Any:
    import torch
    import transformers

    with torch.device(device), warnings.catch_warnings(action="ignore"):
        return getattr(transformers, name)(config_class(**fields))


def _shrunk(config_class: Any, sizes: tuple[tuple[str, int], ...], *, fill: bool) -> dict[str, Any]:
    """Keywords that make the config small: sizes by their names, lists of one entry per layer cut to the layers."""
    whole = config_class()
    given = {field: getattr(whole, field) for field in _fields(config_class, whole)}
    fields: dict[str, Any] = {}
    for field, value in given.items():
        size = next((size for pattern, size in sizes if re.fullmatch(pattern, field.lower())), 0)
        small = type(value) is int and value > size
        if size and (small or (fill and value is None and NEEDED.fullmatch(field))):
            fields[field] = size
    depths = [(given[field], fields[field]) for field in fields if re.fullmatch(SIZES[0][0], field)]
    for before, after in depths if sizes is SIZES else ():
        fields |= {f: value[:after] for f, value in given.items() if isinstance(value, list) and len(value) == before}
    if "vocab_size" in fields:
        fields |= {field: 1 for field, value in given.items() if _is_token(field, value, fields["vocab_size"])}
    return fields | OWN.get(config_class.model_type, {}) if sizes is SIZES else fields


def _fields(config_class: Any, whole: Any) -> Iterator[str]:
    for field in dataclasses.fields(config_class):
        try:
            getattr(whole, field.name)
        except Exception:  # noqa: BLE001, S112  fields that differ by layer have no one value
            continue
        yield field.name


def _is_token(field: str, value: Any, n_vocab: int) -> bool:
    return field.endswith("_token_id") and isinstance(value, int) and value >= n_vocab


def _by_config(config_class: Any) -> str:
    """Why the config alone says that the class is no plain decoder of text."""
    if parts := {key: value for key, value in config_class.sub_configs.items() if key not in PARTS}:
        text = getattr(parts.get("text_config"), "model_type", "")
        return f"a wrapper of several models ({', '.join(sorted(parts))})" + (
            f"; its text model is {text}" * bool(text)
        )
    default = {field.name: field.default for field in dataclasses.fields(config_class)}
    return DECODER_OF_TWO if default.get("is_encoder_decoder") or default.get("add_cross_attention") else ""


def _by_tensors(tensors: Mapping[str, Any]) -> str:
    """Why the tensors say that the class is no plain decoder."""
    if any(CROSS.search(name) for name in tensors):
        return DECODER_OF_TWO
    return "state-space or recurrent layers" if any(map(RECURRENT.search, tensors)) else ""


def _by_default(config_class: Any) -> str:
    default = {field.name: field.default for field in dataclasses.fields(config_class)}
    return "an encoder, unless is_decoder is set" if default.get("is_decoder") is False else ""


def _first_line(error: Exception) -> str:
    return " ".join((str(error).strip().splitlines() or ["no message"])[:2])[:120]


def table() -> str:
    """One line for each `model_type`: class, parameters and active ones of its toy, what it is, what is unknown."""
    import transformers

    transformers.logging.set_verbosity_error()
    found = [decoder(model_type) for model_type in model_types()]
    kinds = Counter(re.sub(r"[:(].*", "", seen.reason).strip() or "decoder" for seen in found)
    return "\n".join([*map(_line, found), "", *(f"{count:4} {kind}" for kind, count in kinds.most_common())])


def _line(seen: Decoder) -> str:
    counts = f"{seen.parameters:>14,} {'?' if seen.active is None else format(seen.active, ','):>14}"
    causal = {True: "causal", False: "not causal", None: "not run"}[seen.causal]
    unknown = f" · unknown: {' '.join(seen.unknown)}" if seen.unknown else ""
    return f"{seen.model_type:26} {seen.class_name:40} {counts} {causal:10} {seen.reason or 'decoder'}{unknown}"


if __name__ == "__main__":
    print(table())  # noqa: T201
