"""Upgrades of galleries: what a plan measures and recommends, what each way leaves, and that nothing is lost."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gallery_parts import CLASSES, COUNT, killed_in_the_middle, save_image, stored_rows
from torch.nn import functional as F

import timm_compat as tc
from timm_compat.cli import main
from timm_compat.gallery import building, upgrading
from timm_compat.gallery.advice import recommend
from timm_compat.gallery.embedding import Query
from timm_compat.gallery.nearest import scales
from timm_compat.gallery.sampling import draw
from timm_compat.gallery.stored import Stored
from timm_compat.gallery.ways import apply_linear, class_recall, fit_linear, neighbour_recall

WAYS = ("keep", "join", "map", "blend", "reembed")


@pytest.fixture(scope="module")
def fresh(gallery_files: Path) -> dict[str, np.ndarray]:
    """Rows of a gallery that the new extractor built."""
    return stored_rows(tc.gallery.build(gallery_files / "photos", gallery_files / "fresh", gallery_files / "new"))


def precision(gallery: tc.gallery.Gallery, photos: Path, k: int = 5) -> float:
    """Share of the first hits that are of their query's class."""
    found = gallery.search(photos, k=k)
    own = [Path(query).relative_to(photos).parent.as_posix() for query in found.queries]
    right = [hit.id.startswith(f"{name}/") for name, hits in zip(own, found.hits, strict=True) for hit in hits]
    return sum(right) / len(right)


def test_a_rotation_is_found_from_pairs() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 12, generator=draw) * torch.linspace(0.5, 2, 12)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=draw)).Q
    found = apply_linear(fit_linear(rows, 3 * rows @ rotation + 1), rows)
    assert F.cosine_similarity(found, 3 * rows @ rotation + 1).min() > 0.99


def test_recall_by_hand() -> None:
    scores = torch.tensor([[9.0, 0.8, 0.7, 0.1], [0.8, 9.0, 0.3, 0.4], [0.7, 0.3, 9.0, 0.6], [0.1, 0.4, 0.6, 9.0]])
    labels = torch.tensor([0, 1, 0, 2])
    assert class_recall(scores, labels, 1).tolist() == [0, 1]  # of the first and the third, whose class has two
    assert class_recall(scores, labels, 2).tolist() == [1, 1]
    wanted = torch.tensor([[0, 0.9, 0.1, 0.2], [0.1, 0, 0.2, 0.9], [0.1, 0.2, 0, 0.3], [0.5, 0.4, 0.3, 0]])
    assert neighbour_recall(scores, wanted, 1).tolist() == [1, 0, 0, 0]
    assert neighbour_recall(scores, wanted, 2).tolist() == [0.5, 0.5, 0.5, 0.5]


