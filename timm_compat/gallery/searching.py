"""The gallery object: what it holds, and the stored images nearest to a query."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Unpack

from timm_compat._extras import require
from timm_compat.errors import ComponentFileError, ConfigError, DataError
from timm_compat.gallery.embedding import Embedders, Queries, Query, check_spaces, embed_queries, opened
from timm_compat.gallery.ids import resolved
from timm_compat.gallery.manifest import Manifest
from timm_compat.gallery.nearest import Nearest, nearest
from timm_compat.gallery.stored import Rows, Stored, read_manifest
from timm_compat.models.extractor import CompatExtractor
from timm_compat.models.run_options import RunKeywords, RunOptions

SEARCHES = ("torch", "faiss")
ATTEMPTS = 3  # where a writer exchanged the files between two looks at them


@dataclass(frozen=True)
class Hit:
    """A stored image near a query.

    Attributes:
        id: path below the images' folder.
        similarity: cosine with the stored row, in [-1, 1].
        score: by which hits are sorted: the similarity, brought to the current kind's scale if there are several kinds.
        kind: of the row.
    """

    id: str
    similarity: float
    score: float
    kind: str


@dataclass(frozen=True)
class GallerySearch:
    """What was found.

    Attributes:
        queries: paths, or numbers as text.
        hits: for every query, nearest first.
        index: "torch" or "faiss".
    """

    queries: tuple[str, ...]
    hits: tuple[tuple[Hit, ...], ...]
    index: str

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "index": self.index,
            "queries": [
                {"query": query, "hits": [asdict(hit) for hit in hits]}
                for query, hits in zip(self.queries, self.hits, strict=True)
            ],
        }

    def __str__(self) -> str:
        lines = []
        for query, hits in zip(self.queries, self.hits, strict=True):
            lines += [query, *(f"  {hit.score:.3f}  {hit.id}" for hit in hits)]
        return "\n".join(lines)


class Gallery:
    """Embeddings of an image folder that outlive their model; from ``gallery.build`` or ``gallery.load``.

    Example:
        >>> from PIL import Image
        >>> from pathlib import Path
        >>> Path("pictures").mkdir(exist_ok=True)
        >>> for name in ("red", "green", "blue"):
        ...     Image.new("RGB", (40, 30), name).save(f"pictures/{name}.png")
        >>> extractor = tc.create_extractor("test_resnet", tc.CompatSpace(16, methods=["rotation"]).finalize())
        >>> gallery = tc.gallery.build("pictures", "gallery", extractor)
        >>> len(gallery), gallery.search("pictures/red.png", k=1).hits[0][0].id
        (3, 'red.png')
    """

    def __init__(self, stored: Stored, given: Sequence[CompatExtractor] = (), report: Any = None) -> None:
        self._stored, self._given = stored, tuple(given)
        self._kept: dict[str, CompatExtractor] = {}
        self.report = report

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._stored.folder

    @property
    def manifest(self) -> Manifest:
        """What ``gallery.json`` said when it was last read."""
        return self._stored.manifest

    @property
    def images(self) -> Path:
        """The folder of its images."""
        return resolved(self.manifest.images, self.folder)

    def __len__(self) -> int:
        return self.manifest.num_images

    def ids(self) -> Iterator[str]:
        """Paths below the images' folder, in the order of the rows."""
        for shard in self.manifest.shards:
            yield from self._stored.entries(shard).ids

    def shards(self) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...], Rows]]:
        """Kind, ids, SHA-256 of the image files, and rows (n, dimension), which are read when they are used."""
        for shard in self.manifest.shards:
            entries = self._stored.entries(shard)
            yield shard.kind, entries.ids, entries.hashes, self._stored.rows(shard)

    def verify(self) -> None:
        """Read every file and check its hash.

        Raises:
            ComponentFileError: a file is missing or damaged, or an id stands there twice.
        """
        self._stored = Stored.open(self.folder)
        self._stored.verify()

    def to_dict(self) -> dict[str, Any]:
        """How many images, of which kinds and spaces, as JSON values."""
        return self.manifest.summary()

    def search(
        self,
        queries: Queries,
        k: int = 10,
        *,
        extractor: CompatExtractor | str | Path | Sequence[CompatExtractor | str | Path] = (),
        index: str = "torch",
        **run: Unpack[RunKeywords],
    ) -> GallerySearch:
        """The stored images nearest to each query.

        Args:
            queries: image files, folders of them, or raw images (see ``extract_features``).
            k: number of nearest images.
            extractor: one or several to embed the queries with, each for its own space: the gallery's own, or another
                that joined the same space. For other spaces the extractor is used that the gallery names.
            index: "torch" compares with every row; "faiss" uses an exact flat index, which is stored in the gallery and
                loaded into memory as a whole.
            **run: ``device``, ``batch_size``, ``amp``, ``workers``, ``progress`` of the queries' pass.

        Raises:
            ConfigError: k below 1, another index, or no extractor at hand whose location the gallery knows.
            SpaceMismatchError: an extractor of a space that no row is in.
            ComponentFileError: a damaged gallery, an index that is not of these rows, or another extractor than named.
            DataError: no query, or one that cannot be decoded.
            MissingExtraError: faiss is not installed.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ConfigError(f"k: expected an integer of at least 1, got {k!r}")
        if index not in SEARCHES:
            raise ConfigError(f"index: expected one of {', '.join(SEARCHES)}, got {index!r}")
        if index == "faiss":
            require("faiss", "retrieval")
        own = [extractor] if isinstance(extractor, CompatExtractor | str | Path) else extractor
        given = [opened(each) for each in own]
        self._stored.manifest = read_manifest(self.folder)
        if not len(self):
            raise DataError(f"{self.folder}: expected a gallery with images, got an empty one; build it")
        check_spaces(self.manifest, given, self.folder)
        manifest = self.manifest
        embedders = Embedders(manifest, self.folder, [*self._usable(), *given], self._kept)
        query = embed_queries(embedders, manifest.spaces_present, queries, RunOptions(**run))
        for attempt in range(ATTEMPTS):
            try:
                return GallerySearch(query.names, _search(self._stored, query, k, index), index)
            except ComponentFileError:
                self._stored.manifest = read_manifest(self.folder)
                changed = self.manifest != manifest and self.manifest.spaces_present == manifest.spaces_present
                if not changed or attempt == ATTEMPTS - 1:
                    raise
                manifest = self.manifest
        raise AssertionError("unreachable")

    def _usable(self) -> list[CompatExtractor]:
        """Extractors that came with this object, where the gallery still names them."""
        digests = {space: model.digest for space, model in self.manifest.spaces.items()}
        return [part for part in self._given if digests.get(part.space.fingerprint) == part.digest()]


def _search(stored: Stored, query: Query, k: int, index: str) -> tuple[tuple[Hit, ...], ...]:
    return tuple(hits for found in nearest(stored, query, k, index) for hits in _hits(stored, found))


def _hits(stored: Stored, nearby: Nearest) -> list[tuple[Hit, ...]]:
    shards = stored.manifest.shards
    starts = np.cumsum([0, *(shard.rows for shard in shards)])
    owners = np.searchsorted(starts, nearby.positions.numpy(), side="right") - 1
    entries = {number: stored.entries(shards[number]) for number in np.unique(owners)}
    found = []
    for query, row in enumerate(nearby.positions.tolist()):
        hits = []
        for rank, place in enumerate(row):
            number = int(owners[query, rank])
            kind, own = shards[number].kind, entries[number].ids[place - int(starts[number])]
            hits.append(Hit(own, float(nearby.cosines[query, rank]), float(nearby.scores[query, rank]), kind))
        found.append(tuple(hits))
    return found
