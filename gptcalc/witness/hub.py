"""The second witness: the class that transformers has for the model, built from its published hyperparameters.

It tests what the reference module cannot: that the family read the hyperparameters as transformers does. Components are
told apart by the names of the class's tensors, with rules that share nothing with the inventory.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, cast

from gptcalc.catalog import Resolved
from gptcalc.errors import GptcalcError
from gptcalc.installed import need_torch
from gptcalc.inventory import Weight
from gptcalc.ledger.evidence import Evidence
from gptcalc.witness.findings import Built, compare, stored_elements
from gptcalc.witness.tensor_names import active, components

WITNESS = "transformers"


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
        module, version = built(model)
    except Exception as error:  # noqa: BLE001  whatever transformers raises, it is its word on this config
        return Evidence(WITNESS, "family mapping not checked", skipped=f"transformers refuses it ({_last_line(error)})")
    tensors = dict(module.named_parameters(remove_duplicate=False))
    built = Built(tensors, components(tensors), active(tensors, module.config))
    subject = f"{type(module).__name__}, transformers {version}"
    return Evidence(WITNESS, subject, len(tensors), stored_elements(tensors.values()), compare(rows, built))


def _not_expressible(model: Resolved) -> str:
    """Why no config of the transformers class gives this model; empty where one does."""
    family = type(model.family)
    known = {key: value for key, value in model.huggingface.items() if key in family.names()}
    try:
        plain = family.load(family.given(family.translate(known, model.name)), model.name)
        if plain.spec() == model.spec:
            return ""
    except GptcalcError as error:
        return f"no transformers config gives this model ({error})"
    ours, theirs = model.family.resolved(), plain.resolved()
    differing = ", ".join(f"{key} = {ours[key]}" for key in ours if ours[key] != theirs[key])
    return f"no transformers config has {differing}"


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def built(model: Resolved, device: str = "meta", *, use_cache: bool = True, **how: str) -> tuple[Any, str]:
    """The class of the model on `device`, and the release of transformers; `how` goes to `from_config`."""
    torch = need_torch()
    from logging import ERROR

    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in model.huggingface.items() if key != "model_type"}
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(ERROR)  # remarks on token ids, which no weight depends on
    try:
        config = AutoConfig.for_model(model.family.model_type, **fields)
        config.use_cache = use_cache
        with torch.device(device):
            module: Any = cast(Any, AutoModelForCausalLM).from_config(config, **how)
    finally:
        transformers.logging.set_verbosity(verbosity)
    return module, transformers.__version__
