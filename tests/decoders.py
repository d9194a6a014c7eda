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
    (r"(num_|n_|decoder_)?(attention_)?heads?|(swa_|linear_)?num_(attention_|global_)?heads", 4),
    (r"\w*(num_key_value_heads|num_global_key_value_heads|num_kv_heads|kv_n_heads)", 2),
    (r"(swa_|global_)?(v_)?head_dim|attention_head_dim|kv_channels", 16),
    (r"qk_(nope|rope)_head_dim|rotary_dim", 8),
    (r"\w*lora_rank", 24),
    (r"intermediate_size(_mlp)?|n_inner|d_ff|dff|dim_ff|\w*ffn_dim|ffn_hidden_size|feed_forward_size", 96),
    (r"(moe|expert|shared|dense)_\w*(size|dim)", 48),
    (r"num_(local_)?experts|n_routed_experts|moe_num_experts|num_routed_experts", 8),
    (r"(moe_)?num_experts_per_tok(en)?|moe_top_?k|moe_k|num_selected_experts|top_?k_experts", 2),
    (r"first_k_dense_replace|num_dense_layers|n_group|topk_group|(n|num|moe_num)_shared_experts", 1),
    (r"sliding_window(_size)?|attention_chunk_size|\w*window_size", 8),
)
#: How much of a class is made small, tried in this order: everything, what can be cut anywhere, nothing.
ATTEMPTS = (SIZES, SIZES[:1] + SIZES[2:3], SIZES[2:3], ())

#: What the names of tensors say of layers that are neither attention nor MLP.
RECURRENT = re.compile(r"A_log$|mamba|ssm|rglru|\.mixer\.|time_mix|time_decay|xlstm|mlstm")
ATTENTION = re.compile(r"attn|attention|[qk]_proj|qkv")


class Decoder(NamedTuple):
    """What a `model_type` of transformers' causal language models is, and what its toy holds.

    `reason` says why it is no plain decoder of text; empty where it is one. Everything after it is empty or 0 where
    the class could not be built.
    """

    model_type: str
    class_name: str
    reason: str
    config: Mapping[str, Any] = {}
    parameters: int = 0
    breakdown: Mapping[str, int] = {}
    active: int | None = None

    @property
    def unknown(self) -> tuple[str, ...]:
        """Tensors that the witness cannot assign to a component, by name."""
        return tuple(key.removeprefix("unknown: ") for key in self.breakdown if key.startswith("unknown: "))


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
        return Decoder(model_type, name, f"cannot be built: {type(error).__name__}: {_first_line(error)}")
    tensors = dict(module.named_parameters())
    counts = stored_elements(tensors.values()), components(tensors), active(tensors, module.config)
    return Decoder(model_type, name, _by_tensors(tensors), config, *counts)


def toy(config_class: Any, name: str) -> tuple[dict[str, Any], Any]:
    """The smallest config of a class that it accepts, as keywords, and the module on the meta device."""
    refused: Exception | None = None
    for sizes in ATTEMPTS:
        fields = _shrunk(config_class, sizes)
        try:
            return fields, _build(config_class, name, fields)
        except Exception as error:  # noqa: BLE001  see decoder()
            refused = refused or error
    raise refused or AssertionError


def _build(config_class: Any, name: str, fields: Mapping[str, Any]) -> Any:
    import torch
    import transformers

    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        return getattr(transformers, name)(config_class(**fields))


def _shrunk(config_class: Any, sizes: tuple[tuple[str, int], ...]) -> dict[str, Any]:
    """Keywords that make the config small: sizes by their names, lists of one entry per layer cut to the layers."""
    whole = config_class()
    given = {field: getattr(whole, field) for field in _fields(config_class, whole)}
    fields = {
        field: size
        for field, value in given.items()
        for size in [next((size for pattern, size in sizes if re.fullmatch(pattern, field.lower())), None)]
        if size is not None and type(value) is int and value > size
    }
    depths = [(given[field], fields[field]) for field in fields if re.fullmatch(SIZES[0][0], field)]
    for before, after in depths if sizes is SIZES else ():
        fields |= {f: value[:after] for f, value in given.items() if isinstance(value, list) and len(value) == before}
    if "vocab_size" in fields:
        fields |= {field: None if field == "pad_token_id" else 1 for field in given if _is_token(field, given[field])}
    return fields


def _fields(config_class: Any, whole: Any) -> Iterator[str]:
    for field in dataclasses.fields(config_class):
        try:
            getattr(whole, field.name)
        except Exception:  # noqa: BLE001, S112  fields that differ by layer have no one value
            continue
        yield field.name


def _is_token(field: str, value: Any) -> bool:
    return field.endswith("_token_id") and isinstance(value, int) and value > 100


def _by_config(config_class: Any) -> str:
    """Why the config alone says that the class is no plain decoder of text."""
    if config_class.sub_configs:
        parts = ", ".join(sorted(config_class.sub_configs))
        return f"a wrapper of several models ({parts})"
    default = {field.name: field.default for field in dataclasses.fields(config_class)}
    if default.get("is_encoder_decoder") or default.get("add_cross_attention"):
        return "an encoder-decoder, of which the class is the decoder with its cross-attention"
    if "is_decoder" in default and not default["is_decoder"]:
        return "an encoder, unless is_decoder is set"
    return ""


def _by_tensors(tensors: Mapping[str, Any]) -> str:
    """Why the tensors say that the class is no plain decoder: cross-attention, recurrence."""
    if any(re.search(r"encoder_attn|cross_?attn|crossattention", name) for name in tensors):
        return "an encoder-decoder, of which the class is the decoder with its cross-attention"
    if any(RECURRENT.search(name) for name in tensors if "linear_attn" not in name):
        attends = any(ATTENTION.search(name) for name in tensors)
        return "a hybrid of attention and state-space layers" if attends else "a state-space or recurrent model"
    return ""


def _first_line(error: Exception) -> str:
    return " ".join((str(error).strip().splitlines() or ["no message"])[:2])[:120]


def table() -> str:
    """One line for each `model_type`: its class, its toy's parameters, what stands in the way, what is unknown."""
    import transformers

    transformers.logging.set_verbosity_error()
    found = [decoder(model_type) for model_type in model_types()]
    lines = [
        f"{seen.model_type:28} {seen.class_name:40} {seen.parameters:>12,}  "
        f"{seen.reason or 'decoder'}{' · unknown: ' + ' '.join(seen.unknown) if seen.unknown else ''}"
        for seen in found
    ]
    kinds = Counter(re.sub(r"[:(].*", "", seen.reason).strip() or "decoder" for seen in found)
    return "\n".join([*lines, "", *(f"{count:4} {kind}" for kind, count in kinds.most_common())])


if __name__ == "__main__":
    print(table())  # noqa: T201
