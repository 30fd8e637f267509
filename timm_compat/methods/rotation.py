"""Rotation prediction (RP): one 4-way head over features, shared by every network of a space.

An image is turned by k x 90 degrees, and the shared head h must tell k from the features z: L = CE(h(z), k). It needs
neither labels nor common classes. Gidaris et al., ICLR 2018 (https://arxiv.org/abs/1803.07728); shared between
networks: Gygli et al., AAAI 2021 (https://arxiv.org/abs/2004.03898).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_compat.errors import ImageError

NUM_ROTATIONS = 4


def draw_turns(size: int, fraction: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A share of a batch, and a random number of quarter turns for each of its images.

    Args:
        size: images of the batch.
        fraction: share of the batch, over 0 up to 1; at least one image.
        random: decides.

    Returns:
        Places in the batch (n,) and quarter turns (n,), n = round(fraction x size).
    """
    count = max(1, round(fraction * size))
    return torch.randperm(size, generator=random)[:count], torch.randint(NUM_ROTATIONS, (count,), generator=random)


def rotate(images: Tensor, turns: Tensor) -> Tensor:
    """Every image (of (n, C, S, S)) turned by its number of quarter turns (n,).

    Raises:
        ImageError: images that are not square.
    """
    if images.shape[-1] != images.shape[-2]:
        raise ImageError(f"rotation: expected square images, got {tuple(images.shape[-2:])}; set img_size to a square")
    turned = images.clone()
    for quarter in range(1, NUM_ROTATIONS):
        where = (turns == quarter).nonzero().flatten().to(images.device)
        turned[where] = images[where].rot90(quarter, (2, 3))
    return turned


def rotation_losses(logits: Tensor, turns: Tensor) -> Tensor:
    """Cross-entropy (n,) of the shared head's logits (n, 4) against the quarter turns (n,)."""
    return F.cross_entropy(logits, turns, reduction="none")
