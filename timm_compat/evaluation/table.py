"""Tables as Markdown."""

from collections.abc import Sequence


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is the heading; the first column stands left, the others right."""
    heading, *body = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    rule = ["---", *["---:"] * (len(heading) - 1)]
    rows = [heading, rule, *body]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heading))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )
