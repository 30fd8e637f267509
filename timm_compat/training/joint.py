"""Joint compatible training as one module: members, auxiliary heads, and the loss that ties them together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timm_compat.config import TrainConfig
from timm_compat.methods.alignment import contrastive_losses, l2_losses
from timm_compat.methods.common_classes import NOT_COMMON, common_class_losses, vocabulary_positions
from timm_compat.methods.self_supervised import TASKS, answer_losses, draw_answers, shared_tasks
from timm_compat.models.heads import auxiliary_heads
from timm_compat.seeding import generator
from timm_compat.space import VOCABULARY_METHODS, CompatSpace
from timm_compat.training.accelerators import aligned_per_pass
from timm_compat.training.members import Member, Reference
from timm_compat.training.old_head import OldHead
from timm_compat.training.step import Batch, Share, mean_over_step
from timm_compat.training.views import POOL, ImageView, View

Weighted = tuple[float, Tensor]
# By source, the places of a pass's images to align, and how many there are in the whole step.
Aligned = Mapping[str, tuple[Tensor, int]]


@dataclass
class _Asked:
    """A self-supervised task's images: features, answers (n,), and how many there are in the whole step."""

    features: Tensor
    answers: Tensor
    count: int


@dataclass
class _Pass:
    """One member's forward pass: features of its own images, of changed ones by task, and of others' to align."""

    upright: Tensor
    asked: Mapping[str, _Asked]
    aligned: Tensor


