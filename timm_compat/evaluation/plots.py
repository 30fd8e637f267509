"""Pictures of accuracies. Each function takes an optional axis and returns (figure, axis); none shows or saves.

Colours can be told apart with colour blindness; markers, line styles and frames work in greyscale.

Needs ``pip install "timm-compat[plots]"``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from timm_compat._extras import require
from timm_compat.errors import DataError
from timm_compat.evaluation.scores import Array, Mask

CELL_INCHES = 1.1
MARGIN_INCHES = 2.2
PANEL_INCHES = 4.2
DARK_BELOW = 0.55
# Okabe and Ito 2008, without yellow, which is too pale on white; dark and light ones take turns.
COLOURS = ("#0072B2", "#E69F00", "#000000", "#56B4E9", "#D55E00", "#CC79A7", "#009E73")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
STYLES = ("-", "--", "-.", ":")
BAR_COLOUR = "#56B4E9"
LONGEST_LABEL = 28


def heat_map(
    matrix: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    native: Mask | None = None,
    title: str = "",
    colorbar: bool = True,
    ax: Any = None,
) -> tuple[Any, Any]:
    """The recombination matrix: extractors down, heads across, native cells framed.

    Args:
        matrix: accuracies in [0, 1], NaN where not measured; (len(rows), len(columns)).
        rows: extractors' names.
        columns: heads' names.
        native: which cells to frame.
        title: above the picture.
        colorbar: whether to draw the scale.
        ax: a Matplotlib axis to draw on; a new figure if None.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    plt = require("matplotlib.pyplot", "plots")
    if ax is None:
        size = (MARGIN_INCHES + CELL_INCHES * len(columns), MARGIN_INCHES * 0.7 + CELL_INCHES * 0.8 * len(rows))
        _, ax = plt.subplots(figsize=size, layout="constrained")
    image = ax.imshow(matrix, vmin=0, vmax=1, cmap="cividis")
    for row, column in np.ndindex(matrix.shape):
        value = matrix[row, column]
        text = "n/a" if np.isnan(value) else f"{value:.2f}"
        own = native is not None and bool(native[row, column])
        colour = "white" if value < DARK_BELOW else "black"
        ax.text(column, row, text, ha="center", va="center", color=colour, weight="bold" if own else "normal")
        if own:
            for width, edge in ((5, "black"), (2, "white")):  # one of the two stands out from any shade
                corner = (column - 0.45, row - 0.45)
                ax.add_patch(plt.Rectangle(corner, 0.9, 0.9, fill=False, edgecolor=edge, linewidth=width))
    ax.set_xticks(range(len(columns)), map(label_text, columns), rotation=20, ha="right")
    ax.set_yticks(range(len(rows)), map(label_text, rows))
    ax.set(xlabel="task head", ylabel="extractor", title=title)
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label="accuracy", shrink=0.8)
    return ax.figure, ax


