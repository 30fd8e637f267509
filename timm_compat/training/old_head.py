"""A frozen old head over a new member's features: which classes both know, and the two losses under it.

Backward-compatible training (BCT), Shen et al., CVPR 2020 (https://arxiv.org/abs/2003.11942): the old head must also
classify the new network's features z, L = CE(new head(z), y) + lambda CE(old head(z), y). A class that the old head
does not know gets the mean of the old features of its images as a weight. Heads here have biases and no normalisation,
so the mean is taken relative to that of all classes and scaled to the length of the known weights.

Focal distillation, Yan et al., CVPR 2021 (https://arxiv.org/abs/2011.09161): the new model keeps to the old one's
outputs, most of all where the old one is right, against negative flips, images that the old model classified correctly
and the new one does not. L = (alpha + beta [old correct]) KL(softmax(old / T) || softmax(new / T)) T^2.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.methods.common_classes import NOT_COMMON, vocabulary_positions
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.passes import extract_features

IMAGES_PER_CLASS = 200
ALPHA, BETA = 1.0, 5.0  # of the distillation


class OldHead:
    """A copy of the reference's head, in evaluation mode, beside the classes of one member.

    Args:
        extractor: the reference.
        head: of the reference.
        dataset: the member's.
        head_names: classes in the order of the member's own head.
    """

    def __init__(
        self,
        extractor: CompatExtractor,
        head: TaskHead,
        dataset: ArrayDataset | ImageDataset,
        head_names: Sequence[str],
    ) -> None:
        self.extractor, self.dataset = extractor, dataset
        self.head = copy.deepcopy(head).eval().requires_grad_(False)
        self.positions = vocabulary_positions(dataset.class_names, head.class_names)
        shared = [name for name in head_names if name in head.class_names]
        self.own_columns = [head_names.index(name) for name in shared]
        self.old_columns = [head.class_names.index(name) for name in shared]
        self.target_columns = vocabulary_positions(dataset.class_names, shared)
        self.extended: tuple[Tensor, Tensor] | None = None

    def to(self, device: torch.device) -> None:
        """Move the copy."""
        self.head.to(device)

    def extend(self) -> None:
        """Give a linear head a weight for each class that it never knew, from the reference's features."""
        unknown = (self.positions == NOT_COMMON).nonzero().flatten().tolist()
        if not unknown or not self.head.is_linear:
            return
        means = torch.stack([self._mean_features(label) for label in unknown])
        weight, bias = (parameter.detach() for parameter in self.head.classifier.parameters())
        self.extended = extend_classifier(weight, bias, means.to(weight.device))
        self.positions[unknown] = torch.arange(len(weight), len(weight) + len(unknown))

    def count(self, step_labels: Tensor) -> int:
        """How many images of a step have a class that this head knows."""
        return int((self.positions[step_labels.cpu()] != NOT_COMMON).sum())

    def influence(self, features: Tensor, labels: Tensor) -> Tensor:
        """Loss (B,) of the new features under the old head."""
        extended = self.extended
        logits = self.head(features) if extended is None else F.linear(self.head.steps(features), *extended)
        return influence_losses(logits, self.positions.to(labels.device)[labels])

    def distillation(self, logits: Tensor, old_features: Tensor, labels: Tensor) -> Tensor:
        """Loss (B,) that keeps the new logits to the old ones, over the classes that both heads know."""
        old_logits = self.head(old_features)[:, self.old_columns]
        targets = self.target_columns.to(labels.device)[labels]
        correct = old_logits.argmax(dim=1) == targets
        return focal_distillation_losses(logits[:, self.own_columns], old_logits, correct)

    def _mean_features(self, label: int) -> Tensor:
        chosen = (self.dataset.labels == label).nonzero().flatten()[:IMAGES_PER_CLASS]
        features = extract_features(self.extractor, self.dataset.subset(chosen))
        return self.head.steps(features).mean(dim=0)


def influence_losses(logits: Tensor, positions: Tensor) -> Tensor:
    """Cross-entropy (B,) of the old head's logits (B, K); zero where its class is unknown (position -1)."""
    return F.cross_entropy(logits, positions, ignore_index=NOT_COMMON, reduction="none")


def extend_classifier(weight: Tensor, bias: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """The old classifier with further classes, known by the mean of their old features only.

    Args:
        weight: (K, D) of the old head.
        bias: (K,).
        means: (n, D), one mean a new class.

    Returns:
        Weight (K + n, D) and bias (K + n,).
    """
    centre = means.mean(dim=0)
    length = weight.norm(dim=1).mean()
    added = F.normalize(means - centre, dim=1) * length
    return torch.cat([weight, added]), torch.cat([bias, bias.mean() - added @ centre])


def focal_distillation_losses(
    logits: Tensor, old_logits: Tensor, old_correct: Tensor, *, alpha: float = ALPHA, beta: float = BETA, t: float = 1.0
) -> Tensor:
    """The loss of every image (B,).

    Args:
        logits: (B, K) of the new model.
        old_logits: (B, K) of the old one, over the same classes.
        old_correct: (B,), whether the old model is right.
        alpha: weight of every image.
        beta: what is added to it where the old model is right.
        t: temperature of both.
    """
    log_new, log_old = F.log_softmax(logits / t, dim=1), F.log_softmax(old_logits / t, dim=1)
    divergence = F.kl_div(log_new, log_old, log_target=True, reduction="none").sum(dim=1) * t**2
    return (alpha + beta * old_correct) * divergence
