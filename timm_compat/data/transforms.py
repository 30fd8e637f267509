"""From a decoded image to uint8 pixels of the size that a backbone takes; its own preprocessing normalises."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import Compose

from timm_compat.data.image_dataset import MODES, convert
from timm_compat.errors import DataError

Transform = Callable[[Image.Image], Tensor]


def training_transform(
    data_config: Mapping[str, Any], crop: bool = True, *, flip: bool = True, color_jitter: float = 0.4, **options: Any
) -> Transform:
    """timm's training transform, without normalisation.

    Random augmentation draws from the global states of torch, ``random`` and NumPy; see ``decoding``.

    Args:
        data_config: a backbone's: ``input_size`` (C, H, W), ``interpolation`` ...; C decides on grey or colour.
        crop: whether a random part of the image is enlarged to the size; else resize and centre crop.
        flip: whether half of the images are mirrored.
        color_jitter: strength of random brightness, contrast and saturation; 0 for none.
        **options: further keywords of ``timm.data.create_transform``, such as ``auto_augment`` and ``scale``.

    Returns:
        A function from a PIL image to (C, H, W), uint8.

    Raises:
        DataError: C is neither 1 nor 3.
    """
    decode = partial(convert, mode=image_mode(data_config))
    augmented, jittered, as_tensor = create_transform(
        **{**data_config, **options},
        is_training=True,
        normalize=False,
        separate=True,
        hflip=0.5 if flip else 0.0,
        color_jitter=color_jitter,
    )
    steps = augmented.transforms
    if not crop:
        resized = create_transform(**data_config, is_training=False, normalize=False)
        steps = [*resized.transforms[:-1], *steps[1:]]  # without making a tensor; without the random crop
    return Compose([decode, *steps, jittered, as_tensor])


def evaluation_transform(data_config: Mapping[str, Any]) -> Transform:
    """timm's evaluation transform, without normalisation: resize and centre crop.

    Args:
        data_config: as in ``training_transform``.

    Returns:
        A function from a PIL image to (C, H, W), uint8.

    Raises:
        DataError: C is neither 1 nor 3.
    """
    decode = partial(convert, mode=image_mode(data_config))
    return Compose([decode, create_transform(**data_config, is_training=False, normalize=False)])


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


def shared_data_config(*data_configs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The data config of the largest images, for one raw batch that several backbones see, each at its own size.

    Raises:
        DataError: different numbers of channels.
    """
    channels = {config["input_size"][0] for config in data_configs}
    if len(channels) != 1:
        raise DataError(f"input_size: expected backbones of equally many channels, got {sorted(channels)}")
    return max(data_configs, key=lambda config: config["input_size"][1] * config["input_size"][2])
