"""From the results of single cells to the numbers of a table: one value a seed for every row and column."""

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kept import read_kept

from studies.joins import SIZES
from timm_compat.evaluation.baselines import BASELINE_TITLES

Cells = Mapping[str, Mapping[str, list[dict[str, Any]]]]
Rows = dict[str, dict[str, list[float]]]


def read_cells(folder: Path, order: Mapping[str, Iterable[str]]) -> Cells:
    """By table and row, in the order of the study, the results of all seeds; rows that it does not list come last."""
    found = read_kept(folder)
    tables: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for table, rows in order.items():
        cells = sorted((cell for cell in found if cell["table"] == table), key=lambda cell: cell["seed"])
        present = dict.fromkeys([*rows, *(cell["row"] for cell in cells)])
        by_row = {row: [cell for cell in cells if cell["row"] == row] for row in present}
        tables[table] = {row: chosen for row, chosen in by_row.items() if chosen}
    return {table: rows for table, rows in tables.items() if rows}


def pair_rows(table: Mapping[str, list[dict[str, Any]]]) -> Rows:
    """Native and recombined accuracy of two members, over all, common and private classes, and what mends them."""
    return {row: _columns(cell["result"] for cell in cells) for row, cells in table.items()}


def _columns(results: Iterable[dict[str, Any]]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for result in results:
        scopes = ("all", "common", "private") if result["private"] and result["common"] else ("all",)
        for scope in scopes:
            words = "" if scope == "all" else f", {scope}"
            for name, own in (("native", True), ("recombined", False)):
                chosen = [value for pair, value in result[scope].items() if _is_own(pair) == own]
                columns.setdefault(f"{name}{words}", []).append(statistics.fmean(chosen))
        for key, words in (("mapped", "mended by a map"), ("retrained", "head retrained")):
            if key in result:
                columns.setdefault(words, []).append(statistics.fmean(result[key].values()))
    return columns


def group_rows(table: Mapping[str, list[dict[str, Any]]]) -> Rows:
    """Native and recombined accuracy of any number of members; the worst exchanged pair beside, and what mends them."""
    rows: Rows = {}
    for row, cells in table.items():
        own = [[value for pair, value in cell["result"]["all"].items() if _is_own(pair)] for cell in cells]
        other = [[value for pair, value in cell["result"]["all"].items() if not _is_own(pair)] for cell in cells]
        rows[row] = {
            "native": [statistics.fmean(values) for values in own],
            "recombined": [statistics.fmean(values) for values in other],
            "worst pair": [min(values) for values in other],
        }
        for name, words in BASELINE_TITLES.items():
            if all("mended" in cell["result"] for cell in cells):
                rows[row][words] = [cell["result"]["mended"][name] for cell in cells]
    return rows


def chain_rows(cells: list[dict[str, Any]]) -> Rows:
    """The first member and each later one: both ways of exchanging their heads, and the later one's own accuracy."""
    results = [cell["result"]["all"] for cell in cells]
    last = max(int(pair.partition("-")[0]) for pair in results[0])
    return {
        str(number + 1): {
            "under its own head": [result[f"{number}-{number}"] for result in results],
            "under the first head": [result[f"{number}-0"] for result in results],
            "first extractor, this head": [result[f"0-{number}"] for result in results],
        }
        for number in range(1, last + 1)
    }


def matrix_of(cells: list[dict[str, Any]]) -> tuple[list[str], list[list[float]]]:
    """Backbones, and the mean over seeds of every extractor (rows) under every head (columns)."""
    names = cells[0]["result"]["backbones"]
    mean = [
        [statistics.fmean(cell["result"]["all"][f"{row}-{column}"] for cell in cells) for column in range(len(names))]
        for row in range(len(names))
    ]
    return names, mean


def join_rows(cells: list[dict[str, Any]]) -> dict[tuple[str, str, int], dict[str, list[float]]]:
    """By source of images, method and their number (0: all), one value a seed, mean over pairs.

    Columns: accuracy, its share of a head retrained with all labels (the ceiling), seconds.
    """
    rows: dict[tuple[str, str, int], dict[str, list[float]]] = {}
    for cell in cells:
        found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
        for row in cell["result"]["rows"]:
            count = row["images"] if row["images"] in SIZES else 0
            found.setdefault((row["source"], row["method"], count), []).append(row)
        for key, chosen in found.items():
            columns = rows.setdefault(key, {"accuracy": [], "share of the ceiling": [], "seconds": []})
            columns["accuracy"].append(statistics.fmean(row["accuracy"] for row in chosen))
            columns["share of the ceiling"].append(statistics.fmean(row["accuracy"] / row["ceiling"] for row in chosen))
            columns["seconds"].append(statistics.fmean(row.get("seconds", 0.0) for row in chosen))
    return rows


def _is_own(pair: str) -> bool:
    extractor, _, head = pair.partition("-")
    return extractor == head
