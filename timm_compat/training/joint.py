"""Joint compatible training as one module: members, auxiliary heads, and the sum of terms that ties them together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from timm_compat.config import TrainConfig
from timm_compat.data.order import Batch, Share
from timm_compat.methods.common_classes import NOT_COMMON, vocabulary_positions
from timm_compat.methods.method import Asked, Seen
from timm_compat.methods.registry import methods_of
from timm_compat.methods.self_supervised import SelfSupervisedTask, draw_answers
from timm_compat.models.heads import auxiliary_heads
from timm_compat.seeding import generator
from timm_compat.space import CompatSpace
from timm_compat.training.accelerators import aligned_per_pass
from timm_compat.training.members import Member, Reference, asked_tasks
from timm_compat.training.old_head import OldHead
from timm_compat.training.terms import (
    Aligned,
    AlignmentTerm,
    DistillationTerm,
    InfluenceTerm,
    MemberPass,
    MethodTerm,
    Step,
    TaskTerm,
    Term,
)
from timm_compat.training.views import POOL, ImageView, View


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
        self.tasks = asked_tasks(space, config)
        self._old_heads: dict[str, OldHead] = {}
        self._is_common: dict[str, Tensor] = {}
        for member in members:
            if member.head is not None:
                self._note_classes(space, member, list(member.head.class_names), reference)
        self.alignment: AlignmentTerm | None = None
        self.terms = list(self._terms(space, members, reference))

    def _note_classes(
        self, space: CompatSpace, member: Member, head_names: list[str], reference: Reference | None
    ) -> None:
        given = member.dataset.class_names
        own = torch.tensor([head_names.index(name) for name in given])
        self.register_buffer(f"_own_{member.name}", own, persistent=False)
        common = vocabulary_positions(given, space.class_names)
        self.register_buffer(f"_common_{member.name}", common, persistent=False)
        self._is_common[member.name] = common != NOT_COMMON  # stays on the CPU, where a step's labels are counted
        if reference is not None and reference.head is not None:
            self._old_heads[member.name] = OldHead(reference.extractor, reference.head, member.dataset, head_names)

    def _terms(self, space: CompatSpace, members: Sequence[Member], reference: Reference | None) -> list[Term]:
        config = self.config
        terms: list[Term] = [TaskTerm()]
        for method in methods_of(space.methods):
            head = dict(self.auxiliary.items()).get(method.name)
            asked = method in self.tasks or not isinstance(method, SelfSupervisedTask)
            if asked and (head is not None or method.weight(config)):
                terms.append(MethodTerm(method, head, config))
        if InfluenceTerm.check(members, config, reference):
            terms.append(InfluenceTerm(self._old_heads, config))
        if DistillationTerm.check(members, config, reference) and reference is not None:
            terms.append(DistillationTerm(self._old_heads, reference, self.view, config))
        if AlignmentTerm.check(members, config, reference):
            self.alignment = AlignmentTerm(self.names, list(self.heads), reference, self.view, config)
            terms.append(self.alignment)
        return terms

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
        step = Step(batches, {name: self._pass(name, batches, aligned, share) for name in names}, aligned, share)
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=step.passes[names[0]].seen.features.device)
        for name in names:
            for term in self.terms:
                if (found := term.losses(name, step)) is not None:
                    value = _mean_over_step(*found, share)
                    parts[f"{name}/{term.name}"] = value.detach()
                    total = total + term.weight * value
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
    def frozen(self) -> tuple[str, ...]:
        """Prefixes of the names of tensors that no step changes: those of frozen backbones."""
        kept = [name for name, extractor in self.extractors.items() if extractor.trainable != "full"]
        return tuple(f"extractors.{name}.backbone." for name in kept)

    @property
    def groups(self) -> list[list[str]]:
        """Members whose losses are of no concern to each other, with what else they look at: passes of their own."""
        if self.alignment is not None and self.alignment.reference is None:
            return [[*self.names, POOL]]
        return [[name, POOL] for name in self.names]

    def _draw_aligned(self, batches: Mapping[str, Batch], share: Share) -> Aligned:
        if self.alignment is None and not self.config.distillation_weight:
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
            _, indices = share.indices(order[:count])
            drawn[source] = indices.to(batch.labels.device), count
        return drawn

    def _pass(self, name: str, batches: Mapping[str, Batch], aligned: Aligned, share: Share) -> MemberPass:
        extractor, batch, view = self.extractors[name], batches[name], self.view
        upright = view.upright(name, extractor, batch.images)
        drawn = {task.name: self._draw(task, name, len(batch.step_labels), share) for task in self.tasks}
        changed = [
            view.changed(task, name, upright, batch.images, drawn[task.name][0].to(upright.device), drawn[task.name][1])
            for task in self.tasks
        ]
        borrowed = upright[:0]
        if self.alignment is not None and (source := self.alignment.source(name, batches, share.step)) != name:
            others = view.select(batches[source].images, aligned[source][0])
            borrowed = view.upright(name, extractor, others)
        # One pass for all: in several, BatchNorm's running statistics would fit none of them.
        sizes = [len(part) for part in (upright, *changed, borrowed)]
        inputs = torch.cat([upright, *changed, borrowed]) if sum(sizes[1:]) else upright
        features, *parts, aligned_features = view.features(extractor, inputs).split(sizes)
        asked = {
            task: Asked(part, answers.to(upright.device), count)
            for part, (task, (_, answers, count)) in zip(parts, drawn.items(), strict=True)
        }
        return self._with_logits(name, batch, features, asked, aligned_features)

    def _with_logits(
        self, name: str, batch: Batch, features: Tensor, asked: Mapping[str, Asked], borrowed: Tensor
    ) -> MemberPass:
        """The pass with the own head's logits, where the member has labels."""
        size = len(batch.step_labels)
        if name not in self.heads:
            return MemberPass(Seen(features, size, asked=asked), None, None, borrowed)
        positions = getattr(self, f"_common_{name}")[batch.labels]
        num_common = int(self._is_common[name][batch.step_labels].sum())
        targets = getattr(self, f"_own_{name}")[batch.labels]
        return MemberPass(
            Seen(features, size, positions, num_common, asked), self.heads[name](features), targets, borrowed
        )

    def _draw(self, task: SelfSupervisedTask, name: str, size: int, share: Share) -> tuple[Tensor, Tensor, int]:
        """This process's indices and answers, and how many there are in the whole step."""
        random, num_classes = generator(self.config.seed, task.name, name, str(share.step)), task.num_classes
        chosen, answers = draw_answers(size, self.config.self_supervised_fraction, num_classes, random)
        if self.config.self_supervised_all:
            answers = torch.arange(num_classes).repeat(len(chosen))
            chosen = chosen.repeat_interleave(num_classes)
        mine, indices = share.indices(chosen)
        return indices, answers[mine], len(chosen)


def _mean_over_step(losses: Tensor, count: int, share: Share) -> Tensor:
    """Share of a pass in the mean over a step's whole batch: processes and accumulation average the passes.

    Args:
        losses: one per image of this pass.
        count: images that count in the whole step.
        share: which pass this is.
    """
    return losses.sum() * (share.stride / max(1, count))
