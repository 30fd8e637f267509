"""Random batches as a pure function of the step, so that a resumed run draws what an uninterrupted one draws."""

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_compat.data.arrays import ArrayDataset
from timm_compat.seeding import generator


class BatchStream:
    """An endless stream of augmented batches: pass after pass over the set, each in an order of its own.

    Args:
        dataset: not empty.
        batch_size: images a step, over all processes.
        seed: of orders and augmentation.
        name: keeps the streams of several members apart.
        random_crop: pixels by which an image may be shifted in each direction.
        random_flip: whether half of the images are mirrored.
        process: (rank, number of processes); each draws its share of every batch.
    """

    def __init__(
        self,
        dataset: ArrayDataset,
        batch_size: int,
        seed: int,
        name: str,
        *,
        random_crop: int = 0,
        random_flip: bool = False,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        self.dataset, self.batch_size, self.seed, self.name = dataset, batch_size, seed, name
        self.random_crop, self.random_flip = random_crop, random_flip
        self.rank, self.processes = process
        self._orders: dict[int, Tensor] = {}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) of uint8 and labels (B,) of a step, counted from 0."""
        first = step * self.batch_size
        positions = range(first + self.rank, first + self.batch_size, self.processes)
        size = len(self.dataset)
        indices = torch.stack([self._order(position // size)[position % size] for position in positions])
        images = self._augment(self.dataset.images[indices], step)
        return images, self.dataset.labels[indices]

    def _order(self, number: int) -> Tensor:
        if number not in self._orders:
            random = generator(self.seed, self.name, "order", str(number))
            self._orders = {
                **{key: order for key, order in self._orders.items() if key == number - 1},
                number: torch.randperm(len(self.dataset), generator=random),
            }
        return self._orders[number]

    def _augment(self, images: Tensor, step: int) -> Tensor:
        random = generator(self.seed, self.name, "augment", str(step), str(self.rank))
        if self.random_crop:
            images = shift(images, self.random_crop, random)
        if self.random_flip:
            mirrored = torch.rand(len(images), generator=random) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return images


def shift(images: Tensor, most: int, random: torch.Generator) -> Tensor:
    """Each image (of (B, C, H, W)) moved by up to ``most`` pixels in both directions; black comes in."""
    count, _, height, width = images.shape
    padded = F.pad(images, (most,) * 4)
    top, left = torch.randint(2 * most + 1, (2, count), generator=random)
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    which = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
