"""Choosing without the target's labels: among epochs, rounds and modes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from timm_compat.evaluation.matrix import pair_accuracy
from timm_compat.methods.pseudo_labels import information, mean_entropy
from timm_compat.models.evaluating import evaluating
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.passes import extract_features
from timm_compat.training.members import Images

LAST = "last"
MOST_WATCHED = 1_000  # images, unlabelled ones and test images each, after every epoch
TARGET = "target"


@torch.no_grad()
def opinion(extractor: CompatExtractor, head: TaskHead, images: Images) -> tuple[Tensor, Tensor]:
    """Features (N, D) and the head's probabilities (N, K) in evaluation mode, on the CPU."""
    features = extract_features(extractor, images)
    with evaluating(head):
        logits = head(features.to(head.device))
    return features.cpu(), logits.float().softmax(dim=1).cpu()


def unlabelled_scores(extractor: CompatExtractor, head: TaskHead, images: Images) -> dict[str, float]:
    """What unlabelled images tell, more is better: "information" and "confidence" (minus the mean entropy), in nats."""
    _, probabilities = opinion(extractor, head, images)
    return {"information": information(probabilities), "confidence": -mean_entropy(probabilities)}


class Watch:
    """Looks at a network that is being trained; called after every epoch.

    Labels of ``images`` are not looked at; those of ``test`` tell how far the choice was from the best, no more.
    """

    def __init__(self, extractor: CompatExtractor, head: TaskHead, images: Images, test: Images | None) -> None:
        self.extractor, self.head = extractor, head
        self.images = _some(images)
        self.test = None if test is None else _some(test)

    def __call__(self) -> dict[str, float]:
        """The unlabelled scores, and "target", the accuracy, where there are test images."""
        found = unlabelled_scores(self.extractor, self.head, self.images)
        if self.test is not None:
            found[TARGET] = pair_accuracy(self.extractor, self.head, self.test)
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
