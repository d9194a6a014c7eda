"""`gptcalc claims`: published numbers against the truth."""

from typing import Annotated

import typer

from gptcalc import catalog
from gptcalc.cli.options import FormatOption, complete_preset
from gptcalc.cli.output import answer
from gptcalc.errors import UnknownNameError
from gptcalc.ledger.claims import VERDICTS, judge_all
from gptcalc.report.claims import claims_document, claims_json
from gptcalc.report.formats import Format, render

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: gptcalc claims gpt2 --verdict wrong")
def claims(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            autocompletion=complete_preset,
            help="Only the claims about this preset.",
            show_default=False,
        ),
    ] = None,
    verdict: Annotated[
        str | None, typer.Option("--verdict", metavar="VERDICT", help=f"Only these: {', '.join(VERDICTS)}.")
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Judge every published number: what was claimed, what is true, and the terms of the difference."""
    if verdict is not None and verdict not in VERDICTS:
        raise UnknownNameError.near("--verdict", verdict, VERDICTS)
    presets = catalog.presets() if model is None else [catalog.need_preset(model)]
    judged = [found for found in judge_all(presets) if verdict in (None, found.verdict)]
    answer(render(format_, lambda: claims_document(judged), lambda: claims_json(judged)))
