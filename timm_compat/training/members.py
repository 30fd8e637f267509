"""Members of a space, and what may be asked of them before any training."""

from collections.abc import Sequence
from dataclasses import dataclass

from timm_compat.config import TrainConfig
from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.errors import ConfigError, DataError
from timm_compat.methods.common_classes import NOT_COMMON, vocabulary_positions
from timm_compat.methods.self_supervised import TASKS, shared_tasks
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.unwrapping import unwrapped
from timm_compat.space import VOCABULARY_METHODS, CompatSpace

Images = ArrayDataset | ImageDataset


@dataclass(frozen=True)
class Member:
    """One network of a space: its parts and the data set that they learn.

    Attributes:
        name: told apart by it in logs and files.
        extractor: trained in place.
        head: trained in place; its class names are the data set's, in any order. None for a member without labels,
            which learns from self-supervised tasks and alignment only.
        dataset: images; their labels are looked at where there is a head.
    """

    name: str
    extractor: CompatExtractor
    head: TaskHead | None
    dataset: Images

    def __post_init__(self) -> None:
        _unwrap_parts(self)


@dataclass(frozen=True)
class Reference:
    """A frozen network of the space that members are trained to be compatible with.

    Attributes:
        extractor: its features are the targets of alignment.
        head: needed for the backward-compatible influence and the focal distillation.
    """

    extractor: CompatExtractor
    head: TaskHead | None = None

    def __post_init__(self) -> None:
        _unwrap_parts(self)


def _unwrap_parts(network: Member | Reference) -> None:
    for name in ("extractor", "head"):  # TrainConfig.compile compiles; Accelerate distributes
        object.__setattr__(network, name, unwrapped(getattr(network, name)))


def check_members(space: CompatSpace, members: Sequence[Member]) -> None:
    """Refuse members that cannot be trained together.

    Raises:
        ConfigError: no member, two of one name, a name that cannot be a file's, or no common class.
        DataError: a data set that is empty or whose classes are not the head's.
        SpaceMismatchError: a part of another space.
    """
    if not members:
        raise ConfigError("members: expected at least one, got none")
    names = [member.name for member in members]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"members: expected every name once, got {repeated[0]!r} twice")
    for member in members:
        if not member.name.isidentifier():
            raise ConfigError(f"members: expected a name of letters, digits and _, got {member.name!r}")
        space.require_same(member.extractor.space, "the space", f"the extractor of member {member.name!r}")
        if not len(member.dataset):
            raise DataError(f"member {member.name!r}: expected images, got an empty data set")
        if member.head is not None:
            space.require_same(member.head.space, "the space", f"the head of member {member.name!r}")
            _check_classes(space, member, member.head)
    _check_common(space, [member for member in members if member.head is not None])


def check_purpose(
    space: CompatSpace, members: Sequence[Member], config: TrainConfig, reference: Reference | None, has_pool: bool
) -> None:
    """Refuse settings that contradict each other, or a member that has nothing to learn.

    Raises:
        ConfigError: the message names both sides of the contradiction.
        SpaceMismatchError: the reference lives in another space.
    """
    if reference is not None:
        space.require_same(reference.extractor.space, "the space", "the reference extractor")
        if reference.head is not None:
            space.require_same(reference.head.space, "the space", "the reference's head")
    aligned, tasks = config.alignment != "none", shared_tasks(space.methods, config.rotation_fraction)
    for name in ("influence_weight", "distillation_weight"):
        if getattr(config, name) and (reference is None or reference.head is None):
            raise ConfigError(f"{name}: expected a reference with a head to learn from, got none; set it to 0")
    if config.distillation_weight and reference is not None and reference.head is not None:
        _check_shared_classes(members, reference.head)
    if has_pool and not aligned:
        raise ConfigError("pool: expected alignment='l2' or 'contrastive' to use these images, got 'none'")
    if reference is not None and not (aligned or config.influence_weight or config.distillation_weight):
        raise ConfigError("reference: expected alignment, influence_weight or distillation_weight to use it, got none")
    if aligned and config.alignment_fraction == 0:
        raise ConfigError("alignment_fraction: expected more than 0 where alignment is asked for, got 0")
    if aligned and reference is None and len(members) < 2:
        raise ConfigError("alignment: expected a second member or a reference to align with, got neither")
    for member in members:
        if member.head is None and not (tasks or aligned):
            raise ConfigError(
                f"member {member.name!r} has no head, so it learns from self-supervised tasks "
                f"({', '.join(TASKS)}) or alignment only, and neither is on"
            )


def _check_shared_classes(members: Sequence[Member], old: TaskHead) -> None:
    for member in members:
        shared = [] if member.head is None else set(member.head.class_names) & set(old.class_names)
        if member.head is not None and len(shared) < 2:
            raise ConfigError(
                f"distillation_weight: expected at least 2 classes of member {member.name!r} that the reference's head "
                f"knows, got {len(shared)}; set it to 0"
            )


def _check_classes(space: CompatSpace, member: Member, head: TaskHead) -> None:
    unknown = sorted(set(member.dataset.class_names) ^ set(head.class_names))
    if unknown:
        raise DataError(
            f"member {member.name!r}: expected the same classes in data set and head, "
            f"{', '.join(unknown[:5])} stand in one of them only; select with dataset.of_classes(...)"
        )


def _check_common(space: CompatSpace, labelled: Sequence[Member]) -> None:
    for method in set(space.methods) & set(VOCABULARY_METHODS):
        for member in labelled:
            if (vocabulary_positions(member.dataset.class_names, space.class_names) == NOT_COMMON).all():
                raise ConfigError(
                    f"member {member.name!r}: {method} needs a class of the space's vocabulary "
                    f"({', '.join(space.class_names[:5])} ...), got {', '.join(member.dataset.class_names[:5])} ..."
                )
