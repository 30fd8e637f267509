"""Batches of decoded, augmented images, bit for bit the same for any number of worker processes."""

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from timm_compat.data.image_dataset import ImageDataset
from timm_compat.data.transforms import Transform
from timm_compat.errors import DataError
from timm_compat.seeding import derive_seed


@dataclass(frozen=True)
class Sample:
    """One image of a batch.

    Attributes:
        position: seeds its augmentation.
        index: which image of the data set.
    """

    position: int
    index: int


@dataclass(frozen=True)
class _Decoded:
    """One image (C, H, W) or a batch (b, C, H, W), as each transform gives it; labels (b,); what was skipped."""

    images: tuple[Tensor, ...]
    labels: Tensor
    skipped: tuple[int, ...]


def decoded_for(
    dataset: ImageDataset,
    transforms: Sequence[Transform],
    batches: Iterable[list[Sample]],
    *,
    seed: int = 0,
    name: str = "",
    workers: int = 0,
) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Decode every image once, for several networks, a batch at a time.

    What random augmentation draws follows from seed, name and position alone, and the caller's random states stay as
    they were.

    Args:
        dataset: where the images are.
        transforms: from a PIL image to (C, H, W), uint8, each with the same random numbers.
        batches: which images; none is empty.
        seed: of the augmentation.
        name: keeps the augmentation of several members apart.
        workers: processes that decode; 0 decodes in this one.

    Yields:
        Images (b, C, H, W), uint8, by transform, and labels (b,), int64.

    Raises:
        DataError: an image cannot be decoded, or the transform gives anything but uint8 of one size.
    """
    loader = DataLoader(
        _Samples(dataset, transforms, seed, name),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator().manual_seed(0),  # else the loader draws from the caller's
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        dataset.report(batch.skipped)
        yield batch.images, batch.labels


@dataclass(frozen=True)
class _Samples(Dataset[_Decoded | DataError]):
    dataset: ImageDataset
    transforms: Sequence[Transform]
    seed: int
    name: str

    def __getitem__(self, sample: Sample) -> _Decoded | DataError:
        # Errors travel as values: raised in a worker, a message would arrive inside a traceback of thirty lines.
        try:
            found = self.dataset.find(sample.index)
        except DataError as error:
            return DataError(str(error))
        images = []
        for transform in self.transforms:
            with _seeded(derive_seed(self.seed, self.name, "augment", str(sample.position))):
                pixels = transform(found.image)
            if not isinstance(pixels, Tensor) or pixels.ndim != 3 or pixels.dtype != torch.uint8:
                what = f"{tuple(pixels.shape)}, {pixels.dtype}" if isinstance(pixels, Tensor) else type(pixels).__name__
                return DataError(f"transform: expected to get a tensor (C, H, W) of uint8, got {what}")
            images.append(pixels)
        return _Decoded(tuple(images), self.dataset.labels[sample.index], found.skipped)


def _collate(samples: Sequence[_Decoded | DataError]) -> _Decoded | DataError:
    good: list[_Decoded] = []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        good.append(sample)
    batches = list(zip(*(sample.images for sample in good), strict=True))
    for batch in batches:
        shapes = {tuple(image.shape) for image in batch}
        if len(shapes) > 1:
            return DataError(f"transform: expected to get images of one size, got {sorted(shapes)}")
    skipped = tuple(number for sample in good for number in sample.skipped)
    return _Decoded(tuple(map(torch.stack, batches)), torch.stack([sample.labels for sample in good]), skipped)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Run a block with torch's (on the CPU), Python's and NumPy's global random states seeded, then put them back."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach for the GPUs' states as well
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
