"""The networks that help with a target: trained here in one space, as they came, joined, or read from folders."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timm_compat.errors import ConfigError
from timm_compat.experiments.build import build
from timm_compat.experiments.engine import Experiment
from timm_compat.experiments.finetune.learning import Target
from timm_compat.experiments.finetune.recipe import FinetuneRecipe, JoinedRecipe, SplitRecipe
from timm_compat.joining.join import join
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.heads import TaskHead
from timm_compat.models.split import split
from timm_compat.recipes.schema import Recipe

COLOUR = 3


@dataclass(frozen=True)
class Network:
    """An extractor and, where it has one, its head."""

    extractor: CompatExtractor
    head: TaskHead | None


class Networks:
    """Networks by name; a word that is no name is a component's folder or Hub id.

    Raises:
        ConfigError: a word is neither, or names a network without the head that is asked for.
        CompatError: a component that cannot be read.
    """

    def __init__(self, named: Mapping[str, Network]) -> None:
        self.named = named

    def extractor(self, key: str, word: str) -> CompatExtractor:
        """The extractor that the recipe's ``key`` names."""
        if word in self.named:
            return self.named[word].extractor
        return CompatExtractor.from_pretrained(self._place(key, word))

    def head(self, key: str, word: str) -> TaskHead:
        """The head that the recipe's ``key`` names."""
        if word not in self.named:
            return TaskHead.from_pretrained(self._place(key, word))
        head = self.named[word].head
        if head is None:
            raise ConfigError(f"{key}: expected a network that was trained with labels, got {word!r} without a head")
        return head

    def _place(self, key: str, word: str) -> str:
        if "/" in word or Path(word).is_dir():
            return word
        known = ", ".join(self.named) or "none"
        raise ConfigError(f"{key}: expected a network ({known}), a component's folder or a Hub id, got {word!r}")


def find_networks(recipe: FinetuneRecipe, seed: int, experiment: Experiment, target: Target) -> Networks:
    """Train the sources of a seed, or read them where that was done, split what is to be split, and join the others.

    What joins, does so on the target's training images; their labels are not looked at.
    """
    named = {} if recipe.source is None else _trained(recipe.source, seed, experiment)
    named |= {given.name: Network(_split(given, target), None) for given in recipe.split}
    for position, joined in enumerate(recipe.joined):
        named[joined.name] = _joined(f"joined.{position}", joined, Networks(named), target)
    return Networks(named)


def _trained(source: Recipe, seed: int, experiment: Experiment) -> dict[str, Network]:
    built = build(replace(source, training=replace(source.training, seed=seed)))
    members, name, given = built.members, f"seed{seed}-source", {"reference": built.reference, "pool": built.pool}
    if len(members) == 1:
        experiment.train_alone(name, members[0], built.recipe.training, **given)
    else:
        experiment.train(name, built.space, members, built.recipe.training, **given)
    if not built.space.is_final:
        raise ConfigError(
            "source.space.methods: expected something that the networks share, so that their heads fit each other's "
            "extractors, got nothing; set methods or source.training.alignment"
        )
    return {member.name: Network(member.extractor, member.head) for member in members}


def _split(given: SplitRecipe, target: Target) -> CompatExtractor:
    """Standardised over the target's images, whatever the scale of its features: heads learn alike on all of them."""
    options = _source_of(given)
    return split(given.backbone, images=target.train.with_channels(options["in_chans"]), **options)[0]


def _joined(key: str, joined: JoinedRecipe, networks: Networks, target: Target) -> Network:
    reference = networks.extractor(f"{key}.reference", joined.reference)
    known = networks.named.get(joined.reference)
    heads = () if known is None or known.head is None else (known.head,)
    images, options = target.seen_by(reference).train, _source_of(joined, reference.backbone.input_size[0])
    extractor = join(reference.space, joined.backbone, images, reference=reference, heads=heads, **options)
    return Network(extractor, None)


def _source_of(given: SplitRecipe, in_chans: int = COLOUR) -> dict[str, Any]:
    weights = {"pretrained": True} if given.weights is None else {"weights": given.weights}
    return {"in_chans": in_chans, "img_size": given.img_size, **weights, **given.arguments}
