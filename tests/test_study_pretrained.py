"""The study's table of pretrained networks, on timm's smallest networks and photos drawn at random."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import timm_compat as tc

pytestmark = pytest.mark.slow  # three networks over 1,000 classes, some seconds

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
NAMES = ("test_efficientnet", "test_resnet", "test_vit")
PAIR = "test_resnet under test_efficientnet"
KINDS = ("imagenet_sample", "objects", "ink", "paint")


def photo(file: Path, label: int, draw: torch.Generator) -> None:
    """Noise on a colour that tells the label."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.randint(0, 80, (48, 48, 3), generator=draw, dtype=torch.uint8)
    pixels[..., label % 3] += 120
    Image.fromarray(pixels.numpy()).save(file)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    weights, photos = (tmp_path_factory.mktemp(name) for name in ("weights", "photos"))
    torch.manual_seed(0)
    for name in NAMES:
        size = {"img_size": 64} if name == "test_vit" else {}
        metadata = {"img_size": "64"}
        save_file(timm.create_model(name, **size).state_dict(), weights / f"{name}.safetensors", metadata)
    draw = torch.Generator().manual_seed(0)
    for number in range(30):
        photo(photos / "imagenet_sample" / f"{number:03}.jpg", number, draw)
    for folder in ("objects", "styles/ink", "styles/paint"):
        for part, count in (("train", 8), ("test", 6)):
            for label, number in ((label, number) for label in range(3) for number in range(count)):
                photo(photos / folder / part / f"class{label}" / f"{number}.jpg", label, draw)
    return weights, photos


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("study")


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, places: tuple[Path, Path], *words: str) -> None:
    given = ["--tables", "pretrained", "--weights", str(places[0]), "--photos", str(places[1]), *words]
    monkeypatch.setattr("sys.argv", ["study.py", *given])
    script.main()


@pytest.fixture
def folder(study: ModuleType, monkeypatch: pytest.MonkeyPatch, places: tuple[Path, Path], tmp_path: Path) -> Path:
    run(study, monkeypatch, places, "--seeds", "0", "1", "--rows", PAIR, "--output", str(tmp_path))
    return tmp_path


def test_a_cell_has_every_way_and_head(folder: Path) -> None:
    first, second = json.loads((folder / "pretrained.json").read_text())["cells"]
    assert (first["row"], first["seed"], second["seed"]) == (PAIR, 0, 1)
    rows = first["result"]["rows"]
    ways = {row["way"] for row in rows}
    assert ways >= {"joined", "joined by the classes of objects", "photos alone", "Procrustes", "ridge", "relative"}
    assert {row["pool"] for row in rows} == {None, *KINDS}
    assert {row["classes"] for row in rows if row["pool"] is None} == {3, 30, 100, 300, 1000}
    for key in ("native", "retrained"):
        assert set(first["result"][key]) == set(KINDS)
    stated = next(row for row in rows if row["pool"] == "ink" and row["way"] == "joined")["stated"]
    share, low, high, count, optimism = stated["ink"]
    assert 0 <= optimism < 1
    assert count == 24 // 5
    assert 0 <= low <= share <= high <= 1
    text = (folder / "pretrained.md").read_text()
    assert "`scripts/study.py --tables pretrained --weights WEIGHTS --photos PHOTOS" in text
    assert str(folder) not in text
    assert (folder / "pretrained.png").is_file()
    assert (folder / "pretrained_photos.png").is_file()


def test_photos_that_a_join_saw_do_not_test_it(folder: Path) -> None:
    rows = json.loads((folder / "pretrained.json").read_text())["cells"][0]["result"]["rows"]
    own = next(row for row in rows if row["pool"] == "imagenet_sample" and row["way"] == "joined")
    assert own["photos"] == 15
    assert own["tested"] == {"imagenet_sample": 15, "objects": 18, "ink": 18, "paint": 18}
    fresh = next(row for row in rows if row["part"] == "test" and row["pool"] == "paint")
    assert (fresh["photos"], fresh["tested"]["paint"], fresh["tested"]["ink"]) == (9, 9, 18)


def test_kept_cells_and_features_are_not_computed_again(
    study: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    places: tuple[Path, Path],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    monkeypatch.setattr("timm.create_model", None)  # whoever builds a network again fails
    run(study, monkeypatch, places, "--seeds", "0", "--rows", PAIR, "--output", str(folder))
    assert capsys.readouterr().out == ""
    sizes = {file.name for file in (folder / "features").iterdir()}
    assert sizes == {
        f"{name}_{part}.safetensors" for name in NAMES[:2] for part in ("imagenet_sample", "objects", "styles")
    }


def test_the_map_is_that_of_join(study: ModuleType, places: tuple[Path, Path], tmp_path: Path) -> None:
    """What the study composes from cached features is what ``tc.join`` gives on the same photos."""
    from studies import photographs, pretrained

    source = photographs.Source(*places, tmp_path)
    new, old = (photographs.network(source, name) for name in ("test_vit", "test_efficientnet"))
    pair = pretrained._Pair(new, old)
    pool = pretrained.Pool("ink", new.photos["ink"].places("train"))
    with torch.no_grad():
        linear = pretrained._map(pair, pretrained._closed_form(pair, pool, pair.classes()))
    extractor, _ = tc.split(NAMES[0], weights=places[0] / f"{NAMES[0]}.safetensors", img_size=64)
    images = tc.data.load_dataset("folder", places[1] / "styles" / "ink")
    weights = places[0] / "test_vit.safetensors"
    with pytest.warns(UserWarning, match="expect lower accuracy"):  # networks that were never trained
        joined = tc.join(extractor.space, "test_vit", images, reference=extractor, weights=weights, img_size=64)
    own = joined.interface(new.photos["ink"].features) + (0 if old.mean is None else old.mean)
    torch.testing.assert_close(linear(new.photos["ink"].features), own, atol=1e-3, rtol=1e-3)


def test_a_table_without_its_data_is_refused(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["study.py", "--tables", "pretrained", "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        study.main()
    assert "--tables pretrained: expected" in capsys.readouterr().err
