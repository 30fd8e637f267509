"""Choosing without the target's labels: among epochs, rounds and modes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from timm_compat.experiments.frozen import Features
from timm_compat.methods.pseudo_labels import information, mean_entropy
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.training.members import Images

LAST = "last"
MOST_WATCHED = 1_000  # images, unlabelled ones and test images each, after every epoch
TARGET = "target"


def unlabelled_scores(probabilities: Tensor) -> dict[str, float]:
    """What a head's (N, K) on unlabelled images tell, more is better: "information" and "confidence" (minus the mean
    entropy), in nats.
    """
    return {"information": information(probabilities), "confidence": -mean_entropy(probabilities)}


class Watch:
    """Looks at a network that is being trained; called after every epoch.

    Labels of ``images`` are not looked at; those of ``test`` tell how far the choice was from the best, no more.
    """

    def __init__(
        self, extractor: CompatExtractor, head: TaskHead, images: Images, test: Images | None, features: Features
    ) -> None:
        self.extractor, self.head, self.features = extractor, head, features
        self.images = _some(images)
        self.test = None if test is None else _some(test)

    def __call__(self) -> dict[str, float]:
        """The unlabelled scores, and "target", the accuracy, where there are test images."""
        logits = self.features.logits(self.extractor, self.head, self.images)
        found = unlabelled_scores(logits.softmax(dim=1))
        if self.test is not None:
            found[TARGET] = self.features.accuracy(self.extractor, self.head, self.test)
        return found


def choose(candidates: Sequence[Mapping[str, Any]], criterion: str) -> int:
    """Position of the candidate with the largest score; of equal ones the first; the last one by "last"."""
    if criterion == LAST:
        return len(candidates) - 1
    return max(range(len(candidates)), key=lambda position: candidates[position][criterion])


def regret(candidates: Sequence[Mapping[str, Any]], criterion: str) -> float | None:
    """Target accuracy that the choice gave away to the best candidate, known only with labels; None without any."""
    if any(candidate.get(TARGET) is None for candidate in candidates):
        return None
    best = max(candidate[TARGET] for candidate in candidates)
    return float(best - candidates[choose(candidates, criterion)][TARGET])


def _some(images: Images) -> Images:
    # Evenly spread: the first ones of a folder would all be of one class.
    step = math.ceil(len(images) / MOST_WATCHED)
    return images.subset(torch.arange(0, len(images), step))
