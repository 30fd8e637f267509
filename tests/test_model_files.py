"""Composed models in folders: the same logits after a round trip, fused ones as plain timm, every fault refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import timm_compat as tc

D, SIZE, CLASSES = 8, 32, ("cat", "dog", "owl")


def composed(name: str = "test_efficientnet", level: str = "pooled", **settings: Any) -> tc.CompatModel:
    torch.manual_seed(0)
    space = tc.CompatSpace(D, CLASSES, ["common_classes"], level=level).finalize()
    channels = settings.pop("in_chans", 3)
    extractor = tc.create_extractor(name, space, img_size=SIZE, in_chans=channels)
    head = tc.TaskHead(space, CLASSES, **settings)
    torch.nn.init.normal_(head.classifier.weight)
    return tc.compose(extractor, head).eval()


def images(channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def rewrite(folder: Path, **facts: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["timm_compat"].update(facts)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("level", ["pooled", "map"])
@pytest.mark.parametrize("depth", [1, 2])
def test_round_trip(tmp_path: Path, level: str, depth: int) -> None:
    model = composed("test_resnet", level, depth=depth, in_chans=1, drop_rate=0.1)
    model.facts = tc.Facts(license="mit", results=(tc.Result("cats", 0.5),))
    folder = model.save_pretrained(tmp_path / "model")
    loaded = tc.CompatModel.from_pretrained(folder)
    assert torch.equal(loaded(images(1)), model(images(1)))
    assert loaded.facts == model.facts
    assert loaded.head.drop_rate == 0.1
    assert not loaded.training
    assert (loaded.source.location, loaded.source.commit) == (str(folder), None)
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(by_timm(images(1)), model(images(1)))
    assert timm.data.resolve_model_data_config(by_timm)["input_size"] == (1, SIZE, SIZE)
    fresh = tc.CompatModel.from_pretrained(folder, weights=False)
    assert not fresh.head.classifier.weight.any()


def test_fused(tmp_path: Path) -> None:
    model = composed()
    folder = model.save_pretrained(tmp_path / "fused", fused=True)
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert type(plain).__module__.startswith("timm.")
    torch.testing.assert_close(plain(images()), model(images()), atol=1e-4, rtol=0)
    assert plain.pretrained_cfg["label_names"] == list(CLASSES)
    again = tc.load(folder)
    torch.testing.assert_close(again(images()), model(images()), atol=1e-4, rtol=0)
    configs = [timm.data.resolve_model_data_config(each) for each in (again, plain)]
    assert json.dumps(configs[0]) == json.dumps(configs[1])
    with pytest.raises(tc.errors.ComponentFileError, match="expected a composed model, got a fused one"):
        tc.CompatModel.from_pretrained(folder)
    rewrite(folder, preprocessing={"mean": "evil"})
    with pytest.raises(tc.errors.ComponentFileError, match="preprocessing"):
        tc.load(folder)
    rewrite(folder, class_names=["cat", "cat"])
    with pytest.raises(tc.errors.ComponentFileError, match="class_names"):
        tc.load(folder)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"extractor": None}, "expected an extractor's settings"),
        ({"extractor": {"timm": {"architecture": "os.system"}}}, "name of a timm architecture"),
        ({"head": {}}, "expected a head's settings"),
        ({"class_names": ["a"]}, "SHA-256|expected shape"),
        ({"space": {}}, "complete definition"),
        ({"role": "head"}, "expected a component of role 'model', got 'head'"),
    ],
)
def test_a_changed_config(tmp_path: Path, facts: dict[str, object], message: str) -> None:
    folder = composed().save_pretrained(tmp_path / "model")
    rewrite(folder, **facts)
    with pytest.raises(tc.errors.ComponentFileError, match=message):
        tc.CompatModel.from_pretrained(folder)


def test_recorded_parts_are_taken_for_true_only_if_the_weights_are_theirs(tmp_path: Path) -> None:
    model = composed()
    folder = model.save_pretrained(tmp_path / "model")
    part = {"repo_id": "lab/head", "commit": "a" * 40, "sha256": {}, "digest": model.head.digest()}
    rewrite(folder, parts={"head": part})
    assert str(tc.CompatModel.from_pretrained(folder).head.source) == "lab/head@aaaaaaaaaaaa"
    for wrong in ({"digest": "0"}, {"repo_id": "../x"}, {"commit": "main"}, {"sha256": 7}):
        rewrite(folder, parts={"head": part | wrong})
        assert tc.CompatModel.from_pretrained(folder).head.source is None
    rewrite(folder, parts=["junk"])
    assert tc.CompatModel.from_pretrained(folder).head.source is None


def test_drafts_are_not_saved(tmp_path: Path) -> None:
    space = tc.CompatSpace(D, CLASSES, ["common_classes"])
    model = tc.compose(tc.create_extractor("test_resnet", space), tc.TaskHead(space, CLASSES))
    with pytest.raises(tc.errors.DraftSpaceError):
        model.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
