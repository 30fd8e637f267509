"""What every labelled set can do, however it holds its images: select by position or by class, split."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import Self

from timm_compat.errors import DataError


class LabelledSet(Dataset[tuple[Any, int]]):
    """Base of the data sets; a subclass is a frozen dataclass that says how to keep some of its images.

    Attributes:
        labels: (N,), int64, indices into ``class_names``.
        class_names: K names.
    """

    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def _pick(self, chosen: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> Self:
        """The images at the positions ``chosen`` (M,), with these labels (M,) and class names."""

    def subset(self, indices: Tensor | Sequence[int]) -> Self:
        """The images at these positions, with the same class names."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self._pick(chosen, self.labels[chosen], self.class_names)

    def of_classes(self, names: Sequence[str]) -> Self:
        """The images of these classes; labels count in the order of ``names``.

        Raises:
            DataError: a name that the set does not have, or one given twice.
        """
        unknown = [name for name in names if name not in self.class_names]
        if unknown:
            raise DataError(f"expected classes among {', '.join(self.class_names)}, got {', '.join(unknown)}")
        repeated = [name for name in names if list(names).count(name) > 1]
        if repeated:
            raise DataError(f"expected every class once, got {repeated[0]!r} several times")
        new_label = torch.full((len(self.class_names),), -1, dtype=torch.int64)
        for position, name in enumerate(names):
            new_label[self.class_names.index(name)] = position
        labels = new_label[self.labels]
        kept = (labels >= 0).nonzero().flatten()
        return self._pick(kept, labels[kept], tuple(names))

    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same images with other names for some classes.

        Args:
            names: new names by old ones, such as {"automobile": "car"}.

        Raises:
            DataError: a class that the set does not have, or two classes of one name afterwards.
        """
        unknown = [name for name in names if name not in self.class_names]
        if unknown:
            raise DataError(f"rename: expected classes among {', '.join(self.class_names)}, got {', '.join(unknown)}")
        renamed = tuple(names.get(name, name) for name in self.class_names)
        repeated = [name for name in renamed if renamed.count(name) > 1]
        if repeated:
            raise DataError(f"rename: expected every class to keep a name of its own, got {repeated[0]!r} twice")
        return self._pick(torch.arange(len(self)), self.labels, renamed)

    def with_labels(self, labels: Tensor, class_names: Sequence[str]) -> Self:
        """The same images with these labels (N,), int64, indices into ``class_names``.

        Raises:
            DataError: labels that do not fit.
        """
        return self._pick(torch.arange(len(self)), labels, tuple(class_names))

    def halves(self, generator: torch.Generator) -> tuple[Self, Self]:
        """Two disjoint random halves."""
        order = torch.randperm(len(self), generator=generator)
        middle = len(self) // 2
        return self.subset(order[:middle]), self.subset(order[middle:])


def check_labels(labels: Tensor, count: int, class_names: Sequence[str]) -> None:
    """Refuse labels that do not fit ``count`` images and these classes.

    Raises:
        DataError: another shape or dtype than (count,) of int64, or a label that is no index of a class.
    """
    if labels.shape != (count,) or labels.dtype != torch.int64:
        found = f"{tuple(labels.shape)}, {labels.dtype}"
        raise DataError(f"labels: expected ({count},) of int64, one an image, got {found}")
    outside = (labels < 0) | (labels >= len(class_names))
    if outside.any():
        raise DataError(f"labels: expected 0 to {len(class_names) - 1}, got {int(labels[outside][0])}")
