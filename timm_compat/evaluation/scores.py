"""Scores of a recombination matrix as pure functions: accuracies lie in [0, 1], unmeasured cells are NaN, never 0.

``matrix`` is (extractors, heads), ``native`` marks extractors under their own heads. The scores of a *sequence* of
models (average compatibility and those below it) take a square matrix whose row and column k belong to the k-th model,
oldest first; for retrieval a row is the model of the queries and a column that of the gallery.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timm_compat.errors import DataError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
POINTS = 100


def accuracy(predicted: NDArray[np.int64], expected: NDArray[np.int64]) -> float:
    """Share of equal entries of two (N,) arrays; NaN where N is 0."""
    return float(np.mean(predicted == expected)) if len(expected) else float("nan")


def native_accuracy(matrix: Array, native: Mask) -> float:
    """Mean over the native cells of a matrix (extractors x heads)."""
    return mean_of_measured(matrix[native])


def recombined_accuracy(matrix: Array, native: Mask) -> float:
    """Mean over the cells that are not native."""
    return mean_of_measured(matrix[~native])


def own_accuracy(matrix: Array, native: Mask) -> Array:
    """Accuracy of every head on its own extractor, (heads,); NaN for a head without a native cell."""
    return np.array([mean_of_measured(matrix[native[:, column], column]) for column in range(matrix.shape[1])])


def compatibility(matrix: Array, native: Mask, chance: Array) -> Array:
    """How much of a head's own accuracy over chance is left on every extractor: (extractors, heads).

    (M[i, j] - chance[j]) / (own[j] - chance[j]), with own[j] the accuracy of head j on its own extractor. 1 is as good
    as native, 0 is chance; an extractor better than the head's own gives more than 1. NaN where the head has no native
    cell, or is no better than chance there.

    Args:
        matrix: (extractors, heads).
        native: (extractors, heads).
        chance: (heads,), accuracy of guessing.
    """
    room = own_accuracy(matrix, native) - chance
    room = np.where(room > 0, room, np.nan)
    result: Array = (matrix - chance) / room
    return result


def gap_points(matrix: Array, native: Mask) -> Array:
    """Percentage points that every cell lies below the head's own accuracy, (extractors, heads); negative if above."""
    result: Array = POINTS * (own_accuracy(matrix, native) - matrix)
    return result


def stitching_penalty(stitched: Array, own: Array) -> Array:
    """Error of a stitched network over that of the network whose head it uses, in [-1, 1].

    (1 - stitched) - (1 - own); Bansal, Nakkiran and Barak, NeurIPS 2021 (https://arxiv.org/abs/2106.07682), sec. 2,
    with the classification error as loss. Theirs is of a trained stitching layer, a recombination's is of none.

    Args:
        stitched: accuracies.
        own: accuracies of the networks that the heads come from, of a shape that broadcasts.
    """
    result: Array = np.asarray(own - stitched, dtype=np.float64)
    return result


def average_compatibility(matrix: Array, *, ties: bool = False) -> float:
    """AC: share of measured pairs of an older model j and a newer i with M[i, j] > M[j, j].

    2 / (T (T - 1)) sum over i > j of [M[i, j] > M[j, j]]: the newer model serves the older one's head (or gallery)
    better than the older one does itself; Biondi et al., TPAMI 2023 (https://arxiv.org/abs/2111.07632).

    Args:
        matrix: (T, T), oldest first.
        ties: whether equality counts as compatible. Public codes disagree; that of the authors' later work (iamcl2r)
            does not count it, and so do we.

    Raises:
        DataError: the matrix is not square.
    """
    own = np.diag(_square(matrix))
    better = matrix >= own if ties else matrix > own
    pairs = np.tril(np.ones_like(matrix, dtype=bool), -1) & ~np.isnan(matrix) & ~np.isnan(own)
    return float(better[pairs].mean()) if pairs.any() else float("nan")


def average_accuracy(matrix: Array) -> float:
    """AA: mean over the measured cells M[i, j] with i >= j, own cells included; Biondi et al., TPAMI 2023.

    Raises:
        DataError: the matrix is not square.
    """
    return mean_of_measured(_square(matrix)[np.tril_indices(len(matrix))])


def backward_compatibility(matrix: Array) -> float:
    """BC: mean of M[i, j] - M[j, j] over newer models i and older j, in [-1, 1].

    What an old head (or gallery) gains when a new extractor takes over: the criterion of Shen et al., CVPR 2020
    (https://arxiv.org/abs/2003.11942), eq. 2, as a difference.

    Raises:
        DataError: the matrix is not square.
    """
    gains = matrix - np.diag(_square(matrix))
    return mean_of_measured(gains[np.tril_indices(len(matrix), -1)])


def forward_compatibility(matrix: Array) -> float:
    """FC: mean of M[j, i] - M[j, j] over older models j and newer i, in [-1, 1].

    What an old extractor gains from a new head (or gallery), nothing of the old being computed anew: the question of
    Ramanujan et al., CVPR 2022 (https://arxiv.org/abs/2112.02805), as a difference.

    Raises:
        DataError: the matrix is not square.
    """
    gains = matrix - np.diag(_square(matrix))[:, None]
    return mean_of_measured(gains[np.triu_indices(len(matrix), 1)])


def update_gain(cross: float, old: float, unconstrained: float) -> float:
    """(cross - old) / (unconstrained - old): how much of the possible improvement an update without recomputing brings.

    Shen et al., CVPR 2020 (https://arxiv.org/abs/2003.11942), eq. 6. NaN where the unconstrained model is no better.

    Args:
        cross: new extractor under the old head.
        old: old extractor under its own head.
        unconstrained: new extractor, trained without regard to compatibility, under its own head.
    """
    return (cross - old) / (unconstrained - old) if unconstrained > old else float("nan")


def compatibility_cost(unconstrained: float, constrained: float) -> float:
    """Accuracy on its own task that a network paid for being compatible: unconstrained own minus constrained own."""
    return unconstrained - constrained


def mean_of_measured(values: Array) -> float:
    """Mean of the entries that are not NaN; NaN if there are none."""
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if len(measured) else float("nan")


def _square(matrix: Array) -> Array:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise DataError(f"matrix: expected one row and one column per model, got shape {matrix.shape}")
    return matrix


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Similarity in [0, 1] of features (n, F) and (n, D) of the same n images; NaN where one side does not vary."""
    x, y = (features.double() - features.double().mean(dim=0) for features in (x, y))
    within = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float(torch.linalg.matrix_norm(y.T @ x).square() / within)
