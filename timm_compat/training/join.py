"""Join: a frozen backbone becomes an extractor of an existing space, on unlabelled images, in closed form."""

import copy
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from timm_compat.data.arrays import ArrayDataset, image_batches
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.data.transforms import shared_data_config
from timm_compat.errors import ConfigError
from timm_compat.methods.linear_cka import linear_cka
from timm_compat.methods.ridge import LEAST_SPREAD, Moments, fit_ridge
from timm_compat.methods.shifted_images import mirrored, shifted
from timm_compat.models.extractor import CompatExtractor, create_extractor
from timm_compat.models.features import BATCH_SIZE, evaluating, prepare
from timm_compat.models.heads import TaskHead
from timm_compat.seeding import generator
from timm_compat.space import CompatSpace

HELD_OUT_EVERY = 5
KEPT_IMAGES = 20_000  # those held out of these are kept as features, for the report
SHIFTED_IMAGES = 2_000  # beyond these a pool needs no shifted copies
LOW_R2 = 0.3
LOW_AGREEMENT = 0.4
FEW_IMAGES = 100


@dataclass(frozen=True)
class JoinReport:
    """How well a joined extractor reproduces the reference, measured on held-out images before the final fit on all.

    Attributes:
        r2: share of the reference features' variance explained; 1 is perfect.
        cka: linear CKA between the joined and the reference's features, in [0, 1] (``methods/linear_cka.py``).
        agreement: share of images of which a head says the same from both features, mean over the given heads; None
            without heads. Two networks that were trained independently seldom agree on more than they get right.
        penalty: the ridge penalty chosen.
        num_images: unlabelled images used.
        seconds: in all.
    """

    r2: float
    cka: float
    agreement: float | None
    penalty: float
    num_images: int
    seconds: float


@torch.no_grad()
def join(
    space: CompatSpace,
    model: str | nn.Module,
    images: Tensor | ArrayDataset | ImageDataset | Iterable[Tensor],
    *,
    reference: CompatExtractor,
    heads: Sequence[TaskHead] = (),
    augment: bool = True,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    seed: int = 0,
    **create_arguments: Any,
) -> CompatExtractor:
    """Make a frozen backbone compatible with a space: its interface is fitted to give the reference's features.

    One pass over the images; the fit is a ridge regression. Labels are not used. The existing heads of the space
    then run on the new extractor. Memory does not grow with the number of images.

    Args:
        space: a level "pooled" space.
        model: a name for ``timm.create_model``, or a model that timm built (copied).
        images: raw images (N, C, h, w) of uint8, a data set (its labels are not looked at), or batches of images;
            those most like the heads' own data serve best.
        reference: an extractor of the space.
        heads: heads of the space that are to run on the result, for the report and its warning; the fit does not
            depend on them.
        augment: whether both networks see the images mirrored too, and the first 2,000 shifted as well. These samples
            take part where they lower the error on held-out images as they are; a pass takes twice the time or more.
        batch_size: images at a time, where a tensor or data set came.
        workers: processes that decode an ``ImageDataset``.
        seed: of the shifts.
        **create_arguments: for ``create_extractor``, such as ``pretrained``, ``img_size`` and timm's own keywords.

    Returns:
        An extractor in evaluation mode, ``trainable="adapter"``, with ``fit_report`` set.

    Raises:
        BackboneError: the backbone cannot be built.
        ConfigError: the space's level is "map".
        DataError: fewer than 10 images, one that cannot be decoded, or image files for networks of different numbers
            of channels.
        SpaceMismatchError: the reference or a head lives in another space.
    """
    start = time.perf_counter()
    space.require_same(reference.space, "the space", "the reference extractor")
    for head in heads:
        space.require_same(head.space, "the space", f"the head over {', '.join(head.class_names[:3])}, ...")
    if space.level != "pooled":
        raise ConfigError('join: expected a space of level "pooled", got level "map"; train the member instead')
    extractor = create_extractor(model, space, trainable="adapter", **create_arguments)
    extractor.to(reference.preprocess.mean.device).eval()
    decoded = isinstance(images, ImageDataset)
    size = shared_data_config(extractor.data_config, reference.data_config) if decoded else None
    pool = _Pool(extractor.backbone.num_features, space.feature_dim)
    shifts = 2 * torch.rand(SHIFTED_IMAGES, 2, 2, generator=generator(seed, "join")) - 1
    with evaluating(reference):
        for batch in image_batches(images, batch_size, size, workers=workers):
            first = pool.num_images
            pool.add(*_features(extractor, reference, batch))
            for altered, numbers in _altered(batch, shifts[first : first + len(batch)]) if augment else ():
                pool.add_altered(*_features(extractor, reference, altered), first + numbers)
    report = _fit(extractor, pool, heads, start)
    extractor.fit_report = report
    made = {"method": "joined in closed form", "images": report.num_images, "seed": seed, "r2": round(report.r2, 4)}
    extractor.facts = replace(extractor.facts, training=made)
    _warn_where_poor(extractor.architecture, report)
    return extractor


