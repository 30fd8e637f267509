"""From raw images to what a backbone expects: size, range, mean and standard deviation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from timm_compat.data.framing import resized, tensor_framing
from timm_compat.errors import ImageError

FLOAT_RANGE = (-0.5, 1.5)  # 0 to 1, and what a bicubic resize may overshoot


class Preprocess(nn.Module):
    """Frame and normalise a batch of raw images, on whatever device they are.

    The framing (resize and crop) is timm's for evaluation, the same function of the pixels as for image files.

    Args:
        data_config: ``input_size`` (C, H, W), ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode``, as
            timm resolves them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, data_config: Mapping[str, Any]) -> None:
        super().__init__()
        self.channels, *size = data_config["input_size"]
        self.size = list(size)
        self.interpolation = data_config["interpolation"]
        self.frame = tensor_framing(data_config)
        # No file holds these two, so they have values also where a network is built for its shapes only.
        device = "cpu" if torch.get_default_device().type == "meta" else None
        for name in ("mean", "std"):
            values = torch.tensor(data_config[name], dtype=torch.float32, device=device)[:, None, None]
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor, framed: bool = False) -> Tensor:
        """Normalised images.

        Args:
            images: (B, C, h, w), uint8 in 0 to 255, or floating point in 0 to 1; h and w as they come.
            framed: whether they are resized and cropped already, as decoded files are; then they are not cropped, and
                resized only where another backbone's size was meant.

        Returns:
            (B, C, H, W), float32.

        Raises:
            ImageError: another rank, number of channels, dtype or range.
        """
        self._check(images)
        if images.dtype != torch.uint8:
            images = images.float()
        if not framed:
            images = self.frame(images)
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images.clamp(0, 1)
        if list(scaled.shape[-2:]) != self.size:
            scaled = resized(scaled, self.size, self.interpolation).clamp_(0, 1)
        return (scaled - self.mean) / self.std

    def _check(self, images: object) -> None:
        if not isinstance(images, Tensor):
            raise ImageError(f"images: expected a tensor, got {type(images).__name__}; see torch.as_tensor")
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ImageError(f"images: expected shape (B, {self.channels}, h, w), got {tuple(images.shape)}")
        if images.dtype == torch.uint8 or not images.numel():
            return
        if not images.is_floating_point():
            raise ImageError(f"images: expected uint8 (0 to 255) or floating point (0 to 1), got {images.dtype}")
        least, most = (float(bound) for bound in images.detach().aminmax())
        if not (FLOAT_RANGE[0] <= least and most <= FLOAT_RANGE[1]):  # NaN is out of range as well
            raise ImageError(
                f"images: expected floating point from 0 to 1, got {least:.3g} to {most:.3g}; divide by 255, or pass "
                "uint8; images that are normalised already go to the extractor itself"
            )
