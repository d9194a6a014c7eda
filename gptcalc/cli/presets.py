"""`gptcalc presets`: the models that have a name."""

from typing import Annotated

import typer

from gptcalc import catalog
from gptcalc.cli.options import FormatOption, complete_family, complete_preset
from gptcalc.cli.output import answer
from gptcalc.errors import InvalidValueError
from gptcalc.ledger.claims import judge_all
from gptcalc.ledger.parameters import parameters
from gptcalc.report.formats import Format, render
from gptcalc.report.presets import Entry, preset_document, preset_json, presets_document, presets_json

app = typer.Typer(add_completion=False)


@app.callback(
    invoke_without_command=True,
    epilog="Example: gptcalc presets --family llama --search 70b",
)
def presets(
    ctx: typer.Context,
    *,
    family: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Only this family: a heading of the list, or transformers' model_type.",
            autocompletion=complete_family,
            show_default=False,
        ),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Only those with all these words in a name, title, model_type or source.",
            show_default=False,
        ),
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """List every model that has a name; `presets show NAME` prints one whole."""
    if ctx.invoked_subcommand:
        if family is not None or search is not None:
            raise InvalidValueError(f"presets {ctx.invoked_subcommand}: --family and --search are of the list only")
        return
    entries = [_entry(preset) for preset in catalog.search_presets(family, search)]
    answer(render(format_, lambda: presets_document(entries), lambda: presets_json(entries)))


@app.command(epilog="Example: gptcalc presets show gpt2-xl")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", autocompletion=complete_preset, show_default=False)],
    format_: FormatOption = Format.TABLE,
) -> None:
    """Print a preset's hyperparameters, its source, and every published claim with its verdict."""
    preset = catalog.need_preset(name)
    entry, judged = _entry(preset), judge_all([preset])
    answer(render(format_, lambda: preset_document(entry, judged), lambda: preset_json(entry, judged)))


def _entry(preset: catalog.Preset) -> Entry:
    model = catalog.resolve(preset.name, {})
    return Entry(preset, model, parameters(model.spec).totals)
