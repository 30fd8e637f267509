"""Join: a frozen backbone becomes an extractor of an existing space, on unlabelled images, in closed form."""

import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from timm_compat.data.arrays import ArrayDataset, image_batches
from timm_compat.errors import ConfigError
from timm_compat.methods.ridge import Moments, fit_ridge
from timm_compat.models.extractor import CompatExtractor, create_extractor
from timm_compat.models.features import BATCH_SIZE, evaluating, prepare
from timm_compat.space import CompatSpace

HELD_OUT_EVERY = 5
LOW_R2 = 0.3


@dataclass(frozen=True)
class JoinReport:
    """How well a joined extractor reproduces the reference's features.

    Attributes:
        r2: share of the reference features' variance explained on held-out images; 1 is perfect.
        penalty: the ridge penalty chosen on them.
        num_images: unlabelled images used.
        solve_seconds: for the regression, without the pass over the images.
        seconds: in all.
    """

    r2: float
    penalty: float
    num_images: int
    solve_seconds: float
    seconds: float


@torch.no_grad()
def join(
    space: CompatSpace,
    model: str | nn.Module,
    images: Tensor | ArrayDataset | Iterable[Tensor],
    *,
    reference: CompatExtractor,
    batch_size: int = BATCH_SIZE,
    **create_arguments: Any,
) -> CompatExtractor:
    """Make a frozen backbone compatible with a space: its interface is fitted to give the reference's features.

    Both networks see the images once; the fit is a ridge regression. Labels are not used. The existing heads of the
    space then run on the new extractor.

    Args:
        space: a level "pooled" space.
        model: a name for ``timm.create_model``, or a model that timm built (copied).
        images: raw images (N, C, h, w) of uint8, a data set (its labels are not looked at), or batches of images;
            those most like the heads' own data serve best.
        reference: an extractor of the space.
        batch_size: images at a time, where a tensor or data set came.
        **create_arguments: for ``create_extractor``, such as ``pretrained``, ``img_size`` and timm's own keywords.

    Returns:
        An extractor in evaluation mode, ``trainable="adapter"``, with ``fit_report`` set.

    Raises:
        BackboneError: the backbone cannot be built.
        ConfigError: the space's level is "map".
        DataError: fewer than 4 images.
        SpaceMismatchError: the reference lives in another space.
    """
    start = time.perf_counter()
    space.require_same(reference.space, "the space", "the reference extractor")
    if space.level != "pooled":
        raise ConfigError('join: expected a space of level "pooled", got level "map"; train the member instead')
    extractor = create_extractor(model, space, trainable="adapter", **create_arguments)
    extractor.to(reference.preprocess.mean.device).eval()
    fitting, holding = (Moments(extractor.backbone.num_features, space.feature_dim) for _ in range(2))
    seen = 0
    with evaluating(reference):
        for batch in image_batches(images, batch_size):
            inputs = extractor.backbone(prepare(extractor, batch))
            targets = reference(prepare(reference, batch))
            held_out = torch.arange(seen + 1, seen + len(batch) + 1, device=inputs.device) % HELD_OUT_EVERY == 0
            fitting.add(inputs[~held_out], targets[~held_out])
            holding.add(inputs[held_out], targets[held_out])
            seen += len(batch)
    solving = time.perf_counter()
    ridge = fit_ridge(fitting, holding)
    extractor.interface.set_linear(ridge.weight, ridge.bias)
    end = time.perf_counter()
    extractor.fit_report = JoinReport(ridge.r2, ridge.penalty, seen, end - solving, end - start)
    if ridge.r2 < LOW_R2:
        warnings.warn(
            f"join: {extractor.architecture} explains only {ridge.r2:.2f} of the reference features' variance on "
            f"held-out images; expect lower accuracy, give more images than {seen} or images nearer to the heads' data",
            stacklevel=2,
        )
    return extractor
