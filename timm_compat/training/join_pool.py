"""What one pass over a pool of images leaves: sums for the regression, and the features of the first images."""

import torch
from torch import Tensor

from timm_compat.methods.ridge import Moments

HELD_OUT_EVERY = 5
KEPT_IMAGES = 5_000  # whose features are kept: memory does not grow with the pool beyond them


class Pool:
    """Features of images in two networks, inputs (n, F) and targets (n, D), as they come.

    Args:
        num_inputs: F.
        num_targets: D.
    """

    def __init__(self, num_inputs: int, num_targets: int) -> None:
        self.num_images = 0
        self.fitted, self.held_out, *altered = (Moments(num_inputs, num_targets) for _ in range(4))
        self.altered = (altered[0], altered[1])
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self._kept_altered: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Count the next images."""
        numbers = torch.arange(self.num_images, self.num_images + len(inputs), device=inputs.device)
        _count(self.fitted, self.held_out, inputs, targets, numbers)
        _keep(self._kept, inputs, targets, numbers)
        self.num_images += len(inputs)

    def add_altered(self, inputs: Tensor, targets: Tensor, numbers: Tensor) -> None:
        """Count altered copies of the images with these numbers (n,), which stand on their originals' side."""
        numbers = numbers.to(inputs.device)
        _count(*self.altered, inputs, targets, numbers)
        _keep(self._kept_altered, inputs, targets, numbers)

    def shift(self) -> float:
        """Mean square of the targets' means."""
        everything = self.fitted.merged(self.held_out)
        return float((everything.sum_y / everything.count).square().mean())

    def kept(self, *, held_out: bool | None = None, altered: bool = False) -> tuple[Tensor, Tensor]:
        """Inputs (n, F) and targets (n, D) of the first images.

        Args:
            held_out: those held out, the others, or all if None.
            altered: whether altered copies come as well.
        """
        parts = self._kept + (self._kept_altered if altered else [])
        inputs, targets, numbers = (torch.cat(part) for part in zip(*parts, strict=True))
        if held_out is None:
            return inputs, targets
        chosen = _is_held_out(numbers) == held_out
        return inputs[chosen], targets[chosen]


def _count(fitted: Moments, held_out: Moments, inputs: Tensor, targets: Tensor, numbers: Tensor) -> None:
    out = _is_held_out(numbers)
    fitted.add(inputs[~out], targets[~out])
    held_out.add(inputs[out], targets[out])


def _keep(kept: list[tuple[Tensor, Tensor, Tensor]], inputs: Tensor, targets: Tensor, numbers: Tensor) -> None:
    first = numbers < KEPT_IMAGES
    if first.any():
        kept.append((inputs[first], targets[first], numbers[first]))


def _is_held_out(numbers: Tensor) -> Tensor:
    return numbers % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
