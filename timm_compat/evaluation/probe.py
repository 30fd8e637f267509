"""Linear probe: a task head on a frozen extractor from labelled images, in one pass."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.errors import DataError
from timm_compat.evaluation.intervals import wilson_interval
from timm_compat.methods.logistic import LogisticFit, fit_logistic
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.passes import passes
from timm_compat.models.run_options import RunKeywords, RunOptions
from timm_compat.processes import gathered
from timm_compat.seeding import generator
from timm_compat.storage.facts import CROSS_VALIDATION_ACCURACY, TRAINING_ACCURACY

CROSS_VALIDATION, TEST_IMAGES = "cross-validation", "test images"


@dataclass(frozen=True)
class ProbeReport:
    """How well a probe's head does on images that it was not fitted to.

    Attributes:
        accuracy: in [0, 1]; None where no image could be held out.
        interval: Wilson's, 95 %, of the accuracy.
        measured_by: "cross-validation" (every image by a fit without it, at the penalty that this chose, so slightly
            too good) or "test images"; None where no image could be held out.
        num_held_out: images that the accuracy counts.
        num_images: fitted to.
        num_classes: of the head.
        penalty: of the squared weights of scaled features, chosen by cross-validation.
        seconds: in all.
    """

    accuracy: float | None
    interval: tuple[float, float] | None
    measured_by: str | None
    num_held_out: int
    num_images: int
    num_classes: int
    penalty: float
    seconds: float


def linear_probe(
    extractor: CompatExtractor,
    labelled_images: ArrayDataset | ImageDataset,
    *,
    test_images: ArrayDataset | ImageDataset | None = None,
    penalty: float | None = None,
    seed: int = 0,
    **run: Unpack[RunKeywords],
) -> TaskHead:
    """Train a linear head on a frozen extractor with labelled images.

    One pass over the images, then a logistic regression on scaled features, whose penalty is chosen by stratified
    cross-validation (``methods/logistic.py``); the scaling becomes part of the head. Memory grows with the features,
    (N, D) of float32, not with the images. Under ``accelerate launch`` the processes divide the images.

    Args:
        extractor: any; at level "map" its features are averaged over positions.
        labelled_images: of at least two classes, with an image of each.
        test_images: to measure accuracy on, in place of cross-validation; their classes are matched by name.
        penalty: weight of the squared weights; chosen if None.
        seed: of the cross-validation's folds.
        **run: ``device``, ``batch_size``, ``amp``, ``workers``, ``progress`` (see ``RunOptions``).

    Returns:
        A head in evaluation mode on the extractor's device, with ``fit_report`` set (``ProbeReport``).

    Raises:
        ConfigError: a setting out of range, or a device that is not available.
        DataError: fewer than two classes, a class without images, test images of classes that the head does not know,
            or an image that cannot be decoded.

    Example:
        >>> extractor = tc.create_extractor("test_resnet", tc.CompatSpace(64), in_chans=1, img_size=32)
        >>> head = tc.linear_probe(extractor, tc.data.load_digits("train").subset(range(200)))
        >>> head.num_classes, head.fit_report.measured_by
        (10, 'cross-validation')
    """
    start, options = time.perf_counter(), RunOptions(**run)
    names = labelled_images.class_names
    _check_classes(labelled_images)
    expected = None if test_images is None else _positions(test_images, names)
    features = pooled_features(extractor, labelled_images, options, "probe")
    draw = generator(seed, "probe")
    fit = fit_logistic(
        features, labelled_images.labels.cpu(), len(names), penalty=penalty, generator=draw, overwrite=True
    )
    if test_images is not None and expected is not None:
        told = fit.classes(pooled_features(extractor, test_images, options, "test")) == expected
        measured: Any = _measured(told, TEST_IMAGES)
    elif fit.correct is not None:
        measured = _measured(fit.correct[fit.held_out], CROSS_VALIDATION)
    else:
        measured = {"accuracy": None, "interval": None, "measured_by": None, "num_held_out": 0}
    head = fitted_head(extractor, names, fit, seed)
    head.fit_report = ProbeReport(
        **measured,
        num_images=len(labelled_images),
        num_classes=len(names),
        penalty=fit.penalty,
        seconds=time.perf_counter() - start,
    )
    return head


def fitted_head(extractor: CompatExtractor, names: Sequence[str], fit: LogisticFit, seed: int) -> TaskHead:
    """The fit as a head of the extractor's space, in evaluation mode on its device."""
    head = TaskHead(extractor.space, names).to(extractor.device).eval()
    head.classifier.load_state_dict({"weight": fit.weight, "bias": fit.bias})
    training = {"method": "linear probe", "images": len(fit.held_out), "penalty": fit.penalty, "seed": seed}
    if fit.accuracies is not None:  # by these join lowers what it states of images that the head learned from
        seen, unseen = (round(share, 4) for share in fit.accuracies)
        training |= {TRAINING_ACCURACY: seen, CROSS_VALIDATION_ACCURACY: unseen}
    head.facts = replace(head.facts, training=training)
    return head


def pooled_features(
    extractor: CompatExtractor, images: ArrayDataset | ImageDataset, options: RunOptions, description: str
) -> Tensor:
    """Features (N, D) of a labelled set on the CPU, float32; those at level "map" averaged over positions."""
    size = extractor.space.feature_dim
    rows, positions, filled = torch.empty(len(images), size), torch.empty(len(images), dtype=torch.int64), 0
    for passed in passes([extractor], images, options=options, description=description):
        block = slice(filled, filled + len(passed.positions))
        rows[block] = passed.outputs[0].flatten(2).mean(dim=2) if passed.outputs[0].ndim == 4 else passed.outputs[0]
        positions[block] = passed.positions
        filled = block.stop
    return gathered(rows[:filled], positions[:filled], len(images))


def _check_classes(images: ArrayDataset | ImageDataset) -> None:
    names = images.class_names
    if len(names) < 2:
        raise DataError(f"probe: expected images of at least two classes, got {', '.join(names) or 'none'} only")
    counts = torch.bincount(images.labels.cpu(), minlength=len(names))
    empty = [name for name, count in zip(names, counts.tolist(), strict=True) if not count]
    if empty:
        shown = ", ".join(empty[:3]) + (f" and {len(empty) - 3} more" if len(empty) > 3 else "")
        raise DataError(
            f"probe: expected an image of each of the {len(names)} classes, got none of {shown}; add some, or leave "
            "the class out: dataset.of_classes([...])"
        )


def _positions(test: ArrayDataset | ImageDataset, names: tuple[str, ...]) -> Tensor:
    indices = {name: index for index, name in enumerate(names)}
    unknown = sorted({test.class_names[label] for label in test.labels.unique().tolist()} - indices.keys())
    if unknown:
        raise DataError(
            f"probe: expected test images of the head's classes ({', '.join(names[:3])}, ...), got {unknown[0]} and "
            f"{len(unknown) - 1} more that it does not learn; see dataset.of_classes and dataset.renamed"
        )
    return torch.tensor([indices.get(name, -1) for name in test.class_names])[test.labels.cpu()]


def _measured(told: Tensor, by: str) -> dict[str, Any]:
    share = float(told.float().mean())
    return {
        "accuracy": share,
        "interval": wilson_interval(share, len(told)),
        "measured_by": by,
        "num_held_out": len(told),
    }
