"""Batches of images in memory, augmented at once, as a pure function of the step."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from timm_compat.config import AugmentationConfig
from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.augmentation import Augmenter, draw
from timm_compat.data.order import Batch, PassOrder
from timm_compat.seeding import generator


class BatchStream:
    """An endless stream of augmented batches: pass after pass over the set, each in an order of its own.

    Args:
        dataset: not empty.
        batch_size: images a step, over all processes.
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
