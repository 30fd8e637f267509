"""One pass over raw images: the features of a space, or those of the frozen backbone before the interface."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from timm_compat.data.arrays import ArrayDataset, image_batches
from timm_compat.models.extractor import CompatExtractor

BATCH_SIZE = 256


@torch.no_grad()
def extract_features(
    extractor: CompatExtractor, images: Tensor | ArrayDataset | Iterable[Tensor], batch_size: int = BATCH_SIZE
) -> Tensor:
    """Features of raw images in evaluation mode, on the extractor's device.

    Args:
        extractor: preprocesses the images itself.
        images: (N, C, h, w) of uint8, a data set, or an iterable of such batches.
        batch_size: images at a time, where a tensor or data set came.

    Returns:
        (N, D), or (N, D, H', W') at level "map".

    Raises:
        DataError: no image.
        ImageError: another rank, number of channels or dtype.
    """
    with evaluating(extractor):
        return torch.cat([extractor(prepare(extractor, batch)) for batch in image_batches(images, batch_size)])


def prepare(extractor: CompatExtractor, images: Tensor) -> Tensor:
    """Raw images on the extractor's device, normalised."""
    return extractor.preprocess(images.to(extractor.preprocess.mean.device))


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode for a block; afterwards the modules are as they were."""
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)
