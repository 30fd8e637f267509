"""The demonstration that trains: two extractors of different architectures exchange their heads on real digits."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from timm_compat.config import TrainConfig
from timm_compat.data.array_files import load_digits
from timm_compat.data.arrays import ArrayDataset
from timm_compat.errors import ConfigError, MissingExtraError
from timm_compat.evaluation.baselines import retrained_head_accuracy
from timm_compat.evaluation.matrix import RecombinationMatrix, pair_accuracy, recombination_matrix
from timm_compat.evaluation.plots import side_by_side
from timm_compat.experiments.result import write_figure
from timm_compat.joining.join import join
from timm_compat.models.backbone import parse_image_size
from timm_compat.models.backbone_build import check_model_name
from timm_compat.models.extractor import CompatExtractor, create_extractor
from timm_compat.models.heads import TaskHead
from timm_compat.seeding import generator, seeded
from timm_compat.space import CompatSpace
from timm_compat.storage.files import new_folder
from timm_compat.training.fit import fit, save_members
from timm_compat.training.members import Member

NAMES = ("a", "b")
FEATURE_DIM = 64
PICTURE_FILE = "recombination.png"
MATRICES_FILE = "matrices.json"

Parts = dict[str, tuple[CompatExtractor, TaskHead]]


def check_backbones(names: Sequence[str], img_size: int) -> None:
    """Refuse what no demonstration can be run with.

    Raises:
        BackboneError: a name that timm does not know.
        ConfigError: not two names, or no image size.
    """
    if len(names) != len(NAMES):
        raise ConfigError(f"backbones: expected two names, got {len(names)}: {', '.join(names)}")
    for name in names:
        check_model_name(name)
    parse_image_size(img_size)


def save_figures(folder: Path, figure: Callable[[], Any], matrices: Mapping[str, Any]) -> None:
    """Write matrices and, where Matplotlib is installed, a picture into a folder that is being filled."""
    with suppress(MissingExtraError):
        write_figure(figure(), folder / PICTURE_FILE)
    (folder / MATRICES_FILE).write_text(json.dumps(matrices, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demonstration.

    Attributes:
        backbones: two names of timm models.
        seed: of everything random.
        epochs: of each training.
        img_size: side to which the 8 x 8 digits are enlarged.

    Raises:
        BackboneError: a name that timm does not know.
        ConfigError: not two backbones, or a number out of range.
    """

    backbones: tuple[str, ...] = ("test_resnet", "test_efficientnet")
    seed: int = 0
    epochs: int = 30
    img_size: int = 32

    def __post_init__(self) -> None:
        check_backbones(self.backbones, self.img_size)
        TrainConfig(epochs=self.epochs)

    @property
    def training(self) -> TrainConfig:
        """How every network of the demonstration is trained."""
        return TrainConfig(epochs=self.epochs, batch_size=64, random_crop=1, seed=self.seed)


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration measured; accuracies in [0, 1] on 449 test digits.

    Attributes:
        compatible: matrix of the pair trained with shared rotation and common-classes heads.
        independent: matrix of the same pair trained without anything in common.
        joined: the independent backbones, frozen, each joined to the other's space.
        ceiling: mean accuracy of heads retrained with labels for the joined pairs.
        seconds: wall time.
        compatible_parts: by name, extractor and head.
        joined_parts: by name of the backbone, the joined extractor and the other's head that it serves.
    """

    compatible: RecombinationMatrix
    independent: RecombinationMatrix
    joined: RecombinationMatrix
    ceiling: float
    seconds: float
    compatible_parts: Parts = field(repr=False)
    joined_parts: Parts = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {
            "native": self.compatible.native_accuracy,
            "recombined": self.compatible.recombined_accuracy,
            "independent": self.independent.recombined_accuracy,
            "joined": self.joined.recombined_accuracy,
            "ceiling": self.ceiling,
            "chance": float(self.compatible.chance.mean()),
            "seconds": self.seconds,
        }

    def matrices(self) -> dict[str, Any]:
        """The three matrices as JSON values."""
        return {name: matrix.to_dict() for name, matrix in self._named().items()}

    def save(self, folder: str | Path) -> Path:
        """Write matrices, components and, where Matplotlib is installed, a picture to a new folder, in one step.

        Raises:
            OutputExistsError: the folder holds something already.
        """
        with new_folder(folder) as partial:
            save_figures(partial, lambda: side_by_side(self._named()), self.matrices())
            space = next(iter(self.compatible_parts.values()))[0].space
            save_members(partial / "compatible", space, self.compatible_parts)
            for name, (extractor, head) in self.joined_parts.items():
                extractor.save_pretrained(partial / "joined" / f"extractor-{name}")
                head.save_pretrained(partial / "joined" / f"head-for-{name}")
        return Path(folder)

    def _named(self) -> dict[str, RecombinationMatrix]:
        return {
            "trained in one space": self.compatible,
            "trained independently": self.independent,
            "independent, then joined": self.joined,
        }


def run_demo(config: DemoConfig, say: Callable[[str], None]) -> DemoResult:
    """Train, recombine, join and measure; ``say`` gets one line a stage.

    Raises:
        BackboneError: a backbone that cannot take such small images.
    """
    start = time.perf_counter()
    train, test = load_digits("train"), load_digits("test")
    halves = dict(zip(NAMES, train.halves(generator(config.seed, "halves")), strict=True))

    say("1/3  training two extractors in one space, with shared rotation and common-classes heads")
    space = CompatSpace(FEATURE_DIM, train.class_names, ("common_classes", "rotation"), seed=config.seed)
    compatible = _parts({name: space for name in NAMES}, config, train)
    fit(space, _members(compatible, halves), config.training, progress="compatible pair")

    say("2/3  training the same two independently, as a baseline")
    alone = _parts({name: CompatSpace(FEATURE_DIM) for name in NAMES}, config, train)
    for member in _members(alone, halves):
        own = member.extractor.space
        fit(own, [member], config.training, progress=f"{member.name} alone")
        own.finalize(reference=member.extractor.digest())

    say("3/3  freezing these two, and joining each to the other's space from unlabelled images")
    joined: Parts = {}
    others = dict(zip(NAMES, reversed(NAMES), strict=True))
    for name, other in others.items():
        (reference, head), model = alone[other], alone[name][0].backbone.model
        asked: dict[str, Any] = {"reference": reference, "heads": [head], "img_size": config.img_size}
        joined[name] = join(reference.space, model, train.images, **asked), head
    ceilings = [retrained_head_accuracy(alone[name][0], halves[other], test) for name, other in others.items()]
    independent = _matrix(alone, config, test)
    return DemoResult(
        compatible=_matrix(compatible, config, test),
        independent=independent,
        joined=_joined_matrix(independent, joined, test),
        ceiling=float(np.mean(ceilings)),
        seconds=time.perf_counter() - start,
        compatible_parts=compatible,
        joined_parts=joined,
    )


def _parts(spaces: dict[str, CompatSpace], config: DemoConfig, train: ArrayDataset) -> Parts:
    parts: Parts = {}
    for (name, space), backbone in zip(spaces.items(), config.backbones, strict=True):
        with seeded(config.seed, "demo", name):
            extractor = create_extractor(backbone, space, in_chans=train.images.shape[1], img_size=config.img_size)
            parts[name] = (extractor, TaskHead(space, train.class_names))
    return parts


def _members(parts: Parts, halves: dict[str, ArrayDataset]) -> list[Member]:
    return [Member(name, extractor, head, halves[name]) for name, (extractor, head) in parts.items()]


def _matrix(parts: Parts, config: DemoConfig, test: ArrayDataset) -> RecombinationMatrix:
    titles = [f"{name} ({backbone})" for name, backbone in zip(NAMES, config.backbones, strict=True)]
    extractors, heads = zip(*parts.values(), strict=True)
    return recombination_matrix(
        dict(zip(titles, extractors, strict=True)), dict(zip(titles, heads, strict=True)), test, cross_space=True
    )


def _joined_matrix(independent: RecombinationMatrix, joined: Parts, test: ArrayDataset) -> RecombinationMatrix:
    # A backbone has one interface for each space: its own one serves its own head, the joined one the other's.
    accuracy = independent.accuracy.copy()
    for row, (extractor, head) in enumerate(joined.values()):
        accuracy[row, len(NAMES) - 1 - row] = pair_accuracy(extractor, head, test)
    return replace(independent, accuracy=accuracy, cross_space=None, predictions=None)
