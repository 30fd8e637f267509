"""The interface: the place where compatible components meet.

A linear projection of the backbone's features to the space's D dimensions, then a normalisation without parameters.
With every dimension normalised, a head cannot rely on directions that no shared part determines.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A feature that varies less than this share of the mean variance is standardised by that share: what these images
# hardly use, others may, and it would be all that they are told by.
LEAST_VARIANCE = 0.1


class Interface(nn.Module):
    """Projection and normalisation: (B, F) to (B, D), or (B, F, H', W') to (B, D, H', W').

    Args:
        in_features: F, features of the backbone.
        feature_dim: D, features of the space.
        level: "pooled" or "map" (a 1 x 1 convolution).
        normalization: "batch" (batch statistics in training, running ones otherwise; no affine parameters),
            "layer" (over D, no affine parameters) or "none".
    """

    normalization: Any
    projection: Any

    def __init__(
        self, in_features: int, feature_dim: int, *, level: str = "pooled", normalization: str = "batch"
    ) -> None:
        super().__init__()
        is_map = level == "map"
        self.projection = nn.Conv2d(in_features, feature_dim, 1) if is_map else nn.Linear(in_features, feature_dim)
        if normalization == "batch":
            self.normalization = (nn.BatchNorm2d if is_map else nn.BatchNorm1d)(feature_dim, affine=False)
        elif normalization == "layer":
            self.normalization = ChannelNorm(feature_dim)
        else:
            self.normalization = nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Features of the space."""
        return self.normalization(self.projection(as_weights(features, self.projection.weight)))

    def folded(self) -> tuple[Tensor, Tensor] | None:
        """Weight (D, F) and bias (D,) of the one linear map that the interface is in evaluation, in float64.

        None where the normalisation depends on the sample ("layer").
        """
        weight = self.projection.weight.detach().double().flatten(1)
        bias = self.projection.bias.detach().double()
        norm = self.normalization
        if isinstance(norm, nn.Identity):
            return weight, bias
        if isinstance(norm, ChannelNorm):
            return None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        return weight * scale[:, None], (bias - norm.running_mean.double()) * scale

    @torch.no_grad()
    def set_linear(self, weight: Tensor, bias: Tensor) -> None:
        """Make the interface this linear map in evaluation (before "layer" normalisation): (D, F) and (D,)."""
        self.projection.weight.copy_(weight.reshape(self.projection.weight.shape))
        self.projection.bias.copy_(bias)
        norm = self.normalization
        if not isinstance(norm, (nn.Identity, ChannelNorm)):
            norm.reset_running_stats()
            norm.running_var.fill_(1 - norm.eps)

    @torch.no_grad()
    def standardize(self, mean: Tensor, variance: Tensor) -> None:
        """Give "batch" normalisation these statistics (D,) of projected features: mean 0 and variance 1 afterwards.

        Features that hardly vary keep a smaller variance (``LEAST_VARIANCE``).
        """
        norm = self.normalization
        least = max(LEAST_VARIANCE * float(variance.mean()), norm.eps)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance.clamp(min=least) - norm.eps)


def as_weights(values: Tensor, weight: Tensor) -> Tensor:
    """Values in the type of the weights that meet them: parts of half and of single precision work together."""
    return values if autocast_is_on(values) else values.to(weight.dtype)


def autocast_is_on(values: Tensor) -> bool:
    """Whether mixed precision is on where values are; never on "meta", where only shapes are asked for."""
    kind = values.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


class ChannelNorm(nn.Module):
    """LayerNorm over the features of each position, without parameters: (B, D) or (B, D, H', W')."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim

    def forward(self, features: Tensor) -> Tensor:
        """Features of mean 0 and variance 1 over D."""
        last = features.movedim(1, -1)
        return F.layer_norm(last, (self.feature_dim,)).movedim(-1, 1)
