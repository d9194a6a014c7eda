"""`gptcalc`: the list of commands, and the one place where errors become exit codes.

A command's module is imported when the command is called, so that each pays only for itself.
"""

import gc
import os
import sys
import warnings
from importlib import import_module
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from gptcalc import __version__
from gptcalc.cli.output import say
from gptcalc.cli.usage import USAGE_ERROR
from gptcalc.errors import GptcalcError

#: Every command, in the order of `--help`; each is `gptcalc/cli/NAME.py`.
COMMANDS = (
    "count",
    "memory",
    "fit",
    "explain",
    "compare",
    "design",
    "check",
    "bench",
    "presets",
    "gpus",
    "claims",
    "schema",
)

#: Exit codes: a disagreement or a model that does not fit is 1, a wrong request 2.
WRONG_REQUEST = 2
INTERRUPTED = 130


class Commands(TyperGroup):
    """The commands by name, each imported on first use."""

    def __init__(self, **attributes: Any) -> None:
        """Know the names at once, the commands later."""
        super().__init__(**attributes)
        self.commands = dict.fromkeys(COMMANDS, cast(Any, None))

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  typer's signature
        """The names, in order."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002  typer's signature
        """The command, from its own module."""
        if cmd_name not in COMMANDS:
            return None
        command = typer.main.get_command(import_module(f"gptcalc.cli.{cmd_name}").app)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=Commands,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:  # noqa: FBT001  typer's signature
    if asked:
        typer.echo(f"gptcalc {__version__}")
        raise typer.Exit


@app.callback(epilog="Example: gptcalc count gpt3-175b")
def gptcalc(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Exactly what a GPT-style model costs: every number itemised, explained and witnessed by PyTorch."""


def run(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code; errors are one or two lines on stderr."""
    typed = sys.argv[1:] if arguments is None else arguments
    try:
        return app(typed or ["--help"], standalone_mode=False, prog_name="gptcalc") or 0
    except GptcalcError as error:
        return _wrong(str(error))
    except typer.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except USAGE_ERROR as error:
        return _wrong(_usage(error))


def _wrong(message: str) -> int:
    say(f"gptcalc: {message}")
    return WRONG_REQUEST


def _usage(error: Any) -> str:
    """A usage error on one line, with where help is."""
    message = str(error.format_message()).replace("\n", " ").replace("Value error, ", "")
    where = f" (see '{error.ctx.command_path} --help')" if getattr(error, "ctx", None) else ""
    return message + where


def main() -> None:
    """The console script."""
    # torch warns where NumPy is not installed, which nothing here needs.
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")
    try:
        code = run()
    except Exception as error:
        if os.environ.get("GPTCALC_TRACEBACK"):
            raise
        code = _wrong(f"this is a bug: {error!r:.200}; GPTCALC_TRACEBACK=1 shows where")
    # The process ends here: looking for garbage among all that was imported would cost another tenth.
    gc.freeze()
    sys.exit(code)
