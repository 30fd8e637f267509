"""Thin extractors: a few files that name their backbone's weights, which are fetched from there and checked."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_parts import CLASSES, SIZE, images
from hub_server import LoopbackHub
from timm.models import save_for_hf

import timm_compat as tc
from timm_compat.cli import main

BASE = "timm/test_resnet.mine"


@pytest.fixture
def base(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A plain timm model on the Hub, with its classifier; its commit."""
    monkeypatch.setenv("HF_TOKEN", hub.user("hf_alicesecret", "alice", "timm", "lab"))
    torch.manual_seed(0)
    save_for_hf(timm.create_model("test_resnet", num_classes=7), tmp_path / "plain", safe_serialization="both")
    from huggingface_hub import HfApi

    HfApi().create_repo(BASE)
    files = {name: (tmp_path / "plain" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    return hub.edit(BASE, **files)


@pytest.fixture
def extractor(base: str) -> tc.CompatExtractor:
    torch.manual_seed(1)
    space = tc.CompatSpace(8, CLASSES, ["common_classes"]).finalize()
    made = tc.create_extractor(f"hf-hub:{BASE}", space, pretrained=True, trainable="adapter", img_size=SIZE)
    return made.eval()


def same(one: tc.CompatExtractor, other: tc.CompatExtractor) -> bool:
    with torch.no_grad():
        return torch.equal(one(images()), other(images()))


def edit(folder: Path, **base: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["timm_compat"]["base"] |= base
    (folder / "config.json").write_text(json.dumps(config))


class TestSaving:
    def test_leaves_the_backbone_where_it_is(self, extractor, base: str, tmp_path: Path) -> None:
        folder = extractor.save_pretrained(tmp_path / "thin", thin=True)
        assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "interface.safetensors"]
        ours = json.loads((folder / "config.json").read_text())["timm_compat"]
        assert (ours["format"], ours["space"]["format"]) == (2, 1)
        assert (ours["base"]["repo_id"], ours["base"]["commit"]) == (BASE, base)
        card = (folder / "README.md").read_text()
        assert f"those of {BASE}, fetched from there" in card
        assert f'timm.create_model("hf-hub:{BASE}"' in card
        assert "timm-compat-format:2" in card
        assert same(tc.CompatExtractor.from_pretrained(folder), extractor)

    def test_what_was_trained_is_refused(self, extractor, tmp_path: Path) -> None:
        with torch.no_grad():
            next(extractor.backbone.parameters()).add_(1e-3)
        with pytest.raises(tc.errors.ConfigError, match=r"thin: .*it was trained; save it whole"):
            extractor.save_pretrained(tmp_path / "thin", thin=True)
        assert not (tmp_path / "thin").exists()

    def test_an_unknown_base_is_refused(self, extractor, tmp_path: Path) -> None:
        extractor.facts = tc.Facts()
        with pytest.raises(tc.errors.ConfigError, match=r"thin: expected a base model .*pretrained=True"):
            extractor.save_pretrained(tmp_path / "thin", thin=True)

    def test_a_base_of_another_architecture_is_refused(self, extractor, tmp_path: Path, hub: LoopbackHub) -> None:
        space = extractor.space
        other = tc.create_extractor("test_vit", space, img_size=SIZE)
        other.facts = tc.Facts(base_model=BASE)
        with pytest.raises(tc.errors.ConfigError, match=r"thin: expected the backbone's weights in .*missing"):
            other.save_pretrained(tmp_path / "thin", thin=True)

    def test_split_parts_are_thin_too(self, base: str, tmp_path: Path) -> None:
        names = [f"class {number}" for number in range(7)]
        extractor, head = tc.split(f"hf-hub:{BASE}", pretrained=True, class_names=names)
        loaded = tc.CompatExtractor.from_pretrained(extractor.save_pretrained(tmp_path / "thin", thin=True))
        with torch.no_grad():
            batch = torch.randn(2, *extractor.data_config["input_size"])
            assert torch.equal(tc.compose(loaded, head)(batch), tc.compose(extractor, head)(batch))
        # The interface of a split is the identity, which has D x D numbers and says nothing.
        features = extractor.space.feature_dim
        assert (tmp_path / "thin" / "interface.safetensors").stat().st_size < 4 * features * features

    @pytest.mark.parametrize("said", [7, "zeros", "identity"])
    def test_an_interface_that_cannot_be_what_it_says(self, extractor, tmp_path: Path, said: Any) -> None:
        folder = extractor.save_pretrained(tmp_path / "thin", thin=True)  # of 8 features from more: no identity
        config = json.loads((folder / "config.json").read_text())
        config["timm_compat"]["interface_weight"] = said
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(tc.errors.ComponentFileError, match="interface_weight: expected"):
            tc.CompatExtractor.from_pretrained(folder)


class TestLoading:
    @pytest.fixture
    def folder(self, extractor, tmp_path: Path) -> Path:
        return extractor.save_pretrained(tmp_path / "thin", thin=True)

    def test_works_offline_from_the_cache(self, extractor, folder: Path, hub: LoopbackHub) -> None:
        hub.seen.clear()
        assert same(tc.CompatExtractor.from_pretrained(folder, local_files_only=True), extractor)
        assert not hub.seen

    def test_takes_a_base_on_disk_if_its_hash_agrees(self, extractor, folder: Path, tmp_path: Path, hub) -> None:
        hub.seen.clear()
        fresh = {"cache_dir": tmp_path / "fresh", "base": tmp_path / "plain" / "model.safetensors"}
        assert same(tc.CompatExtractor.from_pretrained(folder, **fresh), extractor)
        assert not hub.seen
        with pytest.raises(
            tc.errors.ComponentFileError, match=r"expected SHA-256 .* of the base timm/test_resnet.mine@"
        ):
            tc.CompatExtractor.from_pretrained(folder, base=folder / "interface.safetensors")
        with pytest.raises(tc.errors.ComponentFileError, match="found no file at"):
            tc.CompatExtractor.from_pretrained(folder, base=tmp_path / "nothing")

    def test_a_whole_extractor_takes_none(self, extractor, tmp_path: Path) -> None:
        whole = extractor.save_pretrained(tmp_path / "whole")
        with pytest.raises(tc.errors.ConfigError, match="base: expected none"):
            tc.CompatExtractor.from_pretrained(whole, base=tmp_path / "plain" / "model.safetensors")

    def test_a_base_that_moved(self, folder: Path, tmp_path: Path, hub: LoopbackHub) -> None:
        del hub.store.repos[BASE]
        with pytest.raises(tc.errors.HubNotFoundError, match=r"needs the weights of its base .*base=FILE"):
            tc.CompatExtractor.from_pretrained(folder, cache_dir=tmp_path / "fresh")

    def test_the_commit_stays_whatever_comes_later(self, extractor, folder: Path, tmp_path: Path, hub) -> None:
        hub.edit(BASE, **{"model.safetensors": b"other weights"})
        assert same(tc.CompatExtractor.from_pretrained(folder, cache_dir=tmp_path / "fresh"), extractor)

    def test_weights_that_are_not_those(self, folder: Path, tmp_path: Path, hub: LoopbackHub) -> None:
        edit(folder, sha256="0" * 64)
        with pytest.raises(tc.errors.ComponentFileError, match=r"expected SHA-256 0000.*exchanged"):
            tc.CompatExtractor.from_pretrained(folder, cache_dir=tmp_path / "fresh")

    @pytest.mark.parametrize(
        "change",
        [
            {"file": "../../secret"},
            {"repo_id": "/etc"},
            {"commit": "main"},
            {"sha256": 7},
            {"file": "pytorch_model.bin"},
        ],
    )
    def test_a_base_that_is_none(self, folder: Path, change: dict[str, Any]) -> None:
        edit(folder, **change)
        with pytest.raises(
            tc.errors.ComponentFileError, match=f"base: expected {next(iter(change))} of a model.safetensors"
        ):
            tc.CompatExtractor.from_pretrained(folder)

    def test_a_file_of_another_size_is_not_fetched(self, folder: Path, tmp_path: Path, hub, monkeypatch) -> None:
        monkeypatch.setattr("timm_compat.models.thin.MAX_CLASSIFIER_BYTES", -(2**21))
        with pytest.raises(tc.errors.ComponentFileError, match="expected at most"):
            tc.CompatExtractor.from_pretrained(folder, cache_dir=tmp_path / "fresh")


class TestSharing:
    def test_thin_and_whole_are_found_alike(self, extractor, hub: LoopbackHub, tmp_path: Path, capsys) -> None:
        extractor.push_to_hub("lab/whole")
        whole = extractor.save_pretrained(tmp_path / "whole")
        assert main(["push", str(whole), "lab/thin", "--thin", "--license", "mit"]) == 0
        assert set(hub.files("lab/thin")) >= {"README.md", "config.json", "interface.safetensors"}
        assert "model.safetensors" not in hub.files("lab/thin")
        assert {found.repo_id for found in tc.search(space=extractor.space)} == {"lab/thin", "lab/whole"}
        assert same(tc.CompatExtractor.from_pretrained("lab/thin", cache_dir=tmp_path / "fresh"), extractor)
        capsys.readouterr()
        assert main(["info", "lab/thin"]) == 0
        assert BASE in capsys.readouterr().out

    def test_thin_takes_the_place_of_whole_and_back(self, extractor, hub: LoopbackHub, tmp_path: Path) -> None:
        for thin in (False, True, False):
            extractor.push_to_hub("lab/extractor", thin=thin)
            assert ("model.safetensors" in hub.files("lab/extractor")) is not thin
            fresh = tmp_path / f"fresh {thin}"
            assert same(tc.CompatExtractor.from_pretrained("lab/extractor", cache_dir=fresh), extractor)
            shutil.rmtree(fresh)

    def test_pulled_it_stays_thin(self, extractor, hub: LoopbackHub, tmp_path: Path) -> None:
        extractor.push_to_hub("lab/thin", thin=True)
        assert main(["pull", "lab/thin", "--output", str(tmp_path / "pulled")]) == 0
        assert not (tmp_path / "pulled" / "model.safetensors").exists()
        assert same(tc.CompatExtractor.from_pretrained(tmp_path / "pulled"), extractor)

    def test_only_extractors_are_thin(self, extractor, hub: LoopbackHub, tmp_path: Path, capsys) -> None:
        head = tc.TaskHead(extractor.space, CLASSES).save_pretrained(tmp_path / "head")
        assert main(["push", str(head), "lab/head", "--thin"]) == 2
        assert "--thin: expected an extractor" in capsys.readouterr().err
