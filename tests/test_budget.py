"""A stranger's config decides neither how long a network is built nor how much memory that takes."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_parts import make_parts

import timm_compat as tc
from timm_compat.models import budget

HOSTILE = [
    ("swin_tiny_patch4_window7_224", {"depths": [1000] * 1000}, "modules"),
    ("densenet121", {"block_config": [65536] * 3}, "modules"),
    ("dpn68", {"k_sec": [65536] * 4}, "modules|parameters"),
    ("swin_tiny_patch4_window7_224", {"window_size": 128, "img_size": 1024}, "bytes of buffers"),
    ("tiny_vit_5m_224", {"window_sizes": [1000] * 4}, "window_sizes: expected at most 256"),
    ("tiny_vit_5m_224", {"window_sizes": [90] * 4}, "s to build"),
    ("resnet18", {"channels": [65536] * 4, "layers": [20] * 4}, "parameters"),
    ("resnet18", {"img_size": 16384}, "img_size: expected at most 4096"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An extractor's folder without its weights: nothing may ask for them before the network was checked."""
    saved = make_parts().extractor.save_pretrained(tmp_path_factory.mktemp("budget") / "extractor")
    for file in saved.glob("*.safetensors"):
        file.unlink()
    return saved


def rewritten(folder: Path, tmp_path: Path, change: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "config.json").write_text(json.dumps(config))
    return changed


@pytest.mark.parametrize(("architecture", "arguments", "message"), HOSTILE)
def test_a_network_out_of_all_proportion(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    arguments: dict[str, Any],
    message: str,
) -> None:
    if "s to build" in message:
        monkeypatch.setattr(budget, "MAX_SECONDS", 1.0)
    monkeypatch.setattr(budget, "MAX_MODULES", 5_000)
    changed = rewritten(folder, tmp_path, lambda config: config.update(architecture=architecture, model_args=arguments))
    start = time.thread_time()
    with pytest.raises(tc.errors.ComponentFileError, match=message):
        tc.CompatExtractor.from_pretrained(changed)
    assert time.thread_time() - start < 15


def wait_for_ever() -> None:
    while True:
        time.sleep(0.001)


def test_what_was_ended_does_not_come_back_later(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MAX_SECONDS", 0.2)
    for _ in range(3):
        with pytest.raises(tc.errors.ComponentFileError, match="s to build"), budget.build_budget():
            wait_for_ever()
        assert sum(range(100_000)) == 4999950000
    with budget.build_budget():
        torch.nn.Linear(2, 2)
    time.sleep(0.3)  # the time is up, the block has ended


def test_the_exception_of_a_block_passes() -> None:
    with pytest.raises(ZeroDivisionError), budget.build_budget():
        raise ZeroDivisionError


def test_heads_and_composed_models_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = make_parts()
    model = tc.compose(parts.extractor, parts.head)
    folders = {
        tc.TaskHead: parts.head.save_pretrained(tmp_path / "head"),
        tc.CompatModel: model.save_pretrained(tmp_path / "model"),
    }
    fused = model.save_pretrained(tmp_path / "fused", fused=True)
    monkeypatch.setattr(budget, "MAX_PARAMETERS", 10)
    for kind, saved in folders.items():
        with pytest.raises(tc.errors.ComponentFileError, match="more than 10 parameters"):
            kind.from_pretrained(saved)
    with pytest.raises(tc.errors.ComponentFileError, match="more than 10 parameters"):
        tc.load(fused)
    with pytest.raises(tc.errors.ComponentFileError, match="more than 10 parameters"):
        timm.create_model(f"local-dir:{folders[tc.CompatModel]}")


@pytest.mark.parametrize(
    "change",
    [
        {"input_size": [3, 16384, 16384]},
        {"input_size": [1024, 4096, 4096]},
        {"std": [1e-300] * 3},
        {"std": [1e300] * 3},
        {"mean": [1e300] * 3},
        {"crop_pct": 1e-6},
        {"crop_pct": 1e6},
    ],
)
def test_preprocessing_out_of_all_proportion(folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    changed = rewritten(folder, tmp_path, lambda config: config["timm_compat"]["preprocessing"].update(change))
    with pytest.raises(tc.errors.ComponentFileError, match="preprocessing"):
        tc.CompatExtractor.from_pretrained(changed)


def test_the_largest_honest_networks_are_within_the_budget() -> None:
    with budget.build_budget(), torch.device("meta"):
        assert timm.create_model("swinv2_large_window12to24_192to384", num_classes=0).num_features == 1536
