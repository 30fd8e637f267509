"""Framing: timm's resize and crop for evaluation, one function of the pixels for files and for arrays."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from timm.data import create_transform
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
from torchvision.transforms.v2 import functional as F

from timm_compat.errors import ImageError

Frame = Callable[[Tensor], Tensor]

# Which of Pillow's filters torch has for tensors. Pillow's "nearest" takes the pixel at the centre, torch's does not.
TENSOR_FILTERS = {
    "nearest": InterpolationMode.NEAREST_EXACT,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}


def image_framing(data_config: Mapping[str, Any]) -> Compose:
    """timm's resize and crop of a PIL image, as ``crop_pct``, ``crop_mode`` and ``interpolation`` say."""
    return Compose(create_transform(**data_config, is_training=False, normalize=False).transforms[:-1])


def tensor_framing(data_config: Mapping[str, Any]) -> Frame:
    """The same for a batch of images (B, C, h, w), uint8, or floating point in 0 to 1.

    Equal to ``image_framing`` to within rounding, or a few levels of 255 where bicubic enlargement overshoots.

    Raises:
        ImageError: when it is called, if torch cannot interpolate tensors so.
    """
    interpolation = data_config["interpolation"]
    if interpolation not in TENSOR_FILTERS:
        return partial(_refuse, interpolation)
    return Compose([_for_tensors(step, interpolation) for step in image_framing(data_config).transforms])


def same_framing(data_config: Mapping[str, Any]) -> str:
    """Text that is equal for backbones that see the same pixels of an image."""
    fill = ("mean",) if data_config["crop_mode"] == "border" else ()
    keys = ("input_size", "interpolation", "crop_pct", "crop_mode", *fill)
    return repr([data_config[key] for key in keys])


def resized(images: Tensor, size: list[int], interpolation: str) -> Tensor:
    """A batch (B, C, h, w) in another size, by one of ``TENSOR_FILTERS``; other filters of Pillow become bicubic."""
    mode = TENSOR_FILTERS.get(interpolation, InterpolationMode.BICUBIC)
    # torchvision's first version of this function, which timm calls, takes five times as long for uint8 on a CPU.
    return F.resize(images, size, interpolation=mode, antialias=True)


def _for_tensors(step: Any, interpolation: str) -> Frame:
    if isinstance(step, CenterCropOrPad):
        return partial(_crop_or_pad, step)
    if isinstance(step, (Resize, ResizeKeepRatio)):
        return partial(_resize, step, interpolation)
    crop: Frame = step
    return crop


def _resize(step: Any, interpolation: str, images: Tensor) -> Tensor:
    if isinstance(step, ResizeKeepRatio):
        size = step.get_params(images, step.size, step.longest)
    else:
        size = [step.size] if isinstance(step.size, int) else list(step.size)
    return resized(images, size, interpolation)


def _crop_or_pad(step: Any, images: Tensor) -> Tensor:
    # timm's own leaves the colours to a function that does not take them for tensors.
    missing = [max(0, side - found) for side, found in zip(step.size, images.shape[-2:], strict=True)]
    if any(missing):
        top, left = missing[0] // 2, missing[1] // 2
        colours = [value / 255 for value in step.fill] if images.is_floating_point() else list(step.fill)
        images = F.pad(images, [left, top, missing[1] - left, missing[0] - top], fill=colours)
    return CenterCrop(step.size)(images)


def _refuse(interpolation: str, images: Tensor) -> Tensor:
    raise ImageError(
        f"images: expected interpolation {', '.join(TENSOR_FILTERS)} to resize tensors with, got {interpolation!r}; "
        "pass image files, or PIL images through the extractor's transform()"
    )
