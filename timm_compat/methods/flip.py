"""Flip: the shared head tells whether an image was turned over, top to bottom (Sun et al. 2019, arXiv 1909.11825)."""

from torch import Tensor

from timm_compat.methods.self_supervised import SelfSupervisedTask


def turn_over(images: Tensor, flips: Tensor) -> Tensor:
    """Every image (of (n, C, H, W)) whose number (n,) is 1 with its rows from bottom to top."""
    changed = images.clone()
    where = (flips == 1).nonzero().flatten().to(images.device)
    changed[where] = images[where].flip(2)
    return changed


FLIP = SelfSupervisedTask("flip", 2, turn_over)
