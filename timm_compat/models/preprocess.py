"""From raw images to what a backbone expects: size, range, mean and standard deviation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from timm_compat.errors import ImageError


class Preprocess(nn.Module):
    """Resize and normalise a batch of raw images, on whatever device they are.

    Args:
        data_config: ``input_size`` (C, H, W), ``mean``, ``std`` and ``interpolation``, as timm resolves them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, data_config: Mapping[str, Any]) -> None:
        super().__init__()
        self.channels, *size = data_config["input_size"]
        self.size = list(size)
        self.interpolation = InterpolationMode(data_config["interpolation"])
        # No file holds these two, so they have values also where a network is built for its shapes only.
        device = "cpu" if torch.get_default_device().type == "meta" else None
        for name in ("mean", "std"):
            values = torch.tensor(data_config[name], dtype=torch.float32, device=device)[:, None, None]
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images.

        Args:
            images: (B, C, h, w), uint8 in 0 to 255, or floating point in 0 to 1; h and w as they come.

        Returns:
            (B, C, H, W), float32.

        Raises:
            ImageError: another rank, number of channels or dtype.
        """
        if not isinstance(images, Tensor):
            raise ImageError(f"images: expected a tensor, got {type(images).__name__}; see torch.as_tensor")
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ImageError(f"images: expected shape (B, {self.channels}, h, w), got {tuple(images.shape)}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ImageError(f"images: expected uint8 (0 to 255) or floating point (0 to 1), got {images.dtype}")
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        if list(images.shape[-2:]) != self.size:
            scaled = F.resize(scaled, self.size, interpolation=self.interpolation, antialias=True).clamp_(0, 1)
        return (scaled - self.mean) / self.std
