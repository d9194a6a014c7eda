"""gptcalc: exactly what a GPT-style model costs, each number itemised, explained and witnessed by PyTorch.

>>> import gptcalc
>>> ledger = gptcalc.count("gpt3-175b", n_vocab=50304)
>>> ledger.totals.stored
174604836864
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptcalc.api import check as check
    from gptcalc.api import compare as compare
    from gptcalc.api import count as count
    from gptcalc.api import design as design
    from gptcalc.api import explain as explain
    from gptcalc.api import fit as fit
    from gptcalc.api import memory as memory
    from gptcalc.errors import GptcalcError as GptcalcError

__version__ = "0.1.0"
__all__ = ["GptcalcError", "__version__", "check", "compare", "count", "design", "explain", "fit", "memory"]


def __dir__() -> list[str]:
    """The public names, opened or not."""
    return __all__


def __getattr__(name: str) -> object:
    """Open a public name on first use, so that importing gptcalc costs nothing."""
    if name in __all__:
        from gptcalc import api

        return getattr(api, name)
    raise AttributeError(f"module 'gptcalc' has no attribute {name!r}")
