"""`gptcalc memory`: what is alive on one device at the peak of a training step and of inference."""

import shlex
import sys
from typing import Annotated, Any

import typer

from gptcalc import api
from gptcalc.cli.options import FormatOption, spelled, takes_model, takes_plan
from gptcalc.cli.output import answer
from gptcalc.errors import InvalidValueError
from gptcalc.report.formats import Format, render

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: gptcalc memory gpt2-xl --batch 8 --optimizer-impl fused --timeline")
@takes_model
@takes_plan
def memory(
    *,
    model: str | None,
    overrides: dict[str, Any],
    plan: dict[str, Any],
    scope: Annotated[
        str | None,
        typer.Option("--scope", metavar="NAME", help="model, or embedding: that stage by itself. (default: model)"),
    ] = None,
    depth: Annotated[
        int, typer.Option("--depth", metavar="1|2|3", help="1: components, 2: what each op made, 3: every tensor.")
    ] = 1,
    timeline: Annotated[bool, typer.Option("--timeline", help="Draw what is alive over the step.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Add why each line is there, and who says so.")] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """What is alive at the peak of a training step and of inference, byte by byte, and when that is."""
    report = api.memory_of(model, overrides, {"scope": scope, **plan}, depth=depth, spelled=spelled)
    if timeline and not report.modes:
        raise InvalidValueError("memory: read --timeline with --scope embedding; allowed: one of them")
    report = report._replace(command=shlex.join(["gptcalc", *sys.argv[1:]]))
    answer(render(format_, lambda: report.document(explain=explain, timeline=timeline), report.to_dict))
