"""Members of a space, and the checks before a training."""

from collections.abc import Sequence
from dataclasses import dataclass

from timm_compat.config import LossConfig
from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.image_dataset import ImageDataset
from timm_compat.errors import ConfigError, DataError
from timm_compat.methods.registry import methods_of, self_supervised_tasks
from timm_compat.methods.self_supervised import SelfSupervisedTask
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.unwrapping import unwrapped
from timm_compat.space import CompatSpace

Images = ArrayDataset | ImageDataset


@dataclass(frozen=True)
class Member:
    """One network of a space: its parts and the data set that they are trained on.

    Attributes:
        name: its name in logs and files.
        extractor: trained in place.
        head: trained in place; its class names are the data set's, in any order. None for a member without labels,
            which learns from self-supervised tasks and alignment only.
        dataset: images; the labels are used if there is a head.

    Example:
        >>> data = tc.data.load_digits("train")
        >>> space = tc.CompatSpace(64, data.class_names, ["common_classes"])
        >>> extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=32)
        >>> tc.Member("a", extractor, tc.TaskHead(space, data.class_names), data).name
        'a'
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

    Example:
        >>> space = tc.CompatSpace(64)
        >>> tc.Reference(tc.create_extractor("test_resnet", space)).head is None
        True
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
        ImageError: images of a shape that a method of the space cannot take.
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
            _check_classes(member, member.head)
        labels = None if member.head is None else member.dataset.class_names
        for method in methods_of(space.methods):
            method.check_member(member.name, member.extractor.data_config["input_size"], labels, space.class_names)


def asked_tasks(space: CompatSpace, config: LossConfig) -> tuple[SelfSupervisedTask, ...]:
    """The self-supervised tasks of a space; none where no share of a batch is seen changed."""
    return self_supervised_tasks(space.methods) if config.self_supervised_fraction > 0 else ()


def _check_classes(member: Member, head: TaskHead) -> None:
    unknown = sorted(set(member.dataset.class_names) ^ set(head.class_names))
    if unknown:
        raise DataError(
            f"member {member.name!r}: expected the same classes in data set and head, "
            f"{', '.join(unknown[:5])} stand in one of them only; select with dataset.of_classes(...)"
        )
