"""What a recipe says: a space, its members with their data, and how they are trained; frozen, checked when made.

A message starts with the key that it is about, so that the reader can name the key's line.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePath
from typing import Any

from timm_compat.config import TrainConfig
from timm_compat.errors import ConfigError
from timm_compat.methods.registry import method_names
from timm_compat.recipes.checks import (
    check_arguments,
    check_choice,
    check_names,
    check_renaming,
    check_switch,
    check_text,
    check_whole,
)
from timm_compat.space import LEVELS, MAX_FEATURE_DIM, NORMALIZATIONS

TRAINABLE = ("full", "adapter", "frozen")
ROOTED_DATASETS = ("folder", "images", "npz")
METRICS = ("native", "recombined")  # what a recipe's run measures


@dataclass(frozen=True)
class SpaceRecipe:
    """The space of all members: a new one, or an existing one by its folder.

    Attributes:
        feature_dim: number D of features.
        class_names: ordered vocabulary; if empty, and a method needs one, the classes that at least two members have
            in common, or all of a single member's.
        methods: what the space shares, the names of methods.
        level: "pooled" or "map".
        normalization: the interface's last step: "batch", "layer" or "none".
        seed: of the auxiliary heads; the training's if None.
        folder: folder or Hub id of an existing, final space; it decides all of the above, which then must be left out.

    Raises:
        ConfigError: a value out of range, or ``folder`` together with a field that it decides.
    """

    feature_dim: int = 128
    class_names: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("common_classes",)
    level: str = "pooled"
    normalization: str = "batch"
    seed: int | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        check_whole("feature_dim", self.feature_dim, least=1, most=MAX_FEATURE_DIM)
        _keep_names(self, "class_names", "methods")
        for method in self.methods:
            check_choice("methods", method, method_names())
        check_choice("level", self.level, LEVELS)
        check_choice("normalization", self.normalization, NORMALIZATIONS)
        _check_seed(self.seed)
        check_text("folder", self.folder, optional=True)
        if self.folder is not None:
            self._check_nothing_else()

    def _check_nothing_else(self) -> None:
        # Compared to the defaults, so that a recipe written out in full, with the folder, can be read again.
        given = [key.name for key in fields(self) if key.name != "folder" and getattr(self, key.name) != key.default]
        if given:
            raise ConfigError(f"folder: an existing space decides {', '.join(given)} itself; drop that, or folder")


@dataclass(frozen=True)
class DataRecipe:
    """Images, and the part of them that is taken.

    Attributes:
        dataset: "digits", "folder", "images" (without labels), "npz", a data set of torchvision by name, or with a
            prefix, such as "hfds/...".
        root: folder or file where the images are.
        split: part of the data set as it names it.
        classes: these only, in this order; all if empty.
        part: one of n disjoint random parts of equal size, such as "1/2", or some of them, such as "1-4/5".
        limit: largest number of images.
        seed: of ``part`` and ``limit``; the training's if None.
        skip_corrupt: whether images that cannot be decoded are left out; otherwise they are an error.
        rename: new names of classes by old ones, such as ``{automobile: car}``; ``classes`` go by the new ones.

    Raises:
        ConfigError: a value out of range, or no root where the data set needs one.
    """

    dataset: str
    root: str | None = None
    split: str = "train"
    classes: tuple[str, ...] = ()
    part: str | None = None
    limit: int | None = None
    seed: int | None = None
    skip_corrupt: bool = False
    rename: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_text("dataset", self.dataset)
        check_text("root", self.root, optional=True)
        if self.dataset in ROOTED_DATASETS and self.root is None:
            raise ConfigError(f"root: expected a path, as dataset {self.dataset!r} is read from there, got none")
        check_text("split", self.split)
        object.__setattr__(self, "rename", check_renaming("rename", self.rename))
        _keep_names(self, "classes")
        self._check_part()
        if self.limit is not None:
            check_whole("limit", self.limit, least=1)
        _check_seed(self.seed)
        check_switch("skip_corrupt", self.skip_corrupt)

    def _check_part(self) -> None:
        if self.part is None:
            return
        form = r"([0-9]{1,6})(?:-([0-9]{1,6}))?/([0-9]{1,6})"
        found = re.fullmatch(form, self.part) if isinstance(self.part, str) else None
        if found is None or not 1 <= int(found[1]) <= int(found[2] or found[1]) <= int(found[3]):
            raise ConfigError(f"part: expected one of n parts, such as '1/2', got {self.part!r}; '1-4/5' are several")


@dataclass(frozen=True)
class HeadRecipe:
    """A task head.

    Attributes:
        depth: 1 for a linear head.
        hidden_dim: width of the further steps; D if None.
        drop_rate: dropout before the classifier, in training.
        class_names: in the order of the logits; those of the member's data if empty.

    Raises:
        ConfigError: a value out of range.
    """

    depth: int = 1
    hidden_dim: int | None = None
    drop_rate: float = 0.0
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_whole("depth", self.depth, least=1)
        if self.hidden_dim is not None:
            check_whole("hidden_dim", self.hidden_dim, least=1)
        rate = self.drop_rate
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise ConfigError(f"drop_rate: expected a number from 0 up to 1, got {rate!r}")
        _keep_names(self, "class_names")


@dataclass(frozen=True)
class MemberRecipe:
    """One network: a backbone, the data that it learns from, and its head.

    Attributes:
        name: tells the member apart in logs and files; an identifier.
        backbone: name of a timm model.
        data: training images.
        test: images that measure it; none if None.
        validation: images that are measured after every epoch, and by which ``training.best_metric`` chooses one; they
            must be others than the test images. A part of the training images serves: ``data: {..., part: 1-4/5}``
            and ``validation: {..., part: 5/5}``.
        head: its task head.
        labelled: whether it learns from labels; otherwise it has no head, and its labels are never looked at.
        pretrained: whether to load timm's weights.
        weights: a safetensors checkpoint of the plain timm model.
        trainable: "full", or "adapter": the backbone stays as it is.
        img_size: H = W, or (H, W), of the images; the backbone's own if None.
        crop_pct: share of an image's side that the backbone sees; as ``create_extractor`` chooses it if None.
        out_index: at level "map" the stage to read.
        arguments: timm's own keywords, such as ``in_chans``; their values are texts, numbers, switches, None, or lists
            of these (a tuple becomes a list).

    Raises:
        ConfigError: a value out of range, ``weights`` together with ``pretrained``, an argument that has a key of its
            own, or a test, a validation or a head of a member without labels.
    """

    name: str
    backbone: str
    data: DataRecipe
    test: DataRecipe | None = None
    validation: DataRecipe | None = None
    head: HeadRecipe = field(default_factory=HeadRecipe)
    labelled: bool = True
    pretrained: bool = False
    weights: str | None = None
    trainable: str = "full"
    img_size: int | tuple[int, int] | None = None
    crop_pct: float | None = None
    out_index: int = -1
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ConfigError(
                f"name: expected a name of letters, digits and _ that starts with no digit, got {self.name!r}"
            )
        check_text("backbone", self.backbone)
        check_text("weights", self.weights, optional=True)
        for key in ("labelled", "pretrained"):
            check_switch(key, getattr(self, key))
        check_choice("trainable", self.trainable, TRAINABLE)
        self._check_img_size()
        share = self.crop_pct
        if share is not None and (isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1):
            raise ConfigError(f"crop_pct: expected a number over 0 and at most 1, got {share!r}")
        check_whole("out_index", self.out_index)
        object.__setattr__(self, "arguments", check_arguments(self.arguments))
        if self.weights is not None and self.pretrained:
            raise ConfigError("weights: expected a checkpoint or pretrained: true, got both; drop one")
        self._check_labels()

    def _check_img_size(self) -> None:
        if self.img_size is None:
            return
        if not isinstance(self.img_size, (list, tuple)):
            return check_whole("img_size", self.img_size, least=1)
        if len(self.img_size) != 2:
            raise ConfigError(f"img_size: expected a side, or height and width, got {list(self.img_size)}")
        for side in self.img_size:
            check_whole("img_size", side, least=1)
        object.__setattr__(self, "img_size", tuple(self.img_size))

    def _check_labels(self) -> None:
        if self.labelled:
            return
        for key in ("test", "validation"):
            if getattr(self, key) is not None:
                raise ConfigError(
                    f"{key}: a member without labels has no head that could be tested; drop it, or label it"
                )
        if self.head != HeadRecipe():
            raise ConfigError("head: a member without labels has no head; drop it, or set labelled: true")


@dataclass(frozen=True)
class ReferenceRecipe:
    """Existing components whose features the new ones should match.

    Attributes:
        extractor: folder or Hub id of the extractor.
        head: folder or Hub id of its head.

    Raises:
        ConfigError: an empty path.
    """

    extractor: str
    head: str | None = None

    def __post_init__(self) -> None:
        check_text("extractor", self.extractor)
        check_text("head", self.head, optional=True)


@dataclass(frozen=True)
class Recipe:
    """A whole training run. Paths are kept as texts, so that a recipe equals the one read back from its text.

    Attributes:
        space: where all members live.
        members: the networks, at least one.
        training: how they are trained.
        reference: existing components to match, for alignment, influence and distillation.
        pool: unlabelled images for alignment.
        evaluate: whether the matrix of all members' extractors and heads is measured afterwards.

    Raises:
        ConfigError: no member, two of one name, or settings that contradict each other.
    """

    space: SpaceRecipe
    members: tuple[MemberRecipe, ...]
    training: TrainConfig = field(default_factory=TrainConfig)
    reference: ReferenceRecipe | None = None
    pool: DataRecipe | None = None
    evaluate: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(self.members))
        object.__setattr__(self, "training", as_written(self.training))
        check_switch("evaluate", self.evaluate)
        if not self.members:
            raise ConfigError("members: expected at least one, got none")
        names = [member.name for member in self.members]
        for position, name in enumerate(names):
            if name in names[:position]:
                raise ConfigError(f"members.{position}.name: expected every name once, got {name!r} twice")
        self._check_reference()
        self._check_choice()

    def _check_choice(self) -> None:
        if self.training.best_metric is None:
            return
        check_choice("training.best_metric", self.training.best_metric, METRICS)
        for position, member in enumerate(self.members):
            # Chosen by the test images, an epoch would score better on them than on any others.
            if member.labelled and member.validation is None:
                raise ConfigError(
                    f"training.best_metric: needs members.{position}.validation, images to choose the epoch by, which "
                    "are no test images, got none; give another split, or take a part of the training images: data: "
                    "{..., part: 1-4/5} and validation: {..., part: 5/5}"
                )

    def _check_reference(self) -> None:
        factors = [name for name in ("influence_weight", "distillation_weight") if getattr(self.training, name)]
        if not factors and self.training.alignment == "none":
            for key in ("reference", "pool"):
                if getattr(self, key) is not None:
                    raise ConfigError(
                        f"{key}: nothing uses it; set training.alignment, training.influence_weight or "
                        "training.distillation_weight, or drop it"
                    )
        if factors and (self.reference is None or self.reference.head is None):
            raise ConfigError(
                f"training.{factors[0]}: needs the head of the reference, got none; give reference.head, or drop it"
            )


def as_written(training: TrainConfig) -> TrainConfig:
    """Paths as texts, and tuples among arguments as lists: what YAML can hold."""
    found: dict[str, Any] = {}
    for name, value in vars(training).items():
        if isinstance(value, PurePath):
            found[name] = str(value)
        elif isinstance(value, Mapping):
            found[name] = {key: list(item) if isinstance(item, tuple) else item for key, item in value.items()}
    return replace(training, **found)


def _check_seed(seed: int | None) -> None:
    if seed is not None:
        check_whole("seed", seed)


def _keep_names(recipe: object, *keys: str) -> None:
    for key in keys:
        object.__setattr__(recipe, key, check_names(key, getattr(recipe, key)))
