"""A document for programs and pages: csv, markdown, html. Numbers are whole; csv has them bare."""

import csv
import io
from fractions import Fraction
from html import escape

from gptcalc.report.document import DRAWING_WIDTH, Document, Table, Value, cell


def render_csv(document: Document) -> str:
    """The data table, one record a line, integers without separators."""
    data, target = document.data(), io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow([column.key for column in data.columns])
    writer.writerows([_bare(value) for value in row] for row in data.rows)
    return target.getvalue()


def _bare(value: Value) -> str | int:
    if isinstance(value, Fraction):
        return f"{float(value):.10g}"
    return "" if value is None else value


def _visible(table: Table) -> list[int]:
    return [index for index, column in enumerate(table.columns) if column.kind != "bar"]


def render_markdown(document: Document) -> str:
    """Pipe tables under a heading."""
    parts = [f"## {document.title}", *document.heading]
    for table in document.tables:
        parts += [f"### {table.title}"] if table.title else []
        parts.append(_markdown_table(table))
    for drawing in document.drawings:
        parts += [f"### {drawing.title}", "\n".join(["```text", *drawing.draw(DRAWING_WIDTH), "```"])]
    parts += [f"- {note}" for note in document.notes]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    shown = _visible(table)
    columns = [table.columns[index] for index in shown]
    lines = [[column.title or column.key for column in columns]]
    lines.append(["--:" if column.right else ":--" for column in columns])
    lines += [[_escaped(cell(row[index], table.columns[index].kind)) for index in shown] for row in table.rows]
    lines += [[_bold(cell(row[index], table.columns[index].kind)) for index in shown] for row in table.footer]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def _bold(text: str) -> str:
    return f"**{_escaped(text)}**" if text else ""


def render_html(document: Document) -> str:
    """Tables for a notebook."""
    parts = [f"<h3>{escape(document.title)}</h3>", *(f"<p>{escape(line)}</p>" for line in document.heading)]
    for table in document.tables:
        parts += [f"<h4>{escape(table.title)}</h4>"] if table.title else []
        parts.append(_html_table(table))
    for drawing in document.drawings:
        parts.append(f"<h4>{escape(drawing.title)}</h4>")
        parts.append(f"<pre>{escape(chr(10).join(drawing.draw(DRAWING_WIDTH)))}</pre>")
    parts += [f"<p><small>{escape(note)}</small></p>" for note in document.notes]
    return "\n".join(parts)


def _html_table(table: Table) -> str:
    shown = _visible(table)

    def row_of(cells: list[str], tag: str) -> str:
        styles = ["right" if table.columns[index].right else "left" for index in shown]
        inner = (f'<{tag} style="text-align:{side}">{text}</{tag}>' for side, text in zip(styles, cells, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    lines = [row_of([escape(table.columns[index].title) for index in shown], "th")]
    for rows, tag in ((table.rows, "td"), (table.footer, "th")):
        lines += [row_of([escape(cell(row[i], table.columns[i].kind)) for i in shown], tag) for row in rows]
    return f"<table>{''.join(lines)}</table>"
