"""Published hyperparameters -> spec: one small file a family, named after transformers' `model_type`."""

from importlib import import_module
from pkgutil import iter_modules

from gptcalc.errors import UnknownNameError
from gptcalc.families.family import Family

#: The files of this folder that several families build on.
SHARED = ("family", "guess", "latent", "mixtures", "rotated")
#: What transformers calls a family whose file cannot bear the name.
SPELLED = {"openai_gpt": "openai-gpt"}
#: Names that models have on the hub, old or of their own, for classes of another name.
ALIASES = {
    "RefinedWeb": "falcon",
    "RefinedWebModel": "falcon",
    "Yi": "llama",
    "gpt-sw3": "gpt2",
    "kimi_k2": "deepseek_v3",
    "stablelm_epoch": "stablelm",
}
#: What an old model type says beside the name of its class.
IMPLIED: dict[str, dict[str, object]] = {"RefinedWeb": {"new_decoder_architecture": True}}


def implied_fields(model_type: object) -> dict[str, object]:
    """The fields that a model type sets where a config is silent."""
    return dict(IMPLIED.get(str(model_type), {}))


def model_types() -> list[str]:
    """Every `model_type` that has a family, found by listing this folder."""
    names = (module.name for module in iter_modules(__path__))
    return sorted(SPELLED.get(name, name) for name in names if name not in SHARED)


def is_known(model_type: object) -> bool:
    """Whether a model type has a family, under its own name or another."""
    return isinstance(model_type, str) and _key(model_type) in model_types()


def _key(name: str) -> str:
    stem = ALIASES.get(name, name).replace("-", "_")
    return SPELLED.get(stem, stem)


def find_family(model_type: object, where: str) -> type[Family]:
    """The family that reads configs of `model_type`; `where` is quoted in the error."""
    name = str(model_type)
    if not is_known(model_type):
        raise UnknownNameError.near(f"{where}: model_type", name, [*model_types(), *ALIASES])
    key = _key(name)
    import_module(f"{__name__}.{key.replace('-', '_')}")
    return Family.registered[key]
