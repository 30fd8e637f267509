"""How far a measured share or mean can be trusted: intervals that hold it with a stated confidence."""

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from timm_compat.errors import ConfigError

CONFIDENCE = 0.95
RESAMPLES = 2000


def wilson_interval(share: float, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of a share of ``count`` trials, within [0, 1]; (NaN, NaN) without trials.

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n); Wilson, JASA 1927, with z the normal quantile.

    Args:
        share: p, such as an accuracy.
        count: n, such as the number of images.
        confidence: such as 0.95.

    Raises:
        ConfigError: a confidence that is not between 0 and 1.
    """
    z = _normal_quantile(confidence)
    if not count or np.isnan(share):
        return float("nan"), float("nan")
    middle = share + z**2 / (2 * count)
    spread = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low, high = ((middle + sign * spread) / (1 + z**2 / count) for sign in (-1, 1))
    return max(0.0, float(low)), min(1.0, float(high))


def bootstrap_interval(
    values: ArrayLike, confidence: float = CONFIDENCE, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of ``values`` (n,), by drawing them anew with replacement; NaN do not count.

    Efron, Annals of Statistics 1979. For the mean over a handful of cells or seeds it is narrow: n values say no more
    than n values can.

    Args:
        values: (n,).
        confidence: such as 0.95.
        resamples: number of draws.
        seed: of the draws.

    Raises:
        ConfigError: a confidence that is not between 0 and 1.
    """
    _normal_quantile(confidence)
    measured = np.asarray(values, dtype=np.float64).ravel()
    measured = measured[~np.isnan(measured)]
    if not len(measured):
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(len(measured), size=(resamples, len(measured)))
    low, high = np.quantile(measured[drawn].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence: expected a number between 0 and 1, got {confidence!r}")
    return NormalDist().inv_cdf((1 + confidence) / 2)
