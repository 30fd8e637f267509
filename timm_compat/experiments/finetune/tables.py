"""From curves over seeds to tables, figures and a picture: accuracy, cost, and what it took to reach another's end."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from timm_compat._extras import require
from timm_compat.evaluation.plots import COLOURS, MARKS, STYLES
from timm_compat.experiments.finetune.cost import Curve
from timm_compat.experiments.finetune.sections import ADAPTERS, CHEAP_HEAD, START, USUAL
from timm_compat.experiments.result import Cell, way_table
from timm_compat.table import markdown_table, spread_text

Ways = Mapping[str, Sequence[Curve]]  # by name, one curve a seed
GIGA, MEBI = 1e9, 2**20
QUANTITIES = ("steps", "seconds", "flops")
TITLES = {START: "Where training starts", CHEAP_HEAD: "Where the head is trained", ADAPTERS: "What learns"}
CORNERS = {START: "start", CHEAP_HEAD: "head", ADAPTERS: "what learns"}
PANEL_INCHES = (4.6, 3.8)
MOST_ABREAST, MOST_MARKS = 3, 15
# By section: what runs along the axis of each of its panels, and whether its powers of ten are spaced evenly.
PANELS = {
    START: (("steps", False), ("seconds", False)),
    CHEAP_HEAD: (("GFLOP", True),),
    ADAPTERS: (("GFLOP", True), ("seconds", True)),
}


def spent(curves: Sequence[Curve], levels: Sequence[float], quantity: str) -> list[float]:
    """The steps, seconds or flops of every seed until it first measured at least its level; infinity: it never did."""
    places = [curve.reached(level) for curve, level in zip(curves, levels, strict=True)]
    pairs = zip(curves, places, strict=True)
    return [math.inf if place is None else float(getattr(curve, quantity)[place]) for curve, place in pairs]


def ends(curves: Sequence[Curve]) -> list[float]:
    """Accuracy at the end, of every seed."""
    return [curve.accuracy[-1] for curve in curves]


def times_fewer(usual: Sequence[float], other: Sequence[float]) -> float:
    """The mean of the one over the mean of the other; infinite where the other spent nothing, NaN where both are."""
    above, below = sum(usual), sum(other)
    if math.isinf(above) and math.isinf(below):
        return math.nan
    return above / below if below else math.inf


def section_table(section: str, ways: Ways) -> str:
    """Markdown: a row a way, mean ± standard deviation over seeds."""
    columns = _start_columns if section == START else _cost_columns
    return way_table(CORNERS[section], ways, columns(ways[USUAL[section]]))


def level_table(ways: Ways, levels: Sequence[float]) -> str:
    """Markdown: steps to given accuracies."""
    lines = [["steps to accuracy", *(f"{level:g}" for level in levels)]]
    for name, found in ways.items():
        if len(found[0].steps) > 1:
            lines.append([name, *(_spread(spent(found, [level] * len(found), "steps"), 0) for level in levels)])
    return markdown_table(lines)


def figures(section: str, ways: Ways) -> dict[str, Any]:
    """JSON values by way: of every seed, at the end and where the usual way's end was reached (null: never)."""
    levels = ends(ways[USUAL[section]])
    return {
        name: {
            "accuracy_at_start": [curve.accuracy[0] for curve in found],
            "accuracy": ends(found),
            **{quantity: [getattr(curve, quantity)[-1] for curve in found] for quantity in QUANTITIES},
            "peak_bytes": [curve.peak_bytes for curve in found],
            "to_the_usual_end": {
                quantity: [None if math.isinf(value) else value for value in spent(found, levels, quantity)]
                for quantity in QUANTITIES
            },
        }
        for name, found in ways.items()
    }


def _start_columns(usual: Sequence[Curve]) -> dict[str, Cell]:
    levels = ends(usual)

    def trained(cell: Cell) -> Cell:
        return lambda found: cell(found) if len(found[0].steps) > 1 else ""

    def steps(found: Sequence[Curve]) -> list[float]:
        return spent(found, levels, "steps")

    return {
        "accuracy at step 0": lambda found: spread_text([curve.accuracy[0] for curve in found]),
        "at the end": trained(lambda found: spread_text(ends(found))),
        "steps to the usual end": trained(lambda found: _spread(steps(found), 0)),
        "seconds": trained(lambda found: _spread(spent(found, levels, "seconds"), 1)),
        "fewer steps": trained(lambda found: _times(steps(usual), steps(found))),
    }


def _cost_columns(usual: Sequence[Curve]) -> dict[str, Cell]:
    def flops(found: Sequence[Curve]) -> list[float]:
        return [curve.flops[-1] for curve in found]

    def as_accurate(found: Sequence[Curve]) -> str:
        return _times(*(spent(curves, ends(found), "flops") for curves in (usual, found)))

    return {
        "accuracy": lambda found: spread_text(ends(found)),
        "GFLOP": lambda found: spread_text([value / GIGA for value in flops(found)], 2),
        "seconds": lambda found: spread_text([curve.seconds[-1] for curve in found], 1),
        "peak MiB": lambda found: spread_text([curve.peak_bytes / MEBI for curve in found], 1),
        "fewer FLOP": lambda found: _times(flops(usual), flops(found)),
        "fewer FLOP for this accuracy": as_accurate,
    }


def _spread(values: Sequence[float], digits: int) -> str:
    known = [value for value in values if not math.isinf(value)]
    if not known:
        return "never"
    text = spread_text(known, digits)
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)} seeds)"


def _times(usual: Sequence[float], other: Sequence[float]) -> str:
    if any(map(math.isinf, other)):
        return "never"
    if any(map(math.isinf, usual)):
        return "the usual way never"
    times = times_fewer(usual, other)
    return "all of them" if math.isinf(times) else f"{times:.1f} x"


def picture(sections: Mapping[str, Ways]) -> Any:
    """A Matplotlib figure: lines are means over seeds, shades one standard deviation to either side."""
    plt, (width, height) = require("matplotlib.pyplot", "plots"), PANEL_INCHES
    panels = [(section, *panel) for section in sections for panel in PANELS[section]]
    columns = min(len(panels), MOST_ABREAST)
    rows = math.ceil(len(panels) / columns)
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
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
    return figure


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