class _Pool:
    """What a pass over the images leaves: sums for the regression, features of some held-out images."""

    def __init__(self, num_inputs: int, num_targets: int) -> None:
        self.num_images = 0
        self.fitted, self.held_out, *altered = (Moments(num_inputs, num_targets) for _ in range(4))
        self.altered = (altered[0], altered[1])
        self._kept: list[tuple[Tensor, Tensor]] = []

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        numbers = torch.arange(self.num_images, self.num_images + len(inputs))
        held_out = _is_held_out(numbers).to(inputs.device)
        self.fitted.add(inputs[~held_out], targets[~held_out])
        self.held_out.add(inputs[held_out], targets[held_out])
        if self.num_images < KEPT_IMAGES:
            self._kept.append((inputs[held_out], targets[held_out]))
        self.num_images += len(inputs)

    def add_altered(self, inputs: Tensor, targets: Tensor, numbers: Tensor) -> None:
        held_out = _is_held_out(numbers).to(inputs.device)
        for moments, chosen in zip(self.altered, (~held_out, held_out), strict=True):
            moments.add(inputs[chosen], targets[chosen])

    def kept(self) -> tuple[Tensor, Tensor]:
        """Inputs (n, F) and targets (n, D) of the first held-out images."""
        inputs, targets = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
        return inputs, targets


def _is_held_out(numbers: Tensor) -> Tensor:
    return numbers % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def _features(extractor: CompatExtractor, reference: CompatExtractor, images: Tensor) -> tuple[Tensor, Tensor]:
    return extractor.backbone(prepare(extractor, images)), reference(prepare(reference, images))


def _altered(images: Tensor, shifts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    # Altered copies, and the places of their originals in the batch.
    everywhere = torch.arange(len(images))
    yield mirrored(images), everywhere
    if len(shifts):
        some = images[: len(shifts)]
        yield shifted(some, shifts[:, 0]), everywhere[: len(shifts)]
        yield shifted(mirrored(some), shifts[:, 1]), everywhere[: len(shifts)]


def _fit(extractor: CompatExtractor, pool: _Pool, heads: Sequence[TaskHead], start: float) -> JoinReport:
    ridge = fit_ridge(pool.fitted, pool.held_out, pool.altered)
    inputs, targets = pool.kept()
    extractor.interface.set_linear(ridge.trial_weight, ridge.trial_bias)
    joined = extractor.interface(inputs)
    extractor.interface.set_linear(ridge.weight, ridge.bias)
    spread = (targets - targets.mean(dim=0)).square().sum().clamp(min=LEAST_SPREAD)
    return JoinReport(
        r2=float(1 - (joined - targets).square().sum() / spread),
        cka=linear_cka(joined, targets),
        agreement=_agreement(joined, targets, heads),
        penalty=ridge.penalty,
        num_images=pool.num_images,
        seconds=time.perf_counter() - start,
    )


def _agreement(features: Tensor, targets: Tensor, heads: Sequence[TaskHead]) -> float | None:
    if not heads:
        return None
    ready = [copy.deepcopy(head).to(features.device).eval() for head in heads]
    shares = [(head(features).argmax(dim=1) == head(targets).argmax(dim=1)).float().mean() for head in ready]
    return float(torch.stack(shares).mean())


def _warn_where_poor(architecture: str, report: JoinReport) -> None:
    faults = []
    if report.num_images < FEW_IMAGES:
        faults.append(f"was fitted on only {report.num_images} images")
    if report.r2 < LOW_R2:
        faults.append(f"explains only {report.r2:.2f} of the reference features' variance on held-out images")
    if report.agreement is not None and report.agreement < LOW_AGREEMENT:
        faults.append(f"makes the heads predict what they did on only {report.agreement:.0%} of held-out images")
    if faults:
        warnings.warn(
            f"join: {architecture} {' and '.join(faults)}; expect lower accuracy. Give more images than "
            f"{report.num_images} (a few hundred at least), images nearer to the heads' own data, or a backbone that "
            "tells their classes apart",
            stacklevel=4,  # torch.no_grad wraps join
        )
