"""Join: a frozen backbone becomes an extractor of an existing space, on unlabelled images, in seconds."""

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from timm_compat.data.arrays import ArrayDataset, image_batches
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.data.transforms import shared_data_config
from timm_compat.errors import ConfigError
from timm_compat.methods.linear_cka import linear_cka
from timm_compat.methods.ridge import fit_ridge
from timm_compat.methods.self_training import Head, self_trained
from timm_compat.methods.shifted_images import mirrored, shifted
from timm_compat.models.extractor import CompatExtractor, create_extractor
from timm_compat.models.features import BATCH_SIZE, evaluating, prepare
from timm_compat.models.heads import TaskHead
from timm_compat.models.unwrapping import unwrapped
from timm_compat.seeding import generator
from timm_compat.space import CompatSpace
from timm_compat.training.join_pool import Pool
from timm_compat.training.join_report import JoinReport, agreement, explained, warn_where_poor

# Self-training is kept while held-out agreement with the reference falls by less: a backbone that is better than the
# reference must disagree with it now and then. CIFAR-10: 0.02 less at most, where accuracy rose by 0.3 to 1.9 points.
AGREEMENT_GIVEN_UP = 0.03
SHIFTED_IMAGES = 2_000  # beyond these a pool needs no shifted copies


@torch.no_grad()
def join(
    space: CompatSpace,
    model: str | nn.Module,
    images: Tensor | ArrayDataset | ImageDataset | Iterable[Tensor],
    *,
    reference: CompatExtractor,
    heads: Sequence[TaskHead] = (),
    augment: bool = True,
    self_training: bool = True,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    seed: int = 0,
    **create_arguments: Any,
) -> CompatExtractor:
    """Make a frozen backbone compatible with a space: its interface is fitted to give the reference's features.

    One pass over the images; the fit is a ridge regression in closed form, refined through the given heads. Labels
    are not used. All heads of the space then run on the new extractor. Memory does not grow with the number of images.

    Args:
        space: a level "pooled" space.
        model: a name for ``timm.create_model``, or a model that timm built (copied).
        images: raw images (N, C, h, w) of uint8, a data set (its labels are not looked at), or batches of images;
            those most like the heads' own data serve best.
        reference: an extractor of the space.
        heads: heads of the space that are to run on the result. The fit is refined for them, and the report tells
            how often they agree.
        augment: whether both networks see the images mirrored too, and the first 2,000 shifted as well. These samples
            take part where they lower the error on held-out images as they are; a pass takes twice the time or more.
        self_training: whether the fit goes on through the given heads: reference and new backbone together label the
            first 5,000 images, and the interface is fitted to these labels (``methods/self_training.py``), unless
            they then agree clearly less on held-out images.
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
    reference, heads = unwrapped(reference), [unwrapped(head) for head in heads]
    space.require_same(reference.space, "the space", "the reference extractor")
    for head in heads:
        space.require_same(head.space, "the space", f"the head over {', '.join(head.class_names[:3])}, ...")
    if space.level != "pooled":
        raise ConfigError('join: expected a space of level "pooled", got level "map"; train the member instead')
    extractor = create_extractor(model, space, trainable="adapter", **create_arguments)
    extractor.to(reference.preprocess.mean.device).eval()
    decoded = isinstance(images, ImageDataset)
    size = shared_data_config(extractor.data_config, reference.data_config) if decoded else None
    pool = Pool(extractor.backbone.num_features, space.feature_dim)
    shifts = 2 * torch.rand(SHIFTED_IMAGES, 2, 2, generator=generator(seed, "join")) - 1
    with evaluating(reference):
        for batch in image_batches(images, batch_size, size, workers=workers):
            first = pool.num_images
            pool.add(*_features(extractor, reference, batch))
            for altered, numbers in _altered(batch, shifts[first : first + len(batch)]) if augment else ():
                pool.add_altered(*_features(extractor, reference, altered), first + numbers)
    report = _fit(extractor, pool, heads, self_training, start)
    extractor.fit_report = report
    made = {"method": "joined in closed form", "images": report.num_images, "seed": seed, "r2": round(report.r2, 4)}
    extractor.facts = replace(extractor.facts, training=made)
    warn_where_poor(extractor.architecture, report, stacklevel=4)  # torch.no_grad wraps join
    return extractor


def _features(extractor: CompatExtractor, reference: CompatExtractor, images: Tensor) -> tuple[Tensor, Tensor]:
    inputs, targets = extractor.backbone(prepare(extractor, images)), reference(prepare(reference, images))
    return inputs.float(), targets.float()


def _altered(images: Tensor, shifts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    # Altered copies, and the places of their originals in the batch.
    everywhere = torch.arange(len(images))
    yield mirrored(images), everywhere
    if len(shifts):
        some = images[: len(shifts)]
        yield shifted(some, shifts[:, 0]), everywhere[: len(shifts)]
        yield shifted(mirrored(some), shifts[:, 1]), everywhere[: len(shifts)]


def _fit(
    extractor: CompatExtractor, pool: Pool, heads: Sequence[TaskHead], self_training: bool, start: float
) -> JoinReport:
    ridge = fit_ridge(pool.fitted, pool.held_out, pool.altered)
    readers = [_reader(extractor, head) for head in heads]
    interface, (inputs, targets) = extractor.interface, pool.kept(held_out=True)

    def refined(weight: Tensor, bias: Tensor, held_out: bool | None) -> tuple[Tensor, Tensor]:
        x, t = pool.kept(held_out=held_out, altered=ridge.extended)
        return self_trained(x, t, weight.to(x), bias.to(x), readers)

    interface.set_linear(ridge.trial_weight, ridge.trial_bias)
    joined, result = interface(inputs), (ridge.weight, ridge.bias)
    share = agreement(joined, targets, readers) if readers else None
    if share is not None and self_training:
        interface.set_linear(*refined(ridge.trial_weight, ridge.trial_bias, held_out=False))
        refined_share = agreement(interface(inputs), targets, readers)
        if refined_share >= share - AGREEMENT_GIVEN_UP:
            share, result = refined_share, refined(ridge.weight, ridge.bias, held_out=None)
    interface.set_linear(*result)
    return JoinReport(
        r2=explained(joined, targets),
        cka=linear_cka(joined, targets),
        agreement=share,
        shift=pool.shift() if extractor.space.normalization == "batch" else None,
        penalty=ridge.penalty,
        num_images=pool.num_images,
        seconds=time.perf_counter() - start,
    )


def _reader(extractor: CompatExtractor, head: TaskHead) -> Head:
    """From the interface's linear map to the logits of a frozen copy of the head."""
    ready = copy.deepcopy(head).to(extractor.preprocess.mean.device).eval().requires_grad_(False)
    return lambda features: ready(extractor.interface.normalization(features))
