"""Accelerate for one run: with settings of its own, independent of the caller's use of Accelerate."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from timm_compat._extras import require
from timm_compat.config import TrainConfig
from timm_compat.errors import ConfigError

TRACKERS = ("tensorboard", "wandb")


@contextmanager
def own_accelerator(config: TrainConfig) -> Iterator[Any]:
    """An Accelerator for a block. One that the caller made before, or makes afterwards, does not notice.

    Accelerate keeps precision, accumulation and the like once for the whole process, in dicts that every Accelerator
    looks into: for the block they hold the run's values, afterwards the caller's.

    Raises:
        ConfigError: an unknown tracker, settings that Accelerate refuses, or a batch size that cannot be shared out.
        MissingExtraError: a tracker is not installed.
    """
    from accelerate.state import AcceleratorState, GradientState

    states = [AcceleratorState._shared_state, GradientState._shared_state]
    callers = [dict(state) for state in states]
    try:
        for state in states:
            state.clear()
        yield _accelerator(config)
    finally:
        for state, values in zip(states, callers, strict=True):
            state.clear()
            state.update(values)


def _accelerator(config: TrainConfig) -> Any:
    from accelerate import Accelerator

    for tracker in config.log_with:
        if tracker not in TRACKERS:
            raise ConfigError(f"log_with: expected any of {', '.join(TRACKERS)}, got {tracker!r}")
        require(tracker, tracker)
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.grad_accum_steps,
            log_with=list(config.log_with) or None,
            project_dir=None if config.output_dir is None else str(config.output_dir),
        )
    except ValueError as error:
        raise ConfigError(f"mixed_precision or log_with: Accelerate refused them here ({error})") from error
    passes = accelerator.num_processes * config.grad_accum_steps
    if config.batch_size % passes:
        raise ConfigError(
            f"batch_size: expected a multiple of processes x grad_accum_steps = {accelerator.num_processes} x "
            f"{config.grad_accum_steps}, got {config.batch_size}"
        )
    if config.alignment == "contrastive" and (per_pass := aligned_per_pass(config, passes)) < 2:
        raise ConfigError(
            "alignment: expected at least 2 aligned images in every pass, of which each is the other's negative, got "
            f"{per_pass} (batch_size {config.batch_size} x alignment_fraction {config.alignment_fraction} / {passes} "
            "passes); raise batch_size or alignment_fraction, lower grad_accum_steps, or use alignment='l2'"
        )
    return accelerator


def aligned_per_pass(config: TrainConfig, passes: int) -> int:
    """Images that one pass aligns: at least one for every process and part of a step."""
    return max(1, round(config.alignment_fraction * config.batch_size / passes))
