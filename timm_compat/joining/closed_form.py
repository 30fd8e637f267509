"""The linear map from a network's features to a space's, in closed form: images, classes in common, and a rotation.

    W = argmin  |X W' - Y|^2 / n  +  mu |V W - U|^2  +  lambda |W - Q|^2

- X (n, F) and Y (n, D), centred: n images in both networks. As a map between latent spaces: Maiorca et al., NeurIPS
  2023 (https://arxiv.org/abs/2311.00664). Where features lie without images, as far as that is known, counts as
  images do: else photos of one kind, such as drawings, say nothing of what sets them apart from all others.
- U (K, F) and V (K, D): what two classifiers read for the K classes that they have in common, centred over the classes.
  A head of the space reads on the new network what that network's own classifier reads: the common classes of Gygli et
  al., AAAI 2021 (https://arxiv.org/abs/2004.03898), without training.
- Q (D, F), what is believed where neither says anything: a rotation, the orthogonal polar factor of Y'X / |Y'X| +
  V'U / |V'U|, scaled by the spread of Y over that of X. Directions of which nothing is known stay 0.

With X'X / n = G and V'V = B the solution obeys G W' + mu W' B + lambda W' = X'Y / n + mu U'V + lambda Q', a Sylvester
equation that one eigendecomposition a side solves. G and B have a mean eigenvalue of 1, and every feature is scaled to
variance 1 where images tell its variance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Self

from timm_compat.methods.ridge import LEAST_SPREAD, Moments

# Chosen by the mean over heads on real ImageNet weights of three networks of one family and weaker ones of others:
# heads over 101 objects, 7 objects in four styles and ImageNet, pools of 30 to 1,500 photos of either kind.
ROTATION = 4.0  # lambda
# lambda without classes in common, in units of F / n; held-out images choose. Large where the networks are alike up to
# a rotation, as pretrained ones of one kind are; small where the space is a projection that no rotation gives.
ALONE = (3.0, 0.3, 0.03, 0.003, 0.0003)
CLASSES, LEAST_CLASSES = 30.0, 3.0  # mu of few and of many images
CLASSES_ALONE = 1 / 3  # mu / lambda without images
# Without images part of what the map gives is noise, which makes a head's biases weigh too little.
LOUDER = 1.3
# What is known of means and variances without images counts as much as so many images do.
CENTRE_IMAGES, VARIANCE_IMAGES = 100, 100
LEAST_VARIANCE = 0.1  # of the mean variance
NO_DIRECTION = 1e-3  # singular values below this share of the mean one say nothing


@dataclass(frozen=True)
class ClassRows:
    """What two classifiers read for the classes that they have in common, centred over the classes.

    Attributes:
        new: (K, F), rows of the new network's classifier, float64.
        space: (K, D), rows of a head of the space, float64.
    """

    new: Tensor
    space: Tensor


@dataclass(frozen=True)
class Centre:
    """Where features lie before any image is seen.

    Attributes:
        new: (F,), mean of the new network's features.
        space: (D,), mean of the space's.
    """

    new: Tensor
    space: Tensor


@dataclass(frozen=True)
class Strengths:
    """How much each kind of evidence counts: lambda and mu of this module's formula."""

    rotation: float
    classes: float


def strengths(num_images: int, num_features: int, *, has_classes: bool, rotation_alone: float = ALONE[0]) -> Strengths:
    """The evidence's weights for a number of images n and of features F.

    What images say is blurred less the more they are, what classes say is off by a fixed amount: from F / 8 images on
    the classes count less, and from 2 F on they and the rotation fade as the images' own error does.

    Args:
        num_images: n; 0 without images.
        num_features: F.
        has_classes: whether there are classes in common.
        rotation_alone: lambda in units of F / n, where there are images only.
    """
    if not num_images:
        return Strengths(1 / CLASSES_ALONE, 1.0)
    if not has_classes:
        return Strengths(rotation_alone * num_features / num_images, 0.0)
    ratio = num_features / num_images
    fading = min(1.0, 2 * ratio)
    classes = max(LEAST_CLASSES, CLASSES * min(1.0, ratio / 8))
    return Strengths(ROTATION * fading, classes * fading)


