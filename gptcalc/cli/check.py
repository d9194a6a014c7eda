"""`gptcalc check`: the inventory against modules that PyTorch builds."""

from typing import Annotated, Any

import typer

from gptcalc import api, catalog
from gptcalc.cli.options import FormatOption, takes_model
from gptcalc.cli.output import answer
from gptcalc.errors import InvalidValueError
from gptcalc.report.check import check_document, check_json
from gptcalc.report.formats import Format, render

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: gptcalc check gpt3-175b")
@takes_model
def check(
    *,
    model: str | None,
    overrides: dict[str, Any],
    all_: Annotated[bool, typer.Option("--all", help="Check every preset.")] = False,
    witness: Annotated[
        str | None,
        typer.Option("--witness", metavar="NAME", help="Hear one alone: reference or transformers."),
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Compare every tensor with PyTorch: names, shapes, ties, totals.

    Exit code 1 where anything differs, or where no witness could look.

    The witnesses are gptcalc's own torch modules and, where it is installed, the model's class in transformers; both
    are built on the meta device, so that no weight is allocated.
    """
    if all_ and model:
        raise InvalidValueError(f"check: read {model!r} with --all; allowed: one of them")
    names = [preset.name for preset in catalog.presets()] if all_ else [model]
    checks = [api.check(name, witness=witness, **overrides) for name in names]
    answer(render(format_, lambda: check_document(checks), lambda: check_json(checks)))
    if not all(done.agrees for done in checks):
        raise typer.Exit(1)
