"""A source network that is there already: extractor and head from folders or the Hub, in place of its training."""

from dataclasses import dataclass

from timm_compat.errors import ConfigError, DataError
from timm_compat.experiments.adapt.domains import Domains, check_common
from timm_compat.experiments.adapt.networks import pair_in
from timm_compat.experiments.adapt.recipe import WARM, AdaptRecipe
from timm_compat.experiments.copies import own_space
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.vocabulary import listed


@dataclass(frozen=True)
class Given:
    """What the recipe names as ``source_extractor`` and ``source_head``."""

    extractor: CompatExtractor
    head: TaskHead

    @property
    def in_chans(self) -> int:
        """Channels of the images that the extractor takes."""
        return int(self.extractor.backbone.input_size[0])

    def copies(self) -> tuple[CompatExtractor, TaskHead]:
        """Copies in a space of their own, which the extractor's features define: the modes change what they get."""
        space = own_space(self.extractor.space)
        extractor, head = pair_in(space, self.extractor, self.head)
        space.finalize(reference=extractor.digest())
        return extractor, head


def read_given(recipe: AdaptRecipe) -> Given | None:
    """Read the source network that the recipe names; None if it names none.

    Raises:
        ComponentFileError: a file is missing, damaged or of another kind.
        HubError: the Hub refuses or fails.
        SpaceMismatchError: extractor and head live in different spaces.
        ConfigError: a space of feature maps, which no mode can use, or images of other channels than the recipe's.
    """
    if recipe.source_extractor is None or recipe.source_head is None:
        return None
    given = Given(
        CompatExtractor.from_pretrained(recipe.source_extractor), TaskHead.from_pretrained(recipe.source_head)
    )
    space = given.extractor.space
    names = f"source_extractor {recipe.source_extractor}", f"source_head {recipe.source_head}"
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


def check_given(given: Given, domains: Domains, recipe: AdaptRecipe) -> None:
    """Refuse a source head that does not fit the images.

    Raises:
        DataError: test images without at least two of its classes, or source images of other classes than those that a
            mode has to train it on.
    """
    known = given.head.class_names
    for name, dataset in (("target.test", domains.target_test), ("source.test", domains.source_test)):
        if dataset is not None:
            check_common(name, dataset.class_names, known, "source_head")
    trained = [mode for mode in recipe.chosen_modes if mode in WARM]
    if trained and set(domains.class_names) != set(known):
        raise DataError(
            f"source.train: expected the classes of source_head ({listed(known)}), which {trained[0]} trains further, "
            f"got {listed(domains.class_names)}; choose them with classes and rename, or leave the mode out"
        )
