"""`gptcalc explain`: what a memory record of torch has alive, and which lines of a prediction that is."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gptcalc import api
from gptcalc.cli.options import FormatOption, spelled, takes_model, takes_plan
from gptcalc.cli.output import answer
from gptcalc.ledger.request import Request
from gptcalc.report.formats import Format, render

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: gptcalc explain snapshot.pickle gpt2 --batch 8 --seq 1024 --mode training")
@takes_model
@takes_plan
def explain(
    *,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="RECORD",
            help="What torch.cuda.memory._dump_snapshot wrote, or the same as JSON. It is read, never run.",
            show_default=False,
        ),
    ],
    model: str | None,
    overrides: dict[str, Any],
    plan: Request,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="NAME", help="peak, oom or end. (default: the last oom, where there is one)"),
    ] = None,
    device: Annotated[
        int | None, typer.Option("--device", metavar="N", help="Of several. (default: that with most events)")
    ] = None,
    depth: Annotated[
        int | None, typer.Option("--depth", metavar="1|3", help="1: components and ops, 3: every tensor. (default: 1)")
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """What a memory record of torch has alive at its peak or out-of-memory error, and which predicted lines that is.

    Without MODEL: the blocks by size and by the line of code that asked for them, and how the allocator holds them.
    With MODEL, and the options of the run, each block is matched to a predicted tensor; what either has alone is
    listed, and all of it adds up.
    """
    del model, overrides, depth  # the plan has them
    found = api.explain_by(file, plan, at=at, device=device, spelled=spelled)
    found = found._replace(command=shlex.join(["gptcalc", *sys.argv[1:]]))
    answer(render(format_, found.document, found.to_dict))
