"""Granite's mixtures with windows (IBM 2026)."""

from gptcalc.families.granite_swa import GraniteSWA
from gptcalc.families.granitemoeshared import GraniteMoEShared


class GraniteMoESWA(GraniteMoEShared, GraniteSWA):
    """transformers' `GraniteMoeSWAForCausalLM`."""

    model_type = "granitemoe_swa"
    defaults = {**GraniteMoEShared.defaults, "sliding_window": 128}
