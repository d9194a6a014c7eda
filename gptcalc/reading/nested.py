"""The language model inside a multimodal one, as transformers finds it: which object, of which type, tied by whom."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from gptcalc.errors import InvalidValueError, shown
from gptcalc.reading.record import Unread

#: Where a config keeps its language model, in the order in which they are looked for.
TEXT = ("text_config", "llm_config", "language_config", "language_model_config", "thinker_config")

#: Whose `tie_word_embeddings` ties: the outer object's (with its class's default), either's, the language model's own,
#: or nobody's.
Tie = Literal["outer, default true", "outer, default false", "either", "own", "never"]


class Multimodal(NamedTuple):
    """What transformers makes of the language model in an outer config: its type where none is given, its tie."""

    text: str
    tie: Tie


#: transformers 5.23's config classes: `sub_configs_defaults`, and which field ties, seen on classes built on the meta
#: device (tests/test_reading.py builds some of them again).
MULTIMODAL = {
    "aria": Multimodal("aria_text", "outer, default false"),
    "aya_vision": Multimodal("cohere2", "outer, default true"),
    "cohere2_vision": Multimodal("cohere2", "outer, default true"),
    "deepseek_vl": Multimodal("llama", "outer, default true"),
    "deepseek_vl_hybrid": Multimodal("llama", "outer, default true"),
    "fuyu": Multimodal("persimmon", "outer, default false"),
    "gemma3": Multimodal("gemma3_text", "outer, default true"),
    "gemma4": Multimodal("gemma4_text", "outer, default true"),
    "glm4v": Multimodal("glm4v_text", "either"),
    "glm4v_moe": Multimodal("glm4v_moe_text", "either"),
    "got_ocr2": Multimodal("qwen2", "outer, default true"),
    "granite_speech": Multimodal("granite", "outer, default true"),
    "idefics2": Multimodal("mistral", "outer, default false"),
    "idefics3": Multimodal("llama", "outer, default false"),
    "internvl": Multimodal("qwen2", "outer, default true"),
    "janus": Multimodal("llama", "outer, default true"),
    "kimi_k25": Multimodal("deepseek_v3", "outer, default true"),
    "lfm2_vl": Multimodal("lfm2", "outer, default true"),
    "lighton_ocr": Multimodal("qwen3", "outer, default true"),
    "llama4": Multimodal("llama4_text", "own"),
    "llava": Multimodal("llama", "either"),
    "llava_next": Multimodal("llama", "outer, default false"),
    "llava_next_video": Multimodal("llama", "either"),
    "llava_onevision": Multimodal("qwen2", "either"),
    "mistral3": Multimodal("mistral", "outer, default true"),
    "ovis2": Multimodal("qwen2", "outer, default true"),
    "paligemma": Multimodal("gemma", "outer, default true"),
    "qwen2_5_omni_thinker": Multimodal("qwen2_5_omni_text", "outer, default false"),
    "qwen2_5_vl": Multimodal("qwen2_5_vl_text", "either"),
    "qwen2_audio": Multimodal("qwen2", "never"),
    "qwen2_vl": Multimodal("qwen2_vl_text", "either"),
    "qwen3_5": Multimodal("qwen3_5_text", "outer, default false"),
    "qwen3_5_moe": Multimodal("qwen3_5_moe_text", "outer, default false"),
    "qwen3_omni_moe_thinker": Multimodal("qwen3_omni_moe_text", "outer, default false"),
    "qwen3_vl": Multimodal("qwen3_vl_text", "outer, default false"),
    "qwen3_vl_moe": Multimodal("qwen3_vl_moe_text", "outer, default false"),
    "smolvlm": Multimodal("llama", "outer, default false"),
    "video_llama_3": Multimodal("qwen2", "either"),
    "video_llava": Multimodal("llama", "outer, default false"),
    "vipllava": Multimodal("llama", "outer, default false"),
    "voxtral": Multimodal("llama", "never"),
}

#: Language models inside multimodal ones whose tensors are those of another type: only the rotary positions differ.
#: Their classes' defaults differ too, so these fields must stand in the file.
SAME_WEIGHTS = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_5_omni_text": "qwen2",
    "qwen3_omni_moe_text": "qwen3_moe",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    "intermediate_size",
)
#: More sizes that must stand in the file, by the type that it is counted as.
MORE_SIZES = {
    "qwen3": ("head_dim",),
    "qwen3_moe": ("head_dim", "moe_intermediate_size", "num_experts", "num_experts_per_tok"),
}


def text_key(fields: Mapping[str, object]) -> str | None:
    """The key of the language model in a multimodal config."""
    return next((key for key in TEXT if isinstance(fields.get(key), Mapping)), None)


def language_model(
    outer: Mapping[str, object], where: str, known: list[str]
) -> tuple[Mapping[str, object], tuple[str, ...]]:
    """The language model of a config, and a note of what was left out; the config itself where it is one.

    `known` are the types that gptcalc counts.
    """
    key = text_key(outer)
    if key is None:
        return _flat(outer, where, known)
    path, fields = key, outer
    inner = _mapping(outer[key])
    while (deeper := text_key(inner)) is not None:
        name = inner.get("model_type") or f"{_word(fields.get('model_type'))}_{path.removesuffix('_config')}"
        fields, inner, path = {**inner, "model_type": name}, _mapping(inner[deeper]), f"{path}.{deeper}"
    kind = MULTIMODAL.get(_word(fields.get("model_type")))
    text = dict(inner)
    if text.get("model_type") is None:
        if kind is None:
            raise InvalidValueError(
                f"{where}: {path}: model_type is missing, and {_named(fields)} has no default known here"
            )
        text["model_type"] = kind.text
    tied = _tied(fields, text, kind, f"{where}: {path}")
    why_tied = _tie_note(fields, text, tied)
    text |= tied
    text, notes = _as_known(text, f"{where}: {path}", known)
    others = [name for name, value in outer.items() if isinstance(value, Mapping) and name.endswith("_config")]
    left = [name for name in others if name not in (key, "quantization_config", "generation_config")]
    leaving = f"; left out: {', '.join(left)}" if left else "; what else it has is left out"
    return text, (f"{_named(outer)}: its language model is counted ({path}){leaving}", *why_tied, *notes)


def _flat(fields: Mapping[str, object], where: str, known: list[str]) -> tuple[Mapping[str, object], tuple[str, ...]]:
    """An old config of a multimodal model that keeps the language model's fields beside the others."""
    kind = MULTIMODAL.get(_word(fields.get("model_type")))
    if kind is None or "hidden_size" not in fields:
        return fields, ()
    others = [key for key, value in fields.items() if isinstance(value, Mapping) and key.endswith("_config")]
    left = [key for key in others if key != "quantization_config"]
    text = {key: value for key, value in fields.items() if key not in left} | {"model_type": kind.text}
    tied = _tied(fields, text, kind, where)
    why_tied = _tie_note(fields, text, tied)
    text |= tied
    text, notes = _as_known(text, where, known)
    leaving = f"; left out: {', '.join(left)}" if left else ""
    return text, (f"{_named(fields)}: its language model is counted{leaving}", *why_tied, *notes)


