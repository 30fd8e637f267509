"""timm's optimisers and schedules by name, for the parameters of a joint module."""

import fnmatch
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from timm_compat.config import OptimizerConfig, TrainConfig
from timm_compat.errors import ConfigError
from timm_compat.training.joint import JointModule

# Schedules that need something else than the step.
REFUSED_SCHEDULES = ("plateau",)
TIMM_ERRORS = (AssertionError, ValueError, TypeError, KeyError)
COUPLED_SHARE = 0.1
WARMUP_SHARE = 0.05  # of all epochs, where the settings leave it open
TRIAL_RATE, TRIAL_DECAY = 1e-2, 1e-1


def create_optimizer(joint: JointModule, config: OptimizerConfig) -> torch.optim.Optimizer:
    """An optimiser over what learns. Task heads' weights decay on their own; biases, norms and what timm's
    ``no_weight_decay`` names never do.

    Raises:
        ConfigError: a name or an argument that timm does not know, or nothing that learns.
    """
    groups = list(_parameter_groups(joint, config))
    if not groups:
        raise ConfigError("members: expected something that learns, got frozen parts only")
    return _optimizer(groups, config, config.lr)


class Schedule:
    """The learning rate as a function of the step.

    Args:
        optimizer: whose learning rates are set.
        config: the schedule's name, and its epochs of warm-up.
        steps_per_epoch: optimiser's steps.

    Raises:
        ConfigError: a name or an argument that timm does not know.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int) -> None:
        from timm.scheduler import create_scheduler_v2

        if config.sched in REFUSED_SCHEDULES:
            raise ConfigError(f"sched: expected one that follows the step, got {config.sched!r}; use 'cosine'")
        warmup = WARMUP_SHARE * config.epochs if config.warmup_epochs is None else config.warmup_epochs
        arguments: dict[str, Any] = {
            "num_epochs": config.epochs,
            "warmup_epochs": warmup,
            "warmup_lr": config.lr / max(1.0, warmup * steps_per_epoch),
            **config.sched_kwargs,
        }
        self.optimizer = optimizer
        try:
            self.timm, _ = create_scheduler_v2(
                optimizer, config.sched, step_on_epochs=False, updates_per_epoch=steps_per_epoch, **arguments
            )
        except TIMM_ERRORS as error:
            raise ConfigError(
                f"sched: expected a name and arguments that timm knows, got {config.sched!r} with "
                f"{dict(config.sched_kwargs)} ({error})"
            ) from error

    def set(self, step: int) -> float:
        """Set the learning rate of a step, counted from 0, and return it."""
        if self.timm is not None:
            self.timm.step_update(step)
        return float(self.optimizer.param_groups[0]["lr"])


def head_decay(config: OptimizerConfig) -> float:
    """What decays task heads as strongly, whatever the optimiser's kind, as ``head_weight_decay`` does under AdamW.

    A decay apart from the gradient (AdamW, SGDW, Lion) takes lr x decay of a weight in every step. Where it is added to
    the gradient (SGD, Adam: Loshchilov and Hutter 2019, arXiv 1711.05101) momentum m sums it up: SGD with a decay of
    (1 - m) x d comes to rest where SGDW with d does. timm's momentum and first beta are 0.9, hence a tenth. Digits,
    test_resnet, norm of the head: AdamW 5.0 1.51, SGDW 5.0 1.40, SGD 0.5 1.40, but SGD 5.0 0.32 and Adam 5.0 0.31.
    """
    return config.head_weight_decay * (1.0 if _decays_apart(config) else COUPLED_SHARE)


def _decays_apart(config: OptimizerConfig) -> bool:
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


def _optimizer(groups: list[dict[str, Any]], config: OptimizerConfig, rate: float) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2

    try:
        return create_optimizer_v2(groups, opt=config.opt, lr=rate, weight_decay=0.0, **config.opt_kwargs)
    except TIMM_ERRORS as error:
        raise ConfigError(
            f"opt: expected a name and arguments that timm knows, got {config.opt!r} with "
            f"{dict(config.opt_kwargs)} ({error})"
        ) from error


def _parameter_groups(joint: JointModule, config: OptimizerConfig) -> Iterator[dict[str, Any]]:
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
