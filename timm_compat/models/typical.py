"""A network's typical features, without any image: from the statistics of its BatchNorm layers."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from timm_compat.errors import ImageError
from timm_compat.models.backbone import Backbone

IMAGES = 8
LEAST_SIDE = 64
RANGE = 1.7  # normalised images are uniform in +- this: variance 1


@torch.no_grad()
def typical_mean(backbone: Backbone) -> Tensor | None:
    """Estimated mean (F,) of pooled features over the images that a network learned from; None without BatchNorm.

    Random images pass the network while every BatchNorm normalises by the statistics of the batch, so that every layer
    gets features of the mean and variance that it is used to. On ImageNet photos of EfficientNet-Lite the mean is off
    by 0.2 of the features' spread; 30 photos of another kind do not tell it better. Rounded to bfloat16, so that the
    same weights give the same numbers on any machine.
    """
    if backbone.level != "pooled" or not _keeping_statistics(backbone):
        return None
    network: Any = copy.deepcopy(backbone).double().cpu().eval()
    for layer in _keeping_statistics(network):
        layer.training, layer.track_running_stats = True, False
    try:
        mean = network(_noise(backbone.input_size, half=not backbone.fixed_size)).mean(dim=0)
    except ImageError:  # kernels and blocks that ask for more: half the side is only quicker
        mean = network(_noise(backbone.input_size, half=False)).mean(dim=0)
    return mean.bfloat16().float() if bool(mean.isfinite().all()) else None


def _noise(input_size: Sequence[int], *, half: bool) -> Tensor:
    channels, *size = input_size
    if half:
        size = [min(side, max(LEAST_SIDE, side // 2)) for side in size]
    draw = torch.rand((IMAGES, channels, *size), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (2 * draw - 1) * RANGE


def _keeping_statistics(network: nn.Module) -> list[_BatchNorm]:
    return [part for part in network.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
