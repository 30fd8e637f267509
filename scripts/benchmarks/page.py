"""The results as one Markdown page, and as a picture of the ratios."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from timm_compat.table import markdown_table

REDUCED = "CPU, reduced"
PICTURED = ("inference", "passes", "loading", "training")
INTRODUCTION = """# Speed

What the package costs beside plain timm and plain PyTorch. A *ratio* is our time divided by theirs: 1.00 is equal, less
is faster. Both run in turns, in one process unless a table says otherwise, and the ratio is taken round by round:
median, and in brackets the quartiles. Times are processor time of the process on a CPU (other programs on the machine
count only where they share its caches and memory), wall time on a GPU. Freed memory stays with the process on both
sides (`ALLOCATOR` in `scripts/benchmark.py`); on 2026-11-25 it did not yet, and on 2026-11-28 other work kept both
cores busy, so that seconds are up to twice those of an idle machine. The numbers behind the tables are in
`speed.json`."""


def page(tables: Mapping[str, ModuleType], results: Mapping[str, Mapping[str, Any]]) -> str:
    """Every table that has results."""
    parts = [INTRODUCTION]
    for name, table in tables.items():
        if results.get(name):
            parts += [f"## {table.TITLE}{_mark(name, results[name])}", table.TEXT, _table(table, results[name])]
            parts.append(_made(name, results[name]))
    return "\n\n".join(parts) + "\n"


def _mark(name: str, results: Mapping[str, Any]) -> str:
    reduced = name == "gpu" and any(result["made"]["device"] == "cpu" for result in results.values())
    return f" ({REDUCED}: no GPU was at hand, its cells are open)" if reduced else ""


def _table(table: ModuleType, results: Mapping[str, Any]) -> str:
    measured = list(results.values())
    rows = table.rows(measured) if hasattr(table, "rows") else [table.row(result) for result in measured]
    return markdown_table([table.HEADER, *([_text(cell) for cell in row] for row in rows)])


def _text(cell: Any) -> str:
    if isinstance(cell, list):
        low, median, high = cell
        return f"{median:.2f} ({low:.2f}, {high:.2f})"
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:.0f}"
    return str(cell)


def _made(name: str, results: Mapping[str, Any]) -> str:
    made = list(results.values())[-1]["made"]
    repeats = sorted({result["repeats"] for result in results.values() if "repeats" in result})
    rounds = f", {' or '.join(map(str, repeats))} rounds" if repeats else ""
    machine = made["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, {made['threads']} thread(s)"
    versions = ", ".join(f"{key} {value}" for key, value in made["versions"].items() if key != "timm_compat")
    return f"(`scripts/benchmark.py {name}`{rounds}; {where}; {versions}; {_when(results)}.)"


def _when(results: Mapping[str, Any]) -> str:
    """Dates, versions and commits; where there are several dates, which rows are of which."""
    rows: dict[str, dict[str, str]] = {}
    for name, result in results.items():
        made = result["made"]
        rows.setdefault(f"{made['date']}, timm_compat {made['versions']['timm_compat']}", {})[name] = made["commit"]
    told = {date: f"{date}, commit {' or '.join(dict.fromkeys(of.values()))}" for date, of in rows.items()}
    if len(rows) == 1:
        return next(iter(told.values()))
    return "; ".join(f"{', '.join(of)}: {told[date]}" for date, of in sorted(rows.items()))


def picture(results: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Medians and quartiles of the ratios of tables that compare like with like."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries = [
        (f"{name}: {cell}" + (f", {part}" if part != "ours" else ""), ratio)
        for name in PICTURED
        for cell, result in results.get(name, {}).items()
        if cell != "adapter-backbone"
        for part, ratio in result["ratios"].items()
    ]
    figure, axis = pyplot.subplots(figsize=(7, 0.6 + 0.19 * len(entries)), layout="constrained")
    for place, (_, (low, median, high)) in enumerate(reversed(entries)):
        axis.plot([low, high], [place, place], color="tab:blue", linewidth=2)
        axis.plot(median, place, "o", color="tab:blue", markersize=4)
    axis.set_yticks(range(len(entries)), [label for label, _ in reversed(entries)], fontsize=7)
    axis.axvline(1, color="grey", linewidth=1)
    axis.set_xlabel("our time : theirs (median and quartiles)")
    figure.savefig(file, dpi=80)
    pyplot.close(figure)
