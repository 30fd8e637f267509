"""The images of both domains, brought together, and the source network where the recipe names a trained one."""

import logging
from dataclasses import dataclass

from timm_compat.data.shifts import shifted_dataset
from timm_compat.errors import ConfigError, DataError
from timm_compat.experiments.adapt.recipe import UNLABELLED, WARM, AdaptRecipe, DomainRecipe
from timm_compat.experiments.build import read_images
from timm_compat.experiments.networks import copied_pair, own_space
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.recipes.schema import DataRecipe
from timm_compat.seeding import derive_seed
from timm_compat.training.members import Images
from timm_compat.vocabulary import listed

logger = logging.getLogger(__name__)

LEAST_TARGET = 10  # images
LEAST_COMMON = 2  # classes
COLOUR = 3


@dataclass(frozen=True)
class Domains:
    """What a seed learns from and, where the recipe names it, is measured on, all with ``in_chans`` channels.

    The target's labels are looked at for the upper bound alone.
    """

    source: Images
    target: Images
    source_test: Images | None
    target_test: Images | None
    in_chans: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the source head tells apart."""
        return self.source.class_names

    def target_labelled(self) -> Images:
        """Target images of the classes that the source knows, with labels."""
        return self.target.of_classes([name for name in self.class_names if name in self.target.class_names])


@dataclass(frozen=True)
class Given:
    """What the recipe names as ``source_extractor`` and ``source_head``."""

    extractor: CompatExtractor
    head: TaskHead

    @property
    def in_chans(self) -> int:
        """Channels of the images that the extractor takes."""
        return int(self.extractor.backbone.input_size[0])

    def copies(self, trainable: str = "full") -> tuple[CompatExtractor, TaskHead]:
        """Copies in a space of their own, which the extractor's features define: the modes change what they get."""
        space = own_space(self.extractor.space)
        extractor, head = copied_pair(self.extractor, self.head, space, trainable)
        space.finalize(reference=extractor.digest())
        return extractor, head


def read_given(recipe: AdaptRecipe) -> Given | None:
    """Read the source network that the recipe names; None if it names none.

    Raises:
        CompatError: as the parts raise it, or because they live in different spaces.
        ConfigError: a space of feature maps, which no mode can use, or images of other channels than the recipe's.
    """
    extractor, head = recipe.source_extractor, recipe.source_head
    if extractor is None or head is None:
        return None
    given = Given(CompatExtractor.from_pretrained(extractor), TaskHead.from_pretrained(head))
    space, names = given.extractor.space, (f"source_extractor {extractor}", f"source_head {head}")
    space.require_same(given.head.space, *names)
    if space.level != "pooled":
        raise ConfigError(
            f"source_extractor: expected a space of pooled features, got level {space.level!r}, which no mode can use; "
            "name a network of level 'pooled', or drop source_extractor and source_head"
        )
    asked = recipe.arguments.get("in_chans", given.in_chans)
    if asked != given.in_chans:
        raise ConfigError(f"arguments: source_extractor takes {given.in_chans} channels, got in_chans {asked}; drop it")
    return given


def read_domains(recipe: AdaptRecipe, seed: int, given: Given | None = None) -> Domains:
    """Read the images of a seed.

    They get the channels of the given source network; without one those that the recipe says, else the most that any
    have.

    Raises:
        CompatError: as the data sets raise it, with the domain's name before it.
        DataError: fewer than ten target images, domains without at least two common classes, or a source head that does
            not fit the images.
    """
    read = {
        (side, use): None if data is None else read_images(f"{side}.{use}", data, seed)
        for side, domain in (("source", recipe.source), ("target", recipe.target))
        for use, data in (("train", domain.train), ("test", domain.test))
    }
    found = [dataset for dataset in read.values() if dataset is not None]
    most = COLOUR if recipe.pretrained or recipe.weights else max(dataset.channels for dataset in found)
    in_chans = recipe.arguments.get("in_chans", most) if given is None else given.in_chans
    ready = {
        key: None if dataset is None else _prepared(dataset, getattr(recipe, key[0]), in_chans, seed, key)
        for key, dataset in read.items()
    }
    source, target = ready["source", "train"], ready["target", "train"]
    assert source is not None  # every domain names training images
    assert target is not None
    domains = Domains(source, target, ready["source", "test"], ready["target", "test"], in_chans)
    _check(domains, recipe.target.train)
    if given is not None:
        _check_given(given, domains, recipe)
    return domains


def _prepared(dataset: Images, domain: DomainRecipe, in_chans: int, seed: int, key: tuple[str, str]) -> Images:
    whole = dataset.with_channels(in_chans)
    return shifted_dataset(whole, domain.shift, derive_seed(seed, *key)) if domain.shift else whole


def _check(domains: Domains, target: DataRecipe) -> None:
    if len(domains.target) < LEAST_TARGET:
        raise DataError(
            f"target.train: expected at least {LEAST_TARGET} images to adapt to, got {len(domains.target)}; "
            "take more, or use the source network as it is"
        )
    tested = {"target.train": None if target.dataset == UNLABELLED else domains.target}
    tested |= {"target.test": domains.target_test, "source.test": domains.source_test}
    for name, dataset in tested.items():
        if dataset is not None:
            _check_common(name, dataset.class_names, domains.class_names, "source.train")


def _check_given(given: Given, domains: Domains, recipe: AdaptRecipe) -> None:
    known = given.head.class_names
    for name, dataset in (("target.test", domains.target_test), ("source.test", domains.source_test)):
        if dataset is not None:
            _check_common(name, dataset.class_names, known, "source_head")
    trained = [mode for mode in recipe.chosen_modes if mode in WARM]
    if trained and set(domains.class_names) != set(known):
        raise DataError(
            f"source.train: expected the classes of source_head ({listed(known)}), which {trained[0]} trains further, "
            f"got {listed(domains.class_names)}; choose them with classes and rename, or leave the mode out"
        )


def _check_common(name: str, theirs: tuple[str, ...], known: tuple[str, ...], whose: str) -> None:
    """Refuse images without at least two classes that ``whose``, a key of the recipe, knows; warn of others."""
    common = [label for label in theirs if label in known]
    if len(common) < LEAST_COMMON:
        raise DataError(
            f"{name}: expected at least {LEAST_COMMON} classes that {whose} has too ({listed(known, 5)}), got "
            f"{len(common)} of {listed(theirs, 5)}; match the names with rename: {{theirs: ours}}"
            + ("; images without labels are 'images'" if name == "target.train" else "")
        )
    if left_out := [label for label in theirs if label not in known]:
        logger.warning("%s: the source head does not know %s", name, listed(left_out, 5))
