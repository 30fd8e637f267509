"""Train the members of a space together; Accelerate places them, casts them, and runs them in several processes."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from timm_compat.config import TrainConfig
from timm_compat.errors import ConfigError, OutputExistsError
from timm_compat.models.evaluating import evaluating
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.seeding import seeded
from timm_compat.space import CompatSpace
from timm_compat.storage.files import check_new_folder, check_writable, replace_text, tensor_sha256
from timm_compat.training.accelerators import own_accelerator
from timm_compat.training.callbacks import Callback
from timm_compat.training.checkpoint import FOLDER, Checkpoints
from timm_compat.training.joint import JointModule
from timm_compat.training.loop import Loop, Validate, steps_per_epoch
from timm_compat.training.members import Images, Member, Reference, asked_tasks, check_members
from timm_compat.training.optimization import Schedule, create_optimizer
from timm_compat.training.streams import Sources, uses_cache
from timm_compat.training.terms import check_purpose
from timm_compat.training.views import FeatureView, ImageView

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
NOTED = ("alignment", "epochs", "batch_size", "opt", "lr", "head_weight_decay", "seed")
# Settings that a resumed run may change: they do not change what is computed.
MAY_DIFFER = ("output_dir", "checkpoint_steps", "keep_checkpoints", "workers", "cache_dir", "log_with")


@dataclass(frozen=True)
class FitResult:
    """The result of a run; the members' parts were trained in place.

    Attributes:
        space: the space, final unless nothing pins its coordinates.
        history: one record per epoch: mean losses, learning rate, seconds, and what ``validate`` returned.
        seconds: wall time of the training, over all sessions of a resumed run.
    """

    space: CompatSpace
    history: tuple[dict[str, float], ...]
    seconds: float


def fit(
    space: CompatSpace,
    members: Sequence[Member],
    config: TrainConfig | None = None,
    *,
    reference: Reference | None = None,
    pool: Images | None = None,
    validate: Validate | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    progress: str | None = "training",
) -> FitResult:
    """Train the members jointly, in place. A draft space becomes final; the shared parts of a final one stay frozen.

    Under ``accelerate launch`` every process calls this; each sees its share of every batch. An Accelerator of the
    caller's own stays as it is. If all members are adapters and images are not augmented, the frozen backbones see
    every image once, and training runs on their features.

    Args:
        space: of all parts.
        members: one or more.
        config: settings; the defaults if None.
        reference: a frozen network to be compatible with, for alignment, influence and distillation.
        pool: images for the alignment (labels are not used); the members' own images if None.
        validate: called after every epoch in evaluation mode; its numbers enter the history.
        callbacks: called in this order at the training's begin, epochs, steps and end.
        resume: continue from the newest sound checkpoint in ``output_dir``, if there is one.
        progress: label of the progress bar, which appears only on a terminal; no bar if None.

    Raises:
        ConfigError: members or settings that contradict each other, or a checkpoint of other settings.
        DataError: a data set that does not fit its member.
        OutputExistsError: ``output_dir`` holds something already, and ``resume`` is false.
        OutputWriteError: ``output_dir`` or ``cache_dir`` cannot be written; checked before anything is trained.
        SpaceMismatchError: a part of another space.
        TrainingError: a loss that is not finite (the message names step and member), weights that are not finite at the
            end of an epoch (the last sound checkpoint is kept), or a checkpoint that cannot be written.

    Example:
        >>> first, second = tc.data.load_digits("train").subset(range(300)).halves(torch.Generator().manual_seed(0))
        >>> space = tc.CompatSpace(16, first.class_names, ["common_classes"])
        >>> def member(name, data):
        ...     extractor = tc.create_extractor("test_vit", space, in_chans=1, img_size=16)
        ...     return tc.Member(name, extractor, tc.TaskHead(space, data.class_names), data)
        >>> result = tc.fit(space, [member("a", first), member("b", second)], tc.TrainConfig(epochs=1), progress=None)
        >>> space.is_final, len(result.history)
        (True, 1)
    """
    config = config or TrainConfig()
    check_members(space, members)
    check_purpose(space, members, config, reference, pool is not None)
    if config.best_metric is not None and validate is None:
        raise ConfigError(f"best_metric: expected validate= to measure {config.best_metric!r}, got none")
    output = check_output(config, resume)
    cached = uses_cache(members, config)
    view = FeatureView(asked_tasks(space, config)) if cached else ImageView(config.channels_last)
    joint = JointModule(space, members, config, reference=reference, view=view)
    with own_accelerator(config) as accelerator:
        _open_run(output, space, members, config, accelerator, _images(members, pool, reference) if output else {})
        with _frozen(reference, accelerator.device), seeded(config.seed, "training"), _laid_out(joint, config):
            steps = steps_per_epoch([len(member.dataset) for member in members], config.batch_size)
            optimizer = create_optimizer(joint, config)
            schedule = Schedule(optimizer, config, steps)
            model, prepared = accelerator.prepare(joint, optimizer)
            joint.prepare_old_heads(accelerator.device)
            for callback in callbacks:
                callback.on_train_begin()
            sources = Sources(members, pool, config, accelerator, reference)
            streams = sources.features(space) if cached else sources.images()
            checkpoints = None if output is None else Checkpoints(output, config.keep_checkpoints)
            loop = Loop(joint, model, prepared, schedule, streams, accelerator, config, steps, checkpoints, callbacks)
            found = checkpoints.load() if checkpoints is not None and resume else None
            if found is not None:
                loop.restore(*found)
            loop.run(validate, progress)
        for tracker in accelerator.trackers:
            tracker.finish()  # end_training() would end the processes' group as well, which the caller may go on with
        _finalize(space, joint, members, config, reference)
        _note(space, members, config)
        if output is not None and accelerator.is_main_process and space.is_final:
            save_members(output, space, {member.name: (member.extractor, member.head) for member in members})
        accelerator.wait_for_everyone()
    return FitResult(space, tuple(loop.history), loop.seconds)


def _note(space: CompatSpace, members: Sequence[Member], config: TrainConfig) -> None:
    # What the parts' cards say about how they were made.
    chosen = {name: getattr(config, name) for name in NOTED}
    training = {"methods": ", ".join(space.methods) or "none", **chosen}
    for member in members:
        for part in (member.extractor, member.head):
            if part is not None:
                part.facts = replace(part.facts, training=training)


def save_members(
    folder: Path, space: CompatSpace, parts: Mapping[str, tuple[CompatExtractor, TaskHead | None]]
) -> None:
    """Write the space and, by member, ``extractor-NAME`` and ``head-NAME`` into a folder, unless they are there."""
    _save_new(space, folder / "space")
    for name, (extractor, head) in parts.items():
        _save_new(extractor, folder / f"extractor-{name}")
        if head is not None:
            _save_new(head, folder / f"head-{name}")


def _save_new(part: CompatSpace | CompatExtractor | TaskHead, folder: Path) -> None:
    if not folder.exists():  # a run that was stopped while saving continues here; each folder appears whole
        part.save_pretrained(folder)


def check_output(config: TrainConfig, resume: bool) -> Path | None:
    """The folder of a run, if it can be written and holds nothing else; None where nothing is kept.

    Raises:
        ConfigError: ``resume`` without a folder.
        OutputExistsError: the folder holds something already, and ``resume`` is false.
        OutputWriteError: the folder, or the one of cached features, cannot be written.
    """
    if config.cache_dir is not None:
        check_writable(config.cache_dir)
    if config.output_dir is None:
        if resume:
            raise ConfigError("resume: expected output_dir with the run's checkpoints, got none")
        return None
    path = Path(config.output_dir)
    if resume and ((path / RUN_FILE).is_file() or (path / FOLDER).is_dir()):
        return check_writable(path)
    try:
        return check_new_folder(path)
    except OutputExistsError as error:
        if (path / RUN_FILE).is_file():
            raise OutputExistsError(f"{error}; it holds a run: resume=True (--resume) continues it") from error
        raise


@contextmanager
def _frozen(reference: Reference | None, device: torch.device) -> Iterator[None]:
    """The reference on the training's device and in evaluation mode for a block."""
    if reference is None:
        yield
        return
    reference.extractor.to(device)
    with evaluating(reference.extractor):
        yield


