"""What a join rests on, what to expect of it, and what would make it better."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from timm_compat.evaluation.intervals import wilson_interval
from timm_compat.imagenet import short_words
from timm_compat.methods.ridge import LEAST_SPREAD
from timm_compat.models.heads import TaskHead

# Heads agree more on photos that they learned from, and a join cannot know whether these are such. Lowered by this at
# least, intervals held the agreement on new photos of the same kind in over 90 % of the cells of the study of
# pretrained networks.
FLATTERY = 0.04
LOW_AGREEMENT = 0.4
SURE_AGREEMENT = 0.8  # under which it is tried whether images alone would do better
WORTH_TELLING = 0.05
LOW_R2 = 0.3  # where neither classes nor heads say more
FEW_IMAGES = 100  # without classes in common
MANY_IMAGES = 500
# CIFAR-10: 0.01 on 100 images like those learned from, 0.03 on its other classes, 0.2 on one class alone, 0.3 blurred,
# 0.5 on darkened images and on digits, 1.4 on noise.
FAR_SHIFT = 0.15


@dataclass(frozen=True)
class Agreement:
    """On how many held-out images a head says the same from the joined and from the reference's features.

    It speaks of new photos of the same kind. Photos of another kind say little of it, and those that the head learned
    from flatter the share: the interval makes up for them.

    Attributes:
        share: in [0, 1].
        low: lower end of its interval (``stated_interval``); lower where the head is known to do much better on images
            that it learned from.
        high: upper end.
        num_images: how many were held out.
    """

    share: float
    low: float
    high: float
    num_images: int

    def __str__(self) -> str:
        return f"{self.share:.2f} ({self.low:.2f} to {self.high:.2f}, {self.num_images} held-out images)"


@dataclass(frozen=True)
class JoinReport:
    """What a join rests on, and how well a map fitted without the held-out images does on them.

    Attributes:
        num_common_classes: classes that the network's own classifier and the space have in common.
        num_images: unlabelled images used.
        agreements: by head, on held-out images; empty without images. Two networks seldom agree on more than either
            gets right: where the new one is the better network, its accuracy can be higher than that.
        r2: share of the reference features' variance that the map explains on held-out images; None without images. It
            ranks joins badly: a map that keeps what heads read may explain less.
        cka: linear CKA between its features and the reference's, in [0, 1] (``evaluation/scores.py``); None without
            images.
        shift: how far the images are from those that the reference learned from: mean square of its features' means in
            units of their variance; None without images, or where the space does not normalise by "batch".
        seconds: in all.
        without_classes: ``agreements`` of the given heads, had the images alone counted; measured where a head agrees
            on little.
        classes: whether the classes in common were to count.
    """

    num_common_classes: int
    num_images: int
    agreements: Mapping[str, Agreement]
    r2: float | None
    cka: float | None
    shift: float | None
    seconds: float
    without_classes: Mapping[str, Agreement] = field(default_factory=dict)
    classes: bool = True

    @property
    def agreement(self) -> float | None:
        """Mean agreement of the heads; None where none was measured."""
        shares = [agreement.share for agreement in self.agreements.values()]
        return sum(shares) / len(shares) if shares else None

    @property
    def rests_on(self) -> str:
        """What the join rests on, in words."""
        classes = f"{self.num_common_classes:,} classes in common" if self.num_common_classes else ""
        images = f"{self.num_images:,} unlabelled images" if self.num_images else ""
        return " and ".join(filter(None, (classes, images)))

    @property
    def is_far(self) -> bool:
        """Whether the images may mislead, for they are unlike the reference's; classes in common hold against that."""
        return self.shift is not None and self.shift > FAR_SHIFT and not self.num_common_classes

    @property
    def advice(self) -> str:
        """What to give to do better; empty where nothing obvious is missing."""
        wishes = [
            f"the images alone a say (classes=False, --no-classes), for they agree on {alone.share:.0%} under {name}; "
            "other heads may lose"
            for name, alone in self.without_classes.items()
            if alone.share > self.agreements[name].share + WORTH_TELLING
        ]
        misled = bool(wishes)
        if self.classes and not self.num_common_classes:
            wishes.append(
                "a backbone with its classifier over classes that the space knows (its weights whole, and the space "
                "itself rather than its definition)"
            )
        if not self.num_images:
            wishes.append("unlabelled images and a reference extractor: some hundred of the heads' own kind")
        elif self.num_images < MANY_IMAGES:
            wishes.append(f"more images of the heads' own kind than {self.num_images}")
        if self.is_far and not misled:
            wishes.append("images nearer to those that the reference learned from")
        return "; ".join(wishes)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {**asdict(self), "rests_on": self.rests_on, "agreement": self.agreement, "advice": self.advice}

    def __str__(self) -> str:
        lines = [f"rests on {self.rests_on}"]
        lines += [f"agreement under {name}: {agreement}" for name, agreement in self.agreements.items()]
        if not self.num_images:
            lines.append("expect what the classes in common give; without images it cannot be measured")
        if self.advice:
            lines.append(f"to do better, give {self.advice}")
        return "\n".join(lines)


