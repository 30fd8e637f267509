"""Settings of a training run: frozen, checked when made."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from timm_compat.errors import ConfigError

MIXED_PRECISION = ("no", "fp16", "bf16")
ALIGNMENTS = ("none", "l2", "contrastive")

# Limits of every number: (whole, least, most); infinity itself is refused. None is allowed where the type says so.
_WHOLE = {
    "epochs": 1,
    "batch_size": 1,
    "gradient_accumulation": 1,
    "keep_checkpoints": 1,
    "checkpoint_steps": 1,
    "random_crop": 0,
    "workers": 0,
}
_NOT_NEGATIVE = (
    *("learning_rate", "weight_decay", "head_weight_decay", "rotation_weight", "vocabulary_weight"),
    *("alignment_weight", "alignment_temperature", "influence_weight", "distillation_weight", "clip_grad"),
)
_RANGES = {"scale": 1.0, "ratio": math.inf}  # pairs of least and most, over 0; None is allowed for scale
_SHARES = ("color_jitter", "warmup_fraction", "rotation_fraction", "alignment_fraction", "ema_decay")
_OPTIONAL = ("clip_grad", "ema_decay", "checkpoint_steps")
_SWITCHES = ("all_rotations", "random_flip", "compile", "channels_last", "cache_features")


@dataclass(frozen=True)
class TrainConfig:
    """How members are trained.

    Attributes:
        epochs: passes over the largest member's data set.
        batch_size: images a step and member, over all processes.
        optimizer: timm's name of an optimiser.
        optimizer_arguments: further keywords of ``timm.optim.create_optimizer_v2``.
        learning_rate: highest value.
        scheduler: timm's name of a schedule that follows the step: "cosine", "tanh", "step", "poly" ...; "none".
        scheduler_arguments: further keywords of ``timm.scheduler.create_scheduler_v2``, such as ``min_lr``.
        warmup_fraction: share of the steps in which the learning rate rises linearly.
        weight_decay: of extractors and auxiliary heads.
        head_weight_decay: of task heads' weights. Large on purpose: it removes what a private head learns from
            directions that no shared part pins down. It is meant as AdamW's, apart from the gradient; an optimiser
            that adds the decay to the gradient ("sgd", "adam") gets a tenth of it, which is as strong.
        clip_grad: largest norm of the gradient; no limit if None or 0.
        gradient_accumulation: parts in which a step's batch goes through the networks, to save memory.
        ema_decay: of an exponential moving average of all weights, which then are the result; none if None.
        vocabulary_weight: factor of the common-classes (or simplex) loss.
        rotation_weight: factor of the loss of each self-supervised task of the space: rotation, location, flip.
        rotation_fraction: share of each batch that is also seen changed, drawn anew for each such task.
        all_rotations: whether these images are seen under all four rotations, as in the paper, or under a random one;
            likewise in all four locations and both flips.
        alignment: "l2" or "contrastive" pulls features of one image in two networks together; "none". The negatives of
            the contrastive one are the other aligned images of the same pass: they span neither processes nor the
            parts of ``gradient_accumulation``, and fewer of them align less.
        alignment_weight: factor of the alignment loss. Large ones cost accuracy on the own task.
        alignment_fraction: share of each batch that is aligned.
        alignment_temperature: of the contrastive alignment.
        influence_weight: factor of the backward-compatible loss under the reference's head.
        distillation_weight: factor of the focal distillation from reference and its head.
        random_crop: pixels by which training images, as they are stored, are shifted; black comes in. This and the
            next four are the whole augmentation, of images in memory and of image files alike.
        random_flip: whether half of the training images are mirrored.
        scale: least and most share of an image's area in a random part of it, which is then resized, such as
            (0.08, 1); if None, training images are resized and cropped as for evaluation.
        ratio: least and most width / height of that part.
        color_jitter: largest random change of brightness, contrast and saturation, as a share.
        workers: processes that decode image files.
        cache_features: whether frozen backbones see every image once, without augmentation, where all members are
            adapters.
        cache_dir: folder that keeps those features for later runs; memory only if None.
        mixed_precision: "no", "fp16" or "bf16".
        compile: whether extractors are compiled by ``torch.compile``.
        channels_last: whether images and weights are laid out with channels last.
        seed: of batches, augmentation, self-supervised tasks and dropout.
        output_dir: where checkpoints, log and trained components are written; nowhere if None.
        checkpoint_steps: steps between checkpoints; once an epoch if None.
        keep_checkpoints: how many of the newest are kept.
        best_metric: number of ``validate`` whose best epoch gives the result; the last epoch if None.
        log_with: names of Accelerate's trackers, such as "tensorboard".

    Raises:
        ConfigError: a value out of range.

    Example:
        >>> tc.TrainConfig(epochs=5, alignment="l2").differences(tc.TrainConfig(epochs=5))
        ["alignment: 'l2' / 'none'"]
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "adamw"
    optimizer_arguments: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 2e-3
    scheduler: str = "cosine"
    scheduler_arguments: Mapping[str, Any] = field(default_factory=dict)
    warmup_fraction: float = 0.05
    weight_decay: float = 0.05
    head_weight_decay: float = 5.0
    clip_grad: float | None = None
    gradient_accumulation: int = 1
    ema_decay: float | None = None
    vocabulary_weight: float = 1.0
    rotation_weight: float = 0.3
    rotation_fraction: float = 0.25
    all_rotations: bool = False
    alignment: str = "none"
    alignment_weight: float = 0.2
    alignment_fraction: float = 0.25
    alignment_temperature: float = 0.1
    influence_weight: float = 0.0
    distillation_weight: float = 0.0
    random_crop: int = 0
    random_flip: bool = False
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    color_jitter: float = 0.0
    workers: int = 0
    cache_features: bool = True
    cache_dir: str | Path | None = None
    mixed_precision: str = "no"
    compile: bool = False
    channels_last: bool = False
    seed: int = 0
    output_dir: str | Path | None = None
    checkpoint_steps: int | None = None
    keep_checkpoints: int = 2
    best_metric: str | None = None
    log_with: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if mistakes := list(self._mistakes()):
            raise ConfigError("\n".join(mistakes))
        for name in _RANGES:
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))

    def _mistakes(self) -> Iterator[str]:
        """A line for each, which starts with its setting."""
        for name, least in _WHOLE.items():
            yield from _check(name, getattr(self, name), int, least, math.inf)
        for name in _NOT_NEGATIVE:
            yield from _check(name, getattr(self, name), (int, float), 0, math.inf)
        for name, limit in _RANGES.items():
            yield from _check_pair(name, getattr(self, name), limit)
        for name in _SHARES:
            yield from _check(name, getattr(self, name), (int, float), 0, 1)
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                yield f"{name}: expected true or false, got {getattr(self, name)!r}"
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            yield f"seed: expected a whole number, got {self.seed!r}"
        for name, choices in (("mixed_precision", MIXED_PRECISION), ("alignment", ALIGNMENTS)):
            if getattr(self, name) not in choices:
                yield f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}"
        size, parts = self.batch_size, self.gradient_accumulation
        if isinstance(size, int) and isinstance(parts, int) and parts > 0 and size % parts:
            yield f"gradient_accumulation: expected a divisor of batch_size {size}, got {parts}"
        if self.alignment == "contrastive" and self.alignment_temperature == 0:
            yield "alignment_temperature: expected a number over 0, got 0"

    def differences(self, other: "TrainConfig") -> list[str]:
        """The settings in which two runs differ, one text each."""
        names = [setting.name for setting in fields(self)]
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in names)
        return [f"{name}: {mine!r} / {theirs!r}" for name, mine, theirs in pairs if mine != theirs]


def _check_pair(name: str, value: Any, limit: float) -> Iterator[str]:
    if value is None and name == "scale":
        return
    numbers = list(value) if isinstance(value, (list, tuple)) else []
    plain = all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers)
    if len(numbers) != 2 or not plain or not 0 < numbers[0] <= numbers[1] <= limit or math.isinf(numbers[1]):
        most = "" if math.isinf(limit) else f" and at most {limit:g}"
        yield f"{name}: expected least and most, two numbers over 0{most}, got {value!r}"


def _check(name: str, value: Any, kind: Any, least: float, most: float) -> Iterator[str]:
    if value is None and name in _OPTIONAL:
        return
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most or math.isinf(value):
        expected = "a whole number" if kind is int else "a number"
        limits = f"of at least {least:g}" if math.isinf(most) else f"from {least:g} to {most:g}"
        yield f"{name}: expected {expected} {limits}, got {value!r}"