@contextmanager
def _laid_out(joint: JointModule, config: TrainConfig) -> Iterator[None]:
    """Memory layout and compiled extractors for a block; afterwards extractors run as they did."""
    if config.channels_last:
        joint.to(memory_format=torch.channels_last)
    extractors: list[nn.Module] = list(joint.extractors.values())
    try:
        for extractor in extractors if config.compile else ():
            extractor.compile()
        yield
    finally:
        for extractor in extractors:
            extractor._compiled_call_impl = None


def _open_run(
    output: Path | None,
    space: CompatSpace,
    members: Sequence[Member],
    config: TrainConfig,
    accelerator: Any,
    given: Mapping[str, str],
) -> None:
    """Note what is trained; where a run stands already, refuse to go on with other settings."""
    settings = {name: value for name, value in asdict(config).items() if name not in MAY_DIFFER}
    facts = {
        **{f"config.{name}": value for name, value in settings.items()},
        **{f"space.{name}": value for name, value in space.definition().items()},
        **{f"members.{member.name}": _facts(member) for member in members},
        **given,
    }
    facts = json.loads(json.dumps(facts, default=str))
    if accelerator.trackers or config.log_with:
        accelerator.init_trackers("timm_compat", {key: str(value) for key, value in facts.items()})
    if output is None:
        return
    file = output / RUN_FILE
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        other = [key for key in known.keys() | facts.keys() if known.get(key) != facts.get(key)]
        lines = [f"{key}: {known.get(key)!r:.80} / {facts.get(key)!r:.80}" for key in sorted(other)]
        if lines:
            raise ConfigError(f"resume: expected the settings of the run in {output}, got others: " + "; ".join(lines))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not file.is_file():
        replace_text(file, json.dumps(facts, indent=2) + "\n")


