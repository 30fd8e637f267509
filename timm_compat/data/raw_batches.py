"""Batches of raw images from any source; each image is read once for all networks that see it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import Self

from timm_compat.data.arrays import ArrayDataset, channels_first
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.data.transforms import Transform
from timm_compat.errors import DataError, ImageError

ImageSet = Tensor | NDArray[Any] | ArrayDataset | ImageDataset
RawImages = ImageSet | Iterable[Any]
LeftOut = Callable[[int, DataError], None]


@dataclass(frozen=True)
class RawBatch:
    """Some images of a set.

    Attributes:
        positions: (b,), int64, which of the set.
        views: (b, C, h, w) for every transform; one for all networks where no files are decoded.
        framed: whether transforms framed them.
        labels: (b,), where the set has labels.
        unreadable: position and error of images that are left out.
        skipped: numbers, in an ``ImageDataset``'s source, of images whose place others take.
    """

    positions: Tensor
    views: tuple[Tensor, ...]
    labels: Tensor | None
    framed: bool = False
    unreadable: tuple[tuple[int, DataError], ...] = ()
    skipped: tuple[int, ...] = ()

    def pin_memory(self) -> Self:
        """The same in memory from which a GPU copies on its own; ``DataLoader`` calls this."""
        return replace(self, views=tuple(view.pin_memory() for view in self.views))

    def view(self, number: int) -> Tensor:
        """What a transform, by its number, made of the images."""
        return self.views[number if self.framed else 0]


def count_images(images: RawImages) -> int | None:
    """How many images; None where only going through them would tell."""
    if isinstance(images, Tensor | np.ndarray | ArrayDataset | ImageDataset):
        return len(images)
    return None


def raw_batches(
    images: RawImages,
    batch_size: int,
    transforms: Sequence[Transform],
    *,
    process: tuple[int, int] = (0, 1),
    workers: int = 0,
    pin_memory: bool = False,
    left_out: LeftOut | None = None,
) -> Iterator[RawBatch]:
    """This process's batches: batch b belongs to process b modulo their number.

    Args:
        images: (N, C, h, w), as a tensor or an array, (N, h, w) or (N, h, w, C) as an array of uint8; a data set; or an
            iterable of such tensors or of (tensor, labels), such as a ``DataLoader``.
        batch_size: images at a time; an iterable's own batches are cut where they are larger.
        transforms: for image files: what each network or group of networks is to see of an image;
            arrays stay as they are.
        process: (rank, number of processes).
        workers: processes that decode image files.
        pin_memory: whether batches are to be copied to a GPU.
        left_out: is told of every image that cannot be decoded, which then is left out; they are errors if None.

    Raises:
        DataError: no image at all, an iterable's item that holds no images, or an image that cannot be decoded.
    """
    if isinstance(images, ImageDataset):
        if not transforms:
            raise DataError("images: expected a transform, such as that of a data_config, for image files, got none")
        parts = _own(len(images), batch_size, process)
        yield from _decoded(images, transforms, parts, workers, pin_memory, left_out)
    elif isinstance(images, Tensor | np.ndarray | ArrayDataset):
        labels = images.labels if isinstance(images, ArrayDataset) else None
        pixels = images.images if isinstance(images, ArrayDataset) else as_images(images)
        for part in _own(len(pixels), batch_size, process):
            batch = RawBatch(torch.arange(len(pixels))[part], (pixels[part],), None if labels is None else labels[part])
            yield batch.pin_memory() if pin_memory else batch
    else:
        yield from _from_iterable(images, batch_size, process)


def as_images(images: Any) -> Tensor:
    """A tensor of images as it is; an array as a tensor (N, C, h, w).

    Raises:
        DataError: something else.
    """
    if isinstance(images, Tensor):
        return images
    if not isinstance(images, np.ndarray):
        raise DataError(f"images: expected a tensor or an array (N, C, h, w), got {type(images).__name__}")
    try:
        return channels_first(torch.as_tensor(images))
    except TypeError as error:
        raise ImageError(f"images: expected an array of uint8 or floating point, got {images.dtype}") from error


def _own(count: int, size: int, process: tuple[int, int]) -> list[slice]:
    if not count:
        raise DataError("images: expected at least one image, got none")
    rank, processes = process
    starts = range(0, count, size)[rank::processes]
    return [slice(start, min(start + size, count)) for start in starts]


def _from_iterable(images: Iterable[Any], size: int, process: tuple[int, int]) -> Iterator[RawBatch]:
    if not isinstance(images, Iterable):
        raise DataError(
            "images: expected a tensor or an array (N, C, h, w), a data set, or batches of images such as those of a "
            f"DataLoader, got {type(images).__name__}"
        )
    rank, processes = process
    first = 0
    for number, item in enumerate(images):
        pixels, labels = _parts(item)
        if number % processes == rank:
            for start in range(0, len(pixels), size):
                part = slice(start, min(start + size, len(pixels)))
                positions = torch.arange(first + part.start, first + part.stop)
                yield RawBatch(positions, (pixels[part],), None if labels is None else labels[part])
        first += len(pixels)
    if not first:
        raise DataError("images: expected at least one image, got none")


def _parts(item: Any) -> tuple[Tensor, Tensor | None]:
    """Images and labels of an iterable's item."""
    if isinstance(item, Tensor | np.ndarray):
        return as_images(item), None
    if isinstance(item, tuple | list) and item and isinstance(item[0], Tensor | np.ndarray):
        pixels = as_images(item[0])
        labels = item[1] if len(item) > 1 and isinstance(item[1], Tensor) else None
        return pixels, labels if labels is not None and len(labels) == len(pixels) else None
    raise DataError(
        "images: expected batches that are tensors (b, C, h, w) or pairs (tensor, labels), "
        f"got {type(item).__name__}; stack them, as a DataLoader's collate_fn does"
    )


def _decoded(
    dataset: ImageDataset,
    transforms: Sequence[Transform],
    parts: Sequence[slice],
    workers: int,
    pin_memory: bool,
    left_out: LeftOut | None,
) -> Iterator[RawBatch]:
    loader = DataLoader(
        _Files(dataset, tuple(transforms)),
        batch_sampler=[list(range(part.start, part.stop)) for part in parts],
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),  # else the loader draws from the caller's
    )
    for batch in loader:
        for position, error in batch.unreadable:
            if left_out is None:
                raise error
            left_out(position, error)
        dataset.report(batch.skipped)
        if len(batch.positions):
            yield RawBatch(batch.positions, batch.views, dataset.labels[batch.positions], framed=True)


@dataclass(frozen=True)
class _Files(Dataset[Any]):
    dataset: ImageDataset
    transforms: tuple[Transform, ...]

    def __getitem__(self, position: int) -> tuple[int, Any, tuple[int, ...]]:
        # Errors travel as values: raised in a worker, a message would arrive inside a traceback of thirty lines.
        try:
            found = self.dataset.find(position)
        except DataError as error:
            return position, DataError(str(error)), ()
        return position, [transform(found.image) for transform in self.transforms], found.skipped


def _collate(samples: Sequence[tuple[int, Any, tuple[int, ...]]]) -> RawBatch:
    good = [(position, views) for position, views, _ in samples if not isinstance(views, DataError)]
    stacked = zip(*(views for _, views in good), strict=True)
    return RawBatch(
        torch.tensor([position for position, _ in good], dtype=torch.int64),
        tuple(torch.stack(views) for views in stacked),
        None,
        True,
        tuple((position, error) for position, error, _ in samples if isinstance(error, DataError)),
        tuple(number for _, _, skipped in samples for number in skipped),
    )
