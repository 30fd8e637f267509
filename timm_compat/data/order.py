"""Which images a step sees: a function of the step alone, so that a resumed run draws what an uninterrupted one draws.

A step's batch is divided among processes, and among the passes that accumulate a gradient.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import Self

from timm_compat.seeding import generator


class PassOrder:
    """An endless walk over a data set: pass after pass, each in a random order of its own.

    Args:
        size: images of the data set, at least 1.
        batch_size: images per step.
        seed: of the orders.
        name: keeps the walks of several members apart.
    """

    def __init__(self, size: int, batch_size: int, seed: int, name: str) -> None:
        self.size, self.batch_size, self.seed, self.name = size, batch_size, seed, name
        self._orders: dict[int, Tensor] = {}

    def indices(self, step: int) -> Tensor:
        """Indices into the data set, (batch_size,), of a step counted from 0."""
        positions = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        passes, offsets = positions // self.size, positions % self.size
        chosen = [self._order(int(number))[offsets[passes == number]] for number in passes.unique()]
        return torch.cat(chosen)

    def _order(self, number: int) -> Tensor:
        if number not in self._orders:
            random = generator(self.seed, self.name, "order", str(number))
            kept = {key: order for key, order in self._orders.items() if key == number - 1}
            self._orders = {**kept, number: torch.randperm(self.size, generator=random)}
        return self._orders[number]


@dataclass(frozen=True)
class Share:
    """Which images of a step's whole batch one forward pass holds: numbers offset, offset + stride, ... of it.

    Attributes:
        step: counted from 0.
        offset: number of the first.
        stride: distance of the next ones; the processes times the parts of a step.
    """

    step: int
    offset: int = 0
    stride: int = 1

    def indices(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the chosen images (n,) of the whole batch are held here, and their indices in this pass."""
        mine = ((chosen - self.offset) % self.stride == 0).nonzero().flatten()
        return mine, (chosen[mine] - self.offset) // self.stride


@dataclass(frozen=True)
class Batch:
    """Images of one source, a member's or the pool, in one step.

    Attributes:
        images: b images (b, C, H, W) of uint8 by framing, or features (b, V, ...) by network.
        labels: (b,), as the data set numbers its classes.
        step_labels: (batch_size,), labels of the step's whole batch over all processes; they stay on the CPU.
    """

    images: dict[str, Tensor]
    labels: Tensor
    step_labels: Tensor

    def to(self, device: torch.device) -> Self:
        """Images and labels on a device; copied while it still computes."""
        images = {key: part.to(device, non_blocking=True) for key, part in self.images.items()}
        return replace(self, images=images, labels=self.labels.to(device, non_blocking=True))

    def part(self, number: int, parts: int) -> Self:
        """Every ``parts``-th image, from this number on."""
        mine = slice(number, None, parts)
        images = {key: value[mine] for key, value in self.images.items()}
        return replace(self, images=images, labels=self.labels[mine])
