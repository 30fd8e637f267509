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
    return torch.tensor([vocabulary.index(name) if name in vocabulary else NOT_COMMON for name in class_names])


def common_class_loss(logits: Tensor, positions: Tensor) -> Tensor:
    """Mean cross-entropy over the samples of common classes; zero where a batch has none.

    Args:
        logits: (B, V) of the shared head.
        positions: (B,), position in the vocabulary, -1 for a sample of another class.
    """
    counted = (positions != NOT_COMMON).sum().clamp(min=1)
    return F.cross_entropy(logits, positions, ignore_index=NOT_COMMON, reduction="sum") / counted
