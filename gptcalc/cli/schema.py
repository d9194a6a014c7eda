"""`gptcalc schema`: the form of each command's JSON."""

import json
from typing import Annotated

import typer

from gptcalc.cli.output import answer
from gptcalc.errors import UnknownNameError
from gptcalc.report.schema import SCHEMAS, json_schema

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: gptcalc schema count")
def schema(
    command: Annotated[
        str, typer.Argument(metavar="COMMAND", help=f"One of: {', '.join(SCHEMAS)}.", show_default=False)
    ],
) -> None:
    """Print the JSON Schema that a command's `--format json` validates against."""
    if command not in SCHEMAS:
        raise UnknownNameError.near("schema", command, SCHEMAS)
    answer(json.dumps(json_schema(command), indent=2) + "\n")
