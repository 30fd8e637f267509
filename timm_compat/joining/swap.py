"""Swap: another backbone under an existing classifier, without labels: split, join, compose, and what to expect."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_compat.data.raw_batches import RawImages
from timm_compat.errors import ConfigError
from timm_compat.imagenet import short_words
from timm_compat.joining.join import join_with
from timm_compat.joining.report import Agreement, JoinReport
from timm_compat.models.composed import CompatModel, compose, plainest
from timm_compat.models.cost import Cost, measure_cost
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.passes import Passed, passes
from timm_compat.models.run_options import RunOptions, home_of
from timm_compat.models.split import split
from timm_compat.processes import gathered, summed
from timm_compat.storage.facts import Facts

SHOWN_CHANGES = 10


@dataclass(frozen=True)
class Change:
    """How one class of the old model fares.

    Attributes:
        name: of the class.
        num_images: images that the old model gives this class.
        changed: of these, images that the new one gives another class.
        mostly_to: the class that it gives most of them.
    """

    name: str
    num_images: int
    changed: int
    mostly_to: str


@dataclass(frozen=True)
class SwapReport:
    """What to expect of a classifier on another backbone.

    Attributes:
        join: what the new backbone's join rests on.
        agreement: on how many held-out images both say the same, with its interval; None without images.
        changes: the classes that change most, at most ten, by the number of images that change; measured on all images,
            the fitted ones too.
        old: what the old model costs.
        new: what the new one costs, fused where that can be.
    """

    join: JoinReport
    agreement: Agreement | None
    changes: tuple[Change, ...]
    old: Cost
    new: Cost

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {**asdict(self), "join": self.join.to_dict()}

    def __str__(self) -> str:
        lines = [f"rests on {self.join.rests_on}"]
        if self.agreement is None:
            lines.append("agreement with the old model: not measured, for there were no images")
        else:
            lines.append(f"agreement with the old model: {self.agreement}")
        for one in self.changes:
            name, other = (short_words(text) for text in (one.name, one.mostly_to))
            lines.append(f"  {name}: {one.changed} of {one.num_images} change, mostly to {other}")
        pairs = (("parameters", "{:,}"), ("gflop", "{:.2f}"), ("milliseconds", "{:.1f}"))
        for name, form in pairs:
            old, new = (form.format(getattr(cost, name)) for cost in (self.old, self.new))
            lines.append(f"{name}{'' if name == 'parameters' else ' per image'}: {old} before, {new} now")
        if self.join.advice:
            lines.append(f"to do better, give {self.join.advice}")
        return "\n".join(lines)


def swap(
    old_model: str | nn.Module,
    model: str | nn.Module,
    images: RawImages | None = None,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    class_names: Iterable[str] | None = None,
    img_size: int | tuple[int, int] | None = None,
    old_weights: str | Path | None = None,
    old_class_names: Iterable[str] | None = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    amp: str | None = None,
    workers: int = 0,
    progress: bool | None = None,
    **timm_kwargs: Any,
) -> CompatModel:
    """Put another backbone under a trained classifier; the classes stay the same, and no labels are needed.

    Args:
        old_model: a classifier that timm built or ``compose`` made, or a name, which then gets timm's pretrained
            weights unless ``old_weights`` is given.
        model: the new backbone: a name for ``timm.create_model``, or a model that timm built; with its own classifier
            over some of the same classes no image is needed.
        images: unlabelled images (see ``extract_features``), best of the kind that the classifier is for. The old
            network sees them once and the new one twice, so no iterator.
        pretrained: whether to load timm's weights of the new backbone (by name only).
        weights: a safetensors file of the new backbone (by name only).
        class_names: the new backbone's own classes, where timm does not know them.
        img_size: of the new backbone's images; its own if None.
        old_weights: a safetensors file of the old model (by name only).
        old_class_names: the old model's classes, where timm does not know them.
        device: where the networks run; see ``RunOptions``, as for the next four.
        batch_size: images at a time.
        amp: precision.
        workers: processes that decode image files.
        progress: whether to show a bar.
        **timm_kwargs: timm's own keywords for the new backbone (by name only).

    Returns:
        A classifier in evaluation mode, with ``swap_report`` set (``SwapReport``).

    Raises:
        BackboneError: a model cannot be built, or the old one not be split.
        ConfigError: unknown class names, neither images nor classes in common, or images that can be read only once.
        DataError: fewer than 10 images, or one that cannot be decoded.

    Example:
        >>> names = ["cat", "dog", "owl"]
        >>> old, new = (timm.create_model(name, num_classes=3) for name in ("test_resnet", "test_efficientnet"))
        >>> model = tc.swap(old, new, old_class_names=names, class_names=names)
        >>> model.extractor.architecture, model.class_names
        ('test_efficientnet', ('cat', 'dog', 'owl'))
    """
    if isinstance(images, Iterator):
        raise ConfigError("swap: expected images that can be read twice, such as a tensor or a set, got an iterator")
    options = RunOptions(device, batch_size, amp, workers, progress)  # refuses bad settings before anything is built
    old, head = _taken_apart(old_model, old_weights, old_class_names)
    given = {"pretrained": pretrained, "weights": weights, "class_names": class_names, "img_size": img_size}
    new, changes = _joined(old, head, model, images, options, **given, **timm_kwargs)
    report, swapped = new.fit_report, compose(new, head).eval()
    agreements = list(report.agreements.values())
    costs = [_cost(compose(one, head)) for one in (old, new)]
    swapped.facts = Facts(training=_origins(old, new))
    swapped.swap_report = SwapReport(report, agreements[-1] if agreements else None, changes, *costs)
    return swapped


def _origins(old: CompatExtractor, new: CompatExtractor) -> dict[str, Any]:
    """Where both sides came from, and what joins them, for the card."""

    def place(part: CompatExtractor) -> str:
        facts = part.facts
        commit = f" at commit {facts.base_model_commit}" if facts.base_model_commit else ""
        return f"{part.architecture} ({facts.base_model}{commit})" if facts.base_model else part.architecture

    return {**new.facts.training, "method": "swap", "backbone": place(new), "classifier of": place(old)}


def _taken_apart(model: Any, weights: Any, class_names: Any) -> tuple[CompatExtractor, TaskHead]:
    if isinstance(model, CompatModel):
        model = model.fuse()
    by_name = isinstance(model, str)
    return split(model, pretrained=by_name and weights is None, weights=weights, class_names=class_names)


def _cost(model: CompatModel) -> Cost:
    return measure_cost(plainest(model), model.extractor.backbone.input_size)


def _joined(
    old: CompatExtractor, head: TaskHead, model: Any, images: RawImages | None, options: RunOptions, **given: Any
) -> tuple[CompatExtractor, tuple[Change, ...]]:
    """The new backbone in the old one's space, and which classes change under the head."""
    before, after = _Told(head), _Told(head)

    def look(extractor: CompatExtractor, reference: CompatExtractor, images: RawImages) -> Iterator[Passed]:
        for passed in passes([extractor, reference], images, pooled=[0], options=options, description="join"):
            before.add(passed.positions, passed.outputs[1])
            yield passed

    if images is None:
        return join_with(look, old.space, model, None, reference=None, heads=(), stacklevel=6, **given), ()
    new = join_with(look, old.space, model, images, reference=old, heads=[head], stacklevel=6, **given)
    for passed in passes([new], images, options=options, description="swap"):
        after.add(passed.positions, passed.outputs[0])
    return new, _ranked(before.classes().tolist(), after.classes().tolist(), head.class_names)


