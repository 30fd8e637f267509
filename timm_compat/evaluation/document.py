"""A short document of headings, paragraphs, tables, code and pictures, written as one HTML page or as Markdown."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from timm_compat.table import markdown_table

# The browser may load only what is in the page itself.
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.2rem; border-bottom: 1px solid #bbb; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border: 1px solid #bbb; text-align: right; vertical-align: top; }
th:first-child, td:first-child, .text { text-align: left; }
td.text { overflow-wrap: anywhere; min-width: 6rem; max-width: 22rem; }
th { background: #eee; }
td.marked { font-weight: bold; outline: 2px solid #1a1a1a; outline-offset: -2px; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9em; overflow-wrap: anywhere; }
pre { background: #f4f4f4; padding: 0.7rem; white-space: pre-wrap; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; background: #fff; }
figcaption { color: #444; }
</style>
</head>
<body>
{% for block in blocks %}
{% set kind = block.__class__.__name__ %}
{% if kind == "Heading" %}
<h{{ block.level }}>{{ block.text }}</h{{ block.level }}>
{% elif kind == "Paragraph" %}
<p>{{ block.text }}</p>
{% elif kind == "Code" %}
<pre>{{ block.text }}</pre>
{% elif kind == "Table" %}
<div class="wide"><table>
<tr>
{%- for cell in block.lines[0] -%}
<th scope="col"{% if loop.index0 in block.text_columns %} class="text"{% endif %}>{{ cell }}</th>
{%- endfor -%}
</tr>
{% for line in block.lines[1:] %}
{% set row = loop.index0 %}
<tr>
{%- for cell in line -%}
{% set names = ["marked"] * ((row, loop.index0) in block.marked) + ["text"] * (loop.index0 in block.text_columns) %}
<td{% if names %} class="{{ names | join(" ") }}"{% endif %}>{{ cell }}</td>
{%- endfor -%}
</tr>
{% endfor %}
</table></div>
{% else %}
<figure><img src="data:image/png;base64,{{ block.encoded }}" alt="{{ block.caption }}"><figcaption>
{{- block.caption -}}
</figcaption></figure>
{% endif %}
{% endfor %}
</body>
</html>
"""


@dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Code:
    """Text as it is, such as a command."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table whose first line is the heading.

    Attributes:
        lines: cells as plain text, one more line than there are rows.
        marked: (row, column) of cells that stand out, the heading line not counted.
        text_columns: columns of words; they stand left, as the first one does.
    """

    lines: Sequence[Sequence[str]]
    marked: frozenset[tuple[int, int]] = frozenset()
    text_columns: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Picture:
    """A picture beside the Markdown, inside the page.

    Attributes:
        file: its name, without folder.
        png: its bytes.
        caption: says what is to be seen; also for those who cannot see it.
    """

    file: str
    png: bytes
    caption: str

    @property
    def encoded(self) -> str:
        """The bytes as base64, as a page may hold them."""
        return base64.b64encode(self.png).decode("ascii")


Block = Heading | Paragraph | Code | Table | Picture


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One self-contained page: inline style, pictures as data, no script; all text is escaped."""
    from jinja2 import Environment

    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return page.from_string(PAGE).render(title=title, blocks=blocks)


def to_markdown(blocks: Sequence[Block]) -> str:
    """The same as Markdown; pictures are named, not contained."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_plain(block.text)}"
    if isinstance(block, Paragraph):
        return _plain(block.text)
    if isinstance(block, Code):
        return "\n".join(f"    {line}" for line in block.text.splitlines())
    if isinstance(block, Table):
        heading, *rows = block.lines
        cells = [
            [f"**{_plain(cell)}**" if (i, j) in block.marked else _plain(cell) for j, cell in enumerate(row)]
            for i, row in enumerate(rows)
        ]
        return markdown_table([[_plain(cell) for cell in heading], *cells])
    return f"![{_plain(block.caption)}]({block.file})"


def _plain(text: str) -> str:
    # Markdown readers would interpret HTML and links in names (of classes, folders).
    for sign in "\\`*_[]<>#":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
