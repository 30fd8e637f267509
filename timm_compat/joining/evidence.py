"""What one pass over images leaves: sums for the closed form, and the features of the first images for the report."""

from dataclasses import dataclass

import torch
from torch import Tensor

from timm_compat.methods.ridge import Moments
from timm_compat.models.passes import Passed
from timm_compat.processes import gathered, summed

HELD_OUT_EVERY = 5
KEPT_IMAGES = 5_000  # whose features are kept: memory does not grow with the pool beyond them


@dataclass(frozen=True)
class HeldOut:
    """Features of images that took no part in a trial fit.

    Attributes:
        new: (n, F), of the new network before the interface, float32.
        space: (n, D), of the reference, float32.
    """

    new: Tensor
    space: Tensor


class ImageEvidence:
    """Features of images in two networks as they come, (n, F) and (n, D).

    Args:
        num_inputs: F.
        num_targets: D.
    """

    def __init__(self, num_inputs: int, num_targets: int) -> None:
        self.fitted, self.held_out = (Moments(num_inputs, num_targets) for _ in range(2))
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, passed: Passed) -> None:
        """Count a batch: outputs of the new network before the interface, and of the reference."""
        inputs, targets = passed.outputs
        out = _is_held_out(passed.positions)
        where = out.to(inputs.device)
        self.fitted.add(inputs[~where], targets[~where])
        self.held_out.add(inputs[where], targets[where])
        kept = out & (passed.positions < KEPT_IMAGES)
        if kept.any():
            chosen = kept.to(inputs.device)
            self._kept.append((passed.positions[kept], inputs[chosen].cpu(), targets[chosen].cpu()))

    def shared(self) -> tuple[Moments, Moments, HeldOut]:
        """Over all processes: sums of the images to fit, of those held out, and the held-out features; on the CPU."""
        fitted, held_out = (self._over_processes(moments) for moments in (self.fitted, self.held_out))
        count = (min(fitted.count + held_out.count, KEPT_IMAGES)) // HELD_OUT_EVERY
        indices, *features = (torch.cat(part) for part in zip(*self._kept, strict=True)) if self._kept else (None,) * 3
        numbers = torch.zeros(0, dtype=torch.int64) if indices is None else indices // HELD_OUT_EVERY
        new, space = (gathered(rows, numbers, count) for rows in features)
        return fitted, held_out, HeldOut(new, space)

    @staticmethod
    def _over_processes(moments: Moments) -> Moments:
        total = Moments(len(moments.sum_x), len(moments.sum_y))
        for name, value in vars(moments).items():
            if isinstance(value, Tensor):
                setattr(total, name, summed(value).cpu())
            else:
                setattr(total, name, int(summed(torch.tensor(value))))
        return total


def _is_held_out(positions: Tensor) -> Tensor:
    return positions % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
