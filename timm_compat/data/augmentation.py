"""Augmentation of training images: one setting and one function of the pixels, for files and for arrays.

Random resized crops follow Szegedy et al. (CVPR 2015, https://arxiv.org/abs/1409.4842); settings bear timm's names.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_compat.config import AugmentationConfig
from timm_compat.data.framing import Frame, resized, tensor_framing

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in grey: ITU-R BT.601


@dataclass(frozen=True)
class Draws:
    """What was drawn for B images; None for what is off.

    Attributes:
        offsets: (2, B), rows and columns of the padded image at which the shifted one begins.
        mirrored: (B,).
        parts: (4, B) in [0, 1): area, shape, and place (rows, columns) of the part that is resized.
        factors: (3, B), of brightness, contrast and saturation.
    """

    offsets: Tensor | None
    mirrored: Tensor | None
    parts: Tensor | None
    factors: Tensor | None

    def share(self, mine: slice) -> "Draws":
        """Those of some of the images."""
        return Draws(*(None if drawn is None else drawn[..., mine] for drawn in vars(self).values()))


def draw(augmentation: AugmentationConfig, count: int, random: torch.Generator) -> Draws:
    """What happens to each of ``count`` images."""
    offsets = mirrored = parts = factors = None
    if augmentation.random_crop:
        offsets = torch.randint(2 * augmentation.random_crop + 1, (2, count), generator=random)
    if augmentation.hflip:
        mirrored = torch.rand(count, generator=random) < augmentation.hflip
    if augmentation.scale:
        parts = torch.rand(4, count, generator=random, dtype=torch.float64)
    if augmentation.color_jitter:
        factors = 1 + augmentation.color_jitter * (2 * torch.rand(3, count, generator=random) - 1)
    return Draws(offsets, mirrored, parts, factors)


class Augmenter:
    """Changes batches of raw images as was drawn, and frames them for a backbone.

    Args:
        augmentation: the settings.
        data_config: a backbone's; images keep their size if None.
    """

    def __init__(self, augmentation: AugmentationConfig, data_config: Mapping[str, Any] | None) -> None:
        self.augmentation, self.data_config = augmentation, data_config
        self.frame: Frame | None = None if data_config is None else tensor_framing(data_config)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """(B, C, h, w) of uint8 to (B, C, H, W) of uint8."""
        if draws.offsets is not None:
            images = shift(images, self.augmentation.random_crop, draws.offsets)
        if draws.mirrored is not None:
            images = torch.where(draws.mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)
        if draws.parts is not None:
            images = self._parts(images, draws.parts)
        elif self.frame is not None:
            images = self.frame(images)
        return images if draws.factors is None else jitter(images, draws.factors)

    def _parts(self, images: Tensor, drawn: Tensor) -> Tensor:
        size, interpolation = list(images.shape[-2:]), "bilinear"
        if self.data_config is not None:
            size, interpolation = list(self.data_config["input_size"][1:]), self.data_config["interpolation"]
        boxes = [self._box(images.shape[-2:], *numbers) for numbers in drawn.T.tolist()]
        parts = [
            resized(image[None, :, top : top + height, left : left + width], size, interpolation)
            for image, (top, left, height, width) in zip(images, boxes, strict=True)
        ]
        return torch.cat(parts)

    def _box(self, shape: torch.Size, area: float, form: float, row: float, column: float) -> tuple[int, int, int, int]:
        # A part that is longer than the image is cut to it.
        (least, most), (low, high) = self.augmentation.scale or (1.0, 1.0), self.augmentation.ratio
        pixels = (least + (most - least) * area) * shape[0] * shape[1]
        ratio = math.exp(math.log(low) + (math.log(high) - math.log(low)) * form)
        height = min(max(1, round(math.sqrt(pixels / ratio))), shape[0])
        width = min(max(1, round(math.sqrt(pixels * ratio))), shape[1])
        return int(row * (shape[0] - height + 1)), int(column * (shape[1] - width + 1)), height, width


def shift(images: Tensor, most: int, offsets: Tensor) -> Tensor:
    """Each image (of (B, C, H, W)) moved by up to ``most`` pixels in both directions; black comes in.

    Args:
        images: (B, C, H, W).
        most: largest shift in pixels.
        offsets: (2, B), 0 to 2 x most: rows and columns of the padded image at which the result begins.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (most,) * 4)
    if len(images) == 1:  # a photograph has too many pixels to number them
        first, start = offsets[:, 0].tolist()
        return padded[..., first : first + height, start : start + width]
    top, left = offsets.to(images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    pixels = (rows[:, :, None] * padded.shape[-1] + columns[:, None, :]).flatten(1)
    shifted = padded.flatten(2).gather(2, pixels[:, None].expand(-1, images.shape[1], -1))
    return shifted.reshape(images.shape)


def jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation changed, in this order.

    Args:
        images: (B, C, H, W), uint8; saturation is for three channels only.
        factors: (3, B); 1 changes nothing.
    """
    brightness, contrast, saturation = factors.to(images.device)[:, :, None, None, None]
    changed = (images * brightness).clamp(0, 255)
    mean = _grey(changed).mean(dim=(1, 2, 3), keepdim=True)
    changed = (mean + contrast * (changed - mean)).clamp(0, 255)
    if images.shape[1] == len(LUMA):
        grey = _grey(changed)
        changed = (grey + saturation * (changed - grey)).clamp(0, 255)
    return changed.round().to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] != len(LUMA):
        return images.mean(dim=1, keepdim=True)
    weights = torch.tensor(LUMA, device=images.device)[:, None, None]
    return (images * weights).sum(dim=1, keepdim=True)
