"""`gptcalc memory`: what is alive on one device at the peak of a training step and of inference."""

import shlex
import sys
from typing import Annotated, Any

import typer

from gptcalc import api
from gptcalc.cli.options import FormatOption, complete_gpu, spelled, takes_model, takes_plan
from gptcalc.cli.output import answer
from gptcalc.cli.usage import USAGE_ERROR
from gptcalc.errors import GptcalcError, InvalidValueError, shown
from gptcalc.ledger.asked import QUESTIONS, SOLVED
from gptcalc.ledger.request import VIEW, Request
from gptcalc.report.formats import Format, render

app = typer.Typer(add_completion=False)

#: The heading in the help of what is asked beside the figures.
QUESTION = "The question"
DOES_NOT_FIT = 1


@app.command(epilog="Example: gptcalc memory gpt2-xl --batch 8 --gpu rtx-4090 --optimizer-impl fused")
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
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="NAME",
            help="Does it fit? One of 'gptcalc gpus', a size (24GiB), or local. It sets --target.",
            autocompletion=complete_gpu,
            rich_help_panel=QUESTION,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="SIZE",
            help="Does it fit? What torch's allocator may hold, the CUDA context not in it (40GiB).",
            rich_help_panel=QUESTION,
        ),
    ] = None,
    max_: Annotated[
        str | None,
        typer.Option(
            "--max",
            metavar="NAME",
            help="batch, seq, layers or d-model: the largest that fits --gpu and --budget, and what binds it.",
            autocompletion=lambda incomplete: [name for name in SOLVED if name.startswith(incomplete.lower())],
            rich_help_panel=QUESTION,
        ),
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
    versus: Annotated[
        str | None,
        typer.Option(
            "--versus",
            metavar="'OPTIONS'",
            help="Against the same with other options, in quotes: every line of both, and the difference.",
        ),
    ] = None,
    save_plan: Annotated[
        str | None,
        typer.Option("--save-plan", metavar="FILE", help="Keep all options as a plan file: FILE.toml or FILE.json."),
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """What is alive at the peak of a training step and of inference, byte by byte, and when that is.

    With --gpu or --budget: whether that fits, and with what margin; with --max the largest that does.

    Exit code 1 where it does not surely fit, with --max where not even the smallest does; 2 for a wrong request.
    """
    del model, overrides, scope, depth, gpu, budget, max_  # the plan has them
    if versus is not None:
        typed = {"timeline": timeline, "explain": explain, "save_plan": save_plan}
        typed |= {name: plan.asked.get(name) is not None for name in QUESTIONS}
        for name in (name for name, value in typed.items() if value):
            raise InvalidValueError(f"memory: read {spelled(name)} with --versus; allowed: one of them")
        compared = against(plan, versus)._replace(command=shlex.join(["gptcalc", *sys.argv[1:]]))
        answer(render(format_, compared.document, compared.to_dict))
        return
    report = api.memory_by(plan, spelled=spelled)
    shown = {**VIEW, **plan.view}
    if shown["timeline"] and not report.modes:
        raise InvalidValueError("memory: read --timeline with --scope embedding; allowed: one of them")
    report = report._replace(command=shlex.join(["gptcalc", *sys.argv[1:]]))
    if save_plan is not None:
        report.save_plan(save_plan)
    view = {name: bool(shown[name]) for name in ("explain", "timeline")}
    answer(render(format_, lambda: report.document(**view), report.to_dict))
    if report.fits is False:
        raise typer.Exit(DOES_NOT_FIT)


def against(plan: Request, text: str) -> api.Versus:
    """The answer of `plan` against that of the same with the options in `text`, of which errors speak."""
    first = api.memory_by(plan, spelled=spelled)
    if not first.modes:
        raise InvalidValueError("memory: read --versus with --scope embedding; allowed: one of them")
    try:
        second = api.memory_by(parsed(text).over(plan, spelled), spelled=spelled)
    except GptcalcError as error:
        raise type(error)(f"--versus {shown(text)}: {error}") from None
    return api.Versus(first, second, text)


def parsed(text: str) -> Request:
    """What a command line asks for: the options of a run and of the model, MODEL, and a plan file."""
    found: list[Request] = []
    inner = typer.Typer(add_completion=False)

    @inner.command(context_settings={"help_option_names": []})
    @takes_model
    @takes_plan
    def second(*, model: str | None, overrides: dict[str, Any], plan: Request) -> None:
        """Keep what was asked."""
        del model, overrides  # the plan has them
        found.append(plan)

    try:
        inner(shlex.split(text), standalone_mode=False, prog_name="--versus")
    except ValueError as error:
        raise InvalidValueError(f"not a command line: {error}") from None
    except USAGE_ERROR as error:
        raise InvalidValueError(str(error.format_message()).replace("\n", " ")) from None  # type: ignore[attr-defined]
    return found[0]
