"""Data sets that ``timm.data.create_dataset`` names with a prefix: Hugging Face's and torchvision's."""

from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import create_dataset
from torch import Tensor

from timm_compat._extras import require
from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.image_dataset import ImageDataset, read_image
from timm_compat.data.map_style import adopt, numbered, told_apart, whole_labels
from timm_compat.data.torchvision_sets import TEST_WORDS, TRAIN_WORDS, check_split
from timm_compat.errors import DataError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


def load_torch(name: str, root: Path, split: str, *, skip_corrupt: bool = False) -> ArrayDataset | ImageDataset:
    """A set that timm takes from torchvision, such as "torch/cifar10"; nothing is downloaded.

    Raises:
        ConfigError: a split that is none.
        DataError: a name that timm does not know, or files that are missing.
    """
    try:
        source = create_dataset(name, root=str(root), split=split, download=False)
    except (OSError, RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise DataError(f"{name}: expected a set that timm finds in {root}, got {error}") from error
    if hasattr(source, "train"):
        check_split(split, TRAIN_WORDS + TEST_WORDS)  # timm takes every unknown word for the test images
    return adopt(source, skip_corrupt=skip_corrupt)


class ReaderSource:
    """timm's reader of a Hugging Face set as a map-style source of undecoded images."""

    def __init__(self, reader: Any) -> None:
        # Not timm's own data set around it, which replaces an unreadable image by the next one, unasked.
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        file, label = self.reader[index][:2]
        with file:
            return read_image(file), label

    def filename(self, index: int) -> str:
        """The file's path in the set, if it has one, and its number."""
        return f"{self.reader.filename(index) or 'image'} (number {index})"


def load_hugging_face(name: str, root: Path | None, split: str, *, skip_corrupt: bool = False) -> ImageDataset:
    """A map-style set of the Hugging Face Hub, or of a local folder: "hfds/owner/name"; ``datasets`` caches it.

    Args:
        name: with the prefix "hfds/".
        root: the cache folder; the library's own if None.
        split: as ``datasets`` writes it, such as "train" or "train[:10%]".
        skip_corrupt: see ``ImageDataset``.

    Raises:
        DataError: no such set or split, or one without a column of images and one of classes.
        MissingExtraError: ``datasets`` is not installed.
    """
    require("datasets", "datasets")
    reader = _reader(name, root, split)
    columns = reader.dataset.column_names
    label = next((column for column in LABEL_COLUMNS if column in columns), None)
    if label is None:
        raise DataError(f"{name}: expected a column {' or '.join(LABEL_COLUMNS)}, got {', '.join(columns)}")
    labels = whole_labels(list(reader.dataset[label]), len(reader), f"{name}: {label}")
    if not len(labels):
        raise DataError(f"{name}: expected at least one image in {split!r}, got none")
    names = _class_names(reader.dataset.features[label], labels)
    return ImageDataset.from_source(ReaderSource(reader), labels, names, skip_corrupt=skip_corrupt)


def _reader(name: str, root: Path | None, split: str) -> Any:
    failures = []
    for column in IMAGE_COLUMNS:
        try:
            cache = None if root is None else str(root)
            return create_dataset(name, root=cache, split=split, input_key=column).reader
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            failures.append(error)
    found = "; ".join(dict.fromkeys(str(error) for error in failures))
    raise DataError(f"{name}: expected a set of images that the datasets library loads, got {found}") from failures[0]


def _class_names(feature: Any, labels: Tensor) -> tuple[str, ...]:
    return told_apart(feature.names) if getattr(feature, "names", None) else numbered(labels)
