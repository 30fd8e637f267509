"""Baselines for a recombined pair, measured on the same test images, each with what it needs."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timm_compat.data.arrays import ArrayDataset
from timm_compat.errors import ConfigError
from timm_compat.evaluation.answers import Images, extracted, sampled
from timm_compat.evaluation.cells import Targets, check_parts, find_targets
from timm_compat.evaluation.matrix import json_numbers
from timm_compat.evaluation.post_hoc import (
    fitted_classes,
    least_squares,
    procrustes,
    relative_features,
    stitching,
)
from timm_compat.evaluation.scores import Array, accuracy, recombined_accuracy
from timm_compat.models.evaluating import evaluating
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.passes import DEFAULTS, extract_features
from timm_compat.models.run_options import RunOptions
from timm_compat.seeding import generator

PAIRED = "the same unlabelled images through both extractors"
LABELS = "labelled images of the head's classes"

# Standardised cosines, or a weak penalty, would magnify the differences between two networks: with three small
# networks trained separately on CIFAR-10 that costs 3 to 8 points.
RELATIVE_PENALTY = 10.0  # weight of the squared weights, relative to the sum of the images' losses

# From the least to the most demanding.
NEEDS: dict[str, tuple[str, ...]] = {
    "procrustes": (PAIRED, "a fit for every pair"),
    "least_squares": (PAIRED, "a fit for every pair"),
    "relative": ("the same anchor images through every extractor", LABELS, "a new head for every task"),
    "stitching": (LABELS, "training a layer for every pair"),
    "retrained_head": (LABELS, "training a head for every pair"),
}
BASELINES = tuple(NEEDS)
BASELINE_TITLES = {
    "procrustes": "orthogonal Procrustes",
    "least_squares": "least-squares map",
    "relative": "relative representations",
    "stitching": "trained linear stitching",
    "retrained_head": "head retrained from scratch",
}


@dataclass(frozen=True)
class BaselineConfig:
    """Settings of the baselines.

    Attributes:
        anchors: images of the relative representations; at most as many as there are training images.
        stitching_epochs: passes over the training images' features.
        seed: of anchors and stitching layers.

    Raises:
        ConfigError: a number out of range.
    """

    anchors: int = 256
    stitching_epochs: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("anchors", "stitching_epochs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: expected an integer of at least 1, got {value!r}")


@dataclass(frozen=True)
class Baseline:
    """One way to let extractors run under the heads of others.

    Attributes:
        name: one of ``BASELINES``.
        needs: what it asks for; compatible parts ask for none of it.
        accuracy: (extractors, heads), in [0, 1]; NaN where it is not needed (native cells) or cannot be had. Relative
            representations have native cells too: they replace every head.
        seconds: wall time of fitting and testing, without the extractors' passes.
        train_images: that it was fitted on, at most.
    """

    name: str
    needs: tuple[str, ...]
    accuracy: Array
    seconds: float
    train_images: int

    def recombined_accuracy(self, native: Any) -> float:
        """Mean over the cells that are not native."""
        return recombined_accuracy(self.accuracy, native)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN is null."""
        return {
            "name": self.name,
            "needs": list(self.needs),
            "accuracy": json_numbers(self.accuracy),
            "seconds": self.seconds,
            "train_images": self.train_images,
        }


def measure_baselines(
    extractors: Mapping[str, CompatExtractor],
    heads: Mapping[str, TaskHead],
    train: Images,
    test: Images,
    *,
    names: Sequence[str] = BASELINES,
    config: BaselineConfig | None = None,
    cross_space: bool = False,
    test_features: Mapping[str, Tensor] | None = None,
    options: RunOptions = DEFAULTS,
) -> list[Baseline]:
    """Every baseline on every pair of a recombination matrix, fitted on ``train``, measured on ``test``.

    An extractor and a head of one name belong together; a head without an extractor of its name has no features to
    map to, so the first two leave its column out. Of larger sets 20,000 images are taken, evenly spread.

    Args:
        extractors: by name, of level "pooled".
        heads: by name.
        train: labelled images for fitting; where labels are not needed they are not looked at.
        test: the images of the matrix.
        names: which of ``BASELINES``.
        config: settings; the defaults if None.
        cross_space: allow parts of different spaces.
        test_features: of ``sampled(test)`` by extractor's name, if they are at hand already.
        options: device, batch size, precision, workers, progress.

    Raises:
        ConfigError: an unknown name, or features of level "map".
        DataError: too few images.
        SpaceMismatchError: parts of different spaces, and ``cross_space`` is false.
    """
    config = config or BaselineConfig()
    check_parts(extractors, heads, cross_space)
    unknown = [name for name in names if name not in NEEDS]
    if unknown:
        raise ConfigError(f"baselines: expected any of {', '.join(BASELINES)}, got {unknown[0]!r}")
    spaces = [extractor.space for extractor in extractors.values()] + [head.space for head in heads.values()]
    for space in spaces:
        if space.level != "pooled":
            raise ConfigError('baselines: expected parts of level "pooled", got level "map"; leave the baselines out')
    train, test = sampled(train), sampled(test)
    sides = _Sides(
        extractors=tuple(extractors),
        heads=dict(heads),
        train=extracted(extractors, train, options=options, description="fitting baselines"),
        test=dict(test_features) if test_features else extracted(extractors, test, options=options),
        train_targets=find_targets(heads, train),
        test_targets=find_targets(heads, test),
        config=config,
    )
    return [_measure(name, sides) for name in names]


