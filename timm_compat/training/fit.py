"""Train the members of a space together; Accelerate places them, casts them, and runs them in several processes."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from timm_compat.config import TrainConfig
from timm_compat.data.batches import BatchStream
from timm_compat.errors import ConfigError, TrainingError
from timm_compat.files import check_new_folder, new_folder
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.seeding import generator, seeded
from timm_compat.space import CompatSpace
from timm_compat.training.joint import JointModule, Member

logger = logging.getLogger(__name__)

Validate = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class FitResult:
    """What a run gave; the members' parts were trained in place.

    Attributes:
        space: the space, final unless nothing pins its coordinates.
        history: one record an epoch: mean losses, learning rate, seconds, and what ``validate`` returned.
        seconds: wall time of the training.
    """

    space: CompatSpace
    history: tuple[dict[str, float], ...]
    seconds: float


def fit(
    space: CompatSpace,
    members: Sequence[Member],
    config: TrainConfig | None = None,
    *,
    validate: Validate | None = None,
    progress: str | None = "training",
) -> FitResult:
    """Train the members jointly, in place. A draft space becomes final; the shared parts of a final one stay frozen.

    Args:
        space: all parts live in it.
        members: one or more.
        config: settings; the defaults if None.
        validate: called after every epoch in evaluation mode; its numbers enter the history.
        progress: label of the progress bar, which is silent where standard error is no terminal; no bar if None.

    Raises:
        ConfigError: members or settings that contradict each other.
        DataError: a data set that does not fit its member.
        OutputExistsError: ``output_dir`` holds something already.
        SpaceMismatchError: a part of another space.
        TrainingError: the loss is no finite number; names the step and the part.
    """
    config = config or TrainConfig()
    output = None if config.output_dir is None else check_new_folder(config.output_dir)
    joint = JointModule(space, members, config)
    accelerator = _accelerator(config)
    process = (accelerator.process_index, accelerator.num_processes)
    streams = {member.name: _stream(member, config, process) for member in members}
    steps_per_epoch = max(math.ceil(len(member.dataset) / config.batch_size) for member in members)
    optimizer = _optimizer(joint, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warmup_cosine(config, steps_per_epoch * config.epochs))
    model, optimizer = accelerator.prepare(joint, optimizer)

    start = time.perf_counter()
    history: list[dict[str, float]] = []
    steps = tqdm(total=config.epochs * steps_per_epoch, desc=progress, disable=None if progress else True, leave=False)
    with steps, seeded(config.seed, "training"):
        for epoch in range(config.epochs):
            model.train()
            means = _Means()
            for step in range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch):
                batches = {name: _to(stream.batch(step), accelerator.device) for name, stream in streams.items()}
                random = generator(config.seed, "rotation", str(step), str(process[0]))
                losses = model(batches, random)
                accelerator.backward(losses["loss"])
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                means.add(losses, step)
                steps.update()
            model.eval()
            record = {"epoch": epoch + 1, "learning_rate": float(schedule.get_last_lr()[0]), **means.result()}
            history.append({**record, **(validate() if validate else {}), "seconds": time.perf_counter() - start})
            steps.set_postfix(loss=f"{record['loss']:.3f}")
    _finalize(space, joint)
    result = FitResult(space, tuple(history), time.perf_counter() - start)
    if output is not None and accelerator.is_main_process:
        _save(output, members, result)
    return result


def save_members(folder: Path, space: CompatSpace, parts: Mapping[str, tuple[CompatExtractor, TaskHead]]) -> None:
    """Write the space and, by member, ``extractor-NAME`` and ``head-NAME`` into a folder."""
    space.save_pretrained(folder / "space")
    for name, (extractor, head) in parts.items():
        extractor.save_pretrained(folder / f"extractor-{name}")
        head.save_pretrained(folder / f"head-{name}")


def _accelerator(config: TrainConfig) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # Accelerate fixes the precision for the whole process when first used; each run has its own here.
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=config.mixed_precision)


def _stream(member: Member, config: TrainConfig, process: tuple[int, int]) -> BatchStream:
    return BatchStream(
        member.dataset,
        config.batch_size,
        config.seed,
        member.name,
        random_crop=config.random_crop,
        random_flip=config.random_flip,
        process=process,
    )


def _to(batch: tuple[torch.Tensor, torch.Tensor], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True)


def _optimizer(joint: JointModule, config: TrainConfig) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2

    groups = list(_parameter_groups(joint, config))
    try:
        return create_optimizer_v2(groups, opt=config.optimizer, lr=config.learning_rate, weight_decay=0.0)
    except (AssertionError, ValueError) as error:
        raise ConfigError(f"optimizer: expected a name that timm knows, got {config.optimizer!r} ({error})") from error


def _parameter_groups(joint: JointModule, config: TrainConfig) -> Iterator[dict[str, Any]]:
    in_heads = {id(parameter) for parameter in joint.heads.parameters()}
    decays: dict[float, list[nn.Parameter]] = {}
    for parameter in joint.parameters():
        if parameter.requires_grad:
            own = config.head_weight_decay if id(parameter) in in_heads else config.weight_decay
            # Biases and the parameters of norms are vectors; they are never decayed.
            decays.setdefault(own if parameter.ndim > 1 else 0.0, []).append(parameter)
    for decay, parameters in decays.items():
        yield {"params": parameters, "weight_decay": decay}


def _warmup_cosine(config: TrainConfig, total: int) -> Callable[[int], float]:
    warmup = round(config.warmup_fraction * total)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return factor


def _finalize(space: CompatSpace, joint: JointModule) -> None:
    if space.is_final:
        return
    if space.methods:
        space.finalize(joint.shared_tensors())
    else:
        logger.info("the space stays a draft: no method pins its coordinates; finalize(reference=extractor.digest())")


def _save(output: Path, members: Sequence[Member], result: FitResult) -> None:
    with new_folder(output) as folder:
        if result.space.is_final:
            save_members(folder, result.space, {member.name: (member.extractor, member.head) for member in members})
        lines = "".join(json.dumps(record) + "\n" for record in result.history)
        (folder / "history.jsonl").write_text(lines, encoding="utf-8")


class _Means:
    """Mean of every part of the loss over an epoch."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, losses: dict[str, torch.Tensor], step: int) -> None:
        for name, value in losses.items():
            number = float(value.detach())
            if not math.isfinite(number):
                raise TrainingError(
                    f"step {step + 1}: expected a finite loss, {name} is {number}; "
                    "lower learning_rate, or use mixed_precision='no'"
                )
            self.sums[name] = self.sums.get(name, 0.0) + number
        self.count += 1

    def result(self) -> dict[str, float]:
        return {name: value / self.count for name, value in self.sums.items()}
