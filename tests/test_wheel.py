"""What is installed: every package of the source."""

from __future__ import annotations

import tomllib

from support import ROOT


def test_every_package_is_in_the_wheel() -> None:
    """A folder of modules that `pyproject.toml` does not name would be missing where gptcalc is installed."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "gptcalc").rglob("*.py")}
    assert set(named) == {*found, "gptcalc.presets"}
