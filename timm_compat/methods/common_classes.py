"""Discriminating common classes (DCC): one classification head over the classes that tasks share, by *name*.

For a sample whose class stands in the space's vocabulary at position c, the shared head h adds L = CE(h(z), c); the
other samples do not count. Gygli et al., AAAI 2021 (https://arxiv.org/abs/2004.03898). With the fixed simplex as head
the same loss is that of CoReS: Biondi et al., TPAMI 2023 (https://arxiv.org/abs/2111.07632).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

NOT_COMMON = -1


def vocabulary_positions(class_names: Sequence[str], vocabulary: Sequence[str]) -> Tensor:
    """For each of a task's classes its position in the vocabulary, or -1: (K,), int64."""
    places = {name: position for position, name in enumerate(vocabulary)}
    return torch.tensor([places.get(name, NOT_COMMON) for name in class_names], dtype=torch.int64)


def common_class_losses(logits: Tensor, positions: Tensor) -> Tensor:
    """Cross-entropy of every sample (B,); zero for a sample of a class that is not common.

    Args:
        logits: (B, V) of the shared head.
        positions: (B,), position in the vocabulary, -1 for a sample of another class.
    """
    return F.cross_entropy(logits, positions, ignore_index=NOT_COMMON, reduction="none")
