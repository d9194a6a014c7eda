"""`gptcalc compare`: models side by side."""

import re
import shlex
import sys
from typing import Annotated

import typer

from gptcalc import api
from gptcalc.catalog import find_preset
from gptcalc.cli.options import FormatOption, complete_preset, parse_pair, spelled, takes_plan
from gptcalc.cli.output import answer
from gptcalc.errors import InvalidValueError, shown
from gptcalc.ledger.request import Request
from gptcalc.report.formats import Format, render

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: gptcalc compare gpt2 gpt2:n_layers=24,d_model=1024 llama-3-8b --batch 8 --seq 1024")
@takes_plan
def compare(
    *,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL MODEL...",
            autocompletion=complete_preset,
            help="Presets, aliases or paths, each as it is or changed: gpt2:n_layers=24,d_model=1024.",
            show_default=False,
        ),
    ],
    plan: Request,
    memory: Annotated[
        bool, typer.Option("--memory", help="Compare memory too; any option of a run asks for it.")
    ] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Set models side by side: what differs, what each stores, in which ratio, and what a run of each takes."""
    pairs = [parse_model(text) for text in models]
    settings = plan.asked if plan.asked or memory else None
    compared = api.compare_of(pairs, settings, spelled=plan.spelled(spelled))
    compared = compared._replace(command=shlex.join(["gptcalc", *sys.argv[1:]]))
    answer(render(format_, compared.document, compared.to_dict))


def parse_model(text: str) -> tuple[str, dict[str, object]]:
    """A model and its overrides: what stands behind a colon, if a field does."""
    found = re.fullmatch(r"(.+?):(\s*[\w-]+\s*=.*)", text, re.DOTALL)
    if found is None or find_preset(text):
        return text, {}
    changes: dict[str, object] = {}
    for pair in found[2].split(","):
        key, value = parse_pair(pair, "MODEL:KEY=VALUE")
        if key in changes:
            raise InvalidValueError(f"{shown(text)}: read {key} twice; give it once")
        changes[key] = value
    return found[1], changes
