"""What a recipe of an adaptation says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from timm_compat.data.shifts import SHIFTS
from timm_compat.errors import ConfigError
from timm_compat.methods.registry import self_supervised_tasks
from timm_compat.recipes.checks import check_arguments, check_choice, check_names, check_switch, check_text, check_whole
from timm_compat.recipes.schema import DataRecipe
from timm_compat.recipes.trials import TrialsRecipe
from timm_compat.space import MAX_FEATURE_DIM

# What each mode is, in the order of the table.
MODES: Mapping[str, str] = {
    "source_only": "the source network as it is",
    "batchnorm": "the source network with BatchNorm statistics of target images",
    "separate": "two extractors from identical initial weights, shared self-supervised heads (the paper)",
    "shared": "one extractor with own BatchNorm statistics of each domain, self-supervised on both",
    "separate_warm": "as separate, from the trained source network",
    "shared_warm": "as shared, from the trained source network",
    "pseudo_labels": "the most informed of the above, then trained on its own surest predictions",
    "target_supervised": "trained on the target's labels: the upper bound",
}
TOGETHER = ("separate", "shared", "separate_warm", "shared_warm")  # source and target are trained jointly
WARM = ("separate_warm", "shared_warm")
LEARNT = ("batchnorm", *TOGETHER)  # what pseudo-labels can start from
CRITERIA = ("information", "confidence", "last")
UNLABELLED = "images"


@dataclass(frozen=True)
class DomainRecipe:
    """The images of one domain.

    Attributes:
        train: images to learn from; the target's labels, if any, serve the upper bound alone.
        test: labelled images to measure on; nothing is measured in this domain if None.
        shift: changes made to all of these images on purpose, any of ``SHIFTS``, in this order.

    Raises:
        ConfigError: an unknown shift, or test images without labels.
    """

    train: DataRecipe
    test: DataRecipe | None = None
    shift: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift", check_names("shift", self.shift))
        for name in self.shift:
            check_choice("shift", name, tuple(SHIFTS))
        if self.test is not None and self.test.dataset == UNLABELLED:
            raise ConfigError("test: expected labelled images, got 'images'; drop it, and nothing is measured here")


@dataclass(frozen=True)
class RefinementRecipe:
    """How a trained network is adapted further.

    Attributes:
        learning_rate: highest value.
        epochs: of a joint training that starts from the source network.
        rounds: times that the target images get new pseudo-labels.
        round_epochs: of the training after each.
        first_share: share of the images, class by class, whose labels the first round believes; the last believes all.

    Raises:
        ConfigError: a value out of range.
    """

    learning_rate: float = 1e-3
    epochs: int = 5
    rounds: int = 4
    round_epochs: int = 3
    first_share: float = 0.5

    def __post_init__(self) -> None:
        for key in ("epochs", "rounds", "round_epochs"):
            check_whole(key, getattr(self, key), least=1)
        for key, most in (("learning_rate", float("inf")), ("first_share", 1.0)):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
                raise ConfigError(f"{key}: expected a number over 0{'' if most > 1 else ' up to 1'}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class AdaptRecipe(TrialsRecipe):
    """From labelled source images to unlabelled target images.

    Attributes:
        source: labelled.
        target: its ``train`` may be unlabelled ("images").
        backbone: name of a timm model.
        pretrained: whether it starts from timm's weights.
        img_size: side of the images as the backbone sees them; its own if None.
        arguments: timm's own keywords.
        feature_dim: number D of features.
        tasks: self-supervised ones that both domains share, any of "rotation", "location" and "flip" (Sun et al. 2019,
            https://arxiv.org/abs/1909.11825); at least one.
        modes: which of ``MODES``; all that the data allow if empty.
        select: chooses epochs, rounds and the final mode, on unlabelled target images: "information" (mutual
            information of image and predicted class), "confidence" (least mean entropy), or "last" (the last epoch,
            the last round, the last mode).
        refinement: of the modes that start from a trained network.
        source_extractor: folder or Hub id of a trained extractor: the source network of the modes that start from one
            ("source_only", "batchnorm", "separate_warm", "shared_warm", "pseudo_labels"), which then is not trained.
            The other modes train new networks of ``backbone``. What comes out lives in a space of its own.
        source_head: folder or Hub id of its head; both or none.

    Raises:
        ConfigError: a value out of range, an unknown mode or task, one of ``source_extractor`` and ``source_head``
            without the other, or a mode that the recipe's data do not allow.
    """

    source: DomainRecipe
    target: DomainRecipe
    backbone: str
    pretrained: bool = False
    img_size: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    feature_dim: int = 64
    tasks: tuple[str, ...] = ("rotation",)
    modes: tuple[str, ...] = ()
    select: str = "information"
    refinement: RefinementRecipe = field(default_factory=RefinementRecipe)
    source_extractor: str | None = None
    source_head: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text("backbone", self.backbone)
        check_switch("pretrained", self.pretrained)
        if self.img_size is not None:
            check_whole("img_size", self.img_size, least=1)
        object.__setattr__(self, "arguments", check_arguments(self.arguments))
        check_whole("feature_dim", self.feature_dim, least=1, most=MAX_FEATURE_DIM)
        check_choice("select", self.select, CRITERIA)
        self._check_source()
        self._check_tasks()
        self._check_modes()

    def _check_source(self) -> None:
        for key, other in (("source_extractor", "source_head"), ("source_head", "source_extractor")):
            check_text(key, getattr(self, key), optional=True)
            if getattr(self, key) is None and getattr(self, other) is not None:
                raise ConfigError(f"{key}: expected one beside {other}, got none; give it, or drop {other}")

    def _check_tasks(self) -> None:
        object.__setattr__(self, "tasks", check_names("tasks", self.tasks))
        known = tuple(task.name for task in self_supervised_tasks())
        for task in self.tasks:
            check_choice("tasks", task, known)
        if not self.tasks:
            raise ConfigError(f"tasks: expected at least one of {', '.join(known)}, got none")

    def _check_modes(self) -> None:
        object.__setattr__(self, "modes", check_names("modes", self.modes))
        for mode in self.modes:
            check_choice("modes", mode, tuple(MODES))
        if self.source.train.dataset == UNLABELLED:
            raise ConfigError("source: expected labelled images, got 'images'; name a labelled data set")
        if "target_supervised" in self.modes and self.target.train.dataset == UNLABELLED:
            raise ConfigError("modes: target_supervised needs labels of the target, got 'images'; drop it")

    @property
    def chosen_modes(self) -> tuple[str, ...]:
        """The modes to run, in the order of the table."""
        possible = [mode for mode in MODES if mode != "target_supervised" or self.target.train.dataset != UNLABELLED]
        return tuple(mode for mode in possible if not self.modes or mode in self.modes)
