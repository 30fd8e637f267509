"""What both questions do with networks: read their images, train them alone, join them."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from timm_compat.config import TrainConfig
from timm_compat.errors import DataError
from timm_compat.evaluation.cells import LEAST_CLASSES
from timm_compat.experiments.build import build_member, read_images
from timm_compat.experiments.engine import Experiment
from timm_compat.experiments.networks import own_space
from timm_compat.joining.join import join
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.recipes.schema import DataRecipe, MemberRecipe, SpaceRecipe
from timm_compat.space import CompatSpace
from timm_compat.training.members import Images, Member
from timm_compat.vocabulary import listed

# Trained on its own: no loss but the task's. Methods of the space play no part then.
ALONE: dict[str, Any] = {
    **{"alignment": "none", "common_classes_weight": 0.0, "self_supervised_fraction": 0.0},
    **{"influence_weight": 0.0, "distillation_weight": 0.0},
}

Read = Callable[[str, DataRecipe, MemberRecipe], Images]


def reader(seed: int) -> Read:
    """Reads images of one seed; what is asked for twice is read once, and is one object."""
    known: dict[str, Images] = {}

    def read(what: str, data: DataRecipe, member: MemberRecipe) -> Images:
        key = repr((data, member.arguments.get("in_chans"), member.pretrained))
        if key not in known:
            known[key] = read_images(what, data, seed, member)
        return known[key]

    return read


@dataclass(frozen=True)
class Network:
    """One that a recipe names, with labelled images to learn from and to measure its head."""

    given: MemberRecipe
    data: Images
    test: Images

    @classmethod
    def read(cls, what: str, given: MemberRecipe, read: Read) -> "Network":
        """A network's images.

        Raises:
            DataError: test images without two of its classes, or as the data set's source raises it.
        """
        assert given.test is not None  # the recipe was checked
        network = cls(given, read(what, given.data, given), read(f"test of {what}", given.test, given))
        check_test(what, given.head.class_names or network.data.class_names, network.test)
        return network

    def train_alone(
        self, name: str, like: SpaceRecipe | CompatSpace, training: TrainConfig, experiment: Experiment
    ) -> tuple[Member, float]:
        """Train it without regard to any other, in a space of its own of the same form; the member, and seconds."""
        member = build_member(self.given, own_space(like), self.data, training.seed)
        return member, experiment.train_alone(name, member, replace(training, **ALONE)).seconds

    def joined(
        self, member: Member, images: Images, reference: CompatExtractor, heads: Sequence[TaskHead]
    ) -> CompatExtractor:
        """The trained member, frozen, joined to the space of a reference."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "join")  # about a poor fit, whose accuracy is measured next
            return join(
                reference.space, member.extractor.backbone.model, images,
                reference=reference, heads=heads, img_size=self.given.img_size,
            )  # fmt: skip


def check_test(what: str, class_names: Iterable[str], test: Images) -> None:
    """Refuse test images that cannot measure a head.

    Raises:
        DataError: fewer than two of the head's classes are among them.
    """
    names, present = list(class_names), {test.class_names[label] for label in test.labels.unique().tolist()}
    if len(present.intersection(names)) < LEAST_CLASSES:
        raise DataError(
            f"test of {what}: expected images of at least {LEAST_CLASSES} of the head's classes ({listed(names, 5)}), "
            f"got {listed(sorted(present), 5)}"
        )
