"""timm's optimisers and schedules by name, for the parameters of a joint module."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from timm_compat.config import TrainConfig
from timm_compat.errors import ConfigError
from timm_compat.training.joint import JointModule

# Schedules that need something else than the step.
REFUSED_SCHEDULES = ("plateau",)
TIMM_ERRORS = (AssertionError, ValueError, TypeError, KeyError)


def create_optimizer(joint: JointModule, config: TrainConfig) -> torch.optim.Optimizer:
    """An optimiser over what learns: task heads' weights decay on their own, vectors (biases, norms) never.

    Raises:
        ConfigError: a name or an argument that timm does not know, or nothing that learns.
    """
    from timm.optim import create_optimizer_v2

    groups = list(_parameter_groups(joint, config))
    if not groups:
        raise ConfigError("members: expected something that learns, got frozen parts only")
    try:
        return create_optimizer_v2(
            groups, opt=config.optimizer, lr=config.learning_rate, weight_decay=0.0, **config.optimizer_arguments
        )
    except TIMM_ERRORS as error:
        raise ConfigError(
            f"optimizer: expected a name and arguments that timm knows, got {config.optimizer!r} with "
            f"{dict(config.optimizer_arguments)} ({error})"
        ) from error


class Schedule:
    """The learning rate as a function of the step.

    Args:
        optimizer: whose learning rates are set.
        config: the schedule's name, and the share of warm-up.
        steps_per_epoch: optimiser's steps.

    Raises:
        ConfigError: a name or an argument that timm does not know.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int) -> None:
        from timm.scheduler import create_scheduler_v2

        if config.scheduler in REFUSED_SCHEDULES:
            raise ConfigError(f"scheduler: expected one that follows the step, got {config.scheduler!r}; use 'cosine'")
        warmup = config.warmup_fraction * config.epochs
        arguments: dict[str, Any] = {
            "num_epochs": config.epochs,
            "warmup_epochs": warmup,
            "warmup_lr": config.learning_rate / max(1.0, warmup * steps_per_epoch),
            **config.scheduler_arguments,
        }
        self.optimizer = optimizer
        try:
            self.timm, _ = create_scheduler_v2(
                optimizer, config.scheduler, step_on_epochs=False, updates_per_epoch=steps_per_epoch, **arguments
            )
        except TIMM_ERRORS as error:
            raise ConfigError(
                f"scheduler: expected a name and arguments that timm knows, got {config.scheduler!r} with "
                f"{dict(config.scheduler_arguments)} ({error})"
            ) from error

    def set(self, step: int) -> float:
        """Set the learning rate of a step, counted from 0, and return it."""
        if self.timm is not None:
            self.timm.step_update(step)
        return float(self.optimizer.param_groups[0]["lr"])


def _parameter_groups(joint: JointModule, config: TrainConfig) -> Iterator[dict[str, Any]]:
    in_heads = {id(parameter) for parameter in joint.heads.parameters()}
    decays: dict[float, list[nn.Parameter]] = {}
    for parameter in joint.parameters():
        if parameter.requires_grad:
            own = config.head_weight_decay if id(parameter) in in_heads else config.weight_decay
            decays.setdefault(own if parameter.ndim > 1 else 0.0, []).append(parameter)
    for decay, parameters in decays.items():
        yield {"params": parameters, "weight_decay": decay}
