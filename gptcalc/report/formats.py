"""The formats by name. A format is one function here; json prints an answer's own dictionary."""

from collections.abc import Callable, Mapping
from enum import StrEnum

from gptcalc.report.document import Document


class Format(StrEnum):
    """What `--format` takes."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"


def render(chosen: Format, document: Callable[[], Document], answer: Callable[[], Mapping[str, object]]) -> str:
    """The answer in a format; only what that format needs is built and imported."""
    if chosen is Format.JSON:
        import json

        return json.dumps(answer(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if chosen is Format.TABLE:
        from gptcalc.report.terminal import render as render_table

        return render_table(document())
    from gptcalc.report.plain import render_csv, render_markdown

    return render_csv(document()) if chosen is Format.CSV else render_markdown(document())
