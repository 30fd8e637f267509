"""Tables, pictures and one JSON file of what was measured."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from studies.cells import PRETRAINED
from studies.pretrained_pages import write_pretrained
from studies.rows import Cells, Rows, chain_rows, group_rows, join_rows, matrix_of, pair_rows
from timm_compat.evaluation.plots import bars, heat_map, lines
from timm_compat.gallery.advice import WayScores, recommend
from timm_compat.storage.files import replace_text
from timm_compat.table import markdown_table, spread_table, spread_text

TITLES = {
    "methods": "What is shared: label sets that overlap in part (4 of 7 classes)",
    "same_classes": "What is shared: the same ten classes, disjoint images",
    "overlap": "How many classes the tasks have in common",
    "interface": "Interface, start and decay of the heads (same ten classes, common classes shared)",
    "feature_dim": "Number of features (4 of 7 classes, common classes and alignment)",
    "split": "Where the network is cut: maps of a stage, heads of depth 2 (4 of 7 classes)",
    "architectures": "Five architectures in one space (ten classes)",
    "chain": "Ten members, one after another (ten classes)",
    "data_sets": "Two data sets: MNIST and USPS",
    "join": "Frozen backbones joined on unlabelled images (4 of 7 classes)",
    "gallery": "Stored embeddings of real photos, and another network",
}
PAIRS = ("methods", "same_classes", "overlap", "interface", "feature_dim", "split")
ALL = "all"


def write_pages(cells: Cells, folder: Path, command: str) -> None:
    """Write ``study.md``, ``study.json`` and pictures, and what ``write_pretrained`` writes.

    Args:
        cells: what was measured.
        folder: where to.
        command: that measured it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if PRETRAINED in cells:
        write_pretrained(cells[PRETRAINED], folder, command)
    cells = {table: rows for table, rows in cells.items() if table != PRETRAINED}
    if not cells:
        return
    parts = ["# Tables of the study", _facts(cells, command)]
    for table, rows in cells.items():
        parts += [f"## {TITLES[table]}", _table(table, rows)]
    replace_text(folder / "study.md", "\n\n".join(parts) + "\n")
    replace_text(folder / "study.json", json.dumps(_document(cells, command), separators=(",", ":")) + "\n")
    _draw(cells, folder)


def _facts(cells: Cells, command: str) -> str:
    every = [cell for rows in cells.values() for found in rows.values() for cell in found]
    one, seeds = every[0], sorted({cell["seed"] for cell in every})
    scale = one["settings"]
    data = "CIFAR-10" if scale["root"] else "scikit-learn's digits"
    size = f"{scale['images']} images a member, {scale['epochs']} epochs, {scale['test_images']} test images"
    hours = sum(cell["processor_seconds"] for cell in every) / 3600
    versions = ", ".join(f"{name} {number}" for name, number in one["made"]["versions"].items())
    commits = ", ".join(sorted({cell["made"]["commit"] for cell in every}))
    made = (
        f"{_device(one['made'])}, {hours:.1f} hours of processor time, commits {commits}, {versions}, "
        f"{max(cell['made']['date'] for cell in every)}.\n\n    {command}"
    )
    if set(cells) == {"gallery"}:
        return (
            f"Photos, at most {scale['images']} a gallery, timm's networks with their ImageNet weights; seeds "
            f"{', '.join(map(str, seeds))}. Half of the sample fits the maps, the other half is looked for among "
            f"itself; recall@1 of one seed with its 95 % interval, of several with the standard deviation over them. "
            f"{made}"
        )
    return (
        f"{data}, {size}, batches of {scale['batch_size']}, backbones A {scale['backbones'][0]} and B "
        f"{scale['backbones'][1]} unless a table says otherwise. Mean ± standard deviation over seeds "
        f"{', '.join(map(str, seeds))}, as many as a row names; otherwise one seed. {made}\n\n"
        "Native: extractors under their own heads; recombined: under each other's; both over all classes of the head, "
        "then over the classes in common and over the head's private ones, where there are both. Mended by a map: "
        "recombined after a least-squares map between the two extractors, fitted on unlabelled images. Head retrained: "
        "a new head with all labels of the other's images, on the foreign extractor. Rows 'nothing' are members that "
        "were trained independently."
    )


def _table(table: str, found: Mapping[str, list[dict[str, Any]]]) -> str:
    rows = {f"{row} ({len(cells)} seeds)" if len(cells) > 1 else row: cells for row, cells in found.items()}
    if table in PAIRS:
        return spread_table("shared", pair_rows(rows))
    if table == "architectures":
        return "\n\n".join([spread_table("shared", group_rows(rows)), *(_matrix(row, rows[row]) for row in rows)])
    if table == "chain":
        return "\n\n".join(spread_table(f"{row}: member", chain_rows(cells)) for row, cells in rows.items())
    if table == "gallery":
        return _galleries(rows)
    return spread_table("shared", group_rows(rows)) if table == "data_sets" else _joins(rows)


def _matrix(row: str, cells: list[dict[str, Any]]) -> str:
    names, mean = matrix_of(cells)
    body = [
        [name, *(f"**{value:.3f}**" if n == m else f"{value:.3f}" for m, value in enumerate(mean[n]))]
        for n, name in enumerate(names)
    ]
    return markdown_table([[f"{row}: extractor \\ head", *names], *body])


