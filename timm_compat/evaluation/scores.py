"""Scores as pure functions on arrays; accuracies lie in [0, 1], unmeasured cells are NaN and do not count."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def accuracy(predicted: NDArray[np.int64], expected: NDArray[np.int64]) -> float:
    """Share of equal entries of two (N,) arrays; NaN where N is 0."""
    return float(np.mean(predicted == expected)) if len(expected) else float("nan")


def native_accuracy(matrix: Array, native: Mask) -> float:
    """Mean over the native cells of a matrix (extractors x heads)."""
    return _mean(matrix[native])


def recombined_accuracy(matrix: Array, native: Mask) -> float:
    """Mean over the cells that are not native."""
    return _mean(matrix[~native])


def _mean(values: Array) -> float:
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if len(measured) else float("nan")
