"""What ``timm-compat transfer`` reads: networks whose heads are exchanged, an upgrade, or both; checked when made.

A message starts with the key that it is about, so that the reader can name the key's line.
"""

from dataclasses import dataclass, field

from timm_compat.errors import ConfigError
from timm_compat.recipes.checks import check_choice, check_names, check_text
from timm_compat.recipes.schema import DataRecipe, MemberRecipe, SpaceRecipe
from timm_compat.recipes.trials import TrialsRecipe

TRANSFER_WAYS = ("apart", "joined", "one_space", "retrained")
UPGRADE_WAYS = ("unconstrained", "distilled", "bct", "joined", "compatible", "retrained")
LEAST_NETWORKS = 2
# What is measured of an upgrade, beside accuracies by the names of heads.
FIGURES = ("cross", "gain", "flips", "own", "own_new_classes", "own_flips", "cost", "labels", "seconds")


@dataclass(frozen=True)
class TransferRecipe:
    """Networks whose heads run on each other's extractors.

    Attributes:
        networks: at least two, as the members of ``timm-compat train``; each with labels and test images.
        ways: what is measured: "apart" (nothing is done about it), "joined" (trained apart, frozen, then each joined to
            the space of each other), "one_space" (trained in one space), "retrained" (trained apart, and a head
            retrained with labels for each pair).

    Raises:
        ConfigError: fewer than two networks, two of one name, one without labels or test, or an unknown way.
    """

    networks: tuple[MemberRecipe, ...]
    ways: tuple[str, ...] = TRANSFER_WAYS

    def __post_init__(self) -> None:
        object.__setattr__(self, "networks", tuple(self.networks))
        names = [network.name for network in self.networks]
        if len(names) < LEAST_NETWORKS:
            raise ConfigError(f"networks: expected at least {LEAST_NETWORKS}, got {len(names)}")
        for position, network in enumerate(self.networks):
            if network.name in names[:position]:
                raise ConfigError(f"networks.{position}.name: expected every name once, got {network.name!r} twice")
            _check_network(f"networks.{position}", network)
        _keep_ways(self, TRANSFER_WAYS)


@dataclass(frozen=True)
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

    name: str
    test: DataRecipe
    data: DataRecipe | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ConfigError(f"name: expected letters, digits and _ that start with no digit, got {self.name!r}")
        check_text("folder", self.folder, optional=True)
        if self.folder is None and self.data is None:
            raise ConfigError(f"data: expected images to train head {self.name!r} on, or folder of an existing one")


@dataclass(frozen=True)
class UpgradeRecipe:
    """A new extractor takes the place of an old one under all heads that the old one has.

    Attributes:
        new: the new network; its head covers all classes of its data.
        old: the old network, trained first; its own head is the first of the old heads.
        extractor: folder or Hub id of an existing old extractor, in place of ``old``; all heads then have a folder.
        heads: further heads of the old extractor; without a folder they are trained on it, while it is frozen.
        ways: what is measured: "unconstrained" (the new extractor is trained on its own), "distilled" (the new network
            is kept to what the old one says), "bct" (backward-compatible influence of the first head), "joined" (the
            unconstrained one, frozen, joined to the old space on its training images without labels), "compatible"
            (trained in the old space, as ``training`` says), "retrained" (the unconstrained one, and all heads
            retrained with labels).

    Raises:
        ConfigError: both old and extractor or neither, no head, two of one name, a head without folder for an existing
            extractor, a network without labels or test, or an unknown way.
    """

    new: MemberRecipe
    old: MemberRecipe | None = None
    extractor: str | None = None
    heads: tuple[OldHeadRecipe, ...] = ()
    ways: tuple[str, ...] = UPGRADE_WAYS

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(self.heads))
        check_text("extractor", self.extractor, optional=True)
        if (self.old is None) == (self.extractor is None):
            raise ConfigError("old: expected a network to train, or extractor with an existing one; not both")
        _check_network("new", self.new)
        if self.old is not None:
            _check_network("old", self.old)
        self._check_heads()
        _keep_ways(self, UPGRADE_WAYS)

    def _check_heads(self) -> None:
        if self.old is None and not self.heads:
            raise ConfigError("heads: expected at least one head of the existing extractor, got none")
        names = [network.name for network in (self.new, self.old) if network is not None]
        if len(set(names)) < len(names):
            raise ConfigError(f"old.name: expected another name than that of new, got {names[0]!r}")
        names += [head.name for head in self.heads]
        if taken := [name for name in names if name in FIGURES]:
            raise ConfigError(f"heads: expected names other than those of the figures, got {taken[0]!r}")
        for place, head in enumerate(self.heads):
            if names.count(head.name) > 1:
                raise ConfigError(f"heads.{place}.name: expected every name once, got {head.name!r} twice")
            if self.extractor is not None and head.folder is None:
                raise ConfigError(
                    f"heads.{place}.folder: expected an existing head of the existing extractor, got none"
                )
            if self.extractor is None and head.folder is not None:
                raise ConfigError(f"heads.{place}.folder: an existing head needs the existing extractor, not old")


@dataclass(frozen=True, kw_only=True)
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transfer is None and self.upgrade is None:
            raise ConfigError("transfer: expected networks whose heads are exchanged, or an upgrade, got neither")
        if self.space.level != "pooled":
            raise ConfigError(f'space.level: expected "pooled", as join needs it, got {self.space.level!r}')
        asked = [way for part in (self.transfer, self.upgrade) if part is not None for way in part.ways]
        tied = self.space.methods or self.space.folder or self.training.alignment != "none"
        if not tied and {"one_space", "compatible"} & set(asked):
            raise ConfigError("training.alignment: expected l2 or contrastive, or space.methods, got nothing shared")


def _check_network(key: str, network: MemberRecipe) -> None:
    if not network.labelled:
        raise ConfigError(f"{key}.labelled: expected a network with labels, got one without")
    if network.test is None:
        raise ConfigError(f"{key}.test: expected images that measure network {network.name!r}, got none")


def _keep_ways(recipe: TransferRecipe | UpgradeRecipe, known: tuple[str, ...]) -> None:
    for way in check_names("ways", recipe.ways):
        check_choice("ways", way, known)
    if not recipe.ways:
        raise ConfigError(f"ways: expected any of {', '.join(known)}, got none")
    object.__setattr__(recipe, "ways", tuple(way for way in known if way in recipe.ways))
