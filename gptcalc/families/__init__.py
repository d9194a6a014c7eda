"""Published hyperparameters -> spec: one small file a family, named after transformers' `model_type`."""

from importlib import import_module
from pkgutil import iter_modules

from gptcalc.errors import UnknownNameError
from gptcalc.families.family import Family


def model_types() -> list[str]:
    """Every `model_type` that has a family, found by listing this folder."""
    return sorted(module.name.replace("_", "-") for module in iter_modules(__path__) if module.name != "family")


def find_family(model_type: object, where: str) -> type[Family]:
    """The family that reads configs of `model_type`; `where` is quoted in the error."""
    key = str(model_type).replace("_", "-")
    if not isinstance(model_type, str) or key not in model_types():
        raise UnknownNameError.near(f"{where}: model_type", str(model_type), model_types())
    import_module(f"{__name__}.{key.replace('-', '_')}")
    return Family.registered[key]
