"""One pass over raw images: the features of a space, or those of the frozen backbone before the interface."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from timm_compat.data.arrays import ArrayDataset, image_batches
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.models.extractor import CompatExtractor

BATCH_SIZE = 256


@torch.no_grad()
def extract_features(
    extractor: CompatExtractor,
    images: Tensor | ArrayDataset | ImageDataset | Iterable[Tensor],
    batch_size: int = BATCH_SIZE,
    *,
    workers: int = 0,
) -> Tensor:
    """Features of raw images in evaluation mode, on the extractor's device.

    Args:
        extractor: preprocesses the images itself.
        images: (N, C, h, w) of uint8, a data set, or an iterable of such batches.
        batch_size: images at a time, where a tensor or data set came.
        workers: processes that decode an ``ImageDataset``.

    Returns:
        (N, D), or (N, D, H', W') at level "map".

    Raises:
        DataError: no image, or one that cannot be decoded.
        ImageError: another rank, number of channels or dtype.
    """
    framed = isinstance(images, ImageDataset)
    with evaluating(extractor):
        batches = image_batches(images, batch_size, extractor.data_config, workers=workers)
        return torch.cat([extractor(prepare(extractor, batch, framed)) for batch in batches])


def prepare(extractor: CompatExtractor, images: Tensor, framed: bool = False) -> Tensor:
    """Raw images on the extractor's device, framed and normalised; decoded files are ``framed`` already."""
    return extractor.preprocess(images.to(extractor.preprocess.mean.device), framed)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode for a block; afterwards the modules are as they were."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode
