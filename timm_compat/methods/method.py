"""The interface of a method: what networks of a space share, what it requires of them, and the loss that it adds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from timm_compat.config import LossConfig

# Losses (n,) of the images that count in this pass, and how many count in the whole step.
Losses = tuple[Tensor, int]


@dataclass(frozen=True)
class Asked:
    """The changed images of a self-supervised task in one pass.

    Attributes:
        features: (n, D), or (n, D, H', W'), of changed images.
        answers: (n,), int64, by which answer each was changed.
        count: changed images of the whole step.
    """

    features: Tensor
    answers: Tensor
    count: int


@dataclass(frozen=True)
class Seen:
    """What the methods of a space get from one pass over a member's images.

    Attributes:
        features: (b, D), or (b, D, H', W'), of the images as they are.
        num_images: images of the whole step, over all its passes and processes.
        positions: (b,), int64, of their classes in the space's vocabulary, -1 for a class that is not in it; None for a
            member without labels.
        num_common: images of the whole step whose class is in the vocabulary.
        asked: the self-supervised tasks' images, by task.
    """

    features: Tensor
    num_images: int
    positions: Tensor | None = None
    num_common: int = 0
    asked: Mapping[str, Asked] = field(default_factory=dict)


class Method:
    """One way to make the networks of a space compatible; one object serves all of them.

    What a subclass does not override means "nothing": no shared head, no checks, no loss. A self-supervised task needs
    no subclass: it is a ``SelfSupervisedTask``. ``register_method`` makes a method known.

    Attributes:
        name: in a space's ``methods``, of the shared head, and of the loss in the history.
        uses_classes: whether it needs classes that the tasks have in common, by name.
        is_trained: whether its shared head is trained with the members while the space is a draft.

    Example:
        >>> class SmallFeatures(tc.Method):
        ...     name = "small_features"
        ...     def weight(self, config):
        ...         return 0.01
        ...     def losses(self, head, seen):
        ...         return seen.features.square().mean(dim=1), seen.num_images
        >>> tc.register_method(SmallFeatures()).name
        'small_features'
    """

    name: str
    uses_classes = False
    is_trained = True

    def shapes(self, feature_dim: int, num_classes: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the shared head's "weight" (rows, D) and "bias" (rows,); empty where nothing is shared.

        Args:
            feature_dim: D of the space.
            num_classes: of the space's vocabulary.
        """
        return {}

    def initial(self, key: str, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
        """A shared tensor before training: weights uniform in +-1 / sqrt(D), biases 0."""
        if key != "weight":
            return torch.zeros(shape)
        return (torch.rand(shape, generator=random) * 2 - 1) * shape[1] ** -0.5

    def check_space(self, feature_dim: int, class_names: Sequence[str]) -> None:
        """Refuse a space that the method cannot work in.

        Raises:
            ConfigError: the message says what the method needs.
        """

    def check_member(
        self, name: str, input_size: Sequence[int], class_names: Sequence[str] | None, vocabulary: Sequence[str]
    ) -> None:
        """Refuse a member that the method cannot work with.

        Args:
            name: of the member.
            input_size: (C, H, W) of its images.
            class_names: of its labels; None without labels.
            vocabulary: class names of the space.

        Raises:
            ConfigError: the member lacks what the method needs.
            ImageError: images of a shape that it cannot take.
        """

    def weight(self, config: LossConfig) -> float:
        """Factor of the loss."""
        return 0.0

    def losses(self, head: Any, seen: Seen) -> Losses | None:
        """The loss of one pass; None where the method has none for this member.

        Args:
            head: the shared head, features to logits; None where the method shares none.
            seen: the images and features of the pass.

        Returns:
            The losses (n,) of those images of this pass that count, and how many count in the whole step.
        """
        return None