class ClosedForm:
    """The evidence with its eigenvectors; every choice of strengths then costs a few matrix products.

    Args:
        images: sums over the features of images in both networks; None without images.
        classes: rows of the classes in common; None where there are none.
        centre: the features' means without images, where they are known; taken as 0 where there are no images either.
            Beside images it counts as ``CENTRE_IMAGES`` more of them, all alike.
    """

    def __init__(self, images: Moments | None, classes: ClassRows | None, centre: Centre | None = None) -> None:
        assert images is not None or classes is not None
        self._pairs = None if images is None else _pairs(images, centre)
        self._classes, self._centre = classes, centre
        if self._pairs is not None:
            self._system = _System.of(self._pairs, classes)

    def map(self, rotation_alone: float = ALONE[0]) -> tuple[Tensor, Tensor]:
        """Weight (D, F) and bias (D,), float64; ``rotation_alone`` as in ``strengths``."""
        if self._pairs is None:
            assert self._classes is not None
            weight = LOUDER * _without_images(self._classes)
            if self._centre is None:
                return weight, torch.zeros_like(weight[:, 0])
            return weight, self._centre.space.to(weight) - weight @ self._centre.new.to(weight)
        pairs = self._pairs
        given = strengths(
            pairs.count, len(pairs.scale_x), has_classes=self._classes is not None, rotation_alone=rotation_alone
        )
        weight = self._system.solve(given) * pairs.scale_y[:, None] / pairs.scale_x
        return weight, pairs.mean_y - weight @ pairs.mean_x


@dataclass(frozen=True)
class _Pairs:
    """Second moments of scaled features: x / scale_x, y / scale_y."""

    count: int
    mean_x: Tensor
    mean_y: Tensor
    scale_x: Tensor
    scale_y: Tensor
    xx: Tensor
    xy: Tensor
    spread: Tensor  # of y over that of x


def _pairs(images: Moments, centre: Centre | None) -> _Pairs:
    n = images.count
    mean_x, mean_y = images.sum_x / n, images.sum_y / n
    xx = images.xx / n - mean_x.outer(mean_x)
    xy = images.xy / n - mean_x.outer(mean_y)
    variance_y = images.yy / n - mean_y.square()
    if centre is not None:
        share = n / (n + CENTRE_IMAGES)
        off_x, off_y = mean_x - centre.new.to(mean_x), mean_y - centre.space.to(mean_y)
        mean_x, mean_y = mean_x - (1 - share) * off_x, mean_y - (1 - share) * off_y
        xx = share * (xx + (1 - share) * off_x.outer(off_x))
        xy = share * (xy + (1 - share) * off_x.outer(off_y))
        variance_y = share * (variance_y + (1 - share) * off_y.square())
    scale_x, scale_y = _scale(xx.diagonal(), n), _scale(variance_y, n)
    total_x = (xx.diagonal() / scale_x.square()).sum().clamp(min=LEAST_SPREAD)
    total_y = (variance_y / scale_y.square()).sum()
    xx, xy = xx / scale_x / scale_x[:, None], xy / scale_y / scale_x[:, None]
    return _Pairs(n, mean_x, mean_y, scale_x, scale_y, xx, xy, (total_y / total_x).sqrt())


def _scale(variance: Tensor, count: int) -> Tensor:
    """Standard deviations, pulled towards one for all features where few images tell them."""
    mean = variance.mean().clamp(min=LEAST_SPREAD)
    pulled = count * (variance + LEAST_VARIANCE * mean) + VARIANCE_IMAGES * mean
    return (pulled / (count + VARIANCE_IMAGES)).sqrt()


