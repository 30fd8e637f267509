"""The terms of the objective: the task's own, those of the space's methods, and those that the settings ask for.

The loss of a step is the sum over members and terms of a weight times a mean over the step's whole batch. ``check`` of
a term says what it needs, ``losses`` computes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.nn import functional as F

from timm_compat.config import LossConfig
from timm_compat.data.order import Batch, Share
from timm_compat.errors import ConfigError
from timm_compat.methods.alignment import contrastive_losses, l2_losses
from timm_compat.methods.method import Losses, Method, Seen
from timm_compat.methods.registry import self_supervised_tasks
from timm_compat.space import CompatSpace
from timm_compat.training.members import Member, Reference, asked_tasks
from timm_compat.training.old_head import OldHead
from timm_compat.training.views import POOL, View

# By source, the indices of a pass's images to align, and how many there are in the whole step.
Aligned = Mapping[str, tuple[Tensor, int]]


@dataclass(frozen=True)
class MemberPass:
    """One member's forward pass.

    Attributes:
        seen: what it leaves for the space's methods.
        logits: (b, K) of its own head; None without one.
        targets: (b,), int64, its labels in the order of the head.
        borrowed: features of images of others, which it aligns on.
    """

    seen: Seen
    logits: Tensor | None
    targets: Tensor | None
    borrowed: Tensor


@dataclass(frozen=True)
class Step:
    """Everything that the terms may look at: the members' passes, and what these were over.

    Attributes:
        batches: by member, and the pool's.
        passes: by member.
        aligned: indices of the images to align, by source.
        share: what part of the step's batch this is.
    """

    batches: Mapping[str, Batch]
    passes: Mapping[str, MemberPass]
    aligned: Aligned
    share: Share


class Term(Protocol):
    """One summand of the objective."""

    name: str
    weight: float

    def losses(self, name: str, step: Step) -> Losses | None:
        """Losses (n,) of a member's images, and how many count in the whole step; None where the term has none."""


class TaskTerm:
    """Cross-entropy of a member's own head."""

    name, weight = "task", 1.0

    def losses(self, name: str, step: Step) -> Losses | None:
        """For members with labels."""
        passed = step.passes[name]
        if passed.logits is None or passed.targets is None:
            return None
        each = F.cross_entropy(passed.logits, passed.targets, reduction="none")
        return each, len(step.batches[name].step_labels)


class MethodTerm:
    """A method of the space, under the head that it shares.

    Args:
        method: of the space.
        head: shared by all members.
        config: settings.
    """

    def __init__(self, method: Method, head: Any, config: LossConfig) -> None:
        self.name, self.weight = method.name, method.weight(config)
        self.method, self.head = method, head

    def losses(self, name: str, step: Step) -> Losses | None:
        """As the method has them."""
        return self.method.losses(self.head, step.passes[name].seen)


class InfluenceTerm:
    """Members' features under the reference's frozen head (BCT).

    Args:
        old_heads: by member; labelled ones only.
        config: settings.
    """

    name = "influence"

    def __init__(self, old_heads: Mapping[str, OldHead], config: LossConfig) -> None:
        self.weight, self.old_heads = config.influence_weight, old_heads

    @staticmethod
    def check(members: Sequence[Member], config: LossConfig, reference: Reference | None) -> bool:
        """Whether the settings ask for it, which they may only do with a reference that has a head.

        Raises:
            ConfigError: no such reference.
        """
        if config.influence_weight:
            _old_head("influence_weight", reference)
        return bool(config.influence_weight)

    def losses(self, name: str, step: Step) -> Losses | None:
        """For images of classes that the old head knows, or was extended by."""
        if name not in self.old_heads:
            return None
        old, batch = self.old_heads[name], step.batches[name]
        return old.influence(step.passes[name].seen.features, batch.labels), old.count(batch.step_labels)


class DistillationTerm:
    """Members' logits kept to the reference's (focal distillation).

    Args:
        old_heads: by member; labelled ones only.
        reference: frozen.
        view: what batches hold.
        config: settings.
    """

    name = "distillation"

    def __init__(self, old_heads: Mapping[str, OldHead], reference: Reference, view: View, config: LossConfig) -> None:
        self.weight, self.old_heads = config.distillation_weight, old_heads
        self.reference, self.view = reference, view

    @staticmethod
    def check(members: Sequence[Member], config: LossConfig, reference: Reference | None) -> bool:
        """Whether the settings ask for it; then members and the reference's head must have classes in common.

        Raises:
            ConfigError: no reference with a head, or fewer than two such classes.
        """
        if not config.distillation_weight:
            return False
        old = _old_head("distillation_weight", reference)
        for member in members:
            shared = [] if member.head is None else set(member.head.class_names) & set(old.class_names)
            if member.head is not None and len(shared) < 2:
                raise ConfigError(
                    f"distillation_weight: expected at least 2 classes of member {member.name!r} that the reference's "
                    f"head knows, got {len(shared)}; set it to 0"
                )
        return True

    def losses(self, name: str, step: Step) -> Losses | None:
        """For the images that were drawn for alignment."""
        logits, batch = step.passes[name].logits, step.batches[name]
        if logits is None or name not in self.old_heads:
            return None
        indices, count = step.aligned[name]
        targets = self.view.targets(self.reference.extractor, batch.images, indices)
        return self.old_heads[name].distillation(logits[indices], targets, batch.labels[indices]), count


