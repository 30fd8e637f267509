"""A picture of a space: two extractors' features of the same images in the plane of their two main components."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from timm_compat._extras import require
from timm_compat.errors import DataError
from timm_compat.evaluation.plots import COLOURS, label_text

LEAST_IMAGES = 3
NAME_OFFSETS = ((8, 6), (-8, 6), (8, -14), (-8, -14))  # points; neighbours' names keep out of each other's way


def principal_plane(first: Tensor, second: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Both sides' coordinates on the two main components of all features together, and their share of the variance.

    Args:
        first: (N, D).
        second: (N, D), of the same images.

    Returns:
        (N, 2), (N, 2), and a share in [0, 1].

    Raises:
        DataError: other shapes, or fewer than 3 images.
    """
    if first.ndim != 2 or first.shape != second.shape or len(first) < LEAST_IMAGES or first.shape[1] < 2:
        raise DataError(
            f"features: expected two of one shape (N, D), N from {LEAST_IMAGES} and D from 2, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    both = np.concatenate([side.detach().cpu().double().numpy() for side in (first, second)])
    both = both - both.mean(axis=0)
    _, values, components = np.linalg.svd(both, full_matrices=False)
    plane = both @ components[:2].T
    total = float((values**2).sum())
    share = float((values[:2] ** 2).sum()) / total if total else 0.0
    return plane[: len(first)], plane[len(first) :], share


def feature_plot(
    first: Tensor,
    second: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    *,
    names: tuple[str, str] = ("first", "second"),
    title: str = "",
    ax: Any = None,
) -> tuple[Any, Any]:
    """Features of the same images from two extractors: filled circles and open triangles, one colour a class.

    Where the two are compatible, each class's circles and triangles lie together, and the line between their means is
    short. At most as many classes are drawn as there are colours; the first in ``class_names``.

    Args:
        first: (N, D), one extractor's features.
        second: (N, D), the other's, of the same images.
        labels: (N,), indices into ``class_names``.
        class_names: for the text at each class's mean.
        names: of the extractors, for the legend.
        title: above the picture.
        ax: a Matplotlib axis to draw on; a new figure if None.

    Raises:
        DataError: other shapes, or fewer than 3 images.
        MissingExtraError: Matplotlib is not installed.
    """
    plt = require("matplotlib.pyplot", "plots")
    known = labels.cpu().numpy()
    shown = [label for label in np.unique(known).tolist()][: len(COLOURS)]
    kept = np.isin(known, shown)
    circles, triangles, share = principal_plane(first[kept], second[kept])
    if ax is None:
        _, ax = plt.subplots(figsize=(5.6, 5.0), layout="constrained")
    for colour, label in zip(COLOURS, shown, strict=False):
        own = known[kept] == label
        ax.scatter(*circles[own].T, s=14, color=colour, alpha=0.45, linewidths=0)
        ax.scatter(*triangles[own].T, s=18, marker="^", facecolors="none", edgecolors=colour, alpha=0.55)
    for number, label in enumerate(shown):
        own = known[kept] == label
        _draw_means(ax, circles[own].mean(axis=0), triangles[own].mean(axis=0), COLOURS[number])
        _name_mean(ax, circles[own].mean(axis=0), class_names[label], NAME_OFFSETS[number % len(NAME_OFFSETS)])
    handles = [
        ax.scatter([], [], s=24, color="#444444", label=label_text(names[0])),
        ax.scatter([], [], s=28, marker="^", facecolors="none", edgecolors="#444444", label=label_text(names[1])),
    ]
    ax.legend(handles=handles, loc="best", framealpha=0.9)
    ax.set(xlabel="first component", ylabel=f"second component ({share:.0%} of variance in both)", title=title)
    return ax.figure, ax


def _draw_means(ax: Any, circle: NDArray[Any], triangle: NDArray[Any], colour: str) -> None:
    ax.plot(*zip(circle, triangle, strict=True), color="black", linewidth=1.2)
    ax.scatter(*circle, s=70, color=colour, edgecolors="black", zorder=3)
    ax.scatter(*triangle, s=80, marker="^", facecolors="white", edgecolors=colour, linewidths=2, zorder=3)


def _name_mean(ax: Any, place: NDArray[Any], name: str, offset: tuple[int, int]) -> None:
    outline = require("matplotlib.patheffects", "plots").withStroke(linewidth=3, foreground="white")
    side = "left" if offset[0] > 0 else "right"
    ax.annotate(label_text(name), place, offset, textcoords="offset points", ha=side, path_effects=[outline], zorder=4)
