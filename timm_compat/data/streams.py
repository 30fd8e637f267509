"""Endless streams of augmented batches, of images in memory and of image files, as pure functions of the step."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from timm_compat.config import AugmentationConfig
from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.augmentation import Augmenter, draw
from timm_compat.data.decoding import Sample, decoded_for
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.data.order import Batch, PassOrder
from timm_compat.data.transforms import Transform
from timm_compat.errors import ConfigError, DataError
from timm_compat.seeding import generator


class BatchStream:
    """An endless stream of augmented batches: pass after pass over the set, each in an order of its own.

    Args:
        dataset: not empty.
        batch_size: images per step, over all processes.
        seed: of orders and augmentation.
        name: keeps the streams of several members apart.
        augmentation: how images are changed; not at all if None.
        data_configs: by any key, of the backbones that the images are framed for.
        process: (rank, number of processes); each draws its share of every batch.
        device: where the images are kept and augmented.
    """

    def __init__(
        self,
        dataset: ArrayDataset,
        batch_size: int,
        seed: int,
        name: str,
        *,
        augmentation: AugmentationConfig | None = None,
        data_configs: Mapping[str, Mapping[str, Any]] | None = None,
        process: tuple[int, int] = (0, 1),
        device: torch.device | str = "cpu",
    ) -> None:
        self.order = PassOrder(len(dataset), batch_size, seed, name)
        self.images, self.targets = dataset.images.to(device), dataset.labels
        self.augmentation = augmentation or AugmentationConfig()
        self.augmenters = {key: Augmenter(self.augmentation, config) for key, config in (data_configs or {}).items()}
        self.rank, self.processes = process

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """This process's share of steps ``first`` to ``last`` - 1, from 0; images by the keys of the data configs."""
        for step in range(first, last):
            mine, everyone = slice(self.rank, None, self.processes), self.order.indices(step)
            indices = everyone[mine]
            # Drawn for the whole step, so that an image is augmented alike whichever process holds it.
            random = generator(self.order.seed, self.order.name, "augment", str(step))
            draws = draw(self.augmentation, self.order.batch_size, random).share(mine)
            raw = self.images[indices.to(self.images.device)]
            images = {key: augmenter(raw, draws) for key, augmenter in self.augmenters.items()}
            yield Batch(images, self.targets[indices].to(raw.device), self.targets[everyone])


class ImageStream:
    """An endless stream of augmented batches: pass after pass over the set, each in an order of its own.

    What a step holds does not depend on the number of workers, on the first step, or on the split over processes.

    Args:
        dataset: not empty.
        batch_size: images per step, over all processes.
        seed: of orders and augmentation.
        name: keeps the streams of several members apart.
        transforms: by any key, from a PIL image to (C, H, W), uint8; see ``training_transform``. They can be pickled.
        process: (rank, number of processes); each draws its share of every batch.
        workers: processes that decode; 0 decodes in this one.

    Raises:
        ConfigError: fewer images per step than processes, or a negative number of workers.
        DataError: no image.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        seed: int,
        name: str,
        *,
        transforms: Mapping[str, Transform],
        process: tuple[int, int] = (0, 1),
        workers: int = 0,
    ) -> None:
        self.rank, self.processes = process
        if not len(dataset):
            raise DataError(f"{name}: expected images, got an empty data set")
        if batch_size < self.processes:
            raise ConfigError(
                f"batch_size: expected at least one image per process, {self.processes}, got {batch_size}"
            )
        if workers < 0:
            raise ConfigError(f"workers: expected 0 or more, got {workers}")
        self.order = PassOrder(len(dataset), batch_size, seed, name)
        self.dataset, self.transforms, self.workers = dataset, transforms, workers

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """This process's share of steps ``first`` to ``last`` - 1, from 0; images by the keys of the transforms.

        Images are decoded once and augmented alike. Worker processes live as long as the iterator.

        Raises:
            DataError: an image cannot be decoded, or the transform gives anything but uint8 of one size.
        """
        wanted = (self._samples(step) for step in range(first, last))
        order, transforms = self.order, list(self.transforms.values())
        decoded = decoded_for(self.dataset, transforms, wanted, seed=order.seed, name=order.name, workers=self.workers)
        for step, (images, labels) in zip(range(first, last), decoded, strict=True):
            step_labels = self.dataset.labels[self.order.indices(step)]
            yield Batch(dict(zip(self.transforms, images, strict=True)), labels, step_labels)

    def _samples(self, step: int) -> list[Sample]:
        start = step * self.order.batch_size
        everyone = [Sample(start + number, int(i)) for number, i in enumerate(self.order.indices(step))]
        return everyone[self.rank :: self.processes]