class AlignmentTerm:
    """Features of one image pulled together: to the reference's, else to those of the members, each in its turn.

    Args:
        names: of the members.
        labelled: those with labels.
        reference: frozen, or None.
        view: what batches hold.
        config: settings.
    """

    name = "alignment"

    def __init__(
        self,
        names: Sequence[str],
        labelled: Sequence[str],
        reference: Reference | None,
        view: View,
        config: LossConfig,
    ) -> None:
        self.weight, self.config, self.view = config.alignment_weight, config, view
        self.names, self.labelled, self.reference = names, labelled, reference

    @staticmethod
    def check(members: Sequence[Member], config: LossConfig, reference: Reference | None) -> bool:
        """Whether the settings ask for it; then there must be images, and someone to align with.

        Raises:
            ConfigError: neither a second member nor a reference, or no share of the batch.
        """
        if config.alignment == "none":
            return False
        if config.alignment_fraction == 0:
            raise ConfigError("alignment_fraction: expected more than 0 where alignment is asked for, got 0")
        if reference is None and len(members) < 2:
            raise ConfigError("alignment: expected a second member or a reference to align with, got neither")
        return True

    def source(self, name: str, batches: Mapping[str, Batch], step: int) -> str:
        """Whose images a member is aligned on: the pool's, else its own (reference), else its partner's."""
        if POOL in batches:
            return POOL
        return self._partner(name, step) if self.reference is None else name

    def losses(self, name: str, step: Step) -> Losses:
        """For the images that were drawn."""
        source = self.source(name, step.batches, step.share.step)
        indices, count = step.aligned[source]
        passed = step.passes[name]
        features = passed.seen.features[indices] if source == name else passed.borrowed
        targets = self._targets(name, source, indices, step)
        if self.config.alignment == "l2":
            return l2_losses(features, targets), count
        labels = step.batches[source].labels[indices] if source in self.labelled else None
        return contrastive_losses(features, targets, self.config.alignment_temperature, labels), count

    def _targets(self, name: str, source: str, indices: Tensor, step: Step) -> Tensor:
        if self.reference is not None:
            return self.view.targets(self.reference.extractor, step.batches[source].images, indices)
        # The partner is the teacher of this step: pulled from both sides, the two agree on what is easy to agree on,
        # at the price of their own tasks.
        partner = step.passes[self._partner(name, step.share.step)]
        return (partner.borrowed if source == POOL else partner.seen.features[indices]).detach()

    def _partner(self, name: str, step: int) -> str:
        # Every other member takes its turn, so that the cost of a step does not grow with their number.
        return self.names[(self.names.index(name) + 1 + step % (len(self.names) - 1)) % len(self.names)]


def check_purpose(
    space: CompatSpace, members: Sequence[Member], config: LossConfig, reference: Reference | None, has_pool: bool
) -> None:
    """Refuse settings that contradict each other, or a member that has nothing to learn.

    Raises:
        ConfigError: the message names both sides of the contradiction.
        SpaceMismatchError: the reference lives in another space.
    """
    if reference is not None:
        space.require_same(reference.extractor.space, "the space", "the reference extractor")
        if reference.head is not None:
            space.require_same(reference.head.space, "the space", "the reference's head")
    kinds = (InfluenceTerm, DistillationTerm, AlignmentTerm)
    asked = {kind.name for kind in kinds if kind.check(members, config, reference)}
    if has_pool and AlignmentTerm.name not in asked:
        raise ConfigError("pool: expected alignment='l2' or 'contrastive' to use these images, got 'none'")
    if reference is not None and not asked:
        raise ConfigError("reference: expected alignment, influence_weight or distillation_weight to use it, got none")
    for member in members:
        if member.head is None and member.extractor.trainable == "frozen":
            raise ConfigError(
                f"member {member.name!r} has no head and a frozen extractor, so nothing of it learns; give it a head, "
                'or make it an adapter (trainable="adapter")'
            )
        if member.head is None and not (asked_tasks(space, config) or AlignmentTerm.name in asked):
            raise ConfigError(
                f"member {member.name!r} has no head, so it learns from self-supervised tasks "
                f"({', '.join(task.name for task in self_supervised_tasks())}) or alignment only, and neither is on"
            )


def _old_head(setting: str, reference: Reference | None) -> Any:
    if reference is None or reference.head is None:
        raise ConfigError(f"{setting}: expected a reference with a head to learn from, got none; set it to 0")
    return reference.head
