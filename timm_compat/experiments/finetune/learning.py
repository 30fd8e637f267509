"""The target task: its images, what is refused before a training, and one training that is measured on the way."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from timm_compat.config import TrainConfig
from timm_compat.errors import DataError
from timm_compat.evaluation.cells import check_classes
from timm_compat.experiments.build import read_images
from timm_compat.experiments.finetune.cost import Curve, measure_cost
from timm_compat.experiments.finetune.recipe import TargetRecipe
from timm_compat.methods.common_classes import vocabulary_positions
from timm_compat.models.evaluating import evaluating
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.passes import extract_features
from timm_compat.training.callbacks import Callback
from timm_compat.training.feature_cache import Wanted, compute_features
from timm_compat.training.fit import fit
from timm_compat.training.loop import steps_per_epoch
from timm_compat.training.members import Images, Member
from timm_compat.vocabulary import listed

NAME, LEAST_IMAGES = "target", 2

Evaluate = Callable[[], float]


@dataclass(frozen=True)
class Target:
    """Images to learn from and images to measure on, of the same classes."""

    train: Images
    test: Images

    def seen_by(self, extractor: CompatExtractor) -> "Target":
        """The same with the number of channels that an extractor takes."""
        channels = extractor.backbone.input_size[0]
        if channels not in (1, 3):
            return self
        return Target(self.train.with_channels(channels), self.test.with_channels(channels))


def read_target(recipe: TargetRecipe, seed: int) -> Target:
    """Load both sets; a part or limit of them follows the seed unless the recipe gives one.

    Raises:
        CompatError: as the sources of data raise it.
        DataError: fewer than two images or two classes, or other classes in the test images.
    """
    target = Target(*(read_images(f"target.{key}", getattr(recipe, key), seed) for key in ("train", "test")))
    if len(target.train) < LEAST_IMAGES:
        raise DataError(f"target.train: expected at least {LEAST_IMAGES} images to learn from, got {len(target.train)}")
    for key, images in (("train", target.train), ("test", target.test)):
        try:
            check_classes(images)
        except DataError as error:
            raise DataError(f"target.{key}: {error}") from error
    if other := sorted(set(target.train.class_names) ^ set(target.test.class_names)):
        raise DataError(
            f"target.test: expected the classes of target.train, {listed(other, 5)} stand in one of them only; "
            "name them in classes"
        )
    return target


def check_head(key: str, head: TaskHead, target: Target) -> None:
    """Refuse a head that is of another task; target classes that it does not know are allowed.

    Raises:
        DataError: no class in common, or classes that the target lacks.
    """
    names = target.train.class_names
    lacking = [name for name in head.class_names if name not in names]
    if len(lacking) == head.num_classes:
        raise DataError(
            f"{key}: expected a head with classes of the target ({listed(names, 5)}), got one that knows none of them "
            f"({listed(head.class_names, 5)})"
        )
    if lacking:
        raise DataError(
            f"{key}: expected a head whose classes the target has, the target lacks {listed(lacking, 5)}; take target "
            "images of these classes too, or another head"
        )


def evaluator(extractor: CompatExtractor, head: TaskHead, test: Images, folder: Path | None = None) -> Evaluate:
    """Accuracy, in [0, 1], of the two as they are when it is called; images pass a frozen backbone once.

    Args:
        extractor: as it is trained, or as it stays.
        head: likewise.
        test: images of the head's classes.
        folder: keeps a frozen backbone's features for other trainings.
    """
    expected = vocabulary_positions(test.class_names, head.class_names)[test.labels]
    cached = None
    if extractor.trainable != "full":
        cached = compute_features(test, {NAME: Wanted(extractor)}, folder)[NAME][:, 0]

    @torch.no_grad()
    def measure() -> float:
        with evaluating(extractor, head):
            if cached is None:
                features = extract_features(extractor, test)
            else:
                features = extractor.interface(cached.to(extractor.device))
            predicted = head.to(features.device)(features).argmax(dim=1).cpu()
        return float((predicted == expected).float().mean())

    return measure


def learn(
    extractor: CompatExtractor,
    head: TaskHead,
    target: Target,
    config: TrainConfig,
    *,
    measure: Evaluate | None = None,
    progress: str | None = None,
) -> Curve:
    """Train in place; ``measure``, or else the pair's accuracy, is asked at the beginning and after every epoch."""
    measure = measure or evaluator(extractor, head, target.test)
    member = Member(NAME, extractor, head, target.train)
    cost, recorder = measure_cost(member, config), _Recorder(measure)
    fit(extractor.space, [member], replace(config, output_dir=None), callbacks=[recorder], progress=progress)
    each = steps_per_epoch([len(target.train)], config.batch_size)
    seconds, accuracy = zip(*recorder.points, strict=True)
    return replace(cost, steps=tuple(range(0, each * len(seconds), each)), seconds=seconds, accuracy=accuracy)


class _Recorder(Callback):
    """Seconds of the training so far and accuracy, at its beginning and after every epoch; measuring takes no time."""

    def __init__(self, measure: Evaluate) -> None:
        self.measure = measure

    def on_train_begin(self) -> None:
        self.points = [(0.0, self.measure())]
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
        arrived = time.perf_counter()
        self.points.append((arrived - self.started, self.measure()))
        self.started += time.perf_counter() - arrived
