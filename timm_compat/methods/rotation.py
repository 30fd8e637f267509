"""Rotation prediction (RP): one 4-way head over features, shared by every network of a space.

An image is turned by k x 90 degrees, and the shared head h must tell k from the features z: L = CE(h(z), k). It needs
neither labels nor common classes. Gidaris et al., ICLR 2018 (https://arxiv.org/abs/1803.07728); shared between
networks: Gygli et al., AAAI 2021 (https://arxiv.org/abs/2004.03898).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_compat.errors import ImageError
from timm_compat.shared_tensors import NUM_ROTATIONS


def rotate(images: Tensor, fraction: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A share of a batch, each image turned by a random multiple of 90 degrees.

    Args:
        images: (B, C, S, S).
        fraction: share of the batch, over 0 up to 1; at least one image.
        random: decides which images and how far.

    Returns:
        Turned images (n, C, S, S) and the number of quarter turns (n,), n = round(fraction x B).

    Raises:
        ImageError: images that are not square.
    """
    if images.shape[-1] != images.shape[-2]:
        raise ImageError(f"rotation: expected square images, got {tuple(images.shape[-2:])}; set img_size to a square")
    count = max(1, round(fraction * len(images)))
    chosen = torch.randperm(len(images), generator=random)[:count]
    turns = torch.randint(NUM_ROTATIONS, (count,), generator=random)
    turned = images[chosen.to(images.device)]
    for quarter in range(1, NUM_ROTATIONS):
        where = (turns == quarter).nonzero().flatten().to(images.device)
        turned[where] = turned[where].rot90(quarter, (2, 3))
    return turned, turns.to(images.device)


def rotation_loss(logits: Tensor, turns: Tensor) -> Tensor:
    """Cross-entropy of the shared head's logits (n, 4) against the quarter turns (n,)."""
    return F.cross_entropy(logits, turns)
