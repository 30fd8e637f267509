"""Images from arrays: npz files, and scikit-learn's digits."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.listing import ALL
from timm_compat.data.map_style import numbered, whole_labels
from timm_compat.errors import ConfigError, DataError
from timm_compat.seeding import generator

CLASS_NAMES_KEY = "class_names"

# Keys of images and labels, with "{split}_" before them where a file holds several splits.
KEYS = (("images", "labels"), ("x", "y"))
SPLITS = ("train", "test")
TEST_SHARE = 0.25
CLASS_NAMES = tuple(str(digit) for digit in range(10))


def load_npz(path: Path, split: str) -> ArrayDataset:
    """A set from a .npz file: ``images`` and ``labels``, or ``train_images``, ``train_labels`` and so on by split.

    Images are uint8, (N, H, W), (N, H, W, C) or (N, C, H, W); labels are integers (N,). ``x`` and ``y`` are
    taken for the same; ``class_names``, an array of strings, may be there. A file without splits
    is the split "train", or "all".

    Raises:
        DataError: no such file, one that NumPy cannot read, or arrays that are missing or do not fit.
    """
    if not path.is_file():
        raise DataError(f"{path}: expected a .npz file, got {'a folder' if path.is_dir() else 'nothing there'}")
    try:
        # Objects would have to be unpickled, which runs code.
        arrays = np.load(path, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise DataError(f"{path}: expected a .npz file of several arrays, got a single one; see numpy.savez")
        with arrays:
            return _read(arrays, path, split)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: expected a .npz file of plain arrays, got {error}") from error


def _read(arrays: Any, path: Path, split: str) -> ArrayDataset:
    images_key, labels_key = _find_keys(arrays.files, path, split)
    images = arrays[images_key]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        found = f"{images.shape} of {images.dtype}"
        raise DataError(f"{path}: {images_key}: expected (N, H, W), (N, H, W, C) or (N, C, H, W) of uint8, got {found}")
    if not len(images):
        raise DataError(f"{path}: {images_key}: expected at least one image, got none")
    labels = whole_labels(arrays[labels_key], len(images), f"{path}: {labels_key}")
    given = arrays[CLASS_NAMES_KEY] if CLASS_NAMES_KEY in arrays.files else numbered(labels)
    return ArrayDataset.from_arrays(images, labels, np.atleast_1d(given))


def _find_keys(present: list[str], path: Path, split: str) -> tuple[str, str]:
    by_split = [(f"{split}_{images}", f"{split}_{labels}") for images, labels in KEYS]
    whole = KEYS if split in (ALL, "train") else ()
    for pair in (*by_split, *whole):
        if set(pair) <= set(present):
            return pair
    undivided = "arrays images and labels, or " if whole else ""
    raise DataError(f"{path}: expected {undivided}{split}_images and {split}_labels, got {', '.join(present)}")


def load_digits(split: str = "train") -> ArrayDataset:
    """1,797 digits of 8 x 8 grey pixels (Alpaydin and Kaynak, UCI 1998), split once and for all.

    Args:
        split: "train" (1,348 images) or "test" (449).

    Raises:
        ConfigError: another split.

    Example:
        >>> digits = tc.data.load_digits("test")
        >>> digits.images.shape, digits.class_names[:3]
        (torch.Size([449, 1, 8, 8]), ('0', '1', '2'))
    """
    from sklearn.datasets import load_digits as load

    if split not in SPLITS:
        raise ConfigError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    images, labels = load(return_X_y=True)
    pixels = torch.as_tensor(images, dtype=torch.float32).reshape(-1, 8, 8) * (255 / 16)
    digits = ArrayDataset.from_arrays(pixels.round().to(torch.uint8), labels, CLASS_NAMES)
    order = torch.randperm(len(digits), generator=generator(0, "digits"))
    first_train = round(len(digits) * TEST_SHARE)
    return digits.subset(order[:first_train] if split == "test" else order[first_train:])
