"""What a transfer-learning recipe says: networks, a target task, and which of three questions are asked of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from timm_compat.config import TrainConfig
from timm_compat.errors import ConfigError
from timm_compat.recipes.checks import check_arguments, check_switch, check_text
from timm_compat.recipes.schema import DataRecipe, MemberRecipe, Recipe, as_written
from timm_compat.recipes.trials import DECIDED, TrialsRecipe


@dataclass(frozen=True)
class TargetRecipe:
    """The task to be learned.

    Attributes:
        train: labelled images to learn from.
        test: labelled images of the same classes that measure it.
    """

    train: DataRecipe
    test: DataRecipe


@dataclass(frozen=True)
class JoinedRecipe:
    """A backbone that joins the space of another network (``tc.join``) on the target's training images, unlabelled.

    Attributes:
        name: by which the sections of the recipe call it.
        backbone: name of a timm model.
        reference: a source's name, or the folder or Hub id of an extractor.
        pretrained: whether to load timm's weights.
        weights: a safetensors checkpoint of the plain timm model.
        img_size: H = W, or (H, W), of the images; the backbone's own if None.
        arguments: timm's own keywords.

    Raises:
        ConfigError: a value out of range, or not exactly one of ``pretrained`` and ``weights``.
    """

    name: str
    backbone: str
    reference: str
    pretrained: bool = False
    weights: str | None = None
    img_size: int | tuple[int, int] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A member has the same keys, and refuses the same values of them.
        same = {key: getattr(self, key) for key in ("name", "backbone", "pretrained", "weights", "img_size")}
        member = MemberRecipe(data=DataRecipe("digits"), arguments=check_arguments(self.arguments), **same)
        object.__setattr__(self, "img_size", member.img_size)
        object.__setattr__(self, "arguments", member.arguments)
        check_text("reference", self.reference)
        if not self.pretrained and self.weights is None:
            raise ConfigError("pretrained: expected true, or weights, as a joined backbone stays as it is; got neither")


@dataclass(frozen=True)
class StartRecipe:
    """Where the training of a whole network starts: from nothing, with a new head, or with a compatible head.

    Networks are called by their names among the sources, or by the folder or Hub id of a component.

    Attributes:
        extractor: what is trained.
        head: trained on another extractor of the same space. Target classes that it does not know start at zero.
        scratch: whether the start from nothing is measured too.
        levels: accuracies, the steps to which are reported besides those to the usual way's end.

    Raises:
        ConfigError: a level outside (0, 1).
    """

    extractor: str
    head: str
    scratch: bool = True
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_text("extractor", self.extractor)
        check_text("head", self.head)
        check_switch("scratch", self.scratch)
        object.__setattr__(self, "levels", tuple(self.levels))
        for level in self.levels:
            if not 0 < level < 1:
                raise ConfigError(f"levels: expected accuracies between 0 and 1, got {level!r}")


@dataclass(frozen=True)
class CheapHeadRecipe:
    """A head is trained on a cheap extractor and runs on an expensive one of the same space.

    Attributes:
        cheap: its features are what the head learns on.
        expensive: what the head is to run on.

    Raises:
        ConfigError: one network for both.
    """

    cheap: str
    expensive: str

    def __post_init__(self) -> None:
        check_text("cheap", self.cheap)
        check_text("expensive", self.expensive)
        if self.cheap == self.expensive:
            raise ConfigError(f"expensive: expected another network than the cheap one, got {self.cheap!r} for both")


@dataclass(frozen=True)
class AdaptersRecipe:
    """The whole network is trained, or an adapter on the frozen backbone, or the head alone.

    Attributes:
        extractor: where all of them start.
    """

    extractor: str

    def __post_init__(self) -> None:
        check_text("extractor", self.extractor)


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(TrialsRecipe):
    """A target task, the networks that help with it, and what is asked: at least one of three sections.

    Attributes:
        target: the task.
        source: networks that are trained here, in one space, before the target is looked at; none if None.
        joined: backbones that join a source's space.
        start: a compatible start beside the usual one.
        cheap_head: a head from a cheap extractor on an expensive one.
        adapters: adapters on a frozen backbone beside the training of the whole network.
        training: of whole networks on the target.
        frozen_training: of heads and adapters on frozen backbones. Without augmentation the backbone sees every image
            once.

    Raises:
        ConfigError: no section, a name that stands for two networks, or a setting that the trials decide.
    """

    target: TargetRecipe
    source: Recipe | None = None
    joined: tuple[JoinedRecipe, ...] = ()
    start: StartRecipe | None = None
    cheap_head: CheapHeadRecipe | None = None
    adapters: AdaptersRecipe | None = None
    frozen_training: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=30))

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "joined", tuple(self.joined))
        object.__setattr__(self, "frozen_training", as_written(self.frozen_training))
        if self.start is None and self.cheap_head is None and self.adapters is None:
            raise ConfigError("start: expected at least one of start, cheap_head and adapters, got none")
        names = [member.name for member in self.source.members] if self.source is not None else []
        for position, joined in enumerate(self.joined):
            if joined.name in names:
                raise ConfigError(f"joined.{position}.name: expected every name once, got {joined.name!r} twice")
            names.append(joined.name)
        _check_decided("frozen_training", self.frozen_training)
        if self.source is not None:
            _check_decided("source.training", self.source.training)


def _check_decided(key: str, config: TrainConfig) -> None:
    for name in DECIDED:
        if getattr(config, name) != getattr(TrainConfig(), name):
            raise ConfigError(f"{key}.{name}: the trials decide it; drop it, and use seeds and output_dir")
