"""Settings of a training run: frozen, checked when made."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_compat.errors import ConfigError

MIXED_PRECISION = ("no", "fp16", "bf16")


@dataclass(frozen=True)
class TrainConfig:
    """How members are trained.

    Attributes:
        epochs: passes over the largest member's data set.
        batch_size: images a step and member, over all processes.
        optimizer: timm's name of an optimiser.
        learning_rate: highest value; linear warm-up, then half a cosine to zero.
        warmup_fraction: share of the steps that warm up.
        weight_decay: of extractors and auxiliary heads.
        head_weight_decay: of task heads' weights. Large on purpose: it removes what a private head learns from
            directions that no shared part pins down.
        rotation_fraction: share of each batch that is also seen rotated, where the space shares a rotation head.
        rotation_weight: factor of the rotation loss.
        vocabulary_weight: factor of the common-classes (or simplex) loss.
        random_crop: pixels by which training images are shifted.
        random_flip: whether training images are mirrored at random.
        mixed_precision: "no", "fp16" or "bf16".
        seed: of batches, augmentation and rotations.
        output_dir: where the trained components are saved; nowhere if None.

    Raises:
        ConfigError: a value out of range.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    warmup_fraction: float = 0.05
    weight_decay: float = 0.05
    head_weight_decay: float = 5.0
    rotation_fraction: float = 0.25
    rotation_weight: float = 0.3
    vocabulary_weight: float = 1.0
    random_crop: int = 0
    random_flip: bool = False
    mixed_precision: str = "no"
    seed: int = 0
    output_dir: str | Path | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            _check(name, getattr(self, name), int, 1, math.inf)
        _check("random_crop", self.random_crop, int, 0, math.inf)
        for name in ("learning_rate", "weight_decay", "head_weight_decay", "rotation_weight", "vocabulary_weight"):
            _check(name, getattr(self, name), (int, float), 0, math.inf)
        for name in ("warmup_fraction", "rotation_fraction"):
            _check(name, getattr(self, name), (int, float), 0, 1)
        if self.mixed_precision not in MIXED_PRECISION:
            raise ConfigError(
                f"mixed_precision: expected one of {', '.join(MIXED_PRECISION)}, got {self.mixed_precision!r}"
            )


def _check(name: str, value: Any, kind: Any, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most or math.isinf(value):
        expected = "a whole number" if kind is int else "a number"
        limits = f"of at least {least:g}" if math.isinf(most) else f"from {least:g} to {most:g}"
        raise ConfigError(f"{name}: expected {expected} {limits}, got {value!r}")
