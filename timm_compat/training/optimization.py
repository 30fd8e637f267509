"""timm's optimisers and schedules by name, for the parameters of a joint module."""

import fnmatch
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
COUPLED_SHARE = 0.1
TRIAL_RATE, TRIAL_DECAY = 1e-2, 1e-1


def create_optimizer(joint: JointModule, config: TrainConfig) -> torch.optim.Optimizer:
    """An optimiser over what learns. Task heads' weights decay on their own; biases, norms and what timm's
    ``no_weight_decay`` names never do.

    Raises:
        ConfigError: a name or an argument that timm does not know, or nothing that learns.
    """
    groups = list(_parameter_groups(joint, config))
    if not groups:
        raise ConfigError("members: expected something that learns, got frozen parts only")
    return _optimizer(groups, config, config.learning_rate)


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


def head_decay(config: TrainConfig) -> float:
    """What decays task heads as strongly, whatever the optimiser's kind, as ``head_weight_decay`` does under AdamW.

    A decay apart from the gradient (AdamW, SGDW, Lion) takes lr x decay of a weight in every step. Where it is added to
    the gradient (SGD, Adam: Loshchilov and Hutter 2019, arXiv 1711.05101) momentum m sums it up: SGD with a decay of
    (1 - m) x d comes to rest where SGDW with d does. timm's momentum and first beta are 0.9, hence a tenth. Digits,
    test_resnet, norm of the head: AdamW 5.0 1.51, SGDW 5.0 1.40, SGD 0.5 1.40, but SGD 5.0 0.32 and Adam 5.0 0.31.
    """
    return config.head_weight_decay * (1.0 if _decays_apart(config) else COUPLED_SHARE)


def _decays_apart(config: TrainConfig) -> bool:
    """Whether an optimiser takes lr x decay of a weight that has no gradient, in the second step as in the first."""
    weight = nn.Parameter(torch.ones(4, 4))
    taken = []
    optimizer = _optimizer([{"params": [weight], "weight_decay": TRIAL_DECAY}], config, TRIAL_RATE)
    for _ in range(2):
        before = weight.detach().clone()
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        taken.append(float((1 - weight.detach() / before).mean()))
    expected = TRIAL_RATE * TRIAL_DECAY
    return all(abs(share - expected) < 0.01 * expected for share in taken)


def _optimizer(groups: list[dict[str, Any]], config: TrainConfig, rate: float) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2

    try:
        return create_optimizer_v2(
            groups, opt=config.optimizer, lr=rate, weight_decay=0.0, **config.optimizer_arguments
        )
    except TIMM_ERRORS as error:
        raise ConfigError(
            f"optimizer: expected a name and arguments that timm knows, got {config.optimizer!r} with "
            f"{dict(config.optimizer_arguments)} ({error})"
        ) from error


def _parameter_groups(joint: JointModule, config: TrainConfig) -> Iterator[dict[str, Any]]:
    in_heads, undecayed = {id(parameter) for parameter in joint.heads.parameters()}, _undecayed(joint)
    of_heads = head_decay(config)
    decays: dict[float, list[nn.Parameter]] = {}
    for parameter in joint.parameters():
        if parameter.requires_grad:
            own = of_heads if id(parameter) in in_heads else config.weight_decay
            decays.setdefault(0.0 if id(parameter) in undecayed else own, []).append(parameter)
    for decay, parameters in decays.items():
        yield {"params": parameters, "weight_decay": decay}


def _undecayed(joint: JointModule) -> set[int]:
    """Vectors and biases, as in timm, and what a backbone's ``no_weight_decay`` names (cls_token, pos_embed ...)."""
    found = {id(value) for name, value in joint.named_parameters() if value.ndim <= 1 or name.endswith(".bias")}
    for extractor in joint.extractors.values():
        model = extractor.backbone.model
        patterns = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
        for name, value in model.named_parameters():
            if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                found.add(id(value))
    return found
