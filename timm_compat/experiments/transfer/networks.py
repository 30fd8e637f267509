"""What both questions do with networks: read their images, train them alone, join them."""

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from timm_compat.config import TrainConfig
from timm_compat.errors import BackboneError, ConfigError, DataError
from timm_compat.evaluation.cells import LEAST_CLASSES
from timm_compat.experiments.build import build_extractor, build_member, read_images
from timm_compat.experiments.engine import Experiment
from timm_compat.experiments.frozen import Features, with_own_features
from timm_compat.experiments.networks import own_space
from timm_compat.experiments.transfer.recipe import FROZEN
from timm_compat.joining.join import join, join_with
from timm_compat.joining.report import JoinReport
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.split import split
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

    @property
    def frozen(self) -> bool:
        """Whether it stays as it came."""
        return self.given.trainable == FROZEN

    def train_alone(
        self, name: str, like: SpaceRecipe | CompatSpace, training: TrainConfig, experiment: Experiment
    ) -> tuple[Member, float]:
        """Train it without regard to any other, in a space of its own of the same form; the member, and seconds.

        A network that stays as it came gets a linear probe; its space is that of its features.
        """
        if self.frozen:
            start, extractor = time.perf_counter(), taken_apart(self.given)
            head = experiment.features.probe(extractor, self.data, training.seed)
            return Member(self.given.name, extractor, head, self.data), time.perf_counter() - start
        member = build_member(self.given, own_space(like), self.data, training.seed)
        return member, experiment.train_alone(name, member, replace(training, **ALONE)).seconds

    def joined(
        self,
        member: Member,
        images: Images | None,
        space: CompatSpace,
        reference: CompatExtractor,
        heads: Sequence[TaskHead],
        features: Features,
    ) -> CompatExtractor:
        """The trained member, frozen, joined to the space of a reference, whose classes it brings.

        One that stays as it came joins with its own classifier, on kept features. The images alone have a say where the
        report says that they serve a single head better.
        """
        join_it: Callable[..., CompatExtractor] = join
        model: Any = member.extractor.backbone.model
        options: dict[str, Any] = {"heads": heads, "img_size": self.given.img_size}
        if self.frozen:
            join_it, model, options = partial(join_with, features.look), self.given.backbone, source_of(self.given)
            options["heads"] = heads
        options["reference"] = None if images is None else reference
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "join")  # about a poor fit, whose accuracy is measured next
            made = join_it(space, model, images, **options)
            if len(heads) == 1 and _misled(made.fit_report):
                made = join_it(space, model, images, classes=False, **options)
        return made


def source_of(given: MemberRecipe) -> dict[str, Any]:
    """What ``tc.split`` and ``tc.join`` ask of a pretrained network, beside its name."""
    weights = {"pretrained": True} if given.weights is None else {"weights": given.weights}
    return {**weights, "img_size": given.img_size, **given.arguments}


def taken_apart(given: MemberRecipe) -> CompatExtractor:
    """A pretrained network whose own features are those of a space: with its classes where it has a classifier."""
    try:
        return split(given.backbone, **source_of(given))[0]
    except (BackboneError, ConfigError):  # no linear classifier, or nobody knows its classes
        options: dict[str, Any] = {"pretrained": given.pretrained, "img_size": given.img_size, **given.arguments}
        network = build_extractor(given.backbone, CompatSpace(1, methods=()), weights=given.weights, **options)
        extractor = with_own_features(network)
        extractor.space.finalize(reference=extractor.digest())
        return extractor


def _misled(report: JoinReport) -> bool:
    found = report.without_classes
    return any(alone.share > report.agreements[name].share for name, alone in found.items())


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
