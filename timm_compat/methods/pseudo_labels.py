"""Pseudo-labels from the features' own clusters, and how sure a classifier is of unlabelled images.

Every class k gets a centre, the mean of all features z weighed by what the classifier says, c_k = sum p_k z / sum p_k;
an image belongs to the nearest centre by cosine. From these labels the centres are computed once more. Liang et al.
(SHOT), ICML 2020 (https://arxiv.org/abs/2002.08546), eq. 4 to 6.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

REFINEMENTS = 2
TINY = 1e-8


def centre_labels(features: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The class of the nearest centre, and by how much it is nearer than the second.

    Args:
        features: (N, D).
        probabilities: (N, K) that a classifier gives, K of at least 2.

    Returns:
        Labels (N,), int64, and margins (N,): difference of the two largest cosines.
    """
    directions = F.normalize(features, dim=1)
    weights, cosines = probabilities, directions[:, :0]
    for _ in range(REFINEMENTS):
        centres = F.normalize(weights.T @ directions / (weights.sum(dim=0)[:, None] + TINY), dim=1)
        # A class that no image is taken for has no centre.
        cosines = (directions @ centres.T).masked_fill(weights.sum(dim=0) == 0, -1.0)
        weights = F.one_hot(cosines.argmax(dim=1), probabilities.shape[1]).to(features.dtype)
    nearest = cosines.topk(2, dim=1)
    return nearest.indices[:, 0], nearest.values[:, 0] - nearest.values[:, 1]


def surest(labels: Tensor, margins: Tensor, share: float) -> Tensor:
    """Places of the images with the largest margins, the same share of every class, in ascending order.

    Args:
        labels: (N,).
        margins: (N,).
        share: over 0 up to 1; of every class that occurs at least one image.
    """
    kept = []
    for label in labels.unique():
        indices = (labels == label).nonzero().flatten()
        count = max(1, math.floor(share * len(indices)))
        kept.append(indices[margins[indices].argsort(descending=True, stable=True)[:count]])
    return torch.cat(kept).sort().values


def mean_entropy(probabilities: Tensor) -> float:
    """Mean over images of the entropy of (N, K), in nats: 0 where the classifier is sure of every image."""
    return float(_entropy(probabilities).mean())


def information(probabilities: Tensor) -> float:
    """Mutual information of image and predicted class, in nats: sure of each image, yet no class preferred by all.

    H(mean p) - mean H(p), from 0 to log K; Bridle, Heading and MacKay, NeurIPS 1991; as a criterion of adaptation Shi
    and Sha, ICML 2012 (https://arxiv.org/abs/1206.6438).
    """
    return float(_entropy(probabilities.mean(dim=0))) - mean_entropy(probabilities)


def _entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.clamp(min=TINY).log()).sum(dim=-1)
