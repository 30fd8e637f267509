"""Discriminating common classes (DCC): one classification head over the classes that tasks share, by *name*.

For a sample whose class stands in the space's vocabulary at position c, the shared head h adds L = CE(h(z), c); the
other samples do not count. Gygli et al., AAAI 2021 (https://arxiv.org/abs/2004.03898). With the fixed simplex as head
the same loss is that of CoReS: Biondi et al., TPAMI 2023 (https://arxiv.org/abs/2111.07632).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_compat.config import LossConfig
from timm_compat.errors import ConfigError
from timm_compat.methods.method import Losses, Method, Seen

NOT_COMMON = -1


class CommonClasses(Method):
    """One classification head over the space's vocabulary, (K, D), learned by every member with such classes."""

    name = "common_classes"
    uses_classes = True

    def shapes(self, feature_dim: int, num_classes: int) -> dict[str, tuple[int, ...]]:
        """Weight (K, D) and bias (K,)."""
        return {"weight": (num_classes, feature_dim), "bias": (num_classes,)}

    def check_space(self, feature_dim: int, class_names: Sequence[str]) -> None:
        """Refuse a space without a vocabulary.

        Raises:
            ConfigError: no class name.
        """
        if not class_names:
            raise ConfigError(f"class_names: {self.name} needs a vocabulary of at least one class, got none")

    def check_member(
        self, name: str, input_size: Sequence[int], class_names: Sequence[str] | None, vocabulary: Sequence[str]
    ) -> None:
        """Refuse labels of which none is in the vocabulary.

        Raises:
            ConfigError: the member has labels, but none that counts.
        """
        if class_names is not None and not set(class_names) & set(vocabulary):
            raise ConfigError(
                f"member {name!r}: {self.name} needs a class of the space's vocabulary "
                f"({', '.join(vocabulary[:5])} ...), got {', '.join(class_names[:5])} ..."
            )

    def weight(self, config: LossConfig) -> float:
        """Factor of the loss."""
        return config.common_classes_weight

    def losses(self, head: Any, seen: Seen) -> Losses | None:
        """Cross-entropy of the images whose class is in the vocabulary; None for a member without labels."""
        if seen.positions is None:
            return None
        return common_class_losses(head(seen.features), seen.positions), seen.num_common


def vocabulary_positions(class_names: Sequence[str], vocabulary: Sequence[str]) -> Tensor:
    """For each of a task's classes its position in the vocabulary, or -1: (K,), int64."""
    indices = {name: position for position, name in enumerate(vocabulary)}
    return torch.tensor([indices.get(name, NOT_COMMON) for name in class_names], dtype=torch.int64)


def common_class_losses(logits: Tensor, positions: Tensor) -> Tensor:
    """Cross-entropy of every sample (B,); zero for a sample of a class that is not common.

    Args:
        logits: (B, V) of the shared head.
        positions: (B,), position in the vocabulary, -1 for a sample of another class.
    """
    return F.cross_entropy(logits, positions, ignore_index=NOT_COMMON, reduction="none")
