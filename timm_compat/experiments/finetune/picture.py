"""The curves as a picture: accuracy against steps and seconds, and against what was computed."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from timm_compat._extras import require
from timm_compat.evaluation.plots import COLOURS, MARKS, STYLES
from timm_compat.experiments.finetune.curve import Curve
from timm_compat.experiments.finetune.sections import ADAPTERS, CHEAP_HEAD, START
from timm_compat.experiments.finetune.summary import GIGA, Ways
from timm_compat.storage.files import writing

PANEL_INCHES = (4.6, 3.8)
MOST_ABREAST, MOST_MARKS = 3, 15
# By section: what runs along the axis of each of its panels, and whether its powers of ten are spaced evenly.
PANELS = {
    START: (("steps", False), ("seconds", False)),
    CHEAP_HEAD: (("GFLOP", True),),
    ADAPTERS: (("GFLOP", True), ("seconds", True)),
}
TITLES = {START: "where training starts", CHEAP_HEAD: "where the head is trained", ADAPTERS: "what learns"}


def draw(sections: Mapping[str, Ways], file: Path) -> None:
    """Write a PNG: lines are means over seeds, shades one standard deviation to either side.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    plt = require("matplotlib.pyplot", "plots")
    panels = [(section, *panel) for section in sections for panel in PANELS[section]]
    width, height = PANEL_INCHES
    columns = min(len(panels), MOST_ABREAST)
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (section, quantity, even) in zip(axes.flat, panels, strict=False):
        for number, (name, curves) in enumerate(sections[section].items()):
            _line(axis, name, curves, quantity, number, first=1 if even else 0)
        if even:
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter("")  # between powers of ten the labels would run into each other
        axis.set(xlabel=f"training {quantity}", ylabel="accuracy on the target", title=TITLES[section])
        axis.legend(loc="lower right", fontsize=8)
    with writing(file):
        figure.savefig(file, dpi=80)
    plt.close(figure)


def _line(axis: Any, name: str, curves: Sequence[Curve], quantity: str, number: int, first: int) -> None:
    colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
    accuracy = np.array([curve.accuracy for curve in curves])
    if accuracy.shape[1] == 1:
        axis.axhline(accuracy.mean(), color=colour, linestyle=":", label=name)
        return
    # On even powers of ten there is no place for what has cost nothing yet.
    along = np.mean([_along(curve, quantity) for curve in curves], axis=0)[first:]
    mean, deviation = accuracy.mean(axis=0)[first:], accuracy.std(axis=0, ddof=min(1, len(curves) - 1))[first:]
    mark = {"marker": MARKS[number % len(MARKS)], "markersize": 4, "markevery": max(1, len(mean) // MOST_MARKS)}
    axis.plot(along, mean, color=colour, linestyle=style, label=name, **mark)
    axis.fill_between(along, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)


def _along(curve: Curve, quantity: str) -> list[float]:
    if quantity == "GFLOP":
        return [value / GIGA for value in curve.flops]
    return [float(value) for value in getattr(curve, quantity)]
