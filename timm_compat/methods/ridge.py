"""Ridge regression from a frozen backbone's features to a space's features, on unlabelled images, in closed form.

With features X standardised to mean 0 and variance 1 and targets Y centred, W = (X'X / n + lambda I)^-1 X'Y / n
(Hoerl and Kennard 1970). As a map between the latent spaces of two networks: Maiorca et al., NeurIPS 2023
(https://arxiv.org/abs/2311.00664). Everything is computed from sums over images, so that memory does not grow with
their number, and one pass is enough; lambda is the one with the least error on held-out images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from timm_compat.errors import DataError

LAMBDAS = tuple(10.0**exponent for exponent in (-5, -4, -3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1))
LEAST_SPREAD = 1e-12


@dataclass(frozen=True)
class RidgeFit:
    """A fitted linear map.

    Attributes:
        weight: (D, F), float64.
        bias: (D,), float64.
        penalty: the lambda chosen.
        r2: share of the targets' variance that a map fitted without the held-out images explains on them, at most 1.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    r2: float


class Moments:
    """Sums over samples of inputs (n, F) and targets (n, D), from which any ridge regression follows."""

    def __init__(self, num_inputs: int, num_targets: int) -> None:
        double = torch.float64
        self.count = 0
        self.sum_x = torch.zeros(num_inputs, dtype=double)
        self.sum_y = torch.zeros(num_targets, dtype=double)
        self.xx = torch.zeros(num_inputs, num_inputs, dtype=double)
        self.xy = torch.zeros(num_inputs, num_targets, dtype=double)
        self.yy = torch.zeros(num_targets, dtype=double)

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Count a batch: (n, F) and (n, D)."""
        x, y = inputs.double(), targets.double()
        self.count += len(x)
        for name, value in (("sum_x", x.sum(0)), ("sum_y", y.sum(0)), ("xx", x.T @ x), ("xy", x.T @ y)):
            setattr(self, name, getattr(self, name).to(x.device) + value)
        self.yy = self.yy.to(y.device) + y.square().sum(0)

    def merged(self, other: "Moments") -> "Moments":
        """The sums over both sets of samples."""
        both = Moments(len(self.sum_x), len(self.sum_y))
        for name in vars(both):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def residual(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Sum of squared errors of y = W x + b over the samples, for each target: (D,)."""
        w = weight.T
        fitted = (w * (self.xx @ w)).sum(0) + 2 * bias * (self.sum_x @ w) + self.count * bias.square()
        return self.yy - 2 * ((w * self.xy).sum(0) + bias * self.sum_y) + fitted

    def spread(self) -> Tensor:
        """Sum of squared distances of the targets to their mean: (D,)."""
        return self.yy - self.sum_y.square() / self.count


def solve(moments: Moments, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight (D, F) and bias (D,) of the ridge regression with this lambda."""
    return _Spectrum(moments).solve(penalty)


def fit_ridge(fitted: Moments, held_out: Moments, penalties: tuple[float, ...] = LAMBDAS) -> RidgeFit:
    """The ridge regression whose lambda predicts the held-out images best, then refitted on all of them.

    Args:
        fitted: images to fit.
        held_out: images to choose lambda.
        penalties: lambdas to choose from.

    Raises:
        DataError: fewer than two images on either side.
    """
    if fitted.count < 2 or held_out.count < 2:
        raise DataError(
            f"expected at least 2 images to fit and 2 to choose lambda, got {fitted.count} and {held_out.count}; "
            "give more unlabelled images"
        )
    spectrum, errors = _Spectrum(fitted), {}
    for penalty in penalties:
        errors[penalty] = float(held_out.residual(*spectrum.solve(penalty)).sum())
    best = min(errors, key=lambda penalty: errors[penalty])
    r2 = 1 - errors[best] / max(float(held_out.spread().sum()), LEAST_SPREAD)
    return RidgeFit(*solve(fitted.merged(held_out), best), best, r2)


class _Spectrum:
    """Eigenvectors of the standardised inputs' covariance: one decomposition serves every lambda."""

    def __init__(self, moments: Moments) -> None:
        n = moments.count
        self.mean_x, self.mean_y = moments.sum_x / n, moments.sum_y / n
        covariance = moments.xx / n - self.mean_x.outer(self.mean_x)
        variance = covariance.diagonal()
        # A feature that does not vary takes no part.
        self.scale = torch.where(variance > LEAST_SPREAD, variance.clamp(min=LEAST_SPREAD).rsqrt(), 0.0)
        cross = (moments.xy / n - self.mean_x.outer(self.mean_y)) * self.scale[:, None]
        self.values, self.vectors = torch.linalg.eigh(covariance * self.scale[:, None] * self.scale)
        self.cross = self.vectors.T @ cross

    def solve(self, penalty: float) -> tuple[Tensor, Tensor]:
        coefficients = self.vectors @ (self.cross / (self.values.clamp(min=0) + penalty)[:, None])
        weight = (coefficients * self.scale[:, None]).T
        return weight, self.mean_y - weight @ self.mean_x
