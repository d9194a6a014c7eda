"""What typer calls a wrong usage."""

from typing import cast

import typer

#: typer's errors of usage; its own base class was renamed and vendored over time, `BadParameter` stayed.
USAGE_ERROR: type[Exception] = cast(type[Exception], typer.BadParameter.__mro__[2])
