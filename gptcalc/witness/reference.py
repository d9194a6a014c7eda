"""The first witness: gptcalc's own torch modules, built on the meta device, where no weight is ever allocated."""

from collections import Counter
from collections.abc import Sequence

from gptcalc.catalog import Resolved
from gptcalc.errors import InvalidValueError
from gptcalc.installed import need_torch
from gptcalc.inventory import Weight
from gptcalc.ledger.evidence import Evidence
from gptcalc.spec import Spec
from gptcalc.witness.findings import Built, compare, stored_elements

#: A module object for each layer takes tens of kilobytes, weights or not.
MOST_LAYERS = 10_000


def reference(model: Resolved, rows: Sequence[Weight]) -> Evidence:
    """Compare `rows` with the reference decoder of the model's spec."""
    built = build(model.spec)
    subject = f"gptcalc.modules, family {model.spec.family}"
    tensors = len(built.tensors)
    return Evidence("reference", subject, tensors, stored_elements(built.tensors.values()), compare(rows, built))


def build(spec: Spec) -> Built:
    """The reference decoder's parameters and its own itemisation."""
    if spec.n_layers > MOST_LAYERS:
        raise InvalidValueError(
            f"n_layers: read {spec.n_layers:,}; allowed for a check, which builds every layer: at most {MOST_LAYERS:,}"
        )
    torch = need_torch()
    from gptcalc.modules import build as build_module

    with torch.device("meta"):
        module = build_module(spec)
    components: Counter[str] = Counter()
    for key, tensor in module.itemise():
        components[key] += tensor.numel()
    return Built(dict(module.named_parameters(remove_duplicate=False)), components, module.active_elements())