def retrained_head_accuracy(extractor: CompatExtractor, train: ArrayDataset, test: ArrayDataset) -> float:
    """Accuracy in [0, 1] of a head trained anew, with labels, on a frozen extractor: the ceiling of a recombination.

    The head is a logistic regression on the features (N, D), as that of ``linear_probe``. Unlike a compatible head it
    needs labelled images and a training run for every pair.

    Args:
        extractor: of a level "pooled" space.
        train: labelled images for the new head.
        test: labelled images with the same classes.
    """
    fitted, tested = (extract_features(extractor, part).cpu() for part in (train, test))
    return accuracy(fitted_classes(fitted, train.labels, tested), test.labels.numpy())


@dataclass(frozen=True)
class _Sides:
    """Features and targets of both sets of images."""

    extractors: tuple[str, ...]
    heads: dict[str, TaskHead]
    train: dict[str, Tensor]
    test: dict[str, Tensor]
    train_targets: dict[str, Targets]
    test_targets: dict[str, Targets]
    config: BaselineConfig

    def labelled(self, features: Mapping[str, Tensor], targets: Targets, name: str) -> tuple[Tensor, Tensor]:
        """Features and positions of the images whose class the head knows."""
        known = targets.positions >= 0
        return features[name][known], targets.positions[known]

    def fitting(self, row: str, column: str) -> tuple[Tensor, Tensor]:
        return self.labelled(self.train, self.train_targets[column], row)

    def testing(self, row: str, column: str) -> tuple[Tensor, Tensor]:
        return self.labelled(self.test, self.test_targets[column], row)


# Gives the classes of the test images, or None where the pair has no such baseline.
_Method = Callable[[_Sides, str, str], Any]


def _measure(name: str, sides: _Sides) -> Baseline:
    start = time.perf_counter()
    values = np.full((len(sides.extractors), len(sides.heads)), np.nan)
    for i, row in enumerate(sides.extractors):
        for j, column in enumerate(sides.heads):
            if not _is_asked(name, sides, row, column):
                continue
            predicted = _METHODS[name](sides, row, column)
            if predicted is not None:
                values[i, j] = accuracy(predicted, sides.testing(row, column)[1].numpy())
    images = len(next(iter(sides.train.values())))
    return Baseline(name, NEEDS[name], values, time.perf_counter() - start, images)


def _is_asked(name: str, sides: _Sides, row: str, column: str) -> bool:
    if row == column and name != "relative":
        return False
    lacks_labels = LABELS in NEEDS[name] and sides.train_targets[column].reason is not None
    return sides.test_targets[column].reason is None and not lacks_labels


def _mapped(fit: Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]) -> _Method:
    def method(sides: _Sides, row: str, column: str) -> Any:
        if column not in sides.train:
            return None
        found = fit(sides.train[row], sides.train[column])
        return _classes(sides.heads[column], found(sides.testing(row, column)[0]))

    return method


def _stitched(sides: _Sides, row: str, column: str) -> Any:
    features, positions = sides.fitting(row, column)
    settings = {"epochs": sides.config.stitching_epochs, "seed": sides.config.seed}
    found = stitching(features, positions, sides.heads[column], **settings)
    return _classes(sides.heads[column], found(sides.testing(row, column)[0]))


def _retrained(sides: _Sides, row: str, column: str) -> Any:
    features, positions = sides.fitting(row, column)
    return fitted_classes(features, positions, sides.testing(row, column)[0])


def _relative(sides: _Sides, row: str, column: str) -> Any:
    if column not in sides.train:
        return None
    count = len(sides.train[row])
    chosen = torch.randperm(count, generator=generator(sides.config.seed, "anchors"))[: sides.config.anchors]
    features, positions = sides.fitting(column, column)
    own = _cosines(features, sides.train[column], chosen)
    other = _cosines(sides.testing(row, column)[0], sides.train[row], chosen)
    return fitted_classes(own, positions, other, standardize=False, penalty=RELATIVE_PENALTY / len(own))


def _cosines(features: Tensor, train: Tensor, chosen: Tensor) -> Tensor:
    mean = train.mean(dim=0)  # a network's own, so that the angles are those around its features' centre
    return relative_features(features - mean, train[chosen] - mean)


@torch.no_grad()
def _classes(head: TaskHead, features: Tensor) -> Any:
    with evaluating(head):
        return head(features.to(head.device)).argmax(dim=1).cpu().numpy()


_METHODS: dict[str, _Method] = {
    "procrustes": _mapped(procrustes),
    "least_squares": _mapped(least_squares),
    "relative": _relative,
    "stitching": _stitched,
    "retrained_head": _retrained,
}
