"""Images without labels: every image file below a folder."""

from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from timm_compat.data.image_dataset import ImageDataset, read_image
from timm_compat.errors import DataError

CLASS_NAME = "unlabelled"


class ImageFiles:
    """Image files as a source of an ``ImageDataset``; all bear label 0."""

    def __init__(self, files: list[Path]) -> None:
        self.samples = [(str(file), 0) for file in files]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]:
        file, label = self.samples[index]
        return read_image(file), label


def load_images(folder: Path, *, skip_corrupt: bool = False) -> ImageDataset:
    """All images below a folder, in the order of their paths, as one class "unlabelled".

    Raises:
        DataError: no image.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS and path.is_file())
    if not files:
        raise DataError(f"{folder}: expected image files ({', '.join(IMG_EXTENSIONS)}) in it or below, got none")
    return ImageDataset.from_source(ImageFiles(files), [0] * len(files), [CLASS_NAME], skip_corrupt=skip_corrupt)
