"""Ways to make two independently trained networks compatible afterwards, on precomputed features.

Each is a function of the joining network's features and those of the network that a head belongs to.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from timm_compat.errors import DataError
from timm_compat.methods.logistic import fit_logistic
from timm_compat.methods.ridge import Moments, fit_ridge
from timm_compat.models.evaluating import evaluating
from timm_compat.models.heads import TaskHead
from timm_compat.seeding import generator

HELD_OUT_EVERY = 10
STITCHING_BATCH = 256
STITCHING_LEARNING_RATE = 1e-2
LEAST_SPREAD = 1e-12


@dataclass(frozen=True)
class LinearMap:
    """y = W x + b.

    Attributes:
        weight: (D, F).
        bias: (D,).
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features (N, F) to (N, D), float32."""
        return F.linear(features, self.weight.float(), self.bias.float())


def least_squares(source: Tensor, target: Tensor) -> LinearMap:
    """The affine map with the least squared error, ridge penalty chosen on every tenth image.

    Lähner and Moeller, UniReps 2023 (https://arxiv.org/abs/2310.13018) and Maiorca et al., NeurIPS 2023
    (https://arxiv.org/abs/2311.00664, "linear"), with the regularisation of ``methods.ridge``.

    Args:
        source: (N, F), the joining network's features.
        target: (N, D), the other's, of the same images.

    Raises:
        DataError: fewer than 20 images, or sides of different lengths.
    """
    _check_paired(source, target)
    held_out = torch.arange(len(source)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    fitted, chosen = (Moments(source.shape[1], target.shape[1]) for _ in range(2))
    fitted.add(source[~held_out], target[~held_out])
    chosen.add(source[held_out], target[held_out])
    ridge = fit_ridge(fitted, chosen)
    return LinearMap(ridge.weight, ridge.bias)


def procrustes(source: Tensor, target: Tensor) -> LinearMap:
    """Rotation (or reflection), one scale and a shift with the least squared error.

    With centred X and Y and the singular value decomposition X'Y = U S V', the map is s V U' (x - mean x) + mean y with
    s = tr S / |X|^2; Schönemann, Psychometrika 1966, as a map between networks: Maiorca et al., NeurIPS 2023
    (https://arxiv.org/abs/2311.00664, "ortho"). Where F and D differ, the smaller side is embedded in the larger.

    Args:
        source: (N, F), the joining network's features.
        target: (N, D), the other's, of the same images.

    Raises:
        DataError: fewer than 20 images, or sides of different lengths.
    """
    _check_paired(source, target)
    x, y = source.double(), target.double()
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    u, values, vt = torch.linalg.svd((x - mean_x).T @ (y - mean_y), full_matrices=False)
    scale = values.sum() / (x - mean_x).square().sum().clamp(min=LEAST_SPREAD)
    weight = scale * (vt.T @ u.T)
    return LinearMap(weight, mean_y - weight @ mean_x)


def stitching(source: Tensor, positions: Tensor, head: TaskHead, *, epochs: int, seed: int = 0) -> LinearMap:
    """A linear layer trained with labels between a frozen extractor and a frozen head.

    Bansal, Nakkiran and Barak, NeurIPS 2021 (https://arxiv.org/abs/2106.07682): cross-entropy through the head. AdamW
    on standardised features, learning rate falling linearly from 0.01.

    Args:
        source: (N, F), the joining network's features.
        positions: (N,), true classes among the head's.
        head: frozen; left as it is.
        epochs: passes over the features.
        seed: of the layer's start and the order of the images.

    Raises:
        DataError: no image.
    """
    if not len(source):
        raise DataError("stitching: expected labelled images, got none")
    draw = generator(seed, "stitching")
    mean, scale = source.mean(dim=0), 1 / source.std(dim=0, unbiased=False).clamp(min=LEAST_SPREAD**0.5)
    inputs = (source - mean) * scale
    fan_in, device = source.shape[1], head.device
    weight = torch.randn(head.space.feature_dim, fan_in, generator=draw) / fan_in**0.5
    layer = [weight.to(device).requires_grad_(), torch.zeros(len(weight), device=device, requires_grad=True)]
    optimizer = torch.optim.AdamW(layer, lr=STITCHING_LEARNING_RATE)
    steps = epochs * -(-len(source) // STITCHING_BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    with evaluating(head), torch.enable_grad():
        for _ in range(epochs):
            for batch in torch.randperm(len(source), generator=draw).split(STITCHING_BATCH):
                logits = head(F.linear(inputs[batch].to(device), *layer))
                # Only the layer's gradients are asked for: the head's own stay as the caller left them.
                loss = F.cross_entropy(logits, positions[batch].to(device))
                for parameter, gradient in zip(layer, torch.autograd.grad(loss, layer), strict=True):
                    parameter.grad = gradient
                optimizer.step()
                schedule.step()
    weight, bias = (parameter.detach().cpu() for parameter in layer)
    return LinearMap(weight * scale, bias - (weight * scale) @ mean)


def relative_features(features: Tensor, anchors: Tensor) -> Tensor:
    """Cosines to the features of anchor images: (N, F) and (K, F) to (N, K).

    Moschella et al., ICLR 2023 (https://arxiv.org/abs/2209.15430), eq. 1. Networks that differ by a rotation and a
    scale of their features give the same.
    """
    return F.normalize(features.float(), dim=1) @ F.normalize(anchors.float(), dim=1).T


def fitted_classes(
    train: Tensor, positions: Tensor, test: Tensor, *, standardize: bool = True, penalty: float | None = None
) -> NDArray[np.int64]:
    """Classes (M,) that a logistic regression, trained with labels on features (N, F), gives to features (M, F).

    Args:
        train: (N, F).
        positions: (N,), their classes.
        test: (M, F).
        standardize: whether features are scaled first (``methods.logistic``).
        penalty: likewise; chosen by cross-validation if None.
    """
    known, labels = positions.unique(return_inverse=True)
    if len(known) == 1:
        return np.full(len(test), int(known), dtype=np.int64)
    draw = generator(0, "fitted classes")
    fit = fit_logistic(train, labels, len(known), penalty=penalty, standardize=standardize, generator=draw)
    predicted: NDArray[np.int64] = known[fit.classes(test)].numpy()
    return predicted


def _check_paired(source: Tensor, target: Tensor) -> None:
    if len(source) != len(target) or len(source) < 2 * HELD_OUT_EVERY:
        raise DataError(
            f"expected features of the same images, at least {2 * HELD_OUT_EVERY}, got {len(source)} and {len(target)}"
        )
