"""Which images a step sees: a function of the step alone, so that a resumed run draws what an unbroken one draws."""

import torch
from torch import Tensor

from timm_compat.seeding import generator


class PassOrder:
    """An endless walk over a data set: pass after pass, each in a random order of its own.

    Args:
        size: images of the data set, at least 1.
        batch_size: images a step.
        seed: of the orders.
        name: keeps the walks of several members apart.
    """

    def __init__(self, size: int, batch_size: int, seed: int, name: str) -> None:
        self.size, self.batch_size, self.seed, self.name = size, batch_size, seed, name
        self._orders: dict[int, Tensor] = {}
        self._last: tuple[int, Tensor] | None = None

    def indices(self, step: int) -> Tensor:
        """Indices into the data set, (batch_size,), of a step counted from 0."""
        if self._last is None or self._last[0] != step:  # asked for twice in a row: the images, then the labels
            self._last = step, self._indices(step)
        return self._last[1]

    def _indices(self, step: int) -> Tensor:
        positions = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        passes, places = positions // self.size, positions % self.size
        chosen = [self._order(int(number))[places[passes == number]] for number in passes.unique()]
        return torch.cat(chosen)

    def _order(self, number: int) -> Tensor:
        if number not in self._orders:
            random = generator(self.seed, self.name, "order", str(number))
            kept = {key: order for key, order in self._orders.items() if key == number - 1}
            self._orders = {**kept, number: torch.randperm(self.size, generator=random)}
        return self._orders[number]
