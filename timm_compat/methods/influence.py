"""Backward-compatible training (BCT): a frozen old head must classify the new network's features.

L = CE(new head(z), y) + lambda CE(old head(z), y), z from the new network. A class that the old head never knew gets
the mean of the old features of its images as a weight. Shen et al., CVPR 2020 (https://arxiv.org/abs/2003.11942).

Heads here have biases and no normalisation, so the mean is taken relative to that of all classes and scaled to the
length of the known weights.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

UNKNOWN = -1


def influence_losses(logits: Tensor, positions: Tensor) -> Tensor:
    """Cross-entropy (B,) of the old head's logits (B, K); zero where its class is unknown (position -1)."""
    return F.cross_entropy(logits, positions, ignore_index=UNKNOWN, reduction="none")


def extend_classifier(weight: Tensor, bias: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """The old classifier with further classes, known by the mean of their old features only.

    Args:
        weight: (K, D) of the old head.
        bias: (K,).
        means: (n, D), one mean a new class.

    Returns:
        Weight (K + n, D) and bias (K + n,).
    """
    centre = means.mean(dim=0)
    length = weight.norm(dim=1).mean()
    added = F.normalize(means - centre, dim=1) * length
    return torch.cat([weight, added]), torch.cat([bias, bias.mean() - added @ centre])
