"""`gptcalc design`: shapes near a number of parameters."""

import shlex
import sys
from typing import Annotated, Any

import typer

from gptcalc import api
from gptcalc.cli.options import FormatOption, spelled, takes_overrides
from gptcalc.cli.output import answer
from gptcalc.report.formats import Format, render

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: gptcalc design --params 350M --context 2048 --top 5")
@takes_overrides
def design(
    *,
    overrides: dict[str, Any],
    params: Annotated[
        str, typer.Option("--params", metavar="N", help="The target: 350M, 1.3B, 124439808.", show_default=False)
    ],
    family: Annotated[
        str,
        typer.Option(
            "--family",
            metavar="NAME",
            help="A model type, or any preset: what is not shape stays as it is there.",
        ),
    ] = "gpt2",
    tolerance: Annotated[str, typer.Option("--tolerance", metavar="SHARE", help="How far off a count may be.")] = "5%",
    top: Annotated[int, typer.Option("--top", metavar="N", help="How many shapes are shown.")] = 10,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Find shapes near a number of parameters: layers, width, heads, their exact counts, and what each trades.

    A dim that is given is kept: --n-layers 24 finds the widths for 24 layers.
    """
    found = api.design_of(params, family, overrides, tolerance=tolerance, top=top, spelled=spelled)
    found = found._replace(command=shlex.join(["gptcalc", *sys.argv[1:]]))
    answer(render(format_, found.document, found.to_dict))
