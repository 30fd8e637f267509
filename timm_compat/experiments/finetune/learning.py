"""One training on the target, its accuracy measured on the way."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from timm_compat.config import TrainConfig
from timm_compat.experiments.finetune.cost import measure_cost
from timm_compat.experiments.finetune.curve import Curve
from timm_compat.experiments.finetune.target import Target
from timm_compat.methods.common_classes import vocabulary_positions
from timm_compat.models.evaluating import evaluating
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.passes import extract_features
from timm_compat.training.feature_cache import Wanted, compute_features
from timm_compat.training.fit import fit
from timm_compat.training.loop import steps_per_epoch
from timm_compat.training.members import Images, Member

NAME = "target"

Judge = Callable[[], float]


def judge(extractor: CompatExtractor, head: TaskHead, test: Images) -> Judge:
    """Accuracy, in [0, 1], of the two as they are when it is called; images pass a frozen backbone once.

    Args:
        extractor: of the head's form of features.
        head: knows all classes of the images.
        test: labelled images.
    """
    expected = vocabulary_positions(test.class_names, head.class_names)[test.labels]
    cached = None
    if extractor.trainable != "full":
        cached = compute_features(test, {NAME: Wanted(extractor)})[NAME][:, 0]

    @torch.no_grad()
    def measure() -> float:
        with evaluating(extractor, head):
            if cached is None:
                features = extract_features(extractor, test)
            else:
                features = extractor.interface(cached.to(extractor.preprocess.mean.device))
            predicted = head.to(features.device)(features).argmax(dim=1).cpu()
        return float((predicted == expected).float().mean())

    return measure


def learn(
    extractor: CompatExtractor,
    head: TaskHead,
    target: Target,
    config: TrainConfig,
    *,
    measure: Judge | None = None,
    progress: str | None = None,
) -> Curve:
    """Train in place, and measure at the beginning and after every epoch.

    Args:
        extractor: what of it is trainable, learns.
        head: learns.
        target: images that the extractor takes.
        config: settings.
        measure: gives the accuracy; that of extractor and head if None.
        progress: label of the bar; none if None.

    Raises:
        CompatError: as ``fit`` does.
    """
    measure = measure or judge(extractor, head, target.test)
    member = Member(NAME, extractor, head, target.train)
    cost = measure_cost(member, config)
    points = [(0.0, measure())]
    started, paused = time.perf_counter(), 0.0

    def validate() -> dict[str, float]:
        nonlocal paused
        arrived = time.perf_counter()
        points.append((arrived - started - paused, measure()))
        paused += time.perf_counter() - arrived
        return {}

    fit(extractor.space, [member], replace(config, output_dir=None), validate=validate, progress=progress)
    each = steps_per_epoch([len(target.train)], config.batch_size)
    seconds, accuracy = zip(*points, strict=True)
    return Curve(tuple(each * number for number in range(len(points))), seconds, accuracy, **cost.to_dict())
