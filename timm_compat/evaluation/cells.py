"""Which pairs of extractor and head can be measured on a data set, on which of its images, and why not the others."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.errors import ConfigError, DataError
from timm_compat.evaluation.scores import Mask
from timm_compat.methods.common_classes import vocabulary_positions
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead

LEAST_CLASSES = 2


@dataclass(frozen=True)
class Targets:
    """What a head should say.

    Attributes:
        positions: (N,), position among the head's classes; -1 for an image of a class that it does not know.
        reason: why the head cannot be measured; None if it can.
    """

    positions: Tensor
    reason: str | None


def check_parts(extractors: Mapping[str, CompatExtractor], heads: Mapping[str, TaskHead], cross_space: bool) -> Mask:
    """Where extractor and head live in different spaces: (extractors, heads).

    Raises:
        ConfigError: no extractor or no head.
        SpaceMismatchError: parts of different spaces, and ``cross_space`` is false.
    """
    if not extractors or not heads:
        raise ConfigError(f"expected extractors and heads by name, got {len(extractors)} and {len(heads)}")
    if not cross_space:
        for row, extractor in extractors.items():
            for column, head in heads.items():
                extractor.space.require_same(head.space, f"extractor {row!r}", f"head {column!r}")
    return np.array(
        [
            [bool(extractor.space.differences(head.space)) for head in heads.values()]
            for extractor in extractors.values()
        ]
    )


def check_classes(dataset: ArrayDataset | ImageDataset) -> None:
    """Refuse images that tell nothing apart.

    Raises:
        DataError: no image, or images of one class only.
    """
    if not len(dataset):
        raise DataError("data set: expected images, got an empty one")
    present = dataset.labels.unique().tolist()
    if len(present) < LEAST_CLASSES:
        raise DataError(
            f"data set: expected images of at least {LEAST_CLASSES} classes, got {dataset.class_names[present[0]]!r} "
            "only: any head that says nothing else is always right; take a larger sample"
        )


def find_targets(heads: Mapping[str, TaskHead], dataset: ArrayDataset | ImageDataset) -> dict[str, Targets]:
    """What every head should say to every image; classes are matched by name."""
    return {name: _targets(head, dataset) for name, head in heads.items()}


def why_not(
    extractors: Mapping[str, CompatExtractor], heads: Mapping[str, TaskHead], targets: Mapping[str, Targets]
) -> dict[tuple[int, int], str]:
    """The pairs (row, column) that make no sense, with the reason."""
    reasons: dict[tuple[int, int], str] = {}
    for row, extractor in enumerate(extractors.values()):
        for column, (name, head) in enumerate(heads.items()):
            reason = targets[name].reason or _misfit(extractor, head)
            if reason is not None:
                reasons[row, column] = reason
    return reasons


def _targets(head: TaskHead, dataset: ArrayDataset | ImageDataset) -> Targets:
    positions = vocabulary_positions(dataset.class_names, head.class_names)[dataset.labels]
    if head.num_classes < LEAST_CLASSES:
        return Targets(positions, f"the head knows {head.class_names[0]!r} only, so it is always right")
    shared = positions[positions >= 0].unique()
    if not len(shared):
        return Targets(positions, "no class in common with the data")
    if len(shared) < LEAST_CLASSES:
        return Targets(positions, f"only {head.class_names[int(shared[0])]!r} in common with the data")
    return Targets(positions, None)


def _misfit(extractor: CompatExtractor, head: TaskHead) -> str | None:
    mine, theirs = extractor.space, head.space
    if mine.level != theirs.level:
        return f'features of level "{mine.level}" for a head of level "{theirs.level}"'
    if mine.feature_dim != theirs.feature_dim:
        return f"{mine.feature_dim} features for a head of {theirs.feature_dim}"
    return None
