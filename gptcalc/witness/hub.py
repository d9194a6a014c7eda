"""The second witness: the class that transformers has for the model, built from its published hyperparameters.

It tests what the reference module cannot: that the family read the hyperparameters as transformers does. Components are
told apart by the names of the class's tensors, with rules of this file alone.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from gptcalc.catalog import Resolved
from gptcalc.errors import GptcalcError
from gptcalc.installed import need_torch
from gptcalc.inventory import Weight
from gptcalc.ledger.evidence import Evidence
from gptcalc.witness.findings import Built, compare, stored_elements

if TYPE_CHECKING:
    from torch import Tensor

WITNESS = "transformers"

#: (what ends a tensor's name, its component); the first that matches counts.
ENDINGS = (
    (r"(wte|tokens_embed|embed_tokens)\.weight", "embedding"),
    (r"(wpe|positions_embed)\.weight", "positions"),
    (r"lm_head\.weight", "unembedding"),
    (r"(attn\.c_proj|o_proj)\.(weight|bias)", "attn_o"),
    (r"q_proj\.(weight|bias)", "attn_q"),
    (r"k_proj\.(weight|bias)", "attn_k"),
    (r"v_proj\.(weight|bias)", "attn_v"),
    (r"(c_fc|mlp\.up_proj)\.(weight|bias)", "mlp_up"),
    (r"mlp\.gate_proj\.(weight|bias)", "mlp_gate"),
    (r"(mlp\.c_proj|mlp\.down_proj)\.(weight|bias)", "mlp_down"),
    (r"experts\.down_proj", "experts_down"),
    (r"mlp\.gate\.weight", "router"),
    (r"(ln_\w+|\w*norm)\.weight", "norm_weight"),
    (r"(ln_\w+|\w*norm)\.bias", "norm_bias"),
)
#: Tensors that hold several components in equal shares.
FUSED = (
    (r"c_attn\.(weight|bias)", ("attn_q", "attn_k", "attn_v")),
    (r"experts\.gate_up_proj", ("experts_gate", "experts_up")),
)


def installed() -> bool:
    """Whether transformers can be imported, found out without importing it."""
    return find_spec("transformers") is not None


def transformers_class(model: Resolved, rows: Sequence[Weight]) -> Evidence:
    """Compare `rows` with the transformers class, or say why there is none to compare with."""
    reason = _not_expressible(model)
    if not installed():
        reason = "transformers is not installed"
    if reason:
        return Evidence(WITNESS, "family mapping not checked", skipped=reason)
    try:
        module, version = _build(model)
    except Exception as error:  # noqa: BLE001  whatever transformers raises, it is its word on this config
        return Evidence(WITNESS, "family mapping not checked", skipped=f"transformers refuses it ({_last_line(error)})")
    tensors = dict(module.named_parameters(remove_duplicate=False))
    components: Counter[str] = Counter()
    for key, elements in _itemise(tensors):
        components[key] += elements
    built = Built(tensors, components, _active(tensors, module.config))
    subject = f"{type(module).__name__}, transformers {version}"
    return Evidence(WITNESS, subject, len(tensors), stored_elements(tensors.values()), compare(rows, built))


def _not_expressible(model: Resolved) -> str:
    """Why no config of the transformers class gives this model; empty where one does."""
    family = type(model.family)
    known = {key: value for key, value in model.huggingface.items() if key in family.names() and value is not None}
    try:
        plain = family.load(family.translate(known, model.name), model.name)
        if plain.spec() == model.spec:
            return ""
    except GptcalcError as error:
        return f"no transformers config gives this model ({error})"
    ours, theirs = model.family.resolved(), plain.resolved()
    differing = ", ".join(f"{key} = {ours[key]}" for key in ours if ours[key] != theirs[key])
    return f"no transformers config has {differing}"


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _build(model: Resolved) -> tuple[Any, str]:
    torch = need_torch()
    from logging import ERROR

    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in model.huggingface.items() if key != "model_type"}
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(ERROR)  # remarks on token ids, which no weight depends on
    try:
        config = AutoConfig.for_model(model.family.model_type, **fields)
        with torch.device("meta"):
            module: Any = cast(Any, AutoModelForCausalLM).from_config(config)
    finally:
        transformers.logging.set_verbosity(verbosity)
    return module, transformers.__version__


def _itemise(tensors: Mapping[str, "Tensor"]) -> Iterator[tuple[str, int]]:
    for name, tensor in tensors.items():
        suffix = "_bias" if name.endswith(".bias") else ""
        for pattern, keys in FUSED:
            if re.search(rf"(^|\.){pattern}$", name):
                yield from ((key + suffix, tensor.numel() // len(keys)) for key in keys)
                break
        else:
            key = next((key for pattern, key in ENDINGS if re.search(rf"(^|\.){pattern}$", name)), f"unknown: {name}")
            yield key if key.startswith("norm") else key + suffix, tensor.numel()


def _active(tensors: Mapping[str, "Tensor"], config: Any) -> int:
    unique = {id(tensor): (name, tensor.numel()) for name, tensor in tensors.items()}.values()
    experts = sum(size for name, size in unique if ".experts." in name)
    if not experts:
        return sum(size for _, size in unique)
    idle, of = config.num_local_experts - config.num_experts_per_tok, config.num_local_experts
    return sum(size for _, size in unique) - experts * int(idle) // int(of)
