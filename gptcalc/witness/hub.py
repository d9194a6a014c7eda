"""The second witness: the class that transformers has for the model, built from its published hyperparameters.

It tests what the reference module cannot: that the family read the hyperparameters as transformers does. Components are
told apart by the names of the class's tensors, with rules that share nothing with the inventory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from logging import ERROR
from typing import Any, cast

from gptcalc.catalog import Resolved, beyond_transformers
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
    reason = beyond_transformers(model)
    if not installed():
        reason = "transformers is not installed"
    if reason:
        return Evidence(WITNESS, "family mapping not checked", skipped=reason)
    try:
        module, version = build_class(model)
    except Exception as error:  # noqa: BLE001  whatever transformers raises, it is its word on this config
        return Evidence(WITNESS, "family mapping not checked", skipped=f"transformers refuses it ({_last_line(error)})")
    tensors = dict(module.named_parameters(remove_duplicate=False))
    built = Built(tensors, components(tensors), active(tensors, module.config))
    subject = f"{type(module).__name__}, transformers {version}"
    return Evidence(WITNESS, subject, len(tensors), stored_elements(tensors.values()), compare(rows, built))


@contextmanager
def silent() -> Iterator[None]:
    """Transformers makes no remarks: on token ids, on which no weight depends, on losses that it falls back to."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def build_class(model: Resolved, device: str = "meta", *, use_cache: bool = True, **how: str) -> tuple[Any, str]:
    """The class of the model on `device`, and the release of transformers; `how` goes to `from_config`."""
    torch = need_torch()
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in model.huggingface.items() if key != "model_type"}
    with silent():
        config = AutoConfig.for_model(model.family.model_type, **fields)
        config.use_cache = use_cache
        with torch.device(device):
            module: Any = cast(Any, AutoModelForCausalLM).from_config(config, **how)
    return module, transformers.__version__
