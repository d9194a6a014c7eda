"""`gptcalc count`: parameters, itemised and reconciled."""

from typing import Annotated, Any

import typer

from gptcalc import api
from gptcalc.cli.options import FormatOption, parse_value, spelled, takes_model
from gptcalc.cli.output import answer
from gptcalc.report.formats import Format, render

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: gptcalc count gpt3-175b --no-bias --format json")
@takes_model
def count(
    *,
    model: str | None,
    overrides: dict[str, Any],
    depth: Annotated[
        int, typer.Option("--depth", metavar="1|2|3", help="1: components, 2: by layer group, 3: every tensor.")
    ] = 1,
    seq: Annotated[
        str | None,
        typer.Option("--seq", metavar="T", help="Tokens of the sequence whose KV cache is shown. (default: context)"),
    ] = None,
    kv_dtype: Annotated[
        str | None, typer.Option("--kv-dtype", metavar="NAME", help="What the KV cache is kept in. (default: bf16)")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Add why each row has its size, and who says so.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare with PyTorch, tensor by tensor.")] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Count a model's parameters: where they sit, and how published numbers come about."""
    tokens = seq if seq is None else parse_value(seq)
    counted = api.count_of(model, overrides, depth=depth, seq=tokens, kv_dtype=kv_dtype, spelled=spelled)
    if check:
        counted = counted._replace(evidence=api.check_of(model, overrides, None, {}))
    answer(render(format_, lambda: counted.document(explain=explain), counted.to_dict))
    if counted.evidence and not counted.evidence.agrees:
        raise typer.Exit(1)
