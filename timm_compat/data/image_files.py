"""Image files: every one below a folder, without labels, or one folder per class."""

from pathlib import Path

from PIL import Image

from timm_compat.data.image_dataset import ImageDataset, read_image
from timm_compat.data.listing import ALL, list_classes, list_images, readable_extensions, split_folder
from timm_compat.errors import DataError

CLASS_NAME = "unlabelled"


class ImageFiles:
    """Image files with their labels, as a source of an ``ImageDataset``."""

    def __init__(self, files: list[Path], labels: list[int]) -> None:
        self.samples = [(str(file), label) for file, label in zip(files, labels, strict=True)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]:
        file, label = self.samples[index]
        return read_image(file), label


def load_images(root: Path, split: str = ALL, *, skip_corrupt: bool = False) -> ImageDataset:
    """All images below a folder, or below that of a split, in the order of their paths, as one class "unlabelled".

    Raises:
        DataError: no image, or no such split.
    """
    folder = split_folder(root, split, labelled=False)
    files = list_images(folder)
    if not files:
        raise DataError(
            f"{folder}: expected image files ({', '.join(sorted(readable_extensions()))}) in it or below, got none"
        )
    labels = [0] * len(files)
    return ImageDataset.from_source(ImageFiles(files, labels), labels, [CLASS_NAME], skip_corrupt=skip_corrupt)


def load_folder(root: Path, split: str, *, skip_corrupt: bool = False) -> ImageDataset:
    """One folder per class, in the folder of the split if there are splits.

    Raises:
        DataError: no class folders, one that holds no image, or no such split.
    """
    classes = list_classes(split_folder(root, split, labelled=True))
    files = [file for found in classes.values() for file in found]
    labels = [label for label, found in enumerate(classes.values()) for _ in found]
    return ImageDataset.from_source(ImageFiles(files, labels), labels, list(classes), skip_corrupt=skip_corrupt)
