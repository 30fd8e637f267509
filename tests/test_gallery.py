"""Galleries: what lies on disk, what a build adds and drops, what a search finds, and what bad input meets."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gallery_parts import COLOURS, COUNT, extractor_of, killed_in_the_middle, save_image, stored_rows
from hub_server import LoopbackHub
from PIL import Image
from torch.nn import functional as F

import timm_compat as tc
from timm_compat.cli import main
from timm_compat.gallery import stored as stored_module
from timm_compat.gallery.ids import Entries
from timm_compat.gallery.manifest import Manifest


def expected(extractor: tc.CompatExtractor, photos: Path) -> dict[str, np.ndarray]:
    """Each image's features, embedded one by one with timm's own transform."""
    found = {}
    with torch.no_grad():
        for file in sorted(photos.rglob("*.png")):
            image = extractor.transform()(Image.open(file).convert("RGB"))
            found[file.relative_to(photos).as_posix()] = extractor(image[None])[0].numpy()
    return found


def test_what_lies_on_disk_is_read_with_json_and_numpy_alone(gallery_files: Path) -> None:
    facts = json.loads((gallery_files / "gallery" / "gallery.json").read_text())
    extractor = tc.CompatExtractor.from_pretrained(gallery_files / "old")
    (space,) = facts["spaces"]
    assert facts["timm_compat_gallery"] == 1
    assert space == extractor.space.fingerprint
    assert facts["spaces"][space]["digest"] == extractor.digest()
    assert facts["spaces"][space]["location"] == "../old"
    assert facts["spaces"][space]["preprocessing"]["mean"] == list(extractor.data_config["mean"])
    assert facts["normalization"] == "none"
    wanted = expected(extractor, gallery_files / "photos")
    found = {}
    for shard in facts["shards"]:
        rows = np.load(gallery_files / "gallery" / "shards" / f"{shard['name']}.npy", allow_pickle=False)
        entries = json.loads((gallery_files / "gallery" / "shards" / f"{shard['name']}.json").read_text())
        assert rows.dtype == np.float32
        found |= dict(zip(entries["ids"], rows, strict=True))
    assert found.keys() == wanted.keys()
    for own, row in found.items():
        np.testing.assert_allclose(row, wanted[own], atol=2e-3)


def test_search_agrees_with_cosines_by_hand(gallery_files: Path) -> None:
    gallery = tc.gallery.load(gallery_files / "gallery")
    rows = stored_rows(gallery)
    names = list(rows)
    matrix = F.normalize(torch.from_numpy(np.stack(list(rows.values()))), dim=1)
    query = gallery_files / "photos" / "blue" / "3.png"
    cosines = matrix @ matrix[names.index("blue/3.png")]
    order = cosines.argsort(descending=True)
    found = gallery.search(query, k=7)
    (hits,) = found.hits
    assert [hit.id for hit in hits] == [names[index] for index in order[:7]]
    assert [hit.similarity for hit in hits] == pytest.approx(cosines[order[:7]].tolist(), abs=1e-5)
    assert [hit.score for hit in hits] == [hit.similarity for hit in hits]
    assert found.queries == (str(query),)
    assert "blue/3.png" in str(found)


def test_faiss_finds_the_same_and_is_built_anew_when_the_gallery_changes(gallery_copy: Path) -> None:
    gallery = tc.gallery.load(gallery_copy / "gallery")
    queries = gallery_copy / "photos" / "red"
    exact, indexed = gallery.search(queries, k=5), gallery.search(queries, k=5, index="faiss")
    assert [[hit.id for hit in hits] for hits in exact.hits] == [[hit.id for hit in hits] for hits in indexed.hits]
    (index,) = (gallery_copy / "gallery" / "faiss").glob("*.index")
    before = index.stat().st_mtime_ns
    gallery.search(queries, k=5, index="faiss")
    assert index.stat().st_mtime_ns == before
    save_image(gallery_copy / "photos" / "red" / "new.png", COLOURS[0], 999)
    tc.gallery.build(gallery_copy / "photos", gallery_copy / "gallery")
    (hits,) = gallery.search(gallery_copy / "photos" / "red" / "new.png", k=1, index="faiss").hits
    assert hits[0].id == "red/new.png"


def test_an_index_of_other_embeddings_is_refused(gallery_copy: Path, tmp_path: Path) -> None:
    import faiss

    gallery = tc.gallery.load(gallery_copy / "gallery")
    gallery.search(gallery_copy / "photos" / "red", k=2, index="faiss")
    (index,) = (gallery_copy / "gallery" / "faiss").glob("*.index")
    foreign = faiss.IndexFlatIP(16)
    foreign.add(np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32))
    faiss.write_index(foreign, str(index))
    with pytest.raises(tc.errors.ComponentFileError, match="does not belong to these embeddings"):
        gallery.search(gallery_copy / "photos" / "red", k=2, index="faiss")


def test_a_second_build_embeds_only_what_is_new_or_changed_and_drops_what_is_gone(gallery_copy: Path) -> None:
    before = stored_rows(tc.gallery.load(gallery_copy / "gallery"))
    os.remove(gallery_copy / "photos" / "red" / "0.png")
    save_image(gallery_copy / "photos" / "blue" / "1.png", COLOURS[0], 500)
    save_image(gallery_copy / "photos" / "green" / "sub" / "x.png", COLOURS[1], 501)
    gallery = tc.gallery.build(gallery_copy / "photos", gallery_copy / "gallery")
    report = gallery.report
    assert (report.embedded, report.changed, report.kept, report.dropped) == (2, 1, 58, 1)
    assert "1 dropped" in str(report)
    gallery.verify()
    after = stored_rows(gallery)
    assert after.keys() == (before.keys() - {"red/0.png"}) | {"green/sub/x.png"}
    wanted = expected(tc.CompatExtractor.from_pretrained(gallery_copy / "old"), gallery_copy / "photos")
    for own in ("blue/1.png", "green/sub/x.png"):
        np.testing.assert_allclose(after[own], wanted[own], atol=2e-3)
    for own in before.keys() - {"red/0.png", "blue/1.png"}:
        np.testing.assert_array_equal(after[own], before[own])
    again = tc.gallery.build(gallery_copy / "photos", gallery_copy / "gallery")
    assert (again.report.embedded, again.report.kept) == (0, 60)


def test_images_that_moved_with_their_gallery_are_kept(gallery_copy: Path, tmp_path: Path) -> None:
    shutil.move(gallery_copy, tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere"
    gallery = tc.gallery.load(moved / "gallery")
    assert gallery.images == moved / "photos"
    assert gallery.search(moved / "photos" / "red" / "2.png", k=1).hits[0][0].id == "red/2.png"


def test_shards_are_cut_and_searched_across(gallery_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm_compat.gallery.building.SHARD_ROWS", 7)
    gallery = tc.gallery.build(gallery_copy / "photos", gallery_copy / "cut", gallery_copy / "old", batch_size=5)
    assert [shard.rows for shard in gallery.manifest.shards] == [7] * 8 + [4]
    whole = tc.gallery.load(gallery_copy / "gallery")
    queries = gallery_copy / "photos" / "yellow"
    assert _ids(gallery.search(queries, k=20)) == _ids(whole.search(queries, k=20))


def _ids(found: tc.gallery.GallerySearch) -> list[list[str]]:
    return [[hit.id for hit in hits] for hits in found.hits]


@pytest.mark.slow
def test_a_joined_extractor_searches_the_same_space(gallery_copy: Path) -> None:
    old = tc.CompatExtractor.from_pretrained(gallery_copy / "old")
    images = tc.data.load_dataset("images", gallery_copy / "photos")
    torch.manual_seed(3)
    other = tc.create_extractor("test_resnet", tc.CompatSpace(16, methods=["rotation"]).finalize(), img_size=32)
    with pytest.warns(UserWarning, match="join"):
        joined = tc.join(old.space, other.backbone.model, images, reference=old)
    gallery = tc.gallery.load(gallery_copy / "gallery")
    found = gallery.search(gallery_copy / "photos" / "green", k=5, extractor=joined)
    assert np.mean([hit.id.startswith("green/") for hits in found.hits for hit in hits]) > 0.9


def test_queries_may_be_arrays(gallery_files: Path) -> None:
    image = torch.from_numpy(np.array(Image.open(gallery_files / "photos" / "red" / "4.png"))).permute(2, 0, 1)[None]
    found = tc.gallery.load(gallery_files / "gallery").search(image, k=1)
    assert found.hits[0][0].id == "red/4.png"
    assert found.queries == ("0",)


def test_bad_input_meets_our_errors(gallery_copy: Path, tmp_path: Path) -> None:
    photos, gallery = gallery_copy / "photos", gallery_copy / "gallery"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(tc.errors.ComponentFileError, match="expected a gallery"):
        tc.gallery.load(tmp_path / "full")
    with pytest.raises(tc.errors.ComponentFileError, match="holds something else"):
        tc.gallery.build(photos, tmp_path / "full", gallery_copy / "old")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]
    with pytest.raises(tc.errors.ConfigError, match="expected an extractor for a new gallery"):
        tc.gallery.build(photos, tmp_path / "none")
    draft = tc.create_extractor("test_resnet", tc.CompatSpace(16, methods=["rotation"]), img_size=32)
    with pytest.raises(tc.errors.DraftSpaceError, match="final space"):
        tc.gallery.build(photos, tmp_path / "none", draft)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    with pytest.raises(tc.errors.DataError, match=r"a\.png"):
        tc.gallery.build(tmp_path / "bad", tmp_path / "none", gallery_copy / "old")
    assert not (tmp_path / "none").exists()
    with pytest.raises(tc.errors.SpaceMismatchError, match="gallery upgrade --to"):
        tc.gallery.build(photos, gallery, gallery_copy / "new")
    with pytest.raises(tc.errors.SpaceMismatchError, match=r"gallery upgrade.*join"):
        tc.gallery.load(gallery).search(photos / "red", extractor=gallery_copy / "new")
    (tmp_path / "other").mkdir()
    save_image(tmp_path / "other" / "else.png", COLOURS[0], 1)
    with pytest.raises(tc.errors.DataError, match="holds none of them"):
        tc.gallery.build(tmp_path / "other", gallery)
    with pytest.raises(tc.errors.DataError, match="expected image files"):
        tc.gallery.build(tmp_path / "full", gallery)
    with pytest.raises(tc.errors.DataError, match="found none"):
        tc.gallery.load(gallery).search(photos / "red" / "gone.png")
    with pytest.raises(tc.errors.ConfigError, match="k: expected"):
        tc.gallery.load(gallery).search(photos / "red", k=0)
    assert len(tc.gallery.load(gallery)) == 60


def test_an_image_that_cannot_be_decoded(gallery_copy: Path) -> None:
    (gallery_copy / "photos" / "red" / "broken.png").write_bytes(b"no image")
    with pytest.raises(tc.errors.DataError, match=r"broken\.png"):
        tc.gallery.build(gallery_copy / "photos", gallery_copy / "gallery")
    assert len(tc.gallery.load(gallery_copy / "gallery")) == 60
    gallery = tc.gallery.build(gallery_copy / "photos", gallery_copy / "gallery", skip_corrupt=True)
    assert (gallery.report.skipped, len(gallery)) == (1, 60)
    (gallery_copy / "photos" / "red" / "1.png").write_bytes(b"no image any more")
    gallery = tc.gallery.build(gallery_copy / "photos", gallery_copy / "gallery", skip_corrupt=True)
    assert (gallery.report.skipped, gallery.report.dropped, len(gallery)) == (2, 1, 59)


def test_ids_that_look_alike_are_refused(gallery_copy: Path) -> None:
    for name in ("e\u0301.png", "\u00e9.png"):
        save_image(gallery_copy / "photos" / name, COLOURS[0], 3)
    if len(list((gallery_copy / "photos").glob("*.png"))) < 2:
        pytest.skip("a file system that normalises names")
    with pytest.raises(tc.errors.DataError, match="ids that differ"):
        tc.gallery.build(gallery_copy / "photos", gallery_copy / "gallery")


def _with_facts(gallery: Path, change: object) -> None:
    facts = json.loads((gallery / "gallery.json").read_text())
    change(facts)
    (gallery / "gallery.json").write_text(json.dumps(facts))


def test_ids_that_repeat_are_refused(gallery_copy: Path) -> None:
    gallery = gallery_copy / "gallery"
    stored = stored_module.Stored.open(gallery)
    (shard,) = stored.manifest.shards
    entries = stored.entries(shard)
    twice = stored.write_shard(shard.kind, entries.at([0, 1]), np.array(stored.rows(shard)[:2]))
    stored.commit(Manifest(**{**vars(stored.manifest), "shards": (shard, twice)}))
    with pytest.raises(tc.errors.ComponentFileError, match="every id once"):
        tc.gallery.load(gallery).verify()
    with pytest.raises(tc.errors.ComponentFileError, match="every id once"):
        tc.gallery.build(gallery_copy / "photos", gallery)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.update(timm_compat_gallery=2), "format 1"),
        (lambda facts: facts.pop("shards"), "facts of a gallery"),
        (lambda facts: facts["shards"][0].update(kind="other"), "not described"),
        (lambda facts: facts["shards"][0].update(name="../../etc/pass"), "name"),
        (lambda facts: facts["shards"][0].update(rows=61), "expected \\(61, 16\\)"),
        (lambda facts: next(iter(facts["spaces"].values())).update(feature_dim=17), "dimensions"),
    ],
)
def test_damaged_manifests_are_refused(gallery_copy: Path, change: object, message: str) -> None:
    _with_facts(gallery_copy / "gallery", change)
    with pytest.raises(tc.errors.ComponentFileError, match=message):
        tc.gallery.load(gallery_copy / "gallery")


def test_damaged_shards_are_noticed(gallery_copy: Path) -> None:
    gallery = tc.gallery.load(gallery_copy / "gallery")
    (rows,) = (gallery_copy / "gallery" / "shards").glob("*.npy")
    data = bytearray(rows.read_bytes())
    data[-5] ^= 0x10
    rows.write_bytes(data)
    with pytest.raises(tc.errors.ComponentFileError, match="SHA-256"):
        gallery.verify()
    rows.write_bytes(data[:-4])
    with pytest.raises(tc.errors.ComponentFileError, match="expected embeddings"):
        tc.gallery.load(gallery_copy / "gallery")
    (ids,) = (gallery_copy / "gallery" / "shards").glob("*.json")
    rows.write_bytes(data)
    ids.write_text('{"ids": ["../../x"], "sha256": [""]}')
    with pytest.raises(tc.errors.ComponentFileError, match="expected the ids"):
        tc.gallery.load(gallery_copy / "gallery").search(gallery_copy / "photos" / "red", k=1)


def test_another_extractor_at_the_place_of_the_gallerys_own_is_refused(gallery_copy: Path) -> None:
    shutil.rmtree(gallery_copy / "old")
    with pytest.raises(tc.errors.ComponentFileError, match="--extractor"):
        tc.gallery.load(gallery_copy / "gallery").search(gallery_copy / "photos" / "red", k=1)
    shutil.copytree(gallery_copy / "new", gallery_copy / "old")
    with pytest.raises(tc.errors.ComponentFileError, match="got another"):
        tc.gallery.load(gallery_copy / "gallery").search(gallery_copy / "photos" / "red", k=1)


def test_an_extractor_on_the_hub_is_found_by_its_commit(
    gallery_copy: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.user("hf_alicesecret", "alice"))
    source = tc.CompatExtractor.from_pretrained(gallery_copy / "old").push_to_hub("alice/old")
    gallery = tc.gallery.build(gallery_copy / "photos" / "red", gallery_copy / "hubbed", "alice/old")
    (model,) = gallery.manifest.spaces.values()
    assert (model.location, model.commit) == ("alice/old", source.commit)
    found = tc.gallery.load(gallery_copy / "hubbed").search(gallery_copy / "photos" / "red" / "3.png", k=1)
    assert found.hits[0][0].id == "3.png"


def test_two_writers_do_not_meet(gallery_copy: Path) -> None:
    with stored_module.alone(gallery_copy / "gallery"), pytest.raises(tc.errors.ConfigError, match="another process"):
        tc.gallery.build(gallery_copy / "photos", gallery_copy / "gallery")


def test_the_command_line(gallery_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, gallery = str(gallery_copy / "photos"), str(gallery_copy / "made")
    assert main(["gallery", "build", photos, gallery, "--extractor", str(gallery_copy / "old"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["num_images"], facts["report"]["embedded"]) == (60, 60)
    assert main(["gallery", "build", photos, gallery]) == 0
    assert "0 images embedded, 60 kept" in capsys.readouterr().out
    query = str(gallery_copy / "photos" / "red" / "7.png")
    assert main(["gallery", "search", gallery, query, "-k", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["queries"][0]["hits"][0]["id"] == "red/7.png"
    assert main(["gallery", "search", gallery, query, "--extractor", str(gallery_copy / "new")]) == 2
    assert "gallery upgrade" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("changes", [1, 3, 9])
def test_a_build_that_is_killed_goes_on(gallery_copy: Path, changes: int) -> None:
    photos, extractor, target = (gallery_copy / name for name in ("photos", "old", "killed"))
    killed_in_the_middle(["build", str(photos), str(target), str(extractor)], target, changes)
    gallery = tc.gallery.build(photos, target, extractor)
    gallery.verify()
    assert gallery.report.kept >= 4 * changes
    assert gallery.report.embedded + gallery.report.kept == COUNT
    whole, found = stored_rows(tc.gallery.load(gallery_copy / "gallery")), stored_rows(gallery)
    assert found.keys() == whole.keys()
    for own, row in found.items():
        np.testing.assert_allclose(row, whole[own], atol=1e-4)


def test_what_a_killed_first_build_left_is_gone_over(gallery_copy: Path) -> None:
    target = gallery_copy / "begun"
    (target / "shards").mkdir(parents=True)
    for name in (".lock", "shards/0123456789abcdef.npy", ".gallery.json.1.2"):
        (target / name).write_bytes(b"half")
    gallery = tc.gallery.build(gallery_copy / "photos", target, gallery_copy / "old")
    gallery.verify()
    assert len(gallery) == COUNT
    assert not (target / "shards" / "0123456789abcdef.npy").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to tell its own memory")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """A search over 400 MB of rows, in a process that may take half of that."""
    extractor = extractor_of(0, 1024)
    save_image(tmp_path / "photos" / "a.png", COLOURS[0], 0)
    extractor.save_pretrained(tmp_path / "old")
    tc.gallery.build(tmp_path / "photos", tmp_path / "gallery", tmp_path / "old")
    stored = stored_module.Stored.open(tmp_path / "gallery")
    (shard,) = stored.manifest.shards
    draw, shards = np.random.default_rng(0), [shard]
    for number in range(100):
        entries = Entries(tuple(f"{number}/{row}" for row in range(1000)), ("",) * 1000)
        shards.append(stored.write_shard(shard.kind, entries, draw.normal(size=(1000, 1024)).astype(np.float32)))
    stored.commit(Manifest(**{**vars(stored.manifest), "shards": tuple(shards)}))
    program = (
        "import resource, sys, timm_compat as tc\n"
        "from pathlib import Path\n"
        "gallery = tc.gallery.load(sys.argv[1])\n"
        "lines = Path('/proc/self/status').read_text().splitlines()\n"
        "used = 1024 * next(int(line.split()[1]) for line in lines if line.startswith('VmData'))\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (used + 200 * 2**20,) * 2)\n"
        "print(gallery.search(sys.argv[2], k=1, device='cpu').hits[0][0].id)\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "gallery"), str(tmp_path / "photos" / "a.png")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "a.png", done.stderr
