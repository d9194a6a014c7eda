"""`gptcalc memory`: what is alive on one device at the peak of a training step and of inference."""

import shlex
import sys
from typing import Annotated, Any

import typer

from gptcalc import api
from gptcalc.cli.options import FormatOption, spelled, takes_model, takes_plan
from gptcalc.cli.output import answer
from gptcalc.errors import InvalidValueError
from gptcalc.ledger.request import VIEW, Request
from gptcalc.report.formats import Format, render

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: gptcalc memory gpt2-xl --batch 8 --optimizer-impl fused --timeline")
@takes_model
@takes_plan
def memory(
    *,
    model: str | None,
    overrides: dict[str, Any],
    plan: Request,
    scope: Annotated[
        str | None,
        typer.Option("--scope", metavar="NAME", help="model, or embedding: that stage by itself. (default: model)"),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            "--depth", metavar="1|2|3", help="1: components, 2: what each op made, 3: every tensor. (default: 1)"
        ),
    ] = None,
    timeline: Annotated[
        bool | None, typer.Option("--timeline/--no-timeline", help="Draw what is alive over the step.")
    ] = None,
    explain: Annotated[
        bool | None, typer.Option("--explain/--no-explain", help="Add why each line is there, and who says so.")
    ] = None,
    save_plan: Annotated[
        str | None,
        typer.Option("--save-plan", metavar="FILE", help="Keep all options as a plan file: FILE.toml or FILE.json."),
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """What is alive at the peak of a training step and of inference, byte by byte, and when that is."""
    del model, overrides, scope, depth, timeline, explain  # the plan has them
    report = api.memory_by(plan, spelled=spelled)
    shown = {**VIEW, **plan.view}
    if shown["timeline"] and not report.modes:
        raise InvalidValueError("memory: read --timeline with --scope embedding; allowed: one of them")
    report = report._replace(command=shlex.join(["gptcalc", *sys.argv[1:]]))
    if save_plan is not None:
        report.save_plan(save_plan)
    view = {name: bool(shown[name]) for name in ("explain", "timeline")}
    answer(render(format_, lambda: report.document(**view), report.to_dict))
