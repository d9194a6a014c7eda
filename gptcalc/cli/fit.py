"""`gptcalc fit`: which GPUs a model fits, or which models a GPU, in which way, how far."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from gptcalc import api
from gptcalc.cli.compare import parse_model
from gptcalc.cli.options import FormatOption, complete_family, complete_gpu, complete_preset, spelled, takes_plan
from gptcalc.cli.output import answer
from gptcalc.ledger.grid import WHATS, Progress
from gptcalc.ledger.request import Request
from gptcalc.ledger.workers import cores
from gptcalc.report.formats import Format, render

app = typer.Typer(add_completion=False)


def _complete_gpus(incomplete: str) -> list[str]:
    from gptcalc.gpus import vendors

    words = ("all", "common", *(name.lower() for name in vendors()))
    return complete_gpu(incomplete) + [word for word in words if word.startswith(incomplete.lower())]


def _complete_max(incomplete: str) -> list[str]:
    return [name for name in WHATS if name.startswith(incomplete.lower())]


@app.command(epilog="Example: gptcalc fit gpt2-small gpt3-175b, gptcalc fit --gpu rtx-4090")
@takes_plan
def fit(
    *,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL...]",
            autocompletion=complete_preset,
            help="Presets, aliases or paths, each as it is or changed: gpt2:n_layers=24. (default: with --gpu every"
            " preset, else gpt2-small)",
            show_default=False,
        ),
    ] = None,
    plan: Request,
    gpus: Annotated[
        list[str] | None,
        typer.Option(
            "--gpu",
            metavar="NAME",
            autocompletion=_complete_gpus,
            help="A GPU ('gptcalc gpus'), 24GiB, local, a vendor, common or all; may be repeated. (default: common)",
            show_default=False,
        ),
    ] = None,
    what: Annotated[
        str,
        typer.Option(
            "--max", metavar="NAME", autocompletion=_complete_max, help="batch, seq: what each cell is the largest of."
        ),
    ] = "batch",
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="NAME",
            help="GPUs by memory or name, models by size or name, or either by a way: inference, bf16, bf16-full ...",
            show_default=False,
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option("--family", metavar="NAME", autocompletion=complete_family, help="Presets of this family alone."),
    ] = None,
    search: Annotated[
        str | None, typer.Option("--search", metavar="TEXT", help="Presets with all these words alone.")
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Which GPUs a model fits, or which models a GPU: in inference, in training, and with how large a batch."""
    with _progress() as told:
        found = api.fit_of(
            [parse_model(text) for text in models or ()],
            plan,
            api.Fitting(tuple(gpus or ()), what, sort, family, search),
            spelled=spelled,
            told=told,
            processes=cores(),
        )
    found = found._replace(command=shlex.join(["gptcalc", *sys.argv[1:]]))
    answer(render(format_, found.document, found.to_dict))
    if not found.fits:
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """How far it is, on a line of its own that goes again, where somebody looks at it."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return

    def told(done: int, of: int, name: str) -> None:
        sys.stderr.write(f"\r\x1b[2K{done:,} of {of:,}: {name[:40]}")
        sys.stderr.flush()

    try:
        yield told
    finally:
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()
