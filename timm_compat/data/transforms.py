"""From a PIL image to the pixels that a backbone takes; uint8 ones are normalised by its own preprocessing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import Compose, PILToTensor

from timm_compat.config import AugmentationConfig
from timm_compat.data.augmentation import Augmenter, draw
from timm_compat.data.framing import image_framing
from timm_compat.data.image_dataset import MODES, convert
from timm_compat.errors import DataError

Transform = Callable[[Image.Image], Tensor]


def training_transform(data_config: Mapping[str, Any], augmentation: AugmentationConfig | None = None) -> Transform:
    """Decode, augment, and frame.

    Random numbers are drawn from torch's global state; see ``decoding``.

    Args:
        data_config: a backbone's: ``input_size`` (C, H, W), ``interpolation`` ...; C decides on grey or colour.
        augmentation: how images are changed; not at all if None.

    Returns:
        A function from a PIL image to (C, H, W), uint8.

    Raises:
        DataError: C is neither 1 nor 3.
    """
    if augmentation is None or not augmentation.augments:
        return evaluation_transform(data_config)
    return Compose(
        [_decoder(data_config), PILToTensor(), _Augmented(augmentation, Augmenter(augmentation, data_config))]
    )


def evaluation_transform(data_config: Mapping[str, Any]) -> Transform:
    """Decode and frame: timm's evaluation transform, without normalisation.

    Args:
        data_config: as in ``training_transform``.

    Returns:
        A function from a PIL image to (C, H, W), uint8.

    Raises:
        DataError: C is neither 1 nor 3.
    """
    return Compose([_decoder(data_config), image_framing(data_config), PILToTensor()])


def inference_transform(data_config: Mapping[str, Any]) -> Transform:
    """timm's evaluation transform with normalisation: from a PIL image to (C, H, W), float32.

    The image is decoded as those of data sets are; for backbones of neither 1 nor 3 channels it must have the mode.
    """
    known = data_config["input_size"][0] in MODES
    return Compose([*([_decoder(data_config)] if known else []), create_transform(**data_config, is_training=False)])


def image_mode(data_config: Mapping[str, Any]) -> str:
    """The mode in which a backbone wants images: "L" (grey) or "RGB".

    Raises:
        DataError: it takes neither 1 nor 3 channels.
    """
    channels = data_config["input_size"][0]
    if channels not in MODES:
        raise DataError(
            f"input_size: expected 1 or 3 channels to decode images for, got {channels}; "
            "pass tensors of such images instead"
        )
    return MODES[channels]


@dataclass(frozen=True)
class _Augmented:
    """One decoded image (C, h, w) to (C, H, W)."""

    augmentation: AugmentationConfig
    augmenter: Augmenter

    def __call__(self, image: Tensor) -> Tensor:
        return self.augmenter(image[None], draw(self.augmentation, 1, torch.default_generator))[0]


def _decoder(data_config: Mapping[str, Any]) -> Callable[[Image.Image], Image.Image]:
    return partial(convert, mode=image_mode(data_config))
