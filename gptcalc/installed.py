"""What may stand elsewhere, or not at all: the presets' folder, and torch."""

from pathlib import Path
from types import ModuleType

from gptcalc.errors import MissingDependencyError


def presets(kind: str) -> Path:
    """The folder `kind` of presets: beside this file in an installed package, beside the package in a checkout."""
    inside, beside = (parent / "presets" for parent in Path(__file__).parents[:2])
    return (inside if inside.is_dir() else beside) / kind


def need_torch(extra: str = "torch", advice: str = "") -> ModuleType:
    """torch, or one line that says with which extra to install it, and what else there is to do."""
    try:
        import torch
    except ImportError:
        how = f"pip install 'gptcalc[{extra}]'{'; ' + advice if advice else ''}"
        raise MissingDependencyError(f"torch is not installed; install it with: {how}") from None
    return torch
