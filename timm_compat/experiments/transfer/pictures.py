"""Pictures of a transfer and of an upgrade; where Matplotlib is not installed there are none."""

from pathlib import Path
from typing import Any

import numpy as np

from timm_compat._extras import require
from timm_compat.evaluation.plots import COLOURS, MARKS, bars, heat_map
from timm_compat.experiments.transfer.tables import (
    TRANSFER_TITLES,
    UPGRADE_TITLES,
    TransferTable,
    UpgradeTable,
)
from timm_compat.storage.files import writing

PANEL_INCHES, HEIGHT_INCHES = 4.2, 4.2
DPI = 75


def draw_transfer(table: TransferTable, file: Path) -> None:
    """A heat map a way, mean over seeds.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    plt = require("matplotlib.pyplot", "plots")
    count = len(table.ways)
    figure, axes = plt.subplots(
        1, count, figsize=(PANEL_INCHES * count, HEIGHT_INCHES), layout="constrained", squeeze=False
    )
    for axis, way in zip(axes[0], table.ways, strict=True):
        matrix, last = table.matrix(way), axis is axes[0][-1]
        heat_map(
            matrix.mean, matrix.rows, matrix.columns,
            native=matrix.native, title=TRANSFER_TITLES[way], colorbar=last, ax=axis,
        )  # fmt: skip
        if axis is not axes[0][0]:
            axis.set(ylabel="", yticks=[])
    with writing(file):
        figure.savefig(file, dpi=DPI)
    plt.close(figure)


def draw_upgrade(table: UpgradeTable, file: Path) -> None:
    """Update gain against compatibility cost, and negative flips; means over seeds with their deviations.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    plt = require("matplotlib.pyplot", "plots")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, HEIGHT_INCHES), layout="constrained")
    for number, way in enumerate(table.ways):
        _point(left, table, way, number)
    left.axhline(0, color="#444444", linestyle=":", linewidth=1.2)
    left.set(xlabel="compatibility cost (accuracy)", ylabel="update gain of the old heads")
    if left.get_legend_handles_labels()[0]:  # no update gain is told where the new extractor is no better
        left.legend(loc="best")
    flips = {UPGRADE_TITLES[way]: values for way in table.ways if (values := table.values(way, "flips"))}
    spreads = {name: (min(values), max(values)) for name, values in flips.items()}
    means = {name: float(np.mean(values)) for name, values in flips.items()}
    if means:
        bars(means, intervals=spreads, ylabel="negative flips of the old heads", ax=right)
    with writing(file):
        figure.savefig(file, dpi=DPI)
    plt.close(figure)


def _point(axis: Any, table: UpgradeTable, way: str, number: int) -> None:
    gain, cost = table.values(way, "gain"), table.values(way, "cost")
    if not gain or not cost:
        return
    spread = [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in (gain, cost)]
    style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKS[number % len(MARKS)], "linestyle": ""}
    axis.errorbar(np.mean(cost), np.mean(gain), yerr=spread[0], xerr=spread[1], label=UPGRADE_TITLES[way], **style)
