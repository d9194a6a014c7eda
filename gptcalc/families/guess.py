"""A model type without a family: by the class that its file names, or by its fields, where each of them is understood.

What is read by fields alone is marked as such: no field says whether a model has, say, norms on query and key.
"""

from collections.abc import Mapping
from typing import NamedTuple

from gptcalc.errors import UnknownNameError, nearest, plain, shown
from gptcalc.families import ALIASES, find_family, model_types
from gptcalc.families.family import IRRELEVANT, PLAIN, REFUSED, Family

#: What a class's name ends with beside that of its family.
CLASS_ENDINGS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
#: Causal language models that transformers has a class for and no family reads: guessed from their fields they might be
#: misread. `tests/families/test_every_decoder.py` holds the list against transformers.
NOT_MODELLED = frozenset(
    """
    apertus axk2 bailing_hybrid beam cohere_compass_text ctrl deepseek_v32 deepseek_v4 diffllama doge
    dots3_note_text flint gemma3n_text gemma4_text gemma4_unified_text glm_moe_dsa gpt_neox_japanese hrm_text hy_v4
    inkling2_text inkling_text jetmoe kimi_linear kolibri1 laguna lfm2 lfm2_moe lfm3 longcat_flash mimo_v2_flash
    minimax minimax_m3_vl_text modernbert-decoder olmo_hybrid qwen4_exp_text zaya
    """.split()
)
#: For each family that an unknown type may be read as, the fields that must be given: a file of an unknown class has no
#: defaults. The first family that understands all that is given is taken.
NEEDED = {
    "llama": ("n_vocab", "d_model", "n_layers", "n_heads", "d_ff", "activation", "norm_eps", "tied"),
    "mixtral": ("n_vocab", "d_model", "n_layers", "n_heads", "d_ff", "norm_eps", "n_experts", "n_active", "tied"),
    "gpt2": ("n_vocab", "n_ctx", "d_model", "n_layers", "n_heads", "activation", "norm_eps", "tied"),
}
#: Of the reasons why a config is not read by its fields, so many are said.
MOST_REASONS = 3


class Guess(NamedTuple):
    """The family to read a config by, why, and whether its class is only guessed from the fields."""

    family: type[Family]
    remark: str
    by_fields: bool = False


def guess(config: Mapping[str, object], where: str) -> Guess:
    """How to read a config whose `model_type` has no family, or an error that says what is not understood."""
    model_type = config.get("model_type")
    for architecture in _strings(config.get("architectures")):
        named = _family_of_class(architecture)
        if named is not None:
            remark = (
                f"model_type {shown(model_type)} is not known: read as {named}, whose class {architecture} it names"
            )
            return Guess(find_family(named, where), remark)
    types = [*model_types(), *ALIASES]
    if isinstance(model_type, str) and model_type in NOT_MODELLED:
        advice = "transformers has a class of that name, which no family reads"
        raise UnknownNameError.near(f"{where}: model_type", str(model_type), types, advice)
    reasons = []
    for name, needed in NEEDED.items():
        family = find_family(name, where)
        reason = _not_understood(config, family, needed)
        if not reason:
            remark = (
                f"model_type {shown(model_type)} is not known: counted by its fields, as a decoder built like {name};"
                f" what no field says (as norms on query and key) is taken to be as in {name}"
            )
            return Guess(family, remark, by_fields=True)
        reasons.append((len(reason), name, reason))
    count, name, why = min(reasons)
    rest = f" and {count - MOST_REASONS} more" if count > MOST_REASONS else ""
    advice = f"by its fields it is no {name}: {', '.join(why[:MOST_REASONS])}{rest}"
    raise UnknownNameError.near(f"{where}: model_type", str(model_type), types, advice)


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list | tuple) else []


def _family_of_class(architecture: str) -> str | None:
    """`Qwen3MoeForCausalLM` is the class of `qwen3_moe`."""
    stem = next((architecture.removesuffix(end) for end in CLASS_ENDINGS if architecture.endswith(end)), "")
    spelled = {_letters(name): name for name in model_types()}
    return spelled.get(_letters(stem)) or spelled.get(_letters(f"{stem}text"))


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _not_understood(config: Mapping[str, object], family: type[Family], needed: tuple[str, ...]) -> list[str]:
    """Why a family cannot read all of a config: fields that it does not know, and fields that are not given."""
    names, known = family.names(), IRRELEVANT | family.ignored | {*PLAIN, *family.plain, *REFUSED, "model_type"}
    unknown = [key for key in config if key not in names and key not in known and not key.startswith("_")]
    given = {field for key, value in config.items() if value is not None for field in names.get(key, ())}
    found = [f"{plain(key)} is not understood{_near(key, names)}" for key in unknown]
    missing = [field for field in needed if field not in given]
    return [*found, *(f"{_spelled(field, family)} is missing" for field in missing)]


def _near(key: str, names: Mapping[str, object]) -> str:
    near = nearest(key, names, most=1)
    return f" (nearest: {near[0]})" if near else ""


def _spelled(field: str, family: type[Family]) -> str:
    """A field by the name that Hugging Face's files have for it."""
    return next((key for key, fields in family.huggingface.items() if field in fields), field)
