"""Confidence intervals of a measured share or mean, by SciPy."""

import numpy as np
from numpy.typing import ArrayLike

from timm_compat.errors import ConfigError

CONFIDENCE = 0.95
RESAMPLES = 2000


def wilson_interval(share: float, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's interval (JASA 1927) of a share of ``count`` trials, within [0, 1]; (NaN, NaN) without trials.

    Args:
        share: p, such as an accuracy.
        count: n, such as the number of images.
        confidence: such as 0.95.

    Raises:
        ConfigError: a confidence that is not between 0 and 1.
    """
    _check(confidence)
    if not count or np.isnan(share):
        return float("nan"), float("nan")
    from scipy.stats import binomtest

    low, high = binomtest(round(share * count), count).proportion_ci(confidence, method="wilson")
    return float(low), float(high)


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
    _check(confidence)
    measured = np.asarray(values, dtype=np.float64).ravel()
    measured = measured[~np.isnan(measured)]
    if len(measured) < 2:
        return (float(measured[0]),) * 2 if len(measured) else (float("nan"),) * 2
    from scipy.stats import bootstrap

    draws = {"n_resamples": resamples, "random_state": seed, "method": "percentile"}
    low, high = bootstrap((measured,), np.mean, confidence_level=confidence, **draws).confidence_interval
    return float(low), float(high)


def _check(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence: expected a number between 0 and 1, got {confidence!r}")