def test_a_plan_measures_what_retrieval_measures(gallery_files: Path, fresh: dict[str, np.ndarray]) -> None:
    plan = tc.gallery.plan(gallery_files / "gallery", gallery_files / "new", sample=COUNT, labels="folder", seed=3)
    assert [found.way for found in plan.ways] == list(WAYS)
    assert (plan.num_images, plan.num_fitted, plan.num_scored) == (COUNT, COUNT // 2, COUNT // 2)
    scored = draw(Stored.open(gallery_files / "gallery"), COUNT, 3).ids[COUNT // 2 :]
    labels = torch.tensor([CLASSES.index(own.partition("/")[0]) for own in scored])
    for way, rows in (("keep", stored_rows(tc.gallery.load(gallery_files / "gallery"))), ("reembed", fresh)):
        features = torch.from_numpy(np.stack([rows[own] for own in scored]))
        wanted = tc.evaluation.retrieve(features, labels, features, labels, same_images=True, ranks=(1, 10))
        found = plan.way(way)
        assert found.recall_at_1 == pytest.approx(wanted.cmc[1])
        assert found.recall_at_10 == pytest.approx(wanted.cmc[10])
        assert found.interval_at_1[0] <= found.recall_at_1 <= found.interval_at_1[1]
    assert plan.way("keep").seconds == plan.way("keep").negative_flips == plan.way("keep").gain == 0
    assert plan.way("reembed").gflop == pytest.approx(COUNT * plan.way("reembed").query_gflop)
    assert 0 <= plan.half_way <= 1
    assert json.loads(json.dumps(plan.to_dict()))["recommendation"] == plan.recommendation
    assert "| reembed |" in str(plan)


@pytest.mark.slow
def test_without_labels_nothing_shows_that_a_model_is_better(gallery_files: Path) -> None:
    plan = tc.gallery.plan(gallery_files / "gallery", gallery_files / "new", sample=COUNT)
    assert plan.way("reembed").recall_at_1 == plan.way("reembed").recall_at_10 == 1
    assert plan.recommendation == "keep"
    assert "labels" in plan.reason
    assert "Without labels" in str(plan)


def scored(way: str, recall: float, gain: float, low: float, gflop: float = 1.0) -> tc.gallery.WayScores:
    return tc.gallery.WayScores(way, recall, (0, 1), recall, (0, 1), gain, (low, gain + 0.02), 0.0, 1.0, gflop, 1.0)


@pytest.mark.parametrize(
    ("join", "mapped", "blend", "full", "gflop", "expected", "words"),
    [
        ((0.70, -0.05), (0.70, -0.05), (0.71, -0.01), (0.76, -0.01), 9, "keep", "Do not"),
        ((0.70, -0.05), (0.79, 0.02), (0.795, 0.02), (0.80, 0.03), 9, "map", "within 0.01"),
        ((0.70, -0.05), (0.74, -0.02), (0.80, 0.02), (0.80, 0.03), 9, "blend", "within 0.01"),
        ((0.70, -0.05), (0.74, -0.02), (0.77, 0.01), (0.80, 0.03), 9, "reembed", "blend gains"),
        ((0.70, -0.05), (0.74, -0.02), (0.74, -0.01), (0.80, 0.03), 9, "reembed", "no cheaper way"),
        ((0.70, -0.05), (0.79, 0.02), (0.795, 0.02), (0.80, 0.03), 3, "reembed", "hardly larger than the sample"),
    ],
)
def test_recommendations(join, mapped, blend, full, gflop: float, expected: str, words: str) -> None:
    given = zip(WAYS, ((0.75, 0.0), join, mapped, blend, full), (0, 1, 2, 3, gflop), strict=True)
    ways = {way: scored(way, recall, recall - 0.75, low, cost) for way, (recall, low), cost in given}
    way, reason = recommend(ways, labelled=True)
    assert way == expected
    assert words in reason


@pytest.mark.parametrize("way", [pytest.param("join", marks=pytest.mark.slow), *WAYS[2:]])
def test_each_way_leaves_a_gallery_that_is_whole_and_searched(
    gallery_copy: Path, fresh: dict[str, np.ndarray], way: str
) -> None:
    before = stored_rows(tc.gallery.load(gallery_copy / "gallery"))
    gallery = tc.gallery.upgrade(gallery_copy / "gallery", gallery_copy / "new", way, sample=COUNT)
    assert (gallery.report.converted, gallery.report.left, len(gallery)) == (COUNT, 0, COUNT)
    gallery.verify()
    rows, old, new = stored_rows(gallery), gallery.manifest.spaces_present[0], gallery.manifest.spaces_present[-1]
    assert rows.keys() == before.keys()
    if way == "join":
        assert all(np.array_equal(rows[own], before[own]) for own in rows)
    if way == "reembed":
        assert all(np.allclose(rows[own], fresh[own], atol=1e-4) for own in rows)
    if way == "blend":
        assert {row.shape for row in rows.values()} == {(40,)}
        assert all(np.linalg.norm(row) == pytest.approx(1, abs=1e-5) for row in rows.values())
        assert old != new
    assert precision(gallery, gallery_copy / "photos") > 0.9
    save_image(gallery_copy / "photos" / "red" / "later.png", (200, 40, 40), 77)
    later = tc.gallery.build(gallery_copy / "photos", gallery_copy / "gallery")
    assert (later.report.embedded, later.report.kept) == (1, COUNT)
    assert len(list((gallery_copy / "gallery").glob("extractors/*"))) == (way == "join")
    (hits,) = tc.gallery.load(gallery_copy / "gallery").search(gallery_copy / "photos" / "red" / "later.png", k=8).hits
    assert hits[0].id == "red/later.png"
    assert sum(hit.id.startswith("red/") for hit in hits) >= 6
    assert sorted((hit.score for hit in hits), reverse=True) == [hit.score for hit in hits]


class StoppedError(Exception):
    pass


@pytest.fixture
def half(gallery_copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gallery whose re-embedding ended after 28 images."""
    monkeypatch.setattr(building, "SHARD_ROWS", 7)
    tc.gallery.build(gallery_copy / "photos", gallery_copy / "cut", gallery_copy / "old")
    put, calls = building.Writer.put, []

    def limited(self, *arguments):
        if len(calls) == 4:
            raise StoppedError
        calls.append(0)
        return put(self, *arguments)

    monkeypatch.setattr(building.Writer, "put", limited)
    with pytest.raises(StoppedError):
        tc.gallery.upgrade(gallery_copy / "cut", gallery_copy / "new", "reembed")
    monkeypatch.setattr(building.Writer, "put", put)
    return gallery_copy


def test_a_mixture_is_searched_with_both_models(half: Path) -> None:
    gallery = tc.gallery.load(half / "cut")
    gallery.verify()
    counts = {key: found["images"] for key, found in gallery.to_dict()["rows"].items()}
    assert sorted(counts.values()) == [28, 32]
    assert len(gallery.to_dict()["spaces"]) == 2
    assert gallery.to_dict()["upgrade"] == "reembed"
    assert precision(gallery, half / "photos") > 0.9
    found = gallery.search(half / "photos", k=1)
    own = [Path(query).relative_to(half / "photos").as_posix() for query in found.queries]
    assert [hits[0].id for hits in found.hits] == own
    assert {hits[0].kind for hits in found.hits} == counts.keys()
    indexed = gallery.search(half / "photos", k=4, index="faiss")
    exact = gallery.search(half / "photos", k=4)
    assert [[hit.id for hit in hits] for hits in indexed.hits] == [[hit.id for hit in hits] for hits in exact.hits]


def test_scores_of_a_mixture_follow_the_formula(half: Path) -> None:
    stored = Stored.open(half / "cut")
    manifest, draws = stored.manifest, torch.Generator().manual_seed(0)
    features = {space: torch.randn(3, manifest.spaces[space].feature_dim, generator=draws) for space in manifest.spaces}
    found = scales(stored, Query(("a", "b", "c"), features))
    moments = {}
    for key in manifest.kinds_present:
        (space,) = manifest.kinds[key].spaces
        background = torch.from_numpy(np.array(stored.background(key)))
        cosines = F.cosine_similarity(features[space][:, None], background[None], dim=2)
        moments[key] = cosines.mean(dim=1), cosines.std(dim=1)
    mean, spread = moments[manifest.current]
    for key, (own_mean, own_spread) in moments.items():
        for steps in (-1.0, 0.0, 1.0):  # as many standard deviations from the mean there as here
            score = found[key]((own_mean + steps * own_spread)[:, None]).flatten()
            torch.testing.assert_close(score, mean + steps * spread, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[key](torch.ones(3, 1)), torch.ones(3, 1))
        half = (own_mean + 1) / 2
        exponent = torch.log(spread / (1 - mean)) / torch.log(own_spread / (1 - own_mean))
        wanted = mean + (1 - mean) * 0.5**exponent
        torch.testing.assert_close(found[key](half[:, None]).flatten(), wanted, atol=1e-4, rtol=1e-4)
        order = found[key](torch.linspace(-1, 1, 50).expand(3, -1))
        assert (order.diff(dim=1) > 0).all()


def test_a_half_upgraded_gallery_goes_on(half: Path, fresh: dict[str, np.ndarray]) -> None:
    with pytest.raises(tc.errors.ConfigError, match="apply reembed"):
        tc.gallery.upgrade(half / "cut", half / "new", "map")
    with pytest.raises(tc.errors.ConfigError, match="apply reembed"):
        tc.gallery.plan(half / "cut", half / "new")
    gallery = tc.gallery.upgrade(half / "cut", half / "new", "reembed")
    assert gallery.manifest.upgrade is None
    assert len(gallery.manifest.kinds_present) == 1
    gallery.verify()
    rows = stored_rows(gallery)
    assert rows.keys() == fresh.keys()
    assert all(np.allclose(rows[own], fresh[own], atol=1e-4) for own in rows)
    assert [path.name for path in (half / "cut").iterdir() if path.name != ".lock"].count("background") == 1
    assert not list((half / "cut" / "background").iterdir())
    before = (half / "cut" / "gallery.json").stat().st_mtime_ns
    again = tc.gallery.upgrade(half / "cut", half / "new", "reembed")  # nothing is left to do
    assert (again.report.converted, again.report.left) == (COUNT, 0)
    assert (half / "cut" / "gallery.json").stat().st_mtime_ns == before
    shutil.rmtree(half / "old")  # nothing needs it any more
    assert precision(tc.gallery.load(half / "cut"), half / "photos") > 0.9


@pytest.mark.slow
def test_a_mapped_gallery_can_be_re_embedded(gallery_copy: Path, fresh: dict[str, np.ndarray]) -> None:
    tc.gallery.upgrade(gallery_copy / "gallery", gallery_copy / "new", "map", sample=COUNT)
    rows = stored_rows(tc.gallery.upgrade(gallery_copy / "gallery", gallery_copy / "new", "reembed"))
    assert all(np.allclose(rows[own], fresh[own], atol=1e-4) for own in fresh)


def test_entries_whose_images_are_gone_stay(gallery_copy: Path) -> None:
    for name in ("red/0.png", "blue/3.png"):
        (gallery_copy / "photos" / name).unlink()
    plan = tc.gallery.plan(gallery_copy / "gallery", gallery_copy / "new", sample=COUNT, labels="folder")
    assert "2 of 60 images" in plan.remarks[0]
    gallery = tc.gallery.upgrade(gallery_copy / "gallery", gallery_copy / "new", "reembed")
    assert (gallery.report.converted, gallery.report.left, len(gallery)) == (COUNT - 2, 2, COUNT)
    assert gallery.manifest.upgrade is not None
    assert precision(gallery, gallery_copy / "photos") > 0.9


def test_without_images_nothing_can_be_measured(gallery_copy: Path) -> None:
    shutil.rmtree(gallery_copy / "photos")
    with pytest.raises(tc.errors.DataError, match="no way can be measured"):
        tc.gallery.plan(gallery_copy / "gallery", gallery_copy / "new", sample=COUNT)
    with pytest.raises(tc.errors.DataError, match="no way can be measured"):
        tc.gallery.upgrade(gallery_copy / "gallery", gallery_copy / "new", "map", sample=COUNT)
    assert len(tc.gallery.load(gallery_copy / "gallery")) == COUNT


def test_bad_settings(gallery_copy: Path) -> None:
    with pytest.raises(tc.errors.ConfigError, match="way: expected"):
        tc.gallery.upgrade(gallery_copy / "gallery", gallery_copy / "new", "keep")
    with pytest.raises(tc.errors.ConfigError, match="the one that embedded"):
        tc.gallery.plan(gallery_copy / "gallery", gallery_copy / "old")
    with pytest.raises(tc.errors.ConfigError, match="sample: expected"):
        tc.gallery.plan(gallery_copy / "gallery", gallery_copy / "new", sample=10)
    with pytest.raises(tc.errors.DataError, match="expected a class for every id"):
        tc.gallery.plan(gallery_copy / "gallery", gallery_copy / "new", sample=COUNT, labels={"red/0.png": "red"})
    with pytest.raises(tc.errors.ComponentFileError, match="expected a gallery"):
        tc.gallery.upgrade(gallery_copy / "photos", gallery_copy / "new", "map")
    assert not (gallery_copy / "photos" / ".lock").exists()


@pytest.mark.slow
def test_the_command_line(gallery_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gallery, extractor = str(gallery_copy / "gallery"), str(gallery_copy / "new")
    words = ["gallery", "upgrade", gallery, "--to", extractor, "--sample", str(COUNT)]
    assert main([*words, "--labels", "folder", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_scored"] == COUNT // 2
    assert main([*words, "--apply", "map"]) == 0
    out = capsys.readouterr().out
    assert "map: 60 entries" in out
    assert "60 images" in out
    assert main(words) == 0
    assert "Recommended: keep" in capsys.readouterr().out


@pytest.mark.slow
def test_a_re_embedding_that_is_killed_again_and_again_loses_nothing(
    gallery_copy: Path, fresh: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = gallery_copy / "gallery"
    words = ["upgrade", str(target), str(gallery_copy / "new"), "reembed"]
    for changes in (1, 2, 4, 3):
        killed_in_the_middle(words, target, changes)
        gallery = tc.gallery.load(target)
        gallery.verify()
        assert sorted(gallery.ids()) == sorted(fresh)
        assert precision(gallery, gallery_copy / "photos") > 0.9
    gallery = tc.gallery.upgrade(target, gallery_copy / "new", "reembed")
    rows = stored_rows(gallery)
    assert all(np.allclose(rows[own], fresh[own], atol=1e-4) for own in fresh)


def test_a_map_that_ends_before_the_exchange_changes_nothing(
    gallery_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stored_rows(tc.gallery.load(gallery_copy / "gallery"))

    def stopped(*_arguments):
        raise StoppedError

    monkeypatch.setattr(upgrading, "_background", stopped)
    with pytest.raises(StoppedError):
        tc.gallery.upgrade(gallery_copy / "gallery", gallery_copy / "new", "map", sample=COUNT)
    gallery = tc.gallery.load(gallery_copy / "gallery")
    gallery.verify()
    after = stored_rows(gallery)
    assert all(np.array_equal(after[own], before[own]) for own in before)
    monkeypatch.undo()
    tc.gallery.upgrade(gallery_copy / "gallery", gallery_copy / "new", "map", sample=COUNT)
    assert len(list((gallery_copy / "gallery" / "shards").glob("*.npy"))) == 1
