"""A frozen old head over a new member's features: which classes both know, and the losses under it."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.methods.common_classes import NOT_COMMON, vocabulary_positions
from timm_compat.methods.focal_distillation import focal_distillation_losses
from timm_compat.methods.influence import extend_classifier, influence_losses
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.passes import extract_features

IMAGES_PER_CLASS = 200


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
