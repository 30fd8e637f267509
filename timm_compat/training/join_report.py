"""How well a joined backbone fits a space, and the warning where it fits poorly."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from timm_compat.methods.ridge import LEAST_SPREAD
from timm_compat.methods.self_training import Head

LOW_R2 = 0.3
LOW_AGREEMENT = 0.4
FEW_IMAGES = 100
# CIFAR-10: 0.01 on 100 images like those learned from, 0.03 on its other classes, 0.2 on one class alone, 0.3 blurred,
# 0.5 on darkened images and on digits, 1.4 on noise.
FAR_SHIFT = 0.15


@dataclass(frozen=True)
class JoinReport:
    """How well a joined extractor reproduces the reference, measured on held-out images before the final fit on all.

    Attributes:
        r2: share of the reference features' variance that the regression explains; 1 is perfect.
        cka: linear CKA between its features and the reference's, in [0, 1] (``methods/linear_cka.py``).
        agreement: share of images of which a head says the same from the joined and the reference's features, mean
            over the given heads; None without heads. Two networks that were trained independently seldom agree on
            more than they get right.
        shift: how far the images are from those that the reference learned from: mean square of its features' means,
            which lie at 0 there, with variance 1; None where the space does not normalise by "batch".
        penalty: the ridge penalty chosen.
        num_images: unlabelled images used.
        seconds: in all.
    """

    r2: float
    cka: float
    agreement: float | None
    shift: float | None
    penalty: float
    num_images: int
    seconds: float


def explained(features: Tensor, targets: Tensor) -> float:
    """R^2 of features (n, D) against targets (n, D), over all dimensions together."""
    spread = (targets - targets.mean(dim=0)).square().sum().clamp(min=LEAST_SPREAD)
    return float(1 - (features - targets).square().sum() / spread)


def agreement(features: Tensor, targets: Tensor, heads: Sequence[Head]) -> float:
    """Share of the samples of which a head says the same from both (n, D), mean over the heads."""
    shares = [(head(features).argmax(dim=1) == head(targets).argmax(dim=1)).float().mean() for head in heads]
    return float(torch.stack(shares).mean())


def warn_where_poor(architecture: str, report: JoinReport, stacklevel: int) -> None:
    """Warn where low accuracy is to be expected."""
    faults = []
    if report.num_images < FEW_IMAGES:
        faults.append(f"was fitted on only {report.num_images} images")
    if report.shift is not None and report.shift > FAR_SHIFT:
        faults.append(f"was fitted on images unlike those that the reference learned from (shift {report.shift:.2f})")
    if report.r2 < LOW_R2:
        faults.append(f"explains only {report.r2:.2f} of the reference features' variance on held-out images")
    if report.agreement is not None and report.agreement < LOW_AGREEMENT:
        faults.append(f"makes the heads predict what they did on only {report.agreement:.0%} of held-out images")
    if faults:
        warnings.warn(
            f"join: {architecture} {' and '.join(faults)}; expect lower accuracy. Give more images than "
            f"{report.num_images} (a few hundred at least), images nearer to the heads' own data, or a backbone that "
            "tells their classes apart",
            stacklevel=stacklevel,
        )
