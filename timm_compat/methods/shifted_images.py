"""Mirrored and shifted copies of images: more samples from a small pool.

Reflections and translations as in Krizhevsky et al., NeurIPS 2012 (https://papers.nips.cc/paper/4824). What an image
shows hardly changes, so that it stays in the domain that both networks know.
"""

import torch
from torch import Tensor

LARGEST_SHIFT = 1 / 8  # of a side


def mirrored(images: Tensor) -> Tensor:
    """Left and right swapped: (B, C, H, W) to the same."""
    return images.flip(-1)


def shifted(images: Tensor, amounts: Tensor) -> Tensor:
    """Moved by up to an eighth of each side, to the nearest pixel; the edge that comes into view is a reflection.

    Args:
        images: (B, C, H, W).
        amounts: (B, 2) in [-1, 1], down and right, as shares of the largest shift.
    """
    rows, columns = (
        _reflected(images.shape[axis], amounts[:, axis].to(images.device), images.device) for axis in (-2, -1)
    )
    number = torch.arange(len(images), device=images.device)[:, None, None]
    return images.movedim(1, -1)[number, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _reflected(side: int, amounts: Tensor, device: torch.device) -> Tensor:
    # For each image the pixel that moves to each position: (B, side).
    moved = torch.arange(side, device=device) - (amounts * side * LARGEST_SHIFT).round().long()[:, None]
    return (side - 1) - ((side - 1) - moved.abs()).abs()