def agreement(features: Tensor, targets: Tensor, head: torch.nn.Module) -> Agreement:
    """Of a head's answers on features (n, D) with those on targets (n, D)."""
    same = (head(features).argmax(dim=1) == head(targets).argmax(dim=1)).double().mean()
    share, count = float(same), len(features)
    optimism = head.facts.optimism if isinstance(head, TaskHead) else 0.0
    return Agreement(share, *stated_interval(share, count, optimism), count)


def stated_interval(share: float, count: int, optimism: float = 0.0) -> tuple[float, float]:
    """What to expect of new photos, given the share of held-out ones: Wilson's 95 %, its lower end lowered.

    Where a head learned from these photos it gets so many of them right that it would get wrong as new ones; that the
    joined features share its answer there says nothing. By these the lower end is lowered, by ``FLATTERY`` at least.

    Args:
        share: in [0, 1].
        count: held-out photos.
        optimism: accuracy of the head on images that it learned from less that on others; 0 where it is not known.
    """
    low, high = wilson_interval(share, count)
    return max(0.0, low - max(FLATTERY, optimism * share)), high


def divergence(features: Tensor, targets: Tensor, head: torch.nn.Module) -> float:
    """Mean Kullback-Leibler divergence of a head's answers on features (n, D) from those on targets (n, D), in nats."""
    said, wanted = head(features).log_softmax(dim=1), head(targets).log_softmax(dim=1)
    return float((wanted.exp() * (wanted - said)).sum(dim=1).mean())


def explained(features: Tensor, targets: Tensor) -> float:
    """R^2 of features (n, D) against targets (n, D), over all dimensions together."""
    spread = (targets - targets.mean(dim=0)).square().sum().clamp(min=LEAST_SPREAD)
    return float(1 - (features - targets).square().sum() / spread)


def name_of(head: TaskHead, taken: Sequence[str]) -> str:
    """What a head is called in a report: its first classes, in words."""
    shown = ", ".join(short_words(name) for name in head.class_names[:2])
    more = f" and {head.num_classes - 2:,} more" if head.num_classes > 2 else ""
    name = f"the head over {shown}{more}"
    return name if name not in taken else f"{name} (number {len(taken) + 1})"


def warn_where_poor(architecture: str, report: JoinReport, stacklevel: int) -> None:
    """Warn where low accuracy is to be expected."""
    faults = []
    if report.num_images and not report.num_common_classes:
        if report.num_images < FEW_IMAGES:
            faults.append(f"was fitted on only {report.num_images} images, without classes in common")
        if not report.agreements and report.r2 is not None and report.r2 < LOW_R2:
            faults.append(f"explains only {report.r2:.2f} of the reference features' variance on held-out images")
    if report.is_far:
        faults.append(f"was fitted on images unlike those that the reference learned from (shift {report.shift:.2f})")
    if report.agreement is not None and report.agreement < LOW_AGREEMENT:
        faults.append(f"makes the heads predict what they did on only {report.agreement:.0%} of held-out images")
    if faults:
        way_out = f". Give {report.advice}" if report.advice else ""
        warnings.warn(
            f"join: {architecture} {' and '.join(faults)}; expect lower accuracy{way_out}", stacklevel=stacklevel
        )
