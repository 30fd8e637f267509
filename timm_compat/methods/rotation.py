"""Rotation: the shared head tells by how many quarter turns an image was rotated.

Gidaris et al., ICLR 2018 (https://arxiv.org/abs/1803.07728); as what networks share: Gygli et al., AAAI 2021
(https://arxiv.org/abs/2004.03898).
"""

from torch import Tensor

from timm_compat.errors import ImageError
from timm_compat.methods.self_supervised import SelfSupervisedTask

NUM_ROTATIONS = 4


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


ROTATION = SelfSupervisedTask("rotation", NUM_ROTATIONS, rotate, needs_square=True)