def side_by_side(matrices: Mapping[str, Any]) -> Any:
    """A figure of heat maps next to each other, with one scale.

    Args:
        matrices: of the same columns by title; what has ``plot`` as ``RecombinationMatrix`` does.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    size = (PANEL_INCHES * len(matrices), PANEL_INCHES)
    figure, axes = require("matplotlib.pyplot", "plots").subplots(
        1, len(matrices), figsize=size, layout="constrained", squeeze=False
    )
    for axis, (title, matrix) in zip(axes[0], matrices.items(), strict=True):
        matrix.plot(axis, title=title, colorbar=axis is axes[0][-1])
        if axis is not axes[0][0]:
            axis.set(ylabel="", yticks=[])
    return figure


def bars(
    values: Mapping[str, float],
    *,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    chance: float | None = None,
    native: float | None = None,
    ylabel: str = "recombined accuracy",
    title: str = "",
    ax: Any = None,
) -> tuple[Any, Any]:
    """One bar per method (or any other name) with its interval; chance and native as lines across.

    Args:
        values: heights by name, in this order; NaN is left out and named.
        intervals: lower and upper end by name.
        chance: drawn as a dotted line.
        native: drawn as a dashed line.
        ylabel: what the heights are.
        title: above the picture.
        ax: a Matplotlib axis to draw on; a new figure if None.

    Raises:
        DataError: nothing to draw.
        MissingExtraError: Matplotlib is not installed.
    """
    if not values:
        raise DataError("bars: expected values by name, got none")
    ax = _axis(ax, (1.6 + 1.1 * len(values), 4.2))
    places, heights = range(len(values)), [0.0 if math.isnan(value) else value for value in values.values()]
    ax.bar(places, heights, width=0.7, color=BAR_COLOUR, edgecolor="black")
    for place, (name, value) in zip(places, values.items(), strict=True):
        low, high = (intervals or {}).get(name, (value, value))
        if not math.isnan(low):
            ax.plot([place, place], [low, high], color="black", linewidth=1.5, marker="_", markersize=9)
        text = "n/a" if math.isnan(value) else f"{value:.2f}"
        top = 0.0 if math.isnan(value) else max(value, 0.0 if math.isnan(high) else high)
        ax.annotate(text, (place, top), (0, 4), textcoords="offset points", ha="center")
    _reference_lines(ax, chance, native)
    ax.set_xticks(places, map(label_text, values), rotation=20, ha="right")
    ax.set(ylabel=ylabel, title=title)
    ax.margins(y=0.12)
    return ax.figure, ax


def lines(
    quantity: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    intervals: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    chance: float | None = None,
    native: float | None = None,
    xlabel: str = "",
    ylabel: str = "compatibility",
    title: str = "",
    log: bool = False,
    ax: Any = None,
) -> tuple[Any, Any]:
    """Compatibility against a quantity, such as the feature dimension or the depth of the split.

    Args:
        quantity: (n,), along the axis.
        series: by name, (n,) each; NaN leaves a gap.
        intervals: by name, lower and upper ends (n,) each.
        chance: drawn as a dotted line.
        native: drawn as a dashed line.
        xlabel: what the quantity is.
        ylabel: what the values are.
        title: above the picture.
        log: whether the quantity is spaced by powers of two.
        ax: a Matplotlib axis to draw on; a new figure if None.

    Raises:
        DataError: nothing to draw, or a series of another length.
        MissingExtraError: Matplotlib is not installed.
    """
    _check_series(quantity, series)
    ax = _axis(ax, (6.4, 4.2))
    for number, (name, values) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        style = {"color": colour, "marker": MARKS[number % len(MARKS)], "linestyle": STYLES[number % len(STYLES)]}
        ax.plot(quantity, values, label=label_text(name), **style)
        if intervals and name in intervals:
            low, high = (np.asarray(end, dtype=float) for end in intervals[name])
            ax.fill_between(quantity, low, high, color=colour, alpha=0.15, linewidth=0)
    if log:
        ax.set_xscale("log", base=2)
    ax.set_xticks(list(quantity), [f"{value:g}" for value in quantity])
    ax.minorticks_off()
    _reference_lines(ax, chance, native)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    ax.legend(loc="best")
    return ax.figure, ax


def training_curves(
    history: Sequence[Mapping[str, float]],
    names: Sequence[str] | None = None,
    *,
    ylabel: str = "mean loss over the epoch",
    title: str = "",
    ax: Any = None,
) -> tuple[Any, Any]:
    """Numbers of a training's history against the epoch.

    Args:
        history: one record per epoch, as in ``FitResult.history`` or a line of ``history.jsonl``.
        names: which numbers; every member's task loss if None, or the total loss where there is none.
        ylabel: what the numbers are.
        title: above the picture.
        ax: a Matplotlib axis to draw on; a new figure if None.

    Raises:
        DataError: no record, or a number that the records do not have.
        MissingExtraError: Matplotlib is not installed.
    """
    if not history:
        raise DataError("history: expected one record per epoch, got none")
    known = list(dict.fromkeys(key for record in history for key in record))
    tasks = [name for name in known if name.endswith("/task")] or ["loss"]
    chosen = tasks if names is None else list(names)
    missing = [name for name in chosen if name not in known]
    if missing or not chosen:
        raise DataError(f"history: expected {', '.join(missing) or 'a name'}, got {', '.join(known)}")
    epochs = [record.get("epoch", number) for number, record in enumerate(history, 1)]
    ax = _axis(ax, (6.4, 4.2))
    for number, name in enumerate(chosen):
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number % len(STYLES)]}
        values = [record.get(name, math.nan) for record in history]
        ax.plot(epochs, values, label=label_text(name), marker=MARKS[number % len(MARKS)], markersize=4, **style)
    ax.xaxis.set_major_locator(require("matplotlib.ticker", "plots").MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel=ylabel, title=title)
    ax.legend(loc="best")
    return ax.figure, ax


def label_text(name: str) -> str:
    """A name as Matplotlib shall print it: not too long, and never read as a formula."""
    short = name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"
    return short.replace("$", r"\$")


def _axis(ax: Any, size: tuple[float, float]) -> Any:
    if ax is not None:
        return ax
    return require("matplotlib.pyplot", "plots").subplots(figsize=size, layout="constrained")[1]


def _reference_lines(ax: Any, chance: float | None, native: float | None) -> None:
    for name, value, style in (("native", native, "--"), ("chance", chance, ":")):
        if value is not None and not math.isnan(value):
            ax.axhline(value, color="#444444", linestyle=style, linewidth=1.2)
            place = (1.0, value)
            ax.annotate(
                name, place, (2, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center"
            )


def _check_series(quantity: Sequence[float], series: Mapping[str, Sequence[float]]) -> None:
    if not series or not len(quantity):
        raise DataError("lines: expected a quantity and at least one series, got none")
    for name, values in series.items():
        if len(values) != len(quantity):
            raise DataError(f"lines: expected {len(quantity)} values of {name!r}, got {len(values)}")
