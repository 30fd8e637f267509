"""Scores of single predictions: negative flips when a part is replaced, and calibration."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from timm_compat.errors import DataError

NUM_BINS = 15


def negative_flip_rate(old: ArrayLike, new: ArrayLike, expected: ArrayLike) -> float:
    """Share of images that the old model gets right and the new one wrong, in [0, 1]; NaN without images.

    Yan et al., CVPR 2021 (https://arxiv.org/abs/2011.09161), eq. 1.

    Args:
        old: (N,), the old model's classes.
        new: (N,), the new model's.
        expected: (N,), the true ones.

    Raises:
        DataError: arrays of different lengths.

    Example:
        >>> tc.evaluation.negative_flip_rate(old=[0, 1, 2, 0], new=[0, 1, 1, 2], expected=[0, 1, 2, 2])
        0.25
    """
    before, after = _right(old, expected), _right(new, expected)
    return float(np.mean(before & ~after)) if len(before) else float("nan")


def relative_negative_flip_rate(old: ArrayLike, new: ArrayLike, expected: ArrayLike) -> float:
    """Negative flips over those of two models that err independently; 1 is as many, 0 is none.

    NFR / ((1 - error of the old) * error of the new); Yan et al., CVPR 2021 (https://arxiv.org/abs/2011.09161), eq. 2.
    NaN where none is possible.

    Args:
        old: (N,), the old model's classes.
        new: (N,), the new model's.
        expected: (N,), the true ones.

    Raises:
        DataError: arrays of different lengths.
    """
    before, after = _right(old, expected), _right(new, expected)
    possible = float(before.mean() * (1 - after.mean())) if len(before) else 0.0
    return negative_flip_rate(old, new, expected) / possible if possible else float("nan")


def calibration_error(confidence: ArrayLike, right: ArrayLike, bins: int = NUM_BINS) -> float:
    """Expected calibration error: how far confidences lie from accuracies, in [0, 1]; NaN without images.

    Sum over bins of equal width (lower, upper] of share * |mean accuracy - mean confidence|; Guo et al., ICML 2017
    (https://arxiv.org/abs/1706.04599), eq. 3, with their 15 bins.

    Args:
        confidence: (N,), the highest probability of every image, in [0, 1].
        right: (N,), whether that class is the true one.
        bins: their number.

    Raises:
        DataError: arrays of different lengths, or confidences outside [0, 1].
    """
    sure, correct = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=bool)
    _check_lengths(sure, correct)
    if not len(sure):
        return float("nan")
    if not ((sure >= 0) & (sure <= 1)).all():
        raise DataError(f"confidence: expected probabilities from 0 to 1, got {sure.min():g} to {sure.max():g}")
    bins_of = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bins_of, weights=correct.astype(np.float64) - sure, minlength=bins)
    return float(np.abs(gaps).sum() / len(sure))


def _right(predicted: ArrayLike, expected: ArrayLike) -> NDArray[np.bool_]:
    found, true = np.asarray(predicted), np.asarray(expected)
    _check_lengths(found, true)
    return np.asarray(found == true, dtype=bool)


def _check_lengths(first: NDArray[Any], second: NDArray[Any]) -> None:
    if first.shape != second.shape or first.ndim != 1:
        raise DataError(f"expected two arrays of one length, got shapes {first.shape} and {second.shape}")
