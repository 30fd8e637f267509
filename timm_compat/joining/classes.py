"""Classes in common: which rows of a network's own classifier and of a space's heads speak of the same class."""

from collections.abc import Sequence

import torch
from torch import Tensor

from timm_compat.joining.closed_form import ClassRows
from timm_compat.models.classifier import Classifier
from timm_compat.models.heads import TaskHead
from timm_compat.space import CompatSpace

LEAST_CLASSES = 2  # one class has no direction against others


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
