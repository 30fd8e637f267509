"""Synthetic domain shifts: a data set as another camera, light or scanner would show it.

Noise, blur and contrast follow ImageNet-C (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261);
their strength is ours, so that images of any size change alike. Every function takes and gives (N, C, H, W) in [0, 1].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from timm_compat.data.arrays import ArrayDataset
from timm_compat.errors import ConfigError, DataError
from timm_compat.seeding import generator

Shift = Callable[[Tensor, torch.Generator], Tensor]

NOISE = 0.2  # standard deviation
CONTRAST = 0.4  # what is left of it
BLUR = 1 / 20  # standard deviation, as a share of the side
_AT_ONCE = 1024  # images


def inverted(images: Tensor, random: torch.Generator) -> Tensor:
    """Dark and bright exchanged."""
    return 1 - images


def recoloured(images: Tensor, random: torch.Generator) -> Tensor:
    """Red, green and blue become blue, inverted red and green: every colour is another one, shapes stay."""
    red, green, blue = images.unbind(dim=1)
    return torch.stack([blue, 1 - red, green], dim=1)


def noisy(images: Tensor, random: torch.Generator) -> Tensor:
    """Gaussian noise."""
    return images + NOISE * torch.randn(images.shape, generator=random)


def blurred(images: Tensor, random: torch.Generator) -> Tensor:
    """Out of focus."""
    sigma = BLUR * max(images.shape[-2:])
    size = 2 * round(2 * sigma) + 1
    return F.gaussian_blur(images, [size, size], [sigma, sigma])


def faded(images: Tensor, random: torch.Generator) -> Tensor:
    """Less contrast around each image's own mean."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + CONTRAST * (images - mean)


SHIFTS: Mapping[str, Shift] = MappingProxyType(
    {"inverted": inverted, "recoloured": recoloured, "noisy": noisy, "blurred": blurred, "faded": faded}
)


def shifted_dataset(dataset: object, names: Sequence[str], seed: int = 0) -> ArrayDataset:
    """The images of a set after one or more shifts, in this order; labels stay.

    Args:
        dataset: images in memory.
        names: of ``SHIFTS``.
        seed: of the noise.

    Raises:
        ConfigError: an unknown name.
        DataError: images that are decoded from files, or grey ones to recolour.
    """
    for name in names:
        if name not in SHIFTS:
            raise ConfigError(f"shift: expected any of {', '.join(SHIFTS)}, got {name!r}")
    if not isinstance(dataset, ArrayDataset):
        raise DataError("shift: expected images in memory, got image files; write shifted files, and drop it")
    if "recoloured" in names and dataset.channels != 3:
        raise DataError(f"shift: recoloured: expected 3 channels, got {dataset.channels}; use inverted")
    random = generator(seed, "shift")
    parts = [_shifted(part, names, random) for part in dataset.images.split(_AT_ONCE)]
    return replace(dataset, images=torch.cat(parts))


def _shifted(images: Tensor, names: Sequence[str], random: torch.Generator) -> Tensor:
    changed = images.float() / 255
    for name in names:
        changed = SHIFTS[name](changed, random).clamp(0, 1)
    return (changed * 255).round().to(torch.uint8)
