"""What every labelled data set can do, in memory or in files: select by position or by class, split."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import Self

from timm_compat.errors import ConfigError, DataError
from timm_compat.vocabulary import check_class_names, listed, normal_name


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

    @property
    @abstractmethod
    def channels(self) -> int:
        """Number C of an image's channels."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 that tells this set's images, in their order, from others."""

    @property
    @abstractmethod
    def form(self) -> Hashable:
        """Equal for sets whose images may lie in one set."""

    @abstractmethod
    def image_keys(self) -> list[Hashable]:
        """One per image; equal for equal images."""

    @abstractmethod
    def image_digests(self) -> list[bytes]:
        """SHA-256 of all that decides the pixels of each image, in its order; equal in every process."""

    @classmethod
    @abstractmethod
    def collected(cls, images: Sequence[tuple[Self, int]], class_name: str) -> Self:
        """A set of single images, each given by a set of the same form and its position there; all of one class."""

    def subset(self, indices: Tensor | Sequence[int]) -> Self:
        """The images at these positions, with the same class names."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self._pick(chosen, self.labels[chosen], self.class_names)

    def of_classes(self, names: Sequence[str]) -> Self:
        """The images of these classes; labels count in the order of ``names``.

        Raises:
            DataError: a name that the set does not have, or one given twice.
        """
        positions = {name: position for position, name in enumerate(self.class_names)}
        wanted = [normal_name(name) for name in names]
        unknown = [name for name in wanted if name not in positions]
        if unknown:
            raise DataError(f"expected classes among {listed(self.class_names)}, got {listed(unknown)}")
        new_label = [-1] * len(positions)
        for position, name in enumerate(wanted):
            if new_label[positions[name]] >= 0:
                raise DataError(f"expected every class once, got {name!r} several times")
            new_label[positions[name]] = position
        labels = torch.tensor(new_label)[self.labels]
        kept = (labels >= 0).nonzero().flatten()
        return self._pick(kept, labels[kept], tuple(wanted))

    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same images with other names for some classes.

        Args:
            names: new names by old ones, such as {"automobile": "car"}.

        Raises:
            DataError: a class that the set does not have, or two classes of one name afterwards.
        """
        changed = {normal_name(old): normal_name(new) for old, new in names.items()}
        unknown = sorted(changed.keys() - set(self.class_names))
        if unknown:
            raise DataError(f"rename: expected classes among {listed(self.class_names)}, got {listed(unknown)}")
        renamed = tuple(changed.get(name, name) for name in self.class_names)
        repeated = [name for name, count in Counter(renamed).items() if count > 1]
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


def checked_names(class_names: Iterable[str]) -> tuple[str, ...]:
    """Class names of a data set, in Unicode's form NFC.

    Raises:
        DataError: as ``check_class_names`` refuses them.
    """
    try:
        return check_class_names(class_names, least=0)
    except ConfigError as error:
        raise DataError(str(error)) from error


def check_labels(labels: Tensor, count: int, class_names: Sequence[str]) -> None:
    """Refuse labels that do not fit ``count`` images and these classes.

    Raises:
        DataError: another shape or dtype than (count,) of int64, or a label that is no index of a class.
    """
    if labels.shape != (count,) or labels.dtype != torch.int64:
        found = f"{tuple(labels.shape)}, {labels.dtype}"
        raise DataError(f"labels: expected ({count},) of int64, one per image, got {found}")
    outside = (labels < 0) | (labels >= len(class_names))
    if outside.any():
        raise DataError(f"labels: expected 0 to {len(class_names) - 1}, got {int(labels[outside][0])}")