class JointModule(nn.Module):
    """Members and the space's auxiliary heads; one forward pass gives the loss of one step.

    For each member, with features z of a batch: L = CE(head(z), y), plus the losses of the methods that the space
    shares and of those that the settings ask for. The members' losses are added up. Every mean is over the step's
    whole batch, however it is split over processes and passes (only the contrastive alignment looks for its negatives
    among the images of one pass).

    Args:
        space: all parts live in it.
        members: checked ones.
        config: weights and fractions of the losses.
        reference: frozen; not part of this module's state.
        view: what batches hold.
    """

    extractors: Any  # torch types the values of a ModuleDict as Module
    heads: Any
    auxiliary: Any

    def __init__(
        self,
        space: CompatSpace,
        members: Sequence[Member],
        config: TrainConfig,
        *,
        reference: Reference | None = None,
        view: View | None = None,
    ) -> None:
        super().__init__()
        self.config, self.view = config, view or ImageView(config.channels_last)
        self.names = [member.name for member in members]
        self.extractors = nn.ModuleDict({member.name: member.extractor for member in members})
        self.heads = nn.ModuleDict({member.name: member.head for member in members if member.head is not None})
        self.auxiliary = auxiliary_heads(space)
        self.tasks = shared_tasks(space.methods, config.rotation_fraction)
        # In a list, so that torch does not count the frozen reference among this module's parts.
        self._references = [] if reference is None else [reference]
        self._old_heads: dict[str, OldHead] = {}
        self._is_common: dict[str, Tensor] = {}
        for member in members:
            if member.head is not None:
                self._note_classes(space, member, list(member.head.class_names))

    def _note_classes(self, space: CompatSpace, member: Member, head_names: list[str]) -> None:
        given = member.dataset.class_names
        own = torch.tensor([head_names.index(name) for name in given])
        self.register_buffer(f"_own_{member.name}", own, persistent=False)
        common = vocabulary_positions(given, space.class_names)
        self.register_buffer(f"_common_{member.name}", common, persistent=False)
        self._is_common[member.name] = common != NOT_COMMON  # stays on the CPU, where a step's labels are counted
        for reference in self._references:
            if reference.head is not None:
                self._old_heads[member.name] = OldHead(reference.extractor, reference.head, member.dataset, head_names)

    def forward(self, batches: Mapping[str, Batch], share: Share) -> dict[str, Tensor]:
        """The step's loss and its parts.

        Args:
            batches: by member, and one of the pool where there is one; some of the members, or all.
            share: what part of the step's batch they are.

        Returns:
            "loss", the sum to minimise, and its parts such as "a/task", "a/rotation", unweighted.
        """
        aligned = self._draw_aligned(batches, share)
        names = [name for name in self.names if name in batches]
        passes = {name: self._pass(name, batches, aligned, share) for name in names}
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=next(iter(passes.values())).upright.device)
        for name in names:
            losses = self._member_losses(name, batches[name], passes[name], aligned, share)
            if self.config.alignment != "none":
                losses["alignment"] = self._alignment(name, batches, passes, aligned, share)
            for method, (weight, value) in losses.items():
                parts[f"{name}/{method}"] = value.detach()
                total = total + weight * value
        return {"loss": total, **parts}

    def shared_tensors(self) -> dict[str, Tensor]:
        """The auxiliary heads' tensors under their names in the space."""
        return {key: value for head in self.auxiliary.values() for key, value in head.shared_tensors().items()}

    def prepare_old_heads(self, device: torch.device) -> None:
        """Move the reference's head, and give it a weight for classes that it never knew (a pass over their images)."""
        for old in self._old_heads.values():
            old.to(device)
            if self.config.influence_weight:
                old.extend()

    @property
    def groups(self) -> list[list[str]]:
        """Members whose losses are of no concern to each other, with what else they look at: passes of their own."""
        if self.config.alignment != "none" and not self._references:
            return [[*self.names, POOL]]
        return [[name, POOL] for name in self.names]

    def _partner(self, name: str, step: int) -> str:
        # Every other member takes its turn, so that the cost of a step does not grow with their number.
        count = len(self.names)
        return self.names[(self.names.index(name) + 1 + step % (count - 1)) % count]

    def _source(self, name: str, batches: Mapping[str, Batch], share: Share) -> str:
        """Whose images a member is aligned on: the pool's, else its own (reference), else its partner's."""
        if POOL in batches:
            return POOL
        return name if self._references else self._partner(name, share.step)

    def _draw_aligned(self, batches: Mapping[str, Batch], share: Share) -> Aligned:
        if self.config.alignment == "none" and not self.config.distillation_weight:
            return {}
        drawn = {}
        for source, batch in batches.items():
            size = len(batch.step_labels)
            count = size if source == POOL else max(1, round(self.config.alignment_fraction * size))
            order = torch.randperm(size, generator=generator(self.config.seed, "alignment", source, str(share.step)))
            if self.config.alignment == "contrastive" and source != POOL:
                # Negatives are those of one pass, so every pass gets as many images.
                count = aligned_per_pass(self.config, share.stride) * share.stride
                order = torch.stack([order[order % share.stride == part] for part in range(share.stride)], 1).flatten()
            _, places = share.places(order[:count])
            drawn[source] = places.to(batch.labels.device), count
        return drawn

    def _pass(self, name: str, batches: Mapping[str, Batch], aligned: Aligned, share: Share) -> _Pass:
        extractor, batch, view = self.extractors[name], batches[name], self.view
        upright = view.upright(name, extractor, batch.images)
        drawn = {task: self._draw(task, name, len(batch.step_labels), share) for task in self.tasks}
        changed = [
            view.changed(task, name, upright, batch.images, places.to(upright.device), answers)
            for task, (places, answers, _) in drawn.items()
        ]
        borrowed = upright[:0]
        if self.config.alignment != "none" and (source := self._source(name, batches, share)) != name:
            others = view.select(batches[source].images, aligned[source][0])
            borrowed = view.upright(name, extractor, others)
        # One pass for all: in several, BatchNorm's running statistics would fit none of them.
        sizes = [len(part) for part in (upright, *changed, borrowed)]
        inputs = torch.cat([upright, *changed, borrowed]) if sum(sizes[1:]) else upright
        own, *parts, aligned_features = view.features(extractor, inputs).split(sizes)
        asked = {
            task: _Asked(features, answers.to(upright.device), count)
            for features, (task, (_, answers, count)) in zip(parts, drawn.items(), strict=True)
        }
        return _Pass(own, asked, aligned_features)

    def _draw(self, task: str, name: str, size: int, share: Share) -> tuple[Tensor, Tensor, int]:
        """This process's places and answers, and how many there are in the whole step."""
        random, num_classes = generator(self.config.seed, task, name, str(share.step)), TASKS[task].num_classes
        chosen, answers = draw_answers(size, self.config.rotation_fraction, num_classes, random)
        if self.config.all_rotations:
            answers = torch.arange(num_classes).repeat(len(chosen))
            chosen = chosen.repeat_interleave(num_classes)
        mine, places = share.places(chosen)
        return places, answers[mine], len(chosen)

    def _member_losses(
        self, name: str, batch: Batch, passed: _Pass, aligned: Aligned, share: Share
    ) -> dict[str, Weighted]:
        config = self.config
        losses: dict[str, Weighted] = {}
        if name in self.heads:
            logits = self.heads[name](passed.upright)
            own = getattr(self, f"_own_{name}")
            task = F.cross_entropy(logits, own[batch.labels], reduction="none")
            losses["task"] = (1.0, mean_over_step(task, len(batch.step_labels), share))
            common = getattr(self, f"_common_{name}")
            counted = int(self._is_common[name][batch.step_labels].sum())
            for method in VOCABULARY_METHODS:
                if method in self.auxiliary:
                    each = common_class_losses(self.auxiliary[method](passed.upright), common[batch.labels])
                    losses[method] = (config.vocabulary_weight, mean_over_step(each, counted, share))
            if name in self._old_heads:
                losses |= self._old_head_losses(name, batch, passed, logits, aligned, share)
        for method, asked in passed.asked.items():
            each = answer_losses(self.auxiliary[method](asked.features), asked.answers)
            losses[method] = (config.rotation_weight, mean_over_step(each, asked.count, share))
        return losses

    def _old_head_losses(
        self, name: str, batch: Batch, passed: _Pass, logits: Tensor, aligned: Aligned, share: Share
    ) -> dict[str, Weighted]:
        config, old = self.config, self._old_heads[name]
        losses: dict[str, Weighted] = {}
        if config.influence_weight:
            each = old.influence(passed.upright, batch.labels)
            losses["influence"] = (config.influence_weight, mean_over_step(each, old.count(batch.step_labels), share))
        if config.distillation_weight:
            places, count = aligned[name]
            targets = self.view.targets(self._references[0].extractor, batch.images, places)
            each = old.distillation(logits[places], targets, batch.labels[places])
            losses["distillation"] = (config.distillation_weight, mean_over_step(each, count, share))
        return losses

    def _alignment(
        self,
        name: str,
        batches: Mapping[str, Batch],
        passes: Mapping[str, _Pass],
        aligned: Aligned,
        share: Share,
    ) -> Weighted:
        config, source = self.config, self._source(name, batches, share)
        places, count = aligned[source]
        features = passes[name].upright[places] if source == name else passes[name].aligned
        if self._references:
            targets = self.view.targets(self._references[0].extractor, batches[source].images, places)
        else:
            # The partner is the teacher of this step: pulled from both sides, the two agree on what is easy to agree
            # on, at the price of their own tasks.
            partner = passes[self._partner(name, share.step)]
            targets = (partner.aligned if source == POOL else partner.upright[places]).detach()
        if config.alignment == "l2":
            each = l2_losses(features, targets)
        else:
            labels = batches[source].labels[places] if source in self.heads else None
            each = contrastive_losses(features, targets, config.alignment_temperature, labels)
        return config.alignment_weight, mean_over_step(each, count, share)