@dataclass(frozen=True)
class _System:
    """The equation in the eigenvectors of both sides."""

    values_x: Tensor
    vectors_x: Tensor
    values_y: Tensor
    vectors_y: Tensor
    images: Tensor  # X'Y / n, U'V and Q', all between the eigenvectors
    classes: Tensor
    rotation: Tensor

    @classmethod
    def of(cls, pairs: _Pairs, rows: ClassRows | None) -> Self:
        """From scaled moments and the classifiers' rows."""
        unit = pairs.xx.diagonal().mean().clamp(min=LEAST_SPREAD)
        xx, xy = pairs.xx / unit, pairs.xy / unit
        cross = torch.zeros_like(xy)
        values_y, vectors_y = cross.new_zeros(xy.shape[1]), torch.eye(xy.shape[1]).to(xy)
        belief = xy.T / xy.norm().clamp(min=LEAST_SPREAD)
        if rows is not None:
            scaled = ClassRows(rows.new.to(xx) * pairs.scale_x, rows.space.to(xx) * pairs.scale_y)
            gram, cross = _class_moments(scaled)
            belief = belief + cross.T / cross.norm().clamp(min=LEAST_SPREAD)
            values_y, vectors_y = torch.linalg.eigh(gram)
        values_x, vectors_x = torch.linalg.eigh(xx)
        rotation = pairs.spread * partial_isometry(belief)
        parts = (vectors_x.T @ part @ vectors_y for part in (xy, cross, rotation.T))
        return cls(values_x, vectors_x, values_y, vectors_y, *parts)

    def solve(self, given: Strengths) -> Tensor:
        """W (D, F)."""
        right = self.images + given.classes * self.classes + given.rotation * self.rotation
        left = self.values_x[:, None] + given.classes * self.values_y + given.rotation
        return (self.vectors_x @ (right / left) @ self.vectors_y.T).T


def _without_images(rows: ClassRows) -> Tensor:
    gram, cross = _class_moments(rows)
    weights = strengths(0, rows.new.shape[1], has_classes=True)
    spread = rows.new.norm() / rows.space.norm().clamp(min=LEAST_SPREAD)
    right = weights.classes * cross + weights.rotation * spread * _rotation(rows).T
    left = weights.classes * gram
    left.diagonal().add_(weights.rotation)
    return torch.cholesky_solve(right.T, torch.linalg.cholesky(left))


def _rotation(rows: ClassRows) -> Tensor:
    """The partial isometry (D, F) of V'U: between the K directions that the rows span, where these are fewer."""
    directions = min(rows.new.shape[1], rows.space.shape[1])
    if len(rows.new) >= directions:
        return partial_isometry(rows.space.T @ rows.new)
    new, new_rows = torch.linalg.qr(rows.new.T)
    space, space_rows = torch.linalg.qr(rows.space.T)
    return space @ partial_isometry(space_rows @ new_rows.T, directions) @ new.T


def _class_moments(rows: ClassRows) -> tuple[Tensor, Tensor]:
    """V'V (D, D) of mean eigenvalue 1, and U'V (F, D) in the same unit."""
    gram = rows.space.T @ rows.space
    unit = gram.diagonal().mean().clamp(min=LEAST_SPREAD)
    return gram / unit, rows.new.T @ rows.space / unit


def partial_isometry(matrix: Tensor, directions: int | None = None) -> Tensor:
    """The orthogonal polar factor of (D, F): its singular values, where they say anything, become 1, the others 0.

    Of all maps of that kind the one nearest to the matrix (Higham, SIAM J. Sci. Stat. Comput. 1986). Where everything
    counts it is the rotation of the orthogonal Procrustes problem.

    Args:
        matrix: (D, F).
        directions: singular values to take the mean of, where those that are not in the matrix are 0.
    """
    tall = len(matrix) >= matrix.shape[1]
    gram = matrix.T @ matrix if tall else matrix @ matrix.T
    values, vectors = torch.linalg.eigh(gram)
    known = values > NO_DIRECTION**2 * values.clamp(min=0).sum() / (directions or len(values))
    inverse = torch.where(known, values.clamp(min=LEAST_SPREAD**2), 1.0).rsqrt() * known
    root = (vectors * inverse) @ vectors.T
    return matrix @ root if tall else root @ matrix
