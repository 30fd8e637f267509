"""A gallery's entries as records of a vector database, and their exchange with Qdrant, on a server or in a folder.

A record is a point: its id a UUID made of the entry's id, its vector under the name of its kind (a collection holds
vectors of an old and a new model side by side), and a payload that says what it is. Qdrant normalises vectors to length
1 if it compares by cosine; the length is kept in the payload, so that what is read back is what was stored.
"""

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from timm_compat._extras import require
from timm_compat.errors import ConfigError, DataError
from timm_compat.gallery.searching import Gallery

BATCH = 256
OWN_KEYS = ("id", "sha256", "kind", "length")


@dataclass(frozen=True)
class Record:
    """An entry.

    Attributes:
        id: path below the images' folder.
        vector: (dimension,), float32, as the gallery stores it.
        payload: "sha256" of the image file; "kind" of the row, how it was "made_by", its "spaces" (fingerprints); the
            "architecture" and "digest" of its extractor, and its "location" and "commit" where it is on the Hub.
    """

    id: str
    vector: NDArray[np.float32]
    payload: Mapping[str, Any]


def read_records(gallery: Gallery) -> Iterator[Record]:
    """All entries, in the order of the rows; one shard is in memory at a time.

    Raises:
        ComponentFileError: a damaged gallery.

    Example:
        >>> record = next(tc.gallery.read_records(tc.gallery.load("photos.gallery")))
        >>> record.id, record.vector.shape
        ('0.png', (32,))
    """
    facts = {key: _facts(gallery, key) for key in gallery.manifest.kinds_present}
    for kind, ids, hashes, rows in gallery.shards():
        for own, digest, row in zip(ids, hashes, np.array(rows), strict=True):
            yield Record(own, row, {"sha256": digest, "kind": kind, **facts[kind]})


def to_qdrant(gallery: Gallery, client: Any, collection: str) -> int:
    """Write a gallery's entries into a collection, and remove from it those that the gallery does not have.

    Args:
        gallery: of one or several kinds.
        client: a ``qdrant_client.QdrantClient``, of a server, or of a folder (``path=...``).
        collection: made where it does not exist.

    Returns:
        Number of entries.

    Raises:
        ConfigError: a collection of other vectors.
        DataError: an empty gallery.
        MissingExtraError: qdrant-client is not installed.

    Example:
        >>> from qdrant_client import QdrantClient
        >>> client = QdrantClient(path="database")
        >>> tc.gallery.to_qdrant(tc.gallery.load("photos.gallery"), client, "photos")
        60
        >>> client.close()
    """
    models = require("qdrant_client", "qdrant").models
    if not len(gallery):
        raise DataError(f"{gallery.folder}: expected a gallery with images, got an empty one; build it")
    _make_collection(gallery, client, collection, models)
    written: set[str] = set()
    entries = read_records(gallery)
    while batch := list(islice(entries, BATCH)):
        points = [_point(record, models) for record in batch]
        client.upsert(collection, points, wait=True)
        written.update(point.id for point in points)
    gone = [str(point.id) for point in _scrolled(client, collection, vectors=False) if str(point.id) not in written]
    if gone:
        client.delete(collection, models.PointIdsList(points=gone), wait=True)
    return len(written)


def from_qdrant(client: Any, collection: str) -> Iterator[Record]:
    """The entries of a collection, in the order of the database.

    Args:
        client: a ``qdrant_client.QdrantClient``.
        collection: that ``to_qdrant`` wrote.

    Raises:
        ConfigError: no such collection.
        DataError: a point that is no entry of a gallery.

    Example:
        >>> from qdrant_client import QdrantClient
        >>> client = QdrantClient(path="database")
        >>> written = tc.gallery.to_qdrant(tc.gallery.load("photos.gallery"), client, "photos")
        >>> sorted(record.id for record in tc.gallery.from_qdrant(client, "photos"))[:2]
        ['0.png', '1.png']
        >>> client.close()
    """
    if not client.collection_exists(collection):
        raise ConfigError(f"collection: expected one that exists, got {collection!r}; write it: to_qdrant")
    for point in _scrolled(client, collection, vectors=True):
        payload, vectors = point.payload or {}, point.vector
        kind = payload.get("kind")
        if not isinstance(vectors, dict) or kind not in vectors or any(key not in payload for key in OWN_KEYS):
            raise DataError(f"{collection}: expected entries of a gallery, got point {point.id} without their payload")
        row = np.asarray(vectors[kind], dtype=np.float32) * np.float32(payload["length"])
        yield Record(payload["id"], row, {key: found for key, found in payload.items() if key not in ("id", "length")})


def point_id(own: str) -> str:
    """The UUID of an entry's id (RFC 4122, version 5, in the namespace of URLs)."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, own))


def _facts(gallery: Gallery, key: str) -> dict[str, Any]:
    kind = gallery.manifest.kinds[key]
    models = [model for model in gallery.manifest.spaces.values() if model.digest == kind.digest]
    facts: dict[str, Any] = {"made_by": kind.made_by, "spaces": list(kind.spaces), "digest": kind.digest}
    if models:
        facts["architecture"] = models[0].architecture
        if models[0].commit is not None:
            facts |= {"location": models[0].location, "commit": models[0].commit}
    return facts


def _point(record: Record, models: Any) -> Any:
    length = float(np.linalg.norm(record.vector))
    payload = {"id": record.id, **record.payload, "length": length}
    return models.PointStruct(
        id=point_id(record.id), vector={record.payload["kind"]: record.vector.tolist()}, payload=payload
    )


def _make_collection(gallery: Gallery, client: Any, collection: str, models: Any) -> None:
    kinds = gallery.manifest.kinds
    wanted = {key: kinds[key].dimension for key in gallery.manifest.kinds_present}
    if client.collection_exists(collection):
        found = client.get_collection(collection).config.params.vectors
        sizes = {key: own.size for key, own in found.items()} if isinstance(found, dict) else {}
        if not wanted.items() <= sizes.items():
            raise ConfigError(
                f"collection: expected {collection!r} with vectors {wanted}, got {sizes}: it was made for another "
                "model; name a new collection"
            )
        return
    config = {key: models.VectorParams(size=size, distance=models.Distance.COSINE) for key, size in wanted.items()}
    client.create_collection(collection, vectors_config=config)


def _scrolled(client: Any, collection: str, *, vectors: bool) -> Iterator[Any]:
    offset = None
    while True:
        points, offset = client.scroll(
            collection, limit=BATCH, offset=offset, with_payload=vectors, with_vectors=vectors
        )
        yield from points
        if offset is None:
            return
