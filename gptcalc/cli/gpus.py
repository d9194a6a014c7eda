"""`gptcalc gpus`: the GPUs that have a name, and the one that is here."""

from typing import Annotated

import typer

from gptcalc.cli.options import FormatOption, complete_gpu
from gptcalc.cli.output import answer
from gptcalc.errors import InvalidValueError, UnknownNameError, shown
from gptcalc.gpus import need_gpu, search_gpus, vendors
from gptcalc.ledger.fit import room_of
from gptcalc.ledger.local import local
from gptcalc.report.formats import Format, render
from gptcalc.report.gpus import (
    SORTS,
    Entry,
    gpu_document,
    gpu_json,
    gpus_document,
    gpus_json,
    in_order,
    local_document,
    local_json,
)
from gptcalc.units import format_bytes, parse_bytes

app = typer.Typer(add_completion=False)


def _complete_vendor(incomplete: str) -> list[str]:
    return [name for name in vendors() if name.lower().startswith(incomplete.lower())]


def _complete_sort(incomplete: str) -> list[str]:
    return [name for name in SORTS if name.startswith(incomplete.lower())]


@app.callback(invoke_without_command=True, epilog="Example: gptcalc gpus --min-memory 40GiB --sort bandwidth")
def gpus(
    ctx: typer.Context,
    *,
    vendor: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Only those of this maker.", autocompletion=_complete_vendor, show_default=False
        ),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Only those with all these words in a name, what the device reports, the architecture or the note.",
            show_default=False,
        ),
    ] = None,
    min_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Only those where torch surely has so much: 40GiB. (40GB is 37.25GiB.)",
            show_default=False,
        ),
    ] = None,
    common: Annotated[bool, typer.Option("--common", help="Only the few that most people have.")] = False,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help=f"One flat list by {', '.join(SORTS)}: numbers from the most down.",
            autocompletion=_complete_sort,
            show_default=False,
        ),
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """List every GPU that has a name; `gpus show NAME` prints one whole, `gpus show local` the one that is here."""
    if ctx.invoked_subcommand:
        if common or any(given is not None for given in (vendor, search, min_memory, sort)):
            raise InvalidValueError(
                f"gpus {ctx.invoked_subcommand}: --vendor, --search, --min-memory, --common and --sort are of the list"
                " only"
            )
        return
    if sort is not None and sort not in SORTS:
        raise UnknownNameError.near("--sort", sort, SORTS)
    entries = [Entry(gpu, room_of(gpu)) for gpu in search_gpus(vendor, search) if gpu.common or not common]
    entries = in_order(_of_size(entries, min_memory), sort)
    answer(render(format_, lambda: gpus_document(entries, flat=sort is not None), lambda: gpus_json(entries)))


def _of_size(entries: list[Entry], min_memory: str | None) -> list[Entry]:
    """Those where torch surely has that much; an error says what the largest has."""
    if not entries:
        raise InvalidValueError("gpus: none of those that most people have is like that; leave --common out")
    if min_memory is None:
        return entries
    size = parse_bytes(min_memory)
    if size is None:
        raise InvalidValueError(f"--min-memory: read {shown(min_memory)}; allowed: a size with its unit, as in 40GiB")
    found = [entry for entry in entries if entry.room.usable.low >= size]
    if not found:
        largest = max(entries, key=lambda entry: entry.room.usable.low)
        raise InvalidValueError(
            f"--min-memory: read {shown(min_memory)}; the largest of these, {largest.gpu.slug}, surely has"
            f" {format_bytes(largest.room.usable.low)} for torch"
        )
    return found


@app.command(epilog="Example: gptcalc gpus show rtx-4090")
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A name of the list, as people or devices write it; or local, local:1.",
            autocompletion=complete_gpu,
            show_default=False,
        ),
    ],
    format_: FormatOption = Format.TABLE,
) -> None:
    """Print all that is known of a GPU: memory and whose figure it is, peaks, names, sources; of local who holds it."""
    if name.strip().lower().partition(":")[0] == "local":
        here = local(name, "gpus show")
        answer(render(format_, lambda: local_document(here), lambda: local_json(here)))
        return
    gpu = need_gpu(name)
    entry = Entry(gpu, room_of(gpu))
    answer(render(format_, lambda: gpu_document(entry), lambda: gpu_json(entry)))