def _joins(rows: Mapping[str, list[dict[str, Any]]]) -> str:
    body = []
    for row, cells in rows.items():
        for (source, method, count), columns in join_rows(cells).items():
            share = spread_text([100 * value for value in columns["share of the ceiling"]], 1)
            seconds = f"{statistics.fmean(columns['seconds']):.2f}"
            images = "" if source == "none" else str(count or ALL)
            body.append([row, source, images, method, spread_text(columns["accuracy"]), share, seconds])
    heading = ["space", "images of", "images", "method", "accuracy", "% of a head retrained with labels", "seconds"]
    return markdown_table([heading, *body])


def _galleries(rows: Mapping[str, list[dict[str, Any]]]) -> str:
    body = []
    for row, cells in rows.items():
        for number, one in enumerate(cells[0]["result"]["ways"]):
            ways = [cell["result"]["ways"][number] for cell in cells]
            first, low, high = one["recall_at_1"], *one["interval_at_1"]
            at_1 = (
                spread_text([way["recall_at_1"] for way in ways])
                if len(cells) > 1
                else (f"{first:.3f} ({low:.3f} to {high:.3f})")
            )
            at_10, flips = (spread_text([way[key] for way in ways]) for key in ("recall_at_10", "negative_flips"))
            cost = [f"{statistics.fmean(way[key] for way in ways):,.0f}" for key in ("seconds", "gflop")]
            advised = sum(_advised(cell["result"]["ways"]) == one["way"] for cell in cells)
            mark = f"{advised} of {len(cells)}" if advised else ""
            body.append([row, one["way"], at_1, at_10, flips, *cost, mark])
        half = spread_text([cell["result"]["half_way"] for cell in cells])
        body.append([row, "half-way through reembed", half, "", "", "", "", ""])
    heading = ["gallery", "way", "recall@1", "recall@10", "flips", "seconds", "GFLOP", "recommended"]
    return markdown_table([heading, *body])


def _advised(ways: list[dict[str, Any]]) -> str:
    """By today's rule, whatever was the rule when the cell was measured."""
    return recommend({way["way"]: WayScores(**way) for way in ways}, labelled=True)[0]


def _device(made: Mapping[str, Any]) -> str:
    return made["machine"]["gpu"] or f"CPU, {made['threads']} thread(s)"


def _document(cells: Cells, command: str) -> dict[str, Any]:
    every = [cell for rows in cells.values() for found in rows.values() for cell in found]
    first, shared = every[0]["made"], ("settings", "made")
    kept = [
        {**{key: value for key, value in cell.items() if key not in shared},
         "commit": cell["made"]["commit"], "date": cell["made"]["date"]}
        for cell in every
    ]  # fmt: skip
    facts = {"scale": every[0]["settings"], "device": _device(first), "versions": first["versions"]}
    return {"schema": 1, "command": command, **facts, "cells": _rounded(kept)}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _draw(cells: Cells, folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    if "methods" in cells:
        _save(_methods(pair_rows(cells["methods"])), folder / "methods.png")
    if "architectures" in cells:
        _save(_architectures(cells["architectures"]), folder / "architectures.png")
    if "chain" in cells:
        _save(_chain(cells["chain"]), folder / "chain.png")
    if "join" in cells:
        _save(_joined(next(iter(cells["join"].values()))), folder / "join.png")


def _methods(rows: Rows) -> Any:
    values = {row: statistics.fmean(columns["recombined"]) for row, columns in rows.items()}
    spreads = {row: (min(columns["recombined"]), max(columns["recombined"])) for row, columns in rows.items()}
    native = statistics.fmean(rows["nothing"]["native"]) if "nothing" in rows else None
    return bars(values, intervals=spreads, chance=1 / 7, native=native, title="4 of 7 classes in common")[0]


def _architectures(rows: Mapping[str, list[dict[str, Any]]]) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(rows), figsize=(6.2 * len(rows), 4.6), layout="constrained", squeeze=False)
    for axis, (row, found) in zip(axes[0], rows.items(), strict=True):
        names, mean = matrix_of(found)
        own = np.eye(len(names), dtype=bool)
        heat_map(np.array(mean), names, names, native=own, title=row, ax=axis, colorbar=False)
    return figure


def _chain(rows: Mapping[str, list[dict[str, Any]]]) -> Any:
    series = {}
    for row, cells in rows.items():
        short = "aligned" if "aligned" in row else "not aligned"
        members = chain_rows(cells)
        for column in ("under its own head", "under the first head"):
            series[f"{column.removeprefix('under ')}, {short}"] = [
                statistics.fmean(columns[column]) for columns in members.values()
            ]
    return lines([int(name) for name in members], series, xlabel="member, in order of coming", ylabel="accuracy")[0]


def _joined(found: list[dict[str, Any]]) -> Any:
    rows = join_rows(found)
    counts = sorted({count for source, _, count in rows if source == "head's" and count})
    known = {method for source, method, count in rows if source == "head's" and count in counts}
    methods = [method for method in ("ridge", "ridge, self-trained", "joined") if method in known]
    series = {
        method: [100 * statistics.fmean(rows["head's", method, count]["share of the ceiling"]) for count in counts]
        for method in methods
    }
    figure, axis = lines(counts, series, xlabel="unlabelled images", ylabel="% of a head retrained with labels")
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(count) for count in counts])
    return figure


def _save(figure: Any, file: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(file, dpi=90)
    plt.close(figure)
