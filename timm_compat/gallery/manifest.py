"""What ``gallery.json`` says: spaces and their extractors, how the stored rows were made, and the shards.

::

    GALLERY/gallery.json           this manifest
            shards/NAME.npy        float32 (rows, dimension), as the extractor gave them: not normalised to length 1
            shards/NAME.json       {"ids": [...], "sha256": [...]}: paths below the images' folder, hashes of the files
            background/            rows of the same few images for every kind of rows, by which scores are compared
            extractors/DIGEST/     extractors that an upgrade made
            faiss/NAME.index       on demand

A gallery may hold rows of several kinds at once: those of an old model, of a new one, or mapped from one to the other.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from typing_extensions import Self

from timm_compat.errors import ComponentFileError
from timm_compat.storage.files import parse_json

FORMAT = 1
FORMAT_KEY = "timm_compat_gallery"
NAME = re.compile(r"[0-9a-f]{16}")
DIGEST = re.compile(r"[0-9a-f]{64}")
EMBEDDED, MAPPED, BLENDED = MADE_BY = ("extractor", "map", "blend")


@dataclass(frozen=True)
class QueryModel:
    """Who embeds queries for a space.

    Attributes:
        digest: SHA-256 over the extractor's weights.
        architecture: timm's name of the backbone.
        feature_dim: D.
        preprocessing: timm's six settings.
        definition: of the space, as a component's ``config.json`` holds it: another network can join it.
        location: a Hub id, or a folder as seen from the gallery's; None where it was never saved.
        commit: of the Hub repository.
        subfolder: of it.
    """

    digest: str
    architecture: str
    feature_dim: int
    preprocessing: Mapping[str, Any]
    definition: Mapping[str, Any]
    location: str | None = None
    commit: str | None = None
    subfolder: str = ""


@dataclass(frozen=True)
class Kind:
    """How some stored rows came about, and in which spaces a query finds them.

    Attributes:
        made_by: "extractor"; "map" (of another kind's rows into a space); "blend" (both, side by side).
        spaces: fingerprints. A row of several holds one part for each, of equal length: its product with a query made
            alike is the mean of the cosines.
        dimension: of a row, the sum over its spaces.
        digest: of the extractor that embedded the images, here or before the map.
    """

    made_by: str
    spaces: tuple[str, ...]
    dimension: int
    digest: str


@dataclass(frozen=True)
class Shard:
    """Some stored images.

    Attributes:
        name: of its files.
        kind: key of a ``Kind``.
        rows: number of images.
        sha256: of the rows' file.
        ids_sha256: of the ids' file.
    """

    name: str
    kind: str
    rows: int
    sha256: str
    ids_sha256: str


@dataclass(frozen=True)
class Background:
    """The same few images in every kind, by which scores are made comparable.

    Attributes:
        images: how many.
        ids: SHA-256 of the file of their ids; its name are the first 16 digits, as of the next.
        kinds: by kind, SHA-256 of the file of their rows.
    """

    images: int
    ids: str
    kinds: Mapping[str, str]


@dataclass(frozen=True)
class Upgrade:
    """An upgrade that has begun: ``way`` to the kind ``kind``; it is over when no shard is of another kind."""

    way: str
    kind: str


@dataclass(frozen=True)
class Manifest:
    """Everything about a gallery but its rows and ids.

    Attributes:
        images: the images' folder as seen from the gallery's.
        current: key of the kind that new images get.
        spaces: by fingerprint, who embeds queries.
        kinds: by key.
        shards: in the order of the rows.
        background: None as long as there is one kind only.
        upgrade: None, or the one that is unfinished.
    """

    images: str
    current: str
    spaces: Mapping[str, QueryModel]
    kinds: Mapping[str, Kind]
    shards: tuple[Shard, ...] = ()
    background: Background | None = None
    upgrade: Upgrade | None = None

    @property
    def num_images(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def kinds_present(self) -> tuple[str, ...]:
        """Keys of the kinds that some shard is of, in the order of the shards."""
        return tuple(dict.fromkeys(shard.kind for shard in self.shards))

    @property
    def spaces_present(self) -> tuple[str, ...]:
        """Fingerprints of the spaces that a query must be embedded for."""
        return tuple(dict.fromkeys(space for key in self.kinds_present for space in self.kinds[key].spaces))

    def summary(self) -> dict[str, Any]:
        """What a person asks about a gallery, as JSON values."""
        counts = {key: sum(shard.rows for shard in self.shards if shard.kind == key) for key in self.kinds_present}
        return {
            "num_images": self.num_images,
            "rows": {
                key: {
                    "made_by": kind.made_by,
                    "spaces": list(kind.spaces),
                    "dimension": kind.dimension,
                    "images": counts[key],
                }
                for key, kind in self.kinds.items()
                if key in counts
            },
            "spaces": {space: self.spaces[space].architecture for space in self.spaces_present},
            "upgrade": None if self.upgrade is None else self.upgrade.way,
        }

    def tidy(self) -> Self:
        """Without kinds, spaces and backgrounds that nothing needs any more, and without an upgrade that is over."""
        wanted = {*self.kinds_present, self.current}
        upgrade = self.upgrade
        if upgrade is not None and all(shard.kind == upgrade.kind for shard in self.shards):
            upgrade = None
        if upgrade is not None:
            wanted.add(upgrade.kind)
        kinds = {key: kind for key, kind in self.kinds.items() if key in wanted}
        spaces = {space for kind in kinds.values() for space in kind.spaces}
        background = self.background
        if background is not None:
            known = {key: digest for key, digest in background.kinds.items() if key in kinds}
            background = replace(background, kinds=known) if len(kinds) > 1 else None
        return replace(
            self,
            kinds=kinds,
            spaces={key: model for key, model in self.spaces.items() if key in spaces},
            background=background,
            upgrade=upgrade,
        )

    def to_json(self) -> str:
        """The text of ``gallery.json``."""
        facts = {FORMAT_KEY: FORMAT, "normalization": "none", "num_images": self.num_images, **asdict(self)}
        return json.dumps(facts, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, place: str, data: bytes) -> Self:
        """The checked manifest.

        Raises:
            ComponentFileError: no JSON, not of a gallery, of a newer format, or facts that do not belong together.
        """
        try:
            values = parse_json(data)
        except ValueError as error:
            raise ComponentFileError(f"{place}: expected JSON, got something else ({error})") from error
        number = values.get(FORMAT_KEY) if isinstance(values, dict) else None
        if number is None:
            raise ComponentFileError(f"{place}: expected a gallery's manifest (key {FORMAT_KEY!r}), got something else")
        if number != FORMAT:
            raise ComponentFileError(
                f"{place}: expected format {FORMAT}, got {number!r:.80}; a newer timm-compat reads newer ones"
            )
        try:
            return cls._read(values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ComponentFileError(
                f"{place}: expected the facts of a gallery, got others ({type(error).__name__}: {error}); "
                "the file is damaged: take it from a backup, or build the gallery anew"
            ) from error

    @classmethod
    def _read(cls, values: Mapping[str, Any]) -> Self:
        spaces = {key: QueryModel(**found) for key, found in _items(values, "spaces")}
        kinds = {
            key: Kind(found["made_by"], tuple(found["spaces"]), _number(found["dimension"]), found["digest"])
            for key, found in _items(values, "kinds")
        }
        shards = tuple(_shard(found) for found in values["shards"])
        background = None if values["background"] is None else Background(**values["background"])
        upgrade = None if values["upgrade"] is None else Upgrade(**values["upgrade"])
        manifest = cls(str(values["images"]), values["current"], spaces, kinds, shards, background, upgrade)
        manifest._check()
        return manifest

    def _check(self) -> None:
        for key, kind in self.kinds.items():
            sizes = sum(_number(self.spaces[space].feature_dim) for space in kind.spaces)
            _demand(kind.made_by in MADE_BY, f"kind {key}: made by {kind.made_by!r}")
            _demand(sizes == kind.dimension > 0, f"kind {key}: {kind.dimension} dimensions, its spaces {sizes}")
        for model in self.spaces.values():
            _demand(DIGEST.fullmatch(model.digest) is not None, f"digest {model.digest!r:.80}")
            for text in (model.architecture, model.subfolder, model.location or "", model.commit or ""):
                _demand(isinstance(text, str), f"{text!r:.80}")
        used = [self.current, *(shard.kind for shard in self.shards)]
        used += [] if self.background is None else list(self.background.kinds)
        used += [] if self.upgrade is None else [self.upgrade.kind]
        for key in used:
            _demand(key in self.kinds, f"a kind {key!r:.80} that is not described")
        names = [shard.name for shard in self.shards]
        _demand(len(set(names)) == len(names), "a shard that is named twice")
        if self.background is not None:
            _number(self.background.images)
            for digest in (self.background.ids, *self.background.kinds.values()):
                _demand(DIGEST.fullmatch(digest) is not None, f"digest {digest!r:.80}")


def _items(values: Mapping[str, Any], key: str) -> Any:
    return values[key].items()


def _shard(values: Mapping[str, Any]) -> Shard:
    found = Shard(**values)
    _demand(NAME.fullmatch(found.name) is not None, f"the name {found.name!r:.80}")
    _number(found.rows)
    return found


def _number(value: Any) -> int:
    _demand(isinstance(value, int) and not isinstance(value, bool) and value > 0, f"the number {value!r:.80}")
    return int(value)


def _demand(holds: bool, found: str) -> None:
    if not holds:
        raise ValueError(found)
