"""Batches of images in memory, augmented at once, as a pure function of the step."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.order import PassOrder
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
        device: where the images are kept and augmented.
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
        device: torch.device | str = "cpu",
    ) -> None:
        self.order = PassOrder(len(dataset), batch_size, seed, name)
        self.images, self.targets = dataset.images.to(device), dataset.labels
        self.random_crop, self.random_flip = random_crop, random_flip
        self.rank, self.processes = process

    def batches(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's images (b, C, H, W) of uint8 and labels (b,) of steps ``first`` to ``last`` - 1, from 0."""
        for step in range(first, last):
            indices = self.order.indices(step)[self.rank :: self.processes]
            images = self._augment(self.images[indices.to(self.images.device)], step)
            yield images, self.targets[indices].to(images.device)

    def labels(self, step: int) -> Tensor:
        """Labels (batch_size,) of a step over all processes."""
        return self.targets[self.order.indices(step)]

    def _augment(self, images: Tensor, step: int) -> Tensor:
        # Drawn for the whole step, so that an image is augmented alike whichever process holds it.
        random = generator(self.order.seed, self.order.name, "augment", str(step))
        mine = slice(self.rank, None, self.processes)
        if self.random_crop:
            offsets = torch.randint(2 * self.random_crop + 1, (2, self.order.batch_size), generator=random)
            images = shift(images, self.random_crop, offsets[:, mine])
        if self.random_flip:
            mirrored = (torch.rand(self.order.batch_size, generator=random) < 0.5)[mine].to(images.device)
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return images


def shift(images: Tensor, most: int, offsets: Tensor) -> Tensor:
    """Each image (of (B, C, H, W)) moved by up to ``most`` pixels in both directions; black comes in.

    Args:
        images: (B, C, H, W).
        most: largest shift in pixels.
        offsets: (2, B), 0 to 2 x most: rows and columns of the padded image at which the result begins.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (most,) * 4)
    top, left = offsets.to(images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    pixels = (rows[:, :, None] * padded.shape[-1] + columns[:, None, :]).flatten(1)
    shifted = padded.flatten(2).gather(2, pixels[:, None].expand(-1, images.shape[1], -1))
    return shifted.reshape(images.shape)
