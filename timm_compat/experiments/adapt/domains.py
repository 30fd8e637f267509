"""The images of both domains, brought together: one number of channels, and classes matched by name."""

import logging
from dataclasses import dataclass

from timm_compat.data.arrays import ArrayDataset
from timm_compat.data.image_dataset import MODES
from timm_compat.data.shifts import shifted_dataset
from timm_compat.errors import DataError
from timm_compat.experiments.adapt.recipe import UNLABELLED, AdaptRecipe, DomainRecipe
from timm_compat.experiments.datasets import read_images
from timm_compat.recipes.schema import DataRecipe
from timm_compat.seeding import derive_seed
from timm_compat.training.members import Images

logger = logging.getLogger(__name__)

LEAST_TARGET = 10  # images
LEAST_COMMON = 2  # classes
COLOUR = 3


@dataclass(frozen=True)
class Domains:
    """What a seed learns from and is measured on.

    Attributes:
        source: labelled.
        target: labels are looked at for the upper bound alone.
        source_test: None where the recipe names none.
        target_test: None where the recipe names none.
        in_chans: channels of all of these images.
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


def read_domains(recipe: AdaptRecipe, seed: int, in_chans: int | None = None) -> Domains:
    """Read the images of a seed.

    Args:
        recipe: names them.
        seed: of parts and limits, where the recipe leaves it open.
        in_chans: channels that all images get; if None, what the recipe says, else the most that any have.

    Raises:
        CompatError: as the data sets raise it, with the domain's name before it.
        DataError: fewer than ten target images, or domains without at least two common classes.
    """
    read = {
        (side, use): None if data is None else read_images(f"{side}.{use}", data, seed)
        for side, domain in (("source", recipe.source), ("target", recipe.target))
        for use, data in (("train", domain.train), ("test", domain.test))
    }
    found = [dataset for dataset in read.values() if dataset is not None]
    if in_chans is None:
        in_chans = recipe.arguments.get("in_chans", COLOUR if recipe.pretrained else max(map(channels_of, found)))
    ready = {
        key: None if dataset is None else _prepared(dataset, getattr(recipe, key[0]), in_chans, seed, key)
        for key, dataset in read.items()
    }
    source, target = ready["source", "train"], ready["target", "train"]
    assert source is not None  # every domain names training images
    assert target is not None
    domains = Domains(source, target, ready["source", "test"], ready["target", "test"], in_chans)
    _check(domains, recipe.target.train)
    return domains


def channels_of(dataset: Images) -> int:
    """1 for grey images, 3 for colour."""
    if isinstance(dataset, ArrayDataset):
        return dataset.images.shape[1]
    return next(count for count, mode in MODES.items() if mode == dataset.mode)


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
            check_common(name, dataset.class_names, domains.class_names, "source.train")


def check_common(name: str, theirs: tuple[str, ...], known: tuple[str, ...], whose: str) -> None:
    """Refuse images without at least two classes that are known; warn of others.

    Args:
        name: of the images in the recipe.
        theirs: their classes.
        known: classes of the source.
        whose: key of the recipe that these come from.

    Raises:
        DataError: see above.
    """
    common = [label for label in theirs if label in known]
    if len(common) < LEAST_COMMON:
        raise DataError(
            f"{name}: expected at least {LEAST_COMMON} classes that {whose} has too ({_listed(known)}), got "
            f"{len(common)} of {_listed(theirs)}; match the names with rename: {{theirs: ours}}"
            + ("; images without labels are 'images'" if name == "target.train" else "")
        )
    if left_out := [label for label in theirs if label not in known]:
        logger.warning("%s: the source head does not know %s", name, _listed(left_out))


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
