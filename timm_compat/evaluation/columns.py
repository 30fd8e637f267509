"""Matrices of the same extractors whose heads were measured on images of their own, put side by side."""

from collections.abc import Sequence

import numpy as np

from timm_compat.errors import ConfigError
from timm_compat.evaluation.matrix import RecombinationMatrix


def side_by_side(matrices: Sequence[RecombinationMatrix]) -> RecombinationMatrix:
    """The columns of matrices of the same extractors as one matrix; each may have been measured on its own images.

    Predictions are dropped, for the images differ.

    Raises:
        ConfigError: no matrix, or other rows in one of them.
    """
    if not matrices or any(matrix.rows != matrices[0].rows for matrix in matrices):
        raise ConfigError(f"matrices: expected one or more with the same rows, got {[m.rows for m in matrices]}")
    crossed = [np.zeros_like(m.native) if m.cross_space is None else m.cross_space for m in matrices]
    starts = np.cumsum([0, *(len(matrix.columns) for matrix in matrices)])
    return RecombinationMatrix(
        accuracy=np.concatenate([matrix.accuracy for matrix in matrices], axis=1),
        rows=matrices[0].rows,
        columns=tuple(name for matrix in matrices for name in matrix.columns),
        native=np.concatenate([matrix.native for matrix in matrices], axis=1),
        chance=np.concatenate([matrix.chance for matrix in matrices]),
        counts=tuple(count for matrix in matrices for count in matrix.counts),
        left_out=tuple(count for matrix in matrices for count in matrix.left_out or (0,) * len(matrix.columns)),
        cross_space=np.concatenate(crossed, axis=1),
        reasons={
            (row, column + int(start)): reason
            for matrix, start in zip(matrices, starts, strict=False)
            for (row, column), reason in matrix.reasons.items()
        },
    )
