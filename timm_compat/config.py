"""Settings of a training in four groups, and all of them in one; frozen, checked when made.

A group is what one part of the trainer asks for: a function that takes ``LossConfig`` says that it looks at nothing
else. Names are timm's where timm has one (``lr``, ``opt``, ``sched``, ``warmup_epochs``, ``clip_grad``,
``grad_accum_steps``, ``model_ema_decay``, ``scale``, ``ratio``, ``hflip``, ``color_jitter``), else Accelerate's.
"""

import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from timm_compat.errors import ConfigError

# What settings were called in version 0.1, and what they are called now.
RENAMED = {
    "learning_rate": "lr",
    "optimizer": "opt",
    "optimizer_arguments": "opt_kwargs",
    "scheduler": "sched",
    "scheduler_arguments": "sched_kwargs",
    "warmup_fraction": "warmup_epochs (of which it was the share)",
    "gradient_accumulation": "grad_accum_steps",
    "ema_decay": "model_ema_decay",
    "vocabulary_weight": "common_classes_weight",
    "rotation_weight": "self_supervised_weight",
    "rotation_fraction": "self_supervised_fraction",
    "all_rotations": "self_supervised_all",
    "random_flip": "hflip (a probability, 0.5 for true)",
}


def _limits(default: Any, **limits: float) -> Any:
    """A number with its limits: ``ge``, ``gt`` and ``le``, which pydantic reads, too, where a recipe is read."""
    return field(default=default, metadata=limits)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A group of settings, checked when made.

    Raises:
        ConfigError: values of the wrong type or out of range; a line for each.
    """

    def __post_init__(self) -> None:
        if mistakes := list(self._mistakes()):
            raise ConfigError("\n".join(mistakes))

    def _mistakes(self) -> Iterator[str]:
        """A line for each, which starts with its setting."""
        hints = typing.get_type_hints(type(self))
        for setting in fields(self):
            yield from _check(setting.name, getattr(self, setting.name), hints[setting.name], setting.metadata)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Settings):
    """The optimiser and its schedule.

    Attributes:
        opt: timm's name of an optimiser.
        opt_kwargs: further keywords of ``timm.optim.create_optimizer_v2``.
        lr: peak learning rate.
        sched: timm's name of a schedule that is updated every step: "cosine", "tanh", "step", "poly" ...; "none".
        sched_kwargs: further keywords of ``timm.scheduler.create_scheduler_v2``, such as ``min_lr``.
        warmup_epochs: epochs in which the learning rate rises linearly, a fraction too; 5 % of all if None.
        weight_decay: of extractors and auxiliary heads.
        head_weight_decay: of task heads' weights. Large on purpose: it removes what a task head learns from
            directions that no shared part determines. It is meant for AdamW, whose decay is decoupled from the
            gradient; an optimiser that adds the decay to the gradient ("sgd", "adam") gets a tenth, which is as strong.
        clip_grad: maximum norm of the gradient; no limit if None or 0.
        grad_accum_steps: number of passes into which a step's batch is divided, to save memory.
        model_ema_decay: of an exponential moving average of all weights, which then are the result; none if None.
    """

    opt: str = "adamw"
    opt_kwargs: Mapping[str, Any] = field(default_factory=dict)
    lr: float = _limits(2e-3, ge=0)
    sched: str = "cosine"
    sched_kwargs: Mapping[str, Any] = field(default_factory=dict)
    warmup_epochs: float | None = _limits(None, ge=0)
    weight_decay: float = _limits(0.05, ge=0)
    head_weight_decay: float = _limits(5.0, ge=0)
    clip_grad: float | None = _limits(None, ge=0)
    grad_accum_steps: int = _limits(1, ge=1)
    model_ema_decay: float | None = _limits(None, ge=0, le=1)


@dataclass(frozen=True, kw_only=True)
class LossConfig(Settings):
    """The losses beside that of the tasks, and their weights.

    Attributes:
        common_classes_weight: weight of the common-classes (or simplex) loss.
        self_supervised_weight: weight of the loss of each self-supervised task of the space: rotation, location, flip.
        self_supervised_fraction: share of each batch that is also seen changed, drawn separately for each task.
        self_supervised_all: whether these images are changed by all answers of a task, as in the paper (all
            four rotations), or by a random one.
        alignment: "l2" or "contrastive" pulls the features that two networks give one image together; or "none". The
            negatives of the contrastive one are the other aligned images of the same pass: they span neither processes
            nor the parts of ``grad_accum_steps``, and fewer of them align less.
        alignment_weight: weight of the alignment loss. Large ones cost accuracy on the own task.
        alignment_fraction: share of each batch that is aligned.
        alignment_temperature: of the contrastive alignment.
        influence_weight: weight of the backward-compatible loss under the reference's head.
        distillation_weight: weight of the focal distillation from reference and its head.
    """

    common_classes_weight: float = _limits(1.0, ge=0)
    self_supervised_weight: float = _limits(0.3, ge=0)
    self_supervised_fraction: float = _limits(0.25, ge=0, le=1)
    self_supervised_all: bool = False
    alignment: Literal["none", "l2", "contrastive"] = "none"
    alignment_weight: float = _limits(0.2, ge=0)
    alignment_fraction: float = _limits(0.25, ge=0, le=1)
    alignment_temperature: float = _limits(0.1, ge=0)
    influence_weight: float = _limits(0.0, ge=0)
    distillation_weight: float = _limits(0.0, ge=0)

    def _mistakes(self) -> Iterator[str]:
        yield from super()._mistakes()
        if self.alignment == "contrastive" and self.alignment_temperature == 0:
            yield "alignment_temperature: expected a number over 0, got 0"


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig(Settings):
    """Random changes of training images, the same for images in memory and from files.

    Attributes:
        random_crop: maximum shift of a stored image in each direction, in pixels; the border is filled with black.
        hflip: probability that an image is mirrored.
        scale: minimum and maximum share of the image's area of a random crop, which is then resized, such as
            (0.08, 1); if None, training images are resized and cropped as for evaluation.
        ratio: minimum and maximum aspect ratio (width / height) of that crop.
        color_jitter: maximum random change of brightness, contrast and saturation, as a share.
    """

    random_crop: int = _limits(0, ge=0)
    hflip: float = _limits(0.0, ge=0, le=1)
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    color_jitter: float = _limits(0.0, ge=0, le=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scale", "ratio"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))

    def _mistakes(self) -> Iterator[str]:
        yield from super()._mistakes()
        if self.scale is not None:
            yield from _check_pair("scale", self.scale, 1.0)
        yield from _check_pair("ratio", self.ratio, math.inf)

    @property
    def augments(self) -> bool:
        """Whether anything is changed."""
        return bool(self.random_crop or self.hflip or self.scale or self.color_jitter)


@dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """Length, hardware and outputs of a training.

    Attributes:
        epochs: passes over the largest member's data set.
        batch_size: batch size per member, over all processes.
        workers: processes that decode image files.
        cache_features: whether frozen backbones see every image once, without augmentation, if all members are
            adapters.
        cache_dir: folder that keeps those features for later runs; memory only if None.
        mixed_precision: "no", "fp16" or "bf16".
        compile: whether to compile extractors with ``torch.compile``.
        channels_last: whether to use the channels-last memory format.
        seed: of batches, augmentation, self-supervised tasks and dropout.
        output_dir: where checkpoints, log and trained components are written; nowhere if None.
        checkpoint_steps: steps between checkpoints; once per epoch if None.
        keep_checkpoints: number of newest checkpoints to keep.
        best_metric: number of ``validate`` that chooses the epoch whose weights are the result; the last epoch if None.
        log_with: names of Accelerate's trackers, such as "tensorboard".
    """

    epochs: int = _limits(10, ge=1)
    batch_size: int = _limits(128, ge=1)
    workers: int = _limits(0, ge=0)
    cache_features: bool = True
    cache_dir: str | Path | None = None
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    compile: bool = False
    channels_last: bool = False
    seed: int = 0
    output_dir: str | Path | None = None
    checkpoint_steps: int | None = _limits(None, ge=1)
    keep_checkpoints: int = _limits(2, ge=1)
    best_metric: str | None = None
    log_with: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig, AugmentationConfig, LossConfig, OptimizerConfig):
    """How members are trained: all settings of the four groups, by keyword.

    Raises:
        ConfigError: values of the wrong type or out of range, or that contradict each other; a line for each.

    Example:
        >>> tc.TrainConfig(epochs=5, alignment="l2").differences(tc.TrainConfig(epochs=5))
        ["alignment: 'l2' / 'none'"]
    """

    def _mistakes(self) -> Iterator[str]:
        yield from super()._mistakes()
        size, parts = self.batch_size, self.grad_accum_steps
        if isinstance(size, int) and isinstance(parts, int) and parts > 0 and size % parts:
            yield f"grad_accum_steps: expected a divisor of batch_size {size}, got {parts}"

    def differences(self, other: "TrainConfig") -> list[str]:
        """The settings in which two runs differ, one string each."""
        names = [setting.name for setting in fields(self)]
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in names)
        return [f"{name}: {mine!r} / {theirs!r}" for name, mine, theirs in pairs if mine != theirs]


def _check(name: str, value: Any, hint: Any, limits: Mapping[str, float]) -> Iterator[str]:
    if isinstance(hint, types.UnionType):
        if value is None:
            return
        hint = hint.__args__[0]
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            yield f"{name}: expected one of {', '.join(typing.get_args(hint))}, got {value!r}"
    elif hint is bool:
        if not isinstance(value, bool):
            yield f"{name}: expected true or false, got {value!r}"
    elif hint in (int, float) and not _is_number(value, hint, limits):
        expected = "an integer" if hint is int else "a number"
        yield f"{name}: expected {expected}{_in_words(limits)}, got {value!r}"


def _is_number(value: Any, kind: type, limits: Mapping[str, float]) -> bool:
    kinds = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        return False
    return limits.get("ge", -math.inf) <= value <= limits.get("le", math.inf)


def _in_words(limits: Mapping[str, float]) -> str:
    if "le" in limits:
        return f" from {limits['ge']:g} to {limits['le']:g}"
    return f" of at least {limits['ge']:g}" if "ge" in limits else ""


def _check_pair(name: str, value: Any, most: float) -> Iterator[str]:
    numbers = list(value) if isinstance(value, (list, tuple)) else []
    plain = all(_is_number(number, float, {}) for number in numbers)
    if len(numbers) != 2 or not plain or not 0 < numbers[0] <= numbers[1] <= most:
        limit = "" if math.isinf(most) else f" and at most {most:g}"
        yield f"{name}: expected least and most, two numbers over 0{limit}, got {value!r}"
