"""The study as a command: cells are kept, tables come from what is there, another scale is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from gallery_parts import save_image
from safetensors.torch import save_file

pytestmark = pytest.mark.slow  # processes that train

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "study.py"
SMALL = ["--images", "80", "--test-images", "60", "--epochs", "1", "--seeds", "0"]


def study(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *SMALL, "--output", str(folder), *words]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    done = study(folder, "--tables", "methods", "--rows", "nothing", "alignment")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 2
    return folder


def test_every_scope_and_pair_is_measured(folder: Path) -> None:
    document = json.loads((folder / "study.json").read_text())
    assert [cell["row"] for cell in document["cells"]] == ["nothing", "alignment"]
    for cell in document["cells"]:
        for scope in ("all", "common", "private"):
            assert cell["result"][scope].keys() == {"a-a", "a-b", "b-a", "b-b"}
        assert cell["result"]["chance"] == {"a": pytest.approx(1 / 7, abs=1e-4), "b": pytest.approx(1 / 7, abs=1e-4)}
    assert document["versions"]["timm"]
    assert str(folder) not in (folder / "study.json").read_text() + (folder / "study.md").read_text()
    assert "| alignment |" in (folder / "study.md").read_text()


def test_architectures_have_baselines(tmp_path: Path) -> None:
    done = study(tmp_path, "--tables", "architectures", "--rows", "trained apart")
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads((tmp_path / "study.json").read_text())["cells"]
    names = {"procrustes", "least_squares", "relative", "stitching", "retrained_head"}
    assert cell["result"]["mended"].keys() == names
    assert 0.1 < cell["result"]["mended"]["retrained_head"] <= 1
    assert "| orthogonal Procrustes |" in (tmp_path / "study.md").read_text()


def test_kept_cells_are_not_measured_again(folder: Path) -> None:
    done = study(folder, "--tables", "methods", "feature_dim", "--rows", "nothing", "16")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("feature_dim / 16")
    assert done.stdout.count("\n") == 1
    assert len(json.loads((folder / "study.json").read_text())["cells"]) == 3


def test_another_scale_is_refused(folder: Path) -> None:
    done = study(folder, "--tables", "methods", "--rows", "nothing", "--batch-size", "64")
    assert done.returncode != 0
    assert "name another --output" in done.stderr


def test_a_gallery_of_photos_goes_over_to_another_network(tmp_path: Path) -> None:
    for name in ("tf_efficientnet_lite0", "tf_efficientnet_lite2"):
        (tmp_path / "weights").mkdir(exist_ok=True)
        save_file(timm.create_model(name).state_dict(), tmp_path / "weights" / f"{name}.safetensors")
    for number in range(44):
        kind = number % 2
        save_image(tmp_path / "photos" / "pacs" / "photo" / str(kind) / f"{number}.png", (90 * kind,) * 3, number)
    words = ["--tables", "gallery", "--rows", "pacs: lite0 to lite2", "--photos", str(tmp_path / "photos")]
    done = study(tmp_path / "study", *words, "--weights", str(tmp_path / "weights"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "study" / "study.md").read_text()
    assert "half-way through reembed" in page
    assert str(tmp_path) not in page
