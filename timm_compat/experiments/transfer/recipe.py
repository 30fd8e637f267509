"""What ``timm-compat transfer`` reads: networks whose heads are exchanged, an upgrade, or both."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Annotated

from pydantic import AfterValidator

from timm_compat.errors import ConfigError
from timm_compat.recipes.schema import DataRecipe, HeadRecipe, MemberRecipe, SpaceRecipe
from timm_compat.recipes.trials import TrialsRecipe
from timm_compat.recipes.values import Name, OneOf, Text, recipe, repeated, unique

# What each way is called in tables, in their order.
TRANSFER_WAYS: Mapping[str, str] = {
    "apart": "trained apart",
    "classes": "joined through classes in common, no image",
    "joined": "trained apart, then joined",
    "one_space": "trained in one space",
    "retrained": "trained apart, heads retrained",
}
UPGRADE_WAYS: Mapping[str, str] = {
    "unconstrained": "unconstrained",
    "distilled": "distilled",
    "bct": "influence (BCT)",
    "classes": "joined through classes in common, no image",
    "joined": "unconstrained, joined",
    "joined_each": "joined for each head on its own images",
    "compatible": "compatible",
    "retrained": "all heads retrained",
}
# Ways that need something to learn, and those that need networks as they came, with their own classifiers.
LEARNING, PRETRAINED = ("one_space", "distilled", "bct", "compatible"), ("classes", "joined_each")
FROZEN = "frozen"
LEAST_NETWORKS = 2
# What is measured of an upgrade, beside accuracies by the names of heads.
FIGURES = ("cross", "gain", "flips", "own", "own_new_classes", "own_flips", "cost", "labels", "seconds")


def _chosen(known: Mapping[str, str]) -> AfterValidator:
    """At least one of the known ways, in their order."""

    def check(ways: tuple[str, ...]) -> tuple[str, ...]:
        if not ways:
            raise ConfigError(f"expected any of {', '.join(known)}, got none")
        return tuple(sorted(unique(ways), key=list(known).index))

    return AfterValidator(check)


@recipe
class TransferRecipe:
    """Networks whose heads run on each other's extractors.

    Attributes:
        networks: at least two, as the members of ``timm-compat train``; each with labels and test images. With
            ``trainable: frozen`` for all, pretrained networks stay as they came, their features too, and their heads
            are linear probes.
        ways: what is measured; all that the networks allow if left out: "apart" (nothing is done about it), "classes"
            (frozen ones, joined through the classes of their own classifiers), "joined" (trained apart, frozen, then
            each joined to the space of each other, on the head's images without labels), "one_space" (trained in one
            space), "retrained" (trained apart, and a head retrained with labels for each pair).

    Raises:
        ConfigError: fewer than two networks, two of one name, one without labels or test, or an unknown way.
    """

    networks: tuple[MemberRecipe, ...]
    ways: Annotated[tuple[Annotated[str, OneOf(TRANSFER_WAYS)], ...], _chosen(TRANSFER_WAYS)] = ()

    @property
    def frozen(self) -> bool:
        """Whether pretrained networks stay as they came."""
        return any(network.trainable == FROZEN for network in self.networks)

    @property
    def chosen_ways(self) -> tuple[str, ...]:
        """The ways to measure, in the order of the table."""
        return self.ways or possible(TRANSFER_WAYS, self.frozen)

    def mistakes(self) -> Iterator[str]:
        """What the keys say against each other."""
        if len(self.networks) < LEAST_NETWORKS:
            yield f"networks: expected at least {LEAST_NETWORKS}, got {len(self.networks)}"
        yield from repeated("networks", self.networks)
        for position, network in enumerate(self.networks):
            yield from _mistakes_of_network(f"networks.{position}", network, self.frozen)
        yield from _mistakes_of_ways(self.ways, TRANSFER_WAYS, self.frozen)


@recipe
class OldHeadRecipe:
    """A head that runs on the old extractor, and shall run on the new one.

    Attributes:
        name: tells it apart in tables and files; an identifier.
        test: labelled images of its classes.
        data: its labelled training images: for the head where it has no ``folder``, and for the upper bound that
            retrains it. An existing head without them has no such bound.
        folder: folder or Hub id of an existing head.

    Raises:
        ConfigError: a name that cannot be a file's, or neither data nor folder.
    """

    name: Name
    test: DataRecipe
    data: DataRecipe | None = None
    folder: Text | None = None

    def mistakes(self) -> Iterator[str]:
        """What the keys say against each other."""
        if self.folder is None and self.data is None:
            yield f"data: expected images to train head {self.name!r} on, or folder of an existing one"


@recipe
class UpgradeRecipe:
    """A new extractor takes the place of an old one under all heads that the old one has.

    Attributes:
        new: the new network; its head covers all classes of its data.
        old: the old network, trained first; its own head is the first of the old heads.
        extractor: folder or Hub id of an existing old extractor, in place of ``old``; all heads then have a folder.
        heads: further heads of the old extractor; without a folder they are trained on it, while it is frozen.
        ways: what is measured; all that the networks allow if left out: "unconstrained" (the new extractor is trained
            on its own), "distilled" (the new network is kept to what the old one says), "bct" (backward-compatible
            influence of the first head), "classes" (frozen networks, joined through the classes of their own
            classifiers), "joined" (the unconstrained one, frozen, joined to the old space on its training images
            without labels), "joined_each" (frozen networks, joined once for each head, on the head's images without
            labels), "compatible" (trained in the old space, as ``training`` says), "retrained" (the unconstrained one,
            and all heads retrained with labels).

    Raises:
        ConfigError: both old and extractor or neither, no head, two of one name, a head without folder for an existing
            extractor, a network without labels or test, or an unknown way.
    """

    new: MemberRecipe
    old: MemberRecipe | None = None
    extractor: Text | None = None
    heads: tuple[OldHeadRecipe, ...] = ()
    ways: Annotated[tuple[Annotated[str, OneOf(UPGRADE_WAYS)], ...], _chosen(UPGRADE_WAYS)] = ()

    @property
    def frozen(self) -> bool:
        """Whether pretrained networks stay as they came."""
        return self.new.trainable == FROZEN

    @property
    def chosen_ways(self) -> tuple[str, ...]:
        """The ways to measure, in the order of the table."""
        return self.ways or possible(UPGRADE_WAYS, self.frozen)

    def mistakes(self) -> Iterator[str]:
        """What the keys say against each other."""
        yield from _mistakes_of_network("new", self.new, self.frozen)
        yield from _mistakes_of_ways(self.ways, UPGRADE_WAYS, self.frozen)
        if (self.old is None) == (self.extractor is None):
            yield "old: expected a network to train, or extractor with an existing one; not both"
            return
        if self.old is not None:
            yield from _mistakes_of_network("old", self.old, self.frozen)
            if self.old.name == self.new.name:
                yield f"old.name: expected another name than that of new, got {self.new.name!r}"
        elif not self.heads:
            yield "heads: expected at least one head of the existing extractor, got none"
        yield from self._mistakes_of_heads()

    def _mistakes_of_heads(self) -> Iterator[str]:
        parts = {f"heads.{position}": head for position, head in enumerate(self.heads)}
        for key, part in {"new": self.new, "old": self.old, **parts}.items():
            if part is not None and part.name in FIGURES:
                yield f"{key}.name: expected another name than those of the figures, got {part.name!r}"
        counts = Counter(part.name for part in (self.new, self.old, *self.heads) if part is not None)
        for key, head in parts.items():
            if counts[head.name] > 1:
                yield f"{key}.name: expected every name once, got {head.name!r} twice"
            if self.extractor is not None and head.folder is None:
                yield f"{key}.folder: expected an existing head of the existing extractor, got none"
            if self.extractor is None and head.folder is not None:
                yield f"{key}.folder: an existing head needs the existing extractor, not old"


@recipe
class ClassifierTransferRecipe(TrialsRecipe):
    """A transfer among architectures, an upgrade, or both.

    Attributes:
        space: of the networks trained in one space, and of the old extractor. Where an existing old extractor's
            space shares heads, its ``folder``.
        transfer: see ``TransferRecipe``.
        upgrade: see ``UpgradeRecipe``.

    Raises:
        ConfigError: neither, a space of level "map", or nothing that would tie networks together.
    """

    space: SpaceRecipe = field(default_factory=SpaceRecipe)
    transfer: TransferRecipe | None = None
    upgrade: UpgradeRecipe | None = None

    def mistakes(self) -> Iterator[str]:
        """What the keys say against each other."""
        yield from super().mistakes()
        if self.transfer is None and self.upgrade is None:
            yield "transfer: expected networks whose heads are exchanged, or an upgrade, got neither"
        if self.space.level != "pooled":
            yield f'space.level: expected "pooled", as join needs it, got {self.space.level!r}'
        asked = [way for part in (self.transfer, self.upgrade) if part is not None for way in part.chosen_ways]
        tied = self.space.methods or self.space.folder or self.training.alignment != "none"
        if not tied and {"one_space", "compatible"} & set(asked):
            yield "training.alignment: expected l2 or contrastive, or space.methods, got nothing shared"


def possible(ways: Mapping[str, str], frozen: bool) -> tuple[str, ...]:
    """The ways that there are for networks that learn, or that stay as they came."""
    return tuple(way for way in ways if way not in (LEARNING if frozen else PRETRAINED))


def _mistakes_of_ways(ways: Sequence[str], known: Mapping[str, str], frozen: bool) -> Iterator[str]:
    for way in ways:
        if way not in possible(known, frozen):
            networks = "that learn, not trainable: frozen" if frozen else "with trainable: frozen"
            yield f"ways: {way} needs networks {networks}; drop it, or change them"


def _mistakes_of_network(key: str, network: MemberRecipe, frozen: bool) -> Iterator[str]:
    if not network.labelled:
        yield f"{key}.labelled: expected a network with labels, got one without"
    elif network.test is None:
        yield f"{key}.test: expected images that measure network {network.name!r}, got none"
    if (network.trainable == FROZEN) != frozen:
        yield f"{key}.trainable: expected {FROZEN!r} for all networks or none, got {network.trainable!r}"
    elif frozen and not network.pretrained and network.weights is None:
        yield f"{key}.pretrained: expected true, or weights, as network {network.name!r} stays as it came; got neither"
    if frozen and (network.crop_pct is not None or network.head != HeadRecipe()):
        yield f"{key}: a network that stays as it came has timm's crop_pct and a linear head; drop crop_pct and head"
