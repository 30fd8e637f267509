"""A labelled set of small images in memory, as uint8."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from timm_compat.errors import DataError


@dataclass(frozen=True)
class ArrayDataset(Dataset[tuple[Tensor, int]]):
    """Images with labels.

    Args:
        images: (N, C, H, W), uint8.
        labels: (N,), int64, indices into ``class_names``.
        class_names: K names.

    Raises:
        DataError: shapes, dtypes or labels that do not fit together.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            found = f"{tuple(self.images.shape)}, {self.images.dtype}"
            raise DataError(f"images: expected (N, C, H, W) of uint8, got {found}")
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            found = f"{tuple(self.labels.shape)}, {self.labels.dtype}"
            raise DataError(f"labels: expected ({len(self.images)},) of int64, one an image, got {found}")
        outside = (self.labels < 0) | (self.labels >= len(self.class_names))
        if outside.any():
            wrong = int(self.labels[outside][0])
            raise DataError(f"labels: expected 0 to {len(self.class_names) - 1}, got {wrong}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def subset(self, indices: Tensor | Sequence[int]) -> "ArrayDataset":
        """The images at these positions, with the same class names."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return ArrayDataset(self.images[chosen], self.labels[chosen], self.class_names)

    def of_classes(self, names: Sequence[str]) -> "ArrayDataset":
        """The images of these classes; labels count in the order of ``names``.

        Raises:
            DataError: a name that the set does not have.
        """
        unknown = [name for name in names if name not in self.class_names]
        if unknown:
            raise DataError(f"expected classes among {', '.join(self.class_names)}, got {', '.join(unknown)}")
        new_label = torch.full((len(self.class_names),), -1, dtype=torch.int64)
        for position, name in enumerate(names):
            new_label[self.class_names.index(name)] = position
        labels = new_label[self.labels]
        kept = labels >= 0
        return ArrayDataset(self.images[kept], labels[kept], tuple(names))

    def halves(self, generator: torch.Generator) -> tuple["ArrayDataset", "ArrayDataset"]:
        """Two disjoint random halves."""
        order = torch.randperm(len(self), generator=generator)
        middle = len(self) // 2
        return self.subset(order[:middle]), self.subset(order[middle:])

    @classmethod
    def from_arrays(cls, images: Any, labels: Any, class_names: Iterable[str]) -> "ArrayDataset":
        """From anything that ``torch.as_tensor`` takes; images (N, H, W) or (N, H, W, C) with C of 1 or 3 as well."""
        pictures = torch.as_tensor(images)
        if pictures.ndim == 3:
            pictures = pictures[:, None]
        elif pictures.ndim == 4 and pictures.shape[1] not in (1, 3) and pictures.shape[3] in (1, 3):
            pictures = pictures.permute(0, 3, 1, 2).contiguous()
        return cls(pictures, torch.as_tensor(labels).to(torch.int64), tuple(class_names))


def image_batches(images: Tensor | ArrayDataset | Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Batches of raw images from a tensor (N, C, H, W), a data set, or an iterable of batches.

    Raises:
        DataError: no image at all.
    """
    if isinstance(images, ArrayDataset):
        images = images.images
    batches = images.split(batch_size) if isinstance(images, Tensor) and len(images) else images
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise DataError("images: expected at least one image, got none")
