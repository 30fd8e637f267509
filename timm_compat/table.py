"""Tables as Markdown."""

import statistics
from collections.abc import Collection, Mapping, Sequence


def markdown_table(lines: Sequence[Sequence[str]], words: Collection[int] = (0,)) -> str:
    """A table whose first line is the heading.

    Args:
        lines: of cells, the heading first.
        words: columns that stand left, as words do; the others stand right.
    """
    heading, *body = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    rule = ["---" if column in words else "---:" for column in range(len(heading))]
    rows = [heading, rule, *body]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heading))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def spread_text(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation (n - 1), such as "0.913 ± 0.004"; the mean alone of one value, "n/a" of none."""
    if not values:
        return "n/a"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def spread_table(corner: str, rows: Mapping[str, Mapping[str, Sequence[float]]], digits: int = 3) -> str:
    """A Markdown table of mean ± standard deviation.

    Args:
        corner: heading of the first column.
        rows: by row and column, one value per seed; a column that a row lacks is "n/a".
        digits: after the point.
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    body = [[name, *(spread_text(row.get(column, ()), digits) for column in columns)] for name, row in rows.items()]
    return markdown_table([[corner, *columns], *body])
