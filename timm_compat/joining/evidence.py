"""What a join rests on: classes that network and space have in common, and what one pass over images leaves."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from timm_compat.joining.closed_form import ClassRows
from timm_compat.methods.ridge import Moments
from timm_compat.models.classifier import Classifier
from timm_compat.models.heads import TaskHead
from timm_compat.models.passes import Passed
from timm_compat.processes import gathered, summed
from timm_compat.space import CompatSpace

LEAST_CLASSES = 2  # one class has no direction against others
HELD_OUT_EVERY = 5
KEPT_IMAGES = 5_000  # whose features are kept: memory does not grow with the pool beyond them


def class_rows(
    classifier: Classifier | None, space: CompatSpace, heads: Sequence[TaskHead]
) -> tuple[ClassRows | None, int]:
    """The rows of the classes in common, matched by name, and how many classes they are; None where under two.

    The space's own common-classes head counts where its tensors are at hand, else the linear ones among the heads.

    Args:
        classifier: the new network's own; None where it has none, or none whose class names are known.
        space: where the network is to join.
        heads: of the space.
    """
    if classifier is None or classifier.class_names is None:
        return None, 0
    row_of = {name: row for row, name in enumerate(classifier.class_names)}
    pairs = []
    for names, weight in _space_rows(space, heads):
        common = [(row_of[name], row) for row, name in enumerate(names) if name in row_of]
        if len(common) >= LEAST_CLASSES:
            new, own = (torch.tensor(rows) for rows in zip(*common, strict=True))
            pairs.append((_centred(classifier.weight.cpu().double()[new]), _centred(weight.cpu().double()[own])))
    if not pairs:
        return None, 0
    new_rows, space_rows = (torch.cat(part) for part in zip(*pairs, strict=True))
    return ClassRows(new_rows, space_rows), len(new_rows)


def has_own_classes(space: CompatSpace) -> bool:
    """Whether a space's common-classes head is at hand."""
    return "common_classes" in space.methods and space.has_tensors


def _space_rows(space: CompatSpace, heads: Sequence[TaskHead]) -> list[tuple[Sequence[str], Tensor]]:
    if has_own_classes(space):
        return [(space.class_names, space.shared["common_classes.weight"])]
    return [(head.class_names, head.classifier.weight.detach()) for head in heads if head.is_linear]


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=0)


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
