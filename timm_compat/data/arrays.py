"""A labelled set of small images in memory, as uint8."""

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from timm_compat.data.image_dataset import mode_of
from timm_compat.data.labelled import LabelledSet, check_labels, checked_names
from timm_compat.errors import DataError
from timm_compat.storage.files import tensor_sha256

# Weights of red, green and blue in grey, of 65,536: ITU-R BT.601, as Pillow rounds them.
LUMA = (19595, 38470, 7471)
MOST_COLOURS = 4  # red, green, blue and opacity
_AT_ONCE = 4096  # images


@dataclass(frozen=True)
class ArrayDataset(LabelledSet):
    """Labelled images in memory.

    Args:
        images: (N, C, H, W), uint8.
        labels: (N,), int64, indices into ``class_names``.
        class_names: K names.

    Raises:
        DataError: shapes, dtypes, labels or class names that do not fit together.

    Example:
        >>> images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
        >>> data = tc.data.ArrayDataset(images, torch.tensor([0, 1, 0, 1]), ("cat", "dog"))
        >>> len(data.of_classes(["dog"]))
        2
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            found = f"{tuple(self.images.shape)}, {self.images.dtype}"
            raise DataError(f"images: expected (N, C, H, W) of uint8, got {found}")
        object.__setattr__(self, "class_names", checked_names(self.class_names))
        check_labels(self.labels, len(self.images), self.class_names)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def _pick(self, chosen: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> Self:
        return replace(self, images=self.images[chosen], labels=labels, class_names=class_names)

    @property
    def channels(self) -> int:
        """Number C of an image's channels."""
        return self.images.shape[1]

    def digest(self) -> str:
        """SHA-256 of the pixels: identifies the images of this set and their order."""
        return tensor_sha256(self.images)

    @property
    def form(self) -> Hashable:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def image_keys(self) -> list[Hashable]:
        """SHA-256 of each image's pixels."""
        return list(self.image_digests())

    def image_digests(self) -> list[bytes]:
        """SHA-256 of each image's form and pixels."""
        form = repr(self.form).encode()
        return [hashlib.sha256(form + image.contiguous().numpy().tobytes()).digest() for image in self.images.cpu()]

    @classmethod
    def collected(cls, images: Sequence[tuple[Self, int]], class_name: str) -> Self:
        """As ``LabelledSet`` says."""
        pixels = torch.stack([dataset.images[index] for dataset, index in images])
        return cls(pixels, torch.zeros(len(images), dtype=torch.int64), (class_name,))

    def with_channels(self, count: int) -> Self:
        """The same images in grey (1) or colour (3): grey is repeated, colours are weighed as Pillow does.

        Raises:
            ConfigError: another number.
            DataError: images of neither 1 nor 3 channels.
        """
        mode_of(count)
        if self.channels not in (1, 3):
            raise DataError(f"images: expected 1 or 3 channels to make {count} of, got {self.channels}")
        if self.channels == count:
            return self
        grey = self.images if self.channels == 1 else torch.cat([_luma(part) for part in self.images.split(_AT_ONCE)])
        return replace(self, images=grey.repeat(1, count, 1, 1))

    @classmethod
    def from_arrays(cls, images: Any, labels: Any, class_names: Iterable[str]) -> "ArrayDataset":
        """From anything that ``torch.as_tensor`` takes, in one of these forms; class names may be bytes in UTF-8.

        Images are (N, H, W), grey; (N, C, H, W); or (N, H, W, C) with C of 1, 3, 2 (grey and opacity) or 4 (RGBA),
        whose opacity is dropped, as it is of image files. What could be both is taken for (N, C, H, W).

        Raises:
            DataError: images, labels or class names that do not fit.
        """
        pictures = channels_first(torch.as_tensor(images))
        return cls(pictures, torch.as_tensor(labels).to(torch.int64), tuple(map(name_text, class_names)))


def channels_first(pictures: Tensor) -> Tensor:
    """Images (N, H, W), (N, C, H, W) or (N, H, W, C) as (N, C, H, W), without opacity; see ``from_arrays``."""
    if pictures.ndim == 3:
        return pictures[:, None]
    if pictures.ndim == 4 and pictures.shape[3] <= MOST_COLOURS < pictures.shape[1]:
        opaque = MOST_COLOURS - 1 if pictures.shape[3] >= MOST_COLOURS - 1 else 1
        return pictures[..., :opaque].permute(0, 3, 1, 2).contiguous()
    return pictures


def name_text(name: Any) -> str:
    """A class name as text; NumPy keeps text in bytes as well.

    Raises:
        DataError: bytes that are not UTF-8.
    """
    if not isinstance(name, bytes):
        return str(name)
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"class_names: expected text in UTF-8, got {name!r}; decode it first") from error


def _luma(images: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, dtype=torch.int32)[:, None, None]
    weighed = (images * weights).sum(1, keepdim=True, dtype=torch.int32)
    return ((weighed + 2**15) >> 16).to(torch.uint8)
