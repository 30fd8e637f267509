"""What both parts of the application do with networks: read their images, train them alone, join them."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from timm_compat.applications.build import build_member
from timm_compat.applications.copies import own_space
from timm_compat.applications.datasets import read_images
from timm_compat.applications.trials import Trials
from timm_compat.config import TrainConfig
from timm_compat.errors import DataError
from timm_compat.evaluation.cells import LEAST_CLASSES
from timm_compat.joining.join import join
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.recipes.schema import DataRecipe, MemberRecipe, SpaceRecipe
from timm_compat.space import CompatSpace
from timm_compat.training.members import Images, Member

# Trained on its own: no loss but the task's. Methods of the space play no part then.
ALONE: dict[str, Any] = {
    **{"alignment": "none", "common_classes_weight": 0.0, "self_supervised_fraction": 0.0},
    **{"influence_weight": 0.0, "distillation_weight": 0.0},
}

Read = Callable[[str, DataRecipe, MemberRecipe], Images]


@dataclass(frozen=True)
class Network:
    """One that a recipe names, with its images.

    Attributes:
        given: what the recipe says.
        data: labelled training images.
        test: labelled images that measure its head.
    """

    given: MemberRecipe
    data: Images
    test: Images


def reader(seed: int) -> Read:
    """Reads images of one seed; what is asked for twice is read once, and is one object."""
    known: dict[str, Images] = {}

    def read(what: str, data: DataRecipe, member: MemberRecipe) -> Images:
        channels, pretrained = member.arguments.get("in_chans"), member.pretrained
        key = repr((data, channels, pretrained))
        if key not in known:
            known[key] = read_images(what, data, seed, in_chans=channels, pretrained=pretrained)
        return known[key]

    return read


def read_network(what: str, given: MemberRecipe, read: Read) -> Network:
    """A network's images.

    Raises:
        CompatError: as the data set's source raises it.
        DataError: test images without two of its classes.
    """
    assert given.test is not None  # the recipe was checked
    network = Network(given, read(what, given.data, given), read(f"test of {what}", given.test, given))
    check_test(what, given.head.class_names or network.data.class_names, network.test)
    return network


def check_test(what: str, class_names: Iterable[str], test: Images) -> None:
    """Refuse test images that cannot measure a head.

    Raises:
        DataError: fewer than two of the head's classes are among them.
    """
    present = {test.class_names[label] for label in test.labels.unique().tolist()}
    names = list(class_names)
    known = [name for name in names if name in present]
    if len(known) < LEAST_CLASSES:
        raise DataError(
            f"test of {what}: expected images of at least {LEAST_CLASSES} of the head's classes "
            f"({', '.join(names[:5])} ...), got {', '.join(sorted(present)[:5])} ..."
        )


def train_alone(
    name: str, network: Network, like: SpaceRecipe | CompatSpace, training: TrainConfig, trials: Trials
) -> tuple[Member, float]:
    """A network that was trained without regard to any other, as the reference of a space of its own, and seconds.

    Args:
        name: of the training's folder.
        network: what to train.
        like: whose feature dimension and normalisation its space has.
        training: settings with the trial's seed.
        trials: where the training is kept.

    Raises:
        CompatError: as ``fit`` does.
    """
    own = own_space(like)
    member = build_member(network.given, own, network.data, training.seed)
    seconds = trials.train(name, own, [member], replace(training, **ALONE)).seconds
    own.finalize(reference=member.extractor.digest())
    return member, seconds


def same_images(
    heads: Mapping[str, TaskHead], tests: Mapping[str, Images]
) -> Iterator[tuple[Images, dict[str, TaskHead]]]:
    """Test images, each once, with the heads that they measure."""
    for test in {id(tests[name]): tests[name] for name in heads}.values():
        yield test, {name: head for name, head in heads.items() if tests[name] is test}


def joined(
    member: Member,
    given: MemberRecipe,
    images: Images,
    reference: CompatExtractor,
    heads: Sequence[TaskHead],
) -> CompatExtractor:
    """A trained network, frozen, joined to the space of a reference.

    Raises:
        CompatError: as ``join`` does.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "join")  # about a poor fit, whose accuracy is measured next
        return join(
            reference.space, member.extractor.backbone.model, images,
            reference=reference, heads=heads, img_size=given.img_size,
        )  # fmt: skip
