"""Pictures. Each function takes an optional axis and returns (figure, axis); none shows or saves.

Needs ``pip install "timm-compat[plots]"``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from timm_compat._extras import require
from timm_compat.evaluation.scores import Array, Mask

CELL_INCHES = 1.1
MARGIN_INCHES = 2.2
DARK_BELOW = 0.55


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
        ax.text(column, row, text, ha="center", va="center", color="white" if value < DARK_BELOW else "black")
        if native is not None and native[row, column]:
            ax.add_patch(
                plt.Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor="red", linewidth=2)
            )
    ax.set_xticks(range(len(columns)), columns, rotation=20, ha="right")
    ax.set_yticks(range(len(rows)), rows)
    ax.set(xlabel="task head", ylabel="extractor", title=title)
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label="accuracy", shrink=0.8)
    return ax.figure, ax
