"""Feature alignment: two networks give one image the same features, on any images, without labels.

L2 is the squared distance |z - t|^2 / D to the target features t, the plain baseline named in Shen et al., CVPR 2020
(https://arxiv.org/abs/2003.11942). The contrastive form is -log softmax over the batch of cos(z_i, t_j) / tau at
j = i, where other images of i's class do not count as negatives, as in regression-alleviating compatible training:
Zhang et al., ICLR 2022 (https://arxiv.org/abs/2201.09724).
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def l2_losses(features: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference over the features of each image: (B, D) or (B, D, H', W') twice to (B,)."""
    return (features - targets).square().flatten(1).mean(dim=1)


def contrastive_losses(features: Tensor, targets: Tensor, temperature: float, labels: Tensor | None = None) -> Tensor:
    """Cross-entropy of finding an image's own target among those of the batch: (B,).

    Args:
        features: (B, D), or (B, D, H', W'), flattened.
        targets: of the same shape.
        temperature: tau, over 0.
        labels: (B,); other images of the same class are left out of the softmax. None where unknown.
    """
    z, t = F.normalize(features.flatten(1), dim=1), F.normalize(targets.flatten(1), dim=1)
    logits = z @ t.T / temperature
    if labels is not None:
        same = (labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        logits = logits.masked_fill(same, -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
