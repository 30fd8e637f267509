"""A map-style set of images and labels, such as torchvision's, as one of our data sets."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timm_compat.data.arrays import ArrayDataset, name_text
from timm_compat.data.image_dataset import ImageDataset, ImageSource
from timm_compat.errors import DataError
from timm_compat.vocabulary import MAX_CLASSES

LABEL_LISTS = ("targets", "labels", "_labels", "y")
SAMPLE_LISTS = ("samples", "_samples")
PIXEL_TYPES = ("uint8", "torch.uint8")


def adopt(source: ImageSource, *, skip_corrupt: bool = False) -> ArrayDataset | ImageDataset:
    """A torchvision set: one that holds equal-sized uint8 images comes into memory, any other is decoded on demand.

    Class names are the set's own, else "0" to "K-1" for the K labels up to the largest.

    Raises:
        DataError: no images, or labels that are not one class an image.
    """
    name = type(source).__name__
    if not len(source):
        raise DataError(f"{name}: expected at least one image, got none")
    labels = labels_of(source)
    class_names = class_names_of(source, labels)
    pixels: Any = getattr(source, "data", None)
    if str(getattr(pixels, "dtype", "")) in PIXEL_TYPES and pixels.ndim in (3, 4):
        return ArrayDataset.from_arrays(pixels, labels, class_names)
    return ImageDataset.from_source(source, labels, class_names, skip_corrupt=skip_corrupt)


def labels_of(source: ImageSource) -> Tensor:
    """Labels (N,), int64, of a torchvision set, without decoding an image.

    Raises:
        DataError: none are found, or they are not one class an image.
    """
    for attribute in LABEL_LISTS:
        if (labels := getattr(source, attribute, None)) is not None:
            return whole_labels(labels, len(source), type(source).__name__)
    for attribute in SAMPLE_LISTS:
        if samples := getattr(source, attribute, None):
            return whole_labels([sample[1] for sample in samples], len(source), type(source).__name__)
    raise DataError(
        f"{type(source).__name__}: expected its labels in one of {', '.join(LABEL_LISTS + SAMPLE_LISTS)}, found none; "
        'sort its images into one folder per class and load "folder"'
    )


def whole_labels(labels: Any, count: int, where: str) -> Tensor:
    """Labels (count,) as int64.

    Raises:
        DataError: another number of them, or anything but integers from 0.
    """
    numbers = np.asarray(labels)
    if numbers.shape != (count,) or numbers.dtype.kind not in "iu" or (count and numbers.min() < 0):
        found = f"shape {numbers.shape}, {numbers.dtype}, such as {numbers.flat[:3].tolist()}"
        raise DataError(f"{where}: expected one label per image, {count} integers from 0, got {found}")
    return torch.as_tensor(numbers.astype(np.int64))


def class_names_of(source: Any, labels: Tensor) -> tuple[str, ...]:
    """The set's class names, else numbers."""
    names = getattr(source, "classes", None) or getattr(source, "categories", None)
    return told_apart(names) if names else numbered(labels)


def told_apart(names: Sequence[str | Sequence[str]]) -> tuple[str, ...]:
    """Class names as text; one that several classes bear gets the class's number. Synonyms are joined by commas."""
    plain = [
        ", ".join(name) if isinstance(name, Sequence) and not isinstance(name, (str, bytes)) else name_text(name)
        for name in names
    ]
    counts = Counter(plain)
    return tuple(name if counts[name] == 1 else f"{name} ({number})" for number, name in enumerate(plain))


def numbered(labels: Tensor) -> tuple[str, ...]:
    """Numbers from 0 to the largest label, as class names.

    Raises:
        DataError: a label that is too large for the number of a class.
    """
    if int(labels.max()) >= MAX_CLASSES:
        raise DataError(f"labels: expected numbers of classes, 0 to {MAX_CLASSES - 1}, got {int(labels.max())}")
    return tuple(str(number) for number in range(int(labels.max()) + 1))
