"""Ministral (Mistral AI 2024): Mistral's stack, of which some layers may see all."""

from gptcalc.families.mistral import Mistral


class Ministral(Mistral):
    """transformers' `MinistralForCausalLM`."""

    model_type = "ministral"
