"""BatchNorm statistics of another domain: every layer's running mean and variance are measured again.

Weights stay as they are, and no label is needed: AdaBN, Li et al., Pattern Recognition 2018
(https://arxiv.org/abs/1603.04779).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from timm_compat.errors import ConfigError
from timm_compat.models.evaluating import evaluating


@torch.no_grad()
def measure_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of every BatchNorm layer to their mean over batches; other layers are left alone.

    Args:
        network: changed in place, its mode is not.
        batches: inputs (b, ...) of the network, at least two images each.

    Raises:
        ConfigError: no BatchNorm layer that keeps statistics.
    """
    layers = [part for part in network.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    if not layers:
        raise ConfigError(
            "batch statistics: expected a network with BatchNorm, got one without; leave out what re-estimates them"
        )
    momenta = [layer.momentum for layer in layers]
    with evaluating(network):  # dropout and the like must not disturb what is measured
        try:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # a plain mean over batches
                layer.train()
            for batch in batches:
                network(batch)
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
