"""Which component a tensor of a transformers class is: rules on its name, and on shapes where several are fused.

The rules are this file's alone: the witness must be able to disagree with the inventory. A path is matched as a whole,
so that a tensor of a module that no rule knows is never taken for one that a rule does know: it is a component of its
own, `unknown: NAME`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ATTENTION = (
    r"(norm_attn_norm\.)?"
    r"(self_attn|attn|attn\.attention|attention|self_attention|multi_head_attention|mixer|temporal_block)(\.\d+)?"
)
MLP = r"(mlp|mlps\.\d+|ffn|feed_forward|block_sparse_moe|mixer|mlp_block)"
EXPERTS = rf"{MLP}\.experts(\.mlp|\.\d+)?"
SHARED = rf"({MLP}\.shared_(experts?|mlp)|shared_mlp)"
ROUTER = rf"({MLP}|self_attention\.experts)\.(gate|router|gate\.wg|router\.(layer|gate|classifier))"
NORM = r"(ln_\w+|norm_f|\w*(norm|layernorm|layer_norm)(_?\d)?)"

#: (path within a layer, without `.weight` or `.bias`, its components in equal shares); the first that matches counts.
LAYER = (
    (r"linear_attn\..+", "linear_attn"),
    (rf"{ATTENTION}\.(q|k|q_a|kv|kv_a|query|key)_(norm|layernorm)(\.norms\.\d+)?", "qk_norm"),
    (rf"{ATTENTION}\.sinks", "attn_sinks"),
    (rf"{ATTENTION}\.q_a_proj", "mla_q_a"),
    (rf"{ATTENTION}\.q_b_proj", "mla_q_b"),
    (rf"{ATTENTION}\.kv_a_proj_with_mqa", "mla_kv_a"),
    (rf"{ATTENTION}\.kv_b_proj", "mla_kv_b"),
    (rf"{ATTENTION}\.(q_proj|Wq)", "attn_q"),
    (rf"{ATTENTION}\.(k_proj|Wk)", "attn_k"),
    (rf"{ATTENTION}\.(v_proj|Wv)", "attn_v"),
    (rf"{ATTENTION}\.gate_proj", "attn_gate"),
    (rf"{ATTENTION}\.(o_proj|out_proj|c_proj|dense|Wo)", "attn_o"),
    # JetMoE's experts of attention: each has its own queries and output, over keys and values that all share
    (r"self_attention\.experts\.input_linear", "attn_q"),
    (r"self_attention\.experts\.output_linear", "attn_o"),
    (r"self_attention\.kv_proj", "attn_k attn_v"),
    (r"self_attention\.experts", "attn_o"),  # a bias
    (r"mlp", "experts_down"),  # a bias
    (rf"{ROUTER}|{MLP}\.(gate\.|gate\.moe_statics\.|router\.)?(e_score_correction_bias|expert_bias)", "router"),
    (rf"{MLP}\.shared_expert_gate", "shared_expert_gate"),
    (rf"{EXPERTS}\.(gate_proj|w1)", "experts_gate"),
    (rf"{EXPERTS}\.(up_proj|w3|v1)", "experts_up"),
    (rf"{EXPERTS}\.(down_proj|w2)|{MLP}\.output_linear", "experts_down"),
    (rf"{EXPERTS}\.gate_up_proj|{MLP}\.input_linear", "experts_gate experts_up"),
    (rf"{SHARED}\.gate_proj", "shared_experts_gate"),
    (rf"{SHARED}\.up_proj", "shared_experts_up"),
    (rf"{SHARED}\.(down_proj|output_linear)", "shared_experts_down"),
    (rf"{SHARED}\.(gate_up_proj|input_linear)", "shared_experts_gate shared_experts_up"),
    (rf"{MLP}\.(gate_proj|w1)", "mlp_gate"),
    (rf"({MLP}\.)?(up_proj|c_fc|fc1|fc_in|dense_h_to_4h|w3)|ffn\.0", "mlp_up"),
    (rf"({MLP}\.)?(down_proj|c_proj|fc2|fc_out|dense_4h_to_h|w2)|{MLP}\.Wo|ffn\.2", "mlp_down"),
    (rf"{MLP}\.(gate_up_proj|Wi)", "mlp_gate mlp_up"),
    (rf"(norm_attn_norm\.)?{NORM}(\.\d+)?|({MLP}|{ATTENTION})\.\w+_(sub_norm|mlp_layernorm)", "norm"),
)
#: The same for what stands outside of the layers.
OUTSIDE = (
    (r"(\w+\.)+(wte|tokens_embed|embed_tokens|embed_in|word_embeddings|tok_embeddings|w)", "embedding"),
    (r"(\w+\.)+(wpe|positions_embed|embed_positions)", "positions"),
    (r"(\w+\.)+project_(in|out)", "embedding_proj"),
    (r"lm_head|embed_out|output_projection|decoder", "unembedding"),
    (rf"(\w+\.)+{NORM}", "norm"),
)
#: Query, key and value in one tensor, which grouped heads share unequally.
QKV = re.compile(rf"(?P<module>(?:.*\.)?{ATTENTION})\.(c_attn|qkv_proj|query_key_value|Wqkv)\.(?P<leaf>weight|bias)")
OUTPUT = ("c_proj", "dense", "out_proj", "o_proj")
#: What stands in a module of attention only if it is linear: all its tensors belong to it then, whatever their names.
LINEAR = re.compile(r"(?P<module>.*\.self_attn)\.(A_log|forget_gate\..+|output_gate\.weight)")
#: Tensors of which a token goes through those of its own experts alone.
ROUTED = re.compile(rf"(.*\.)?({EXPERTS}\.\w+|{MLP}\.(in|out)put_linear|self_attention\.experts\.\w+_linear)(\.\w+)?")
NUMBERED = re.compile(r".*\.experts\.\d+\..*")

#: Components that a bias is part of; every other has a component for its biases.
WHOLE = ("linear_attn", "qk_norm", "attn_sinks")
#: Fields of configs that say how many routed experts there are, and how many of them a token goes through.
N_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
N_ACTIVE = ("num_experts_per_tok", "moe_top_k", "moe_topk", "moe_k", "num_experts_per_token", "top_k_experts")


def components(tensors: Mapping[str, "Tensor"]) -> Counter[str]:
    """Elements of each component; a tied tensor counts under every name that `tensors` has for it."""
    counted: Counter[str] = Counter()
    for key, elements in itemise(tensors):
        counted[key] += elements
    return counted


def itemise(tensors: Mapping[str, "Tensor"]) -> Iterator[tuple[str, int]]:
    """(component, elements) of every tensor; several for a tensor that holds several."""
    linear = {found["module"] for found in map(LINEAR.fullmatch, tensors) if found}
    for name, tensor in tensors.items():
        if any(name.startswith(f"{module}.") for module in linear):
            yield "linear_attn", tensor.numel()
        elif fused := QKV.fullmatch(name):
            yield from _qkv(fused["module"], fused["leaf"], tensor, tensors)
        else:
            keys = components_of(name)
            yield from ((key, tensor.numel() // len(keys)) for key in keys)


def components_of(name: str) -> tuple[str, ...]:
    """The components that the tensor `name` holds in equal shares."""
    path = re.sub(r"(\.weight|\.bias|(?<=_proj)_bias|(?<=dense)_bias)$", "", name)
    layer = re.match(r".*?\.\d+\.(.+)", path)
    path, rules = (layer[1], LAYER) if layer else (path, OUTSIDE)
    keys = next((keys for pattern, keys in rules if re.fullmatch(pattern, path)), "")
    biased = name.endswith("bias")
    return tuple(_component(key, biased=biased) for key in keys.split()) or (f"unknown: {name}",)


def active(tensors: Mapping[str, "Tensor"], config: Any) -> int | None:
    """Unique parameters that one token uses: all, but of the routed experts only those that it goes through.

    None where the config does not say how many these are, or where some of them may be experts without weights.
    """
    unique = {id(tensor): (name, tensor) for name, tensor in reversed([*tensors.items()])}.values()
    stored: int = sum(tensor.numel() for _, tensor in unique)
    experts: int = sum(tensor.numel() for name, tensor in unique if _routed(name, tensor))
    if not experts:
        return stored
    of, used = _field(config, N_EXPERTS), _field(config, N_ACTIVE)
    if of is None or used is None or _field(config, ("zero_expert_num",)):
        return None
    return stored - experts * (of - used) // of


def _qkv(module: str, leaf: str, tensor: "Tensor", tensors: Mapping[str, "Tensor"]) -> Iterator[tuple[str, int]]:
    """Queries are as wide as what the output projection takes in; keys and values share the rest."""
    outputs = (tensors.get(f"{module}.{name}.weight") for name in OUTPUT)
    output = next((output for output in outputs if output is not None), None)
    queries, suffix = tensor.numel() // 3, "_bias" if leaf == "bias" else ""
    if output is not None:
        queries = output.numel() if leaf == "weight" else output.shape[1]
    yield f"attn_q{suffix}", queries
    yield from ((f"attn_{key}{suffix}", (tensor.numel() - queries) // 2) for key in "kv")


def _component(key: str, *, biased: bool) -> str:
    if key == "norm":
        return "norm_bias" if biased else "norm_weight"
    if not biased or key in WHOLE:
        return key
    if key.startswith("experts"):
        return "experts_bias"
    return "lm_head_bias" if key == "unembedding" else f"{key}_bias"


def _routed(name: str, tensor: "Tensor") -> bool:
    """A vector without a number of its expert is added for all of them, as JetMoE's bias is."""
    return bool(ROUTED.fullmatch(name)) and (tensor.ndim > 1 or bool(NUMBERED.fullmatch(name)))


def _field(config: Any, names: tuple[str, ...]) -> int | None:
    """The first of `names` that the config or its part for the MLP has as a number."""
    parts: tuple[Any, ...] = (config, getattr(config, "ffn_config", None))
    found = [getattr(part, name, None) for part in parts for name in names]
    numbers: list[int] = [value for value in found if isinstance(value, int)]
    return numbers[0] if numbers else None