def _images(members: Sequence[Member], pool: Images | None, reference: Reference | None) -> dict[str, str]:
    """Hashes of what a run is given beside its settings: images with their labels, and a reference."""
    datasets = {f"images.{member.name}": member.dataset for member in members}
    if pool is not None:
        datasets["images of the pool"] = pool
    found = {}
    for name, dataset in datasets.items():
        labels = tensor_sha256(dataset.labels)
        found[name] = hashlib.sha256(repr((dataset.digest(), labels, dataset.class_names)).encode()).hexdigest()
    if reference is not None:
        found["reference.extractor"] = reference.extractor.digest()
        if reference.head is not None:
            found["reference.head"] = reference.head.digest()
    return found


def _facts(member: Member) -> dict[str, Any]:
    extractor, head = member.extractor, member.head
    return {
        "architecture": extractor.architecture,
        "model_args": extractor.backbone.model_args,
        "input_size": extractor.data_config["input_size"],
        "trainable": extractor.trainable,
        "images": len(member.dataset),
        "class_names": None if head is None else head.class_names,
        "depth": None if head is None else head.depth,
    }


def _finalize(
    space: CompatSpace, joint: JointModule, members: Sequence[Member], config: TrainConfig, reference: Reference | None
) -> None:
    if space.is_final:
        return
    digest = None
    if config.alignment != "none":
        # Whoever joins later by alignment must know whose features these coordinates are.
        digest = (members[0] if reference is None else reference).extractor.digest()
    if space.methods or digest is not None:
        space.finalize(joint.shared_tensors(), reference=digest)
    else:
        logger.info("the space stays a draft: no method pins its coordinates; finalize(reference=extractor.digest())")
