"""Joint compatible training as one module: members, auxiliary heads, and the loss that ties them together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timm_compat.config import TrainConfig
from timm_compat.data.arrays import ArrayDataset
from timm_compat.errors import ConfigError, DataError
from timm_compat.methods.common_classes import NOT_COMMON, common_class_loss, vocabulary_positions
from timm_compat.methods.rotation import rotate, rotation_loss
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead, auxiliary_heads
from timm_compat.space import VOCABULARY_METHODS, CompatSpace

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Member:
    """One network of a space: its parts and the data set that they learn.

    Attributes:
        name: told apart by it in logs and files.
        extractor: trained in place.
        head: trained in place; its class names are the data set's, in any order.
        dataset: labelled images.
    """

    name: str
    extractor: CompatExtractor
    head: TaskHead
    dataset: ArrayDataset


class JointModule(nn.Module):
    """Members and the space's auxiliary heads; one forward pass gives the loss of one step.

    For each member, with features z of a batch: L = CE(head(z), y), plus the losses of the methods that the space
    shares. The members' losses are added up.

    Raises:
        ConfigError: no member, two of one name, a name that cannot be a file's, or no common class.
        DataError: a data set that is empty or whose classes are not the head's.
        SpaceMismatchError: a part of another space.
    """

    extractors: Any  # torch types the values of a ModuleDict as Module
    heads: Any
    auxiliary: Any

    def __init__(self, space: CompatSpace, members: Sequence[Member], config: TrainConfig) -> None:
        super().__init__()
        _check_members(space, members)
        self.config = config
        self.extractors = nn.ModuleDict({member.name: member.extractor for member in members})
        self.heads = nn.ModuleDict({member.name: member.head for member in members})
        self.auxiliary = auxiliary_heads(space)
        for member in members:
            names = list(member.head.class_names)
            own = torch.tensor([names.index(name) for name in member.dataset.class_names])
            self.register_buffer(f"_own_{member.name}", own, persistent=False)
            common = vocabulary_positions(member.dataset.class_names, space.class_names)
            self.register_buffer(f"_common_{member.name}", common, persistent=False)

    def forward(self, batches: Mapping[str, Batch], random: torch.Generator) -> dict[str, Tensor]:
        """The step's loss and its parts.

        Args:
            batches: by member, raw images (B, C, h, w) of uint8 and labels (B,) of its data set.
            random: decides which images are rotated, and how far.

        Returns:
            "loss", the sum to minimise, and its parts such as "a/task", "a/rotation", unweighted.
        """
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=next(iter(batches.values()))[0].device)
        for name, (images, labels) in batches.items():
            for method, (weight, value) in self._member_losses(name, images, labels, random).items():
                parts[f"{name}/{method}"] = value
                total = total + weight * value
        return {"loss": total, **{name: value.detach() for name, value in parts.items()}}

    def shared_tensors(self) -> dict[str, Tensor]:
        """The auxiliary heads' tensors under their names in the space."""
        return {key: value for head in self.auxiliary.values() for key, value in head.shared_tensors().items()}

    def _member_losses(
        self, name: str, images: Tensor, labels: Tensor, random: torch.Generator
    ) -> dict[str, tuple[float, Tensor]]:
        extractor, config = self.extractors[name], self.config
        inputs = extractor.preprocess(images)
        turns = None
        if "rotation" in self.auxiliary and config.rotation_fraction > 0:
            turned, turns = rotate(inputs, config.rotation_fraction, random)
            # One pass for both: in two passes, BatchNorm's running statistics would fit neither.
            inputs = torch.cat([inputs, turned])
        features = extractor(inputs)
        upright, rotated = features[: len(images)], features[len(images) :]
        own = getattr(self, f"_own_{name}")[labels]
        losses = {"task": (1.0, F.cross_entropy(self.heads[name](upright), own))}
        common = getattr(self, f"_common_{name}")[labels]
        for method in VOCABULARY_METHODS:
            if method in self.auxiliary:
                value = common_class_loss(self.auxiliary[method](upright), common)
                losses[method] = (config.vocabulary_weight, value)
        if turns is not None:
            value = rotation_loss(self.auxiliary["rotation"](rotated), turns)
            losses["rotation"] = (config.rotation_weight, value)
        return losses


def _check_members(space: CompatSpace, members: Sequence[Member]) -> None:
    if not members:
        raise ConfigError("members: expected at least one, got none")
    names = [member.name for member in members]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"members: expected every name once, got {repeated[0]!r} twice")
    for member in members:
        if not member.name.isidentifier():
            raise ConfigError(f"members: expected a name of letters, digits and _, got {member.name!r}")
        space.require_same(member.extractor.space, "the space", f"the extractor of member {member.name!r}")
        space.require_same(member.head.space, "the space", f"the head of member {member.name!r}")
        if not len(member.dataset):
            raise DataError(f"member {member.name!r}: expected images, got an empty data set")
        unknown = sorted(set(member.dataset.class_names) ^ set(member.head.class_names))
        if unknown:
            raise DataError(
                f"member {member.name!r}: expected the same classes in data set and head, "
                f"{', '.join(unknown[:5])} stand in one of them only; select with dataset.of_classes(...)"
            )
        for method in set(space.methods) & set(VOCABULARY_METHODS):
            if (vocabulary_positions(member.dataset.class_names, space.class_names) == NOT_COMMON).all():
                raise ConfigError(
                    f"member {member.name!r}: {method} needs a class of the space's vocabulary "
                    f"({', '.join(space.class_names[:5])} ...), got {', '.join(member.dataset.class_names[:5])} ..."
                )
