"""A short document of headings, paragraphs, tables, code and pictures, written as one HTML page or as Markdown."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template

from timm_compat.evaluation.table import markdown_table

# Nothing may be fetched: what a browser is allowed to load stands in the page itself.
PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
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
$body
</body>
</html>
""")


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


Block = Heading | Paragraph | Code | Table | Picture


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One self-contained page: inline style, pictures as data, no script; all text is escaped."""
    return PAGE.substitute(title=escape(title), body="\n".join(_html(block) for block in blocks))


def to_markdown(blocks: Sequence[Block]) -> str:
    """The same as Markdown; pictures are named, not contained."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Code):
        return f"<pre>{escape(block.text)}</pre>"
    if isinstance(block, Table):
        return _html_table(block)
    data = base64.b64encode(block.png).decode("ascii")
    caption = escape(block.caption)
    image = f'<img src="data:image/png;base64,{data}" alt="{caption}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _html_table(table: Table) -> str:
    heading, *rows = table.lines
    heads = (_html_head(column in table.text_columns, cell) for column, cell in enumerate(heading))
    lines = ["<tr>" + "".join(heads) + "</tr>"]
    for row, cells in enumerate(rows):
        lines.append(
            "<tr>" + "".join(_html_cell(table, row, column, cell) for column, cell in enumerate(cells)) + "</tr>"
        )
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _html_head(is_text: bool, cell: str) -> str:
    name = ' class="text"' if is_text else ""
    return f'<th scope="col"{name}>{escape(cell)}</th>'


def _html_cell(table: Table, row: int, column: int, cell: str) -> str:
    marked = "marked" if (row, column) in table.marked else ""
    text = "text" if column in table.text_columns else ""
    names = " ".join(filter(None, (marked, text)))
    return f'<td class="{names}">{escape(cell)}</td>' if names else f"<td>{escape(cell)}</td>"


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
    # Markdown readers take HTML and links in names (of classes, folders) at their word.
    for sign in "\\`*_[]<>#":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
