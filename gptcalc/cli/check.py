"""`gptcalc check`: the inventory against modules that PyTorch builds."""

from typing import Annotated, Any

import typer

from gptcalc import api, catalog
from gptcalc.cli.options import FormatOption, spelled, takes_model, takes_plan
from gptcalc.cli.output import answer
from gptcalc.errors import InvalidValueError
from gptcalc.ledger.request import Request
from gptcalc.report.check import check_document, check_json
from gptcalc.report.formats import Format, render

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: gptcalc check gpt3-175b")
@takes_model
@takes_plan
def check(
    *,
    model: str | None,
    overrides: dict[str, Any],
    plan: Request,
    all_: Annotated[bool, typer.Option("--all", help="Check every preset.")] = False,
    witness: Annotated[
        str | None,
        typer.Option(
            "--witness",
            metavar="NAME",
            help="Hear one alone. Of parameters: reference or transformers. Of memory, under the options of a run:"
            " saved-tensors, trace, or cuda on the local GPU;"
            " or transformers, whose class then runs the step.",
        ),
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Compare every tensor with PyTorch: names, shapes, ties, totals; or, with a witness of memory, every byte.

    Exit code 1 where anything differs, or where no witness could look.

    The witnesses of parameters are gptcalc's own torch modules and, where it is installed, the model's class in
    transformers; both are built on the meta device, so that no weight is allocated. Those of memory run a step there:
    what autograd keeps (saved-tensors), every allocation through the allocator (trace); or on the local GPU (cuda).
    """
    if all_ and model:
        raise InvalidValueError(f"check: read {model!r} with --all; allowed: one of them")
    names = [preset.name for preset in catalog.presets()] if all_ else [model]
    from gptcalc.witness.check import MEMORY_WITNESSES

    # A plan file's model is checked under any witness; its settings have a use for those of memory alone.
    asked = plan.asked if witness in MEMORY_WITNESSES else {field: plan.settings[field] for field in plan.typed}
    checks = [api.check_of(name, overrides, witness, asked, spelled=plan.spelled(spelled)) for name in names]
    answer(render(format_, lambda: check_document(checks), lambda: check_json(checks)))
    if not all(done.agrees for done in checks):
        raise typer.Exit(1)