def _as_known(text: dict[str, object], where: str, known: list[str]) -> tuple[dict[str, object], tuple[str, ...]]:
    """The same tensors under a type that is counted, where the config's own is not."""
    own = _word(text["model_type"])
    same = SAME_WEIGHTS.get(own)
    if same is None or own in known:
        return text, ()
    for key in (*SIZES, *MORE_SIZES.get(same, ())):
        if text.get(key) is None:
            raise InvalidValueError(
                f"{where}: {key} is missing, and {own} is counted as {same}, which has other defaults"
            )
    return text | {"model_type": same}, (f"{own} is counted as {same}: the same tensors, other rotary positions",)


def _tied(
    outer: Mapping[str, object], text: Mapping[str, object], kind: Multimodal | None, where: str
) -> dict[str, object]:
    """`tie_word_embeddings` as transformers' class of the outer config decides; nothing where the text's own holds."""
    key = "tie_word_embeddings"
    said, own = outer.get(key), text.get(key)
    if isinstance(said, Unread) or isinstance(own, Unread):
        raise InvalidValueError(f"{where}: {key}: only running the file could tell; allowed: true or false")
    match kind.tie if kind else "unknown":
        case "outer, default true":
            return {key: True if said is None else said}
        case "outer, default false":
            return {key: False if said is None else said}
        case "either" if said is True:
            return {key: True}
        case "never":
            return {key: False}
        case "unknown" if said is not None and own is not None and said != own:
            raise InvalidValueError(
                f"{where}: read {key}={shown(own)}, and {shown(said)} in the outer object, whose class is not known;"
                " give the language model's config alone"
            )
        case "unknown" if own is None and said is not None:
            return {key: said}
    return {}


def _tie_note(outer: Mapping[str, object], text: Mapping[str, object], tied: Mapping[str, object]) -> tuple[str, ...]:
    """Where the tables are tied, or not, against what the language model by itself would have."""
    from gptcalc.families import find_family, is_known

    key = "tie_word_embeddings"
    now, own, name = tied.get(key), text.get(key), text.get("model_type")
    if own is None and is_known(name):
        own = find_family(name, "").defaults.get("tied")
    if not isinstance(now, bool) or outer.get(key) is not None or own == now:
        return ()
    verb, option = ("ties", "--untied") if now else ("does not tie", "--tied")
    whole = shown(outer.get("model_type"))
    return (f"transformers' class of {whole} {verb} where {key} is missing from the outer object; else {option}",)


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _word(value: object) -> str:
    return value if isinstance(value, str) else ""


def _named(fields: Mapping[str, object]) -> str:
    return f"{shown(fields['model_type'])} is multimodal" if _word(fields.get("model_type")) else "a multimodal config"