class _Told:
    """Which class a head gives every image, told batch by batch.

    Args:
        head: stays where it is.
    """

    def __init__(self, head: TaskHead) -> None:
        self.head = head
        self._positions, self._classes = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]

    @torch.no_grad()
    def add(self, positions: Tensor, features: Tensor) -> None:
        """Images at these positions (b,), with their features (b, D)."""
        self._positions.append(positions)
        self._classes.append(self.head(features.to(home_of(self.head))).argmax(dim=1).cpu())

    def classes(self) -> Tensor:
        """Of all images, those of other processes too: (N,)."""
        positions = torch.cat(self._positions)
        return gathered(torch.cat(self._classes), positions, int(summed(torch.tensor(len(positions)))))


def _ranked(before: list[int], after: list[int], names: tuple[str, ...]) -> tuple[Change, ...]:
    table: dict[int, dict[int, int]] = {}
    for was, now in zip(before, after, strict=True):
        row = table.setdefault(was, {})
        row[now] = row.get(now, 0) + 1
    found = []
    for was, row in table.items():
        others = {now: count for now, count in row.items() if now != was}
        if others:
            mostly = max(others, key=lambda now: (others[now], -now))
            found.append(Change(names[was], sum(row.values()), sum(others.values()), names[mostly]))
    found.sort(key=lambda change: (-change.changed, -change.changed / change.num_images, change.name))
    return tuple(found[:SHOWN_CHANGES])
