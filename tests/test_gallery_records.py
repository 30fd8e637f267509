"""Records of a gallery in Qdrant's local mode: written and read by its own client, and searched as the gallery is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_parts import COUNT, fill, save_image, stored_rows

import timm_compat as tc

pytestmark = pytest.mark.slow  # the client takes seconds to import


@pytest.fixture
def place(tmp_path: Path) -> Path:
    fill(tmp_path)
    return tmp_path


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(tmp_path / "database"))
    yield client
    client.close()


def test_records_come_back_as_they_went(place: Path, client: Any) -> None:
    gallery = tc.gallery.load(place / "gallery")
    assert tc.gallery.to_qdrant(gallery, client, "photos") == COUNT
    wanted = {record.id: record for record in tc.gallery.read_records(gallery)}
    found = {record.id: record for record in tc.gallery.from_qdrant(client, "photos")}
    assert found.keys() == wanted.keys() == stored_rows(gallery).keys()
    for own, record in found.items():
        assert dict(record.payload) == dict(wanted[own].payload)
        np.testing.assert_allclose(record.vector, wanted[own].vector, rtol=1e-5, atol=1e-6)
    (space,) = gallery.manifest.spaces
    assert record.payload["spaces"] == [space]
    assert record.payload["architecture"] == "test_resnet"


def test_the_database_finds_what_the_gallery_finds(place: Path, client: Any) -> None:
    gallery = tc.gallery.load(place / "gallery")
    tc.gallery.to_qdrant(gallery, client, "photos")
    (kind,) = gallery.manifest.kinds_present
    row = stored_rows(gallery)["blue/4.png"]
    points = client.query_points("photos", query=row.tolist(), using=kind, limit=5).points
    (hits,) = gallery.search(place / "photos" / "blue" / "4.png", k=5).hits
    assert {point.payload["id"] for point in points} == {hit.id for hit in hits}
    assert [point.score for point in points] == pytest.approx([hit.similarity for hit in hits], abs=1e-4)


def test_writing_again_adds_what_is_new_and_removes_what_is_gone(place: Path, client: Any) -> None:
    tc.gallery.to_qdrant(tc.gallery.load(place / "gallery"), client, "photos")
    (place / "photos" / "red" / "0.png").unlink()
    save_image(place / "photos" / "red" / "new.png", (200, 40, 40), 5)
    gallery = tc.gallery.build(place / "photos", place / "gallery")
    assert tc.gallery.to_qdrant(gallery, client, "photos") == COUNT
    found = {record.id for record in tc.gallery.from_qdrant(client, "photos")}
    assert found == set(gallery.ids())
    assert "red/0.png" not in found


def test_vectors_of_two_models_lie_side_by_side(place: Path, client: Any) -> None:
    (place / "photos" / "red" / "0.png").write_bytes(b"gone over")
    gallery = tc.gallery.upgrade(place / "gallery", place / "new", "reembed")
    assert len(gallery.manifest.kinds_present) == 2
    tc.gallery.to_qdrant(gallery, client, "mixture")
    rows = stored_rows(gallery)
    for record in tc.gallery.from_qdrant(client, "mixture"):
        np.testing.assert_allclose(record.vector, rows[record.id], rtol=1e-5, atol=1e-6)
    assert {len(row) for row in rows.values()} == {16, 24}


def test_foreign_collections_are_refused(place: Path, client: Any) -> None:
    from qdrant_client import models

    gallery = tc.gallery.load(place / "gallery")
    with pytest.raises(tc.errors.ConfigError, match="expected one that exists"):
        list(tc.gallery.from_qdrant(client, "photos"))
    client.create_collection("other", models.VectorParams(size=3, distance=models.Distance.COSINE))
    client.upsert("other", [models.PointStruct(id=1, vector=[1.0, 2.0, 3.0], payload={"mine": True})])
    with pytest.raises(tc.errors.ConfigError, match="name a new collection"):
        tc.gallery.to_qdrant(gallery, client, "other")
    with pytest.raises(tc.errors.DataError, match="expected entries of a gallery"):
        list(tc.gallery.from_qdrant(client, "other"))
    assert client.count("other").count == 1
