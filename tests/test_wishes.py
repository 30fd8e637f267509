"""The page of wishes: its blocks run, with the real names, on stand-ins of the same architectures made small."""

import functools
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_server import LoopbackHub
from hub_store import Repo
from PIL import Image
from safetensors.torch import save, save_file
from timm.models import _registry
from torch import nn

import timm_compat as tc
from timm_compat.cli import main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "pages" / "guides" / "wishes.md"
BLOCK = re.compile(r"^```(python|py|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2}
SMALL: dict[str, dict[str, Any]] = {  # what is left of the architectures that the page names
    "vit_small_patch14_dinov2": VIT,
    "vit_base_patch14_dinov2": {**VIT, "embed_dim": 48},
    "vit_base_patch14_reg4_dinov2": {**VIT, "embed_dim": 48},
    "vit_7b_patch16_dinov3": {**VIT, "embed_dim": 64},
    "vit_small_plus_patch16_dinov3": VIT,
    "vit_base_patch16_clip_224": {**VIT, "embed_dim": 48},
    "vit_xsmall_patch16_clip_224": VIT,
    "convnext_base": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "mobilenetv4_conv_small": {},
}


@pytest.fixture
def vendors(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LoopbackHub:
    """The Hub with weights under the page's names, and the files and photos that the page speaks of."""
    for name, settings in SMALL.items():
        entry: Callable[..., nn.Module] = _registry._model_entrypoints[name]
        monkeypatch.setitem(_registry._model_entrypoints, name, functools.partial(entry, **settings))
    text = PAGE.read_text(encoding="utf-8")
    torch.manual_seed(0)
    for name in sorted(set(re.findall(rf"\b(?:{'|'.join(SMALL)})\.\w+", text))):
        repo_id = timm.get_pretrained_cfg(name).hf_hub_id
        hub.store.repos[repo_id] = Repo(repo_id)
        state = timm.create_model(name).state_dict()
        hub.edit(repo_id, model__safetensors=save({key: value.contiguous() for key, value in state.items()}))
    monkeypatch.chdir(tmp_path)
    save_file({"weight": torch.randn(10, 32), "bias": torch.randn(10)}, "birds_head.safetensors")
    save_file({"weight": torch.randn(4, 512)}, "text.safetensors")
    for file, width in (
        ("dinov2_vits14_linear_head.pth", 32),
        ("dinov3_vit7b16_imagenet1k_linear_head-90d8ed92.pth", 64),
    ):
        torch.save({"weight": torch.randn(1000, 2 * width), "bias": torch.randn(1000)}, file)
    Path("birds.txt").write_text("\n".join(f"bird {number}" for number in range(10)), encoding="utf-8")
    Path("photos").mkdir()
    for number in range(12):
        pixels = (torch.rand(20, 20, 3) * 255).byte().numpy()
        Image.fromarray(pixels).resize((300, 260)).save(f"photos/{number}.png")
    return hub


def run_line(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    code = main(shlex.split(line)[1:])
    captured = capsys.readouterr()
    assert code == 0, f"{line}\n{captured.err}"
    return captured.out


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:join:UserWarning", "ignore:.*export:DeprecationWarning")
def test_every_block_runs(vendors: LoopbackHub, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    told: list[str] = []
    for kind, block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "console":
            lines = block.replace("\\\n", " ").splitlines()
            told += [run_line(line.removeprefix("$ "), capsys) for line in lines if line.startswith("$ ")]
        else:
            exec(compile(block, str(PAGE), "exec"), names)
    birds = tc.load("birds-on-base")
    assert isinstance(birds, tc.CompatModel)
    assert (birds.class_names[0], birds.extractor.architecture) == ("bird 0", "vit_base_patch14_dinov2")
    assert "rests on 12 unlabelled images" in told[0]
    assert told[1].count("bird") >= 12
    for name, architecture in (
        ("reg4_dinov2", "vit_base_patch14_reg4_dinov2"),
        ("dinov3", "vit_small_plus_patch16_dinov3"),
    ):
        (folder,) = (found for found in Path().glob("imagenet-on-*") if found.name.endswith(name))
        model = tc.load(folder)
        assert isinstance(model, tc.CompatModel)
        assert (len(model.class_names), model.extractor.architecture) == (1000, architecture)
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    assert tc.load("zero-shot-on-tinyclip").class_names == tuple(f"class {number}" for number in range(4))
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession("phone.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: torch.zeros(1, 3, 224, 224).numpy()})
    phone = tc.load("phone")
    torch.testing.assert_close(torch.from_numpy(logits), phone(torch.zeros(1, 3, 224, 224)), rtol=1e-3, atol=1e-3)


def with_released_head(name: str, file: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    """What the page's function of this name makes, of weights that timm does not fetch."""
    (block,) = (text for _, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if "def with_released_head" in text)
    create_model = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **given: create_model(name, **given))
    names: dict[str, Any] = {"timm": timm}
    exec(block.partition("\nphotos = ")[0], names)
    return names["with_released_head"](name, file, **settings)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_base_patch14_reg4_dinov2", "vit_7b_patch16_dinov3"])
@pytest.mark.filterwarnings("ignore:join")
def test_a_head_on_token_and_mean_moves_to_another_backbone(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    width = SMALL[name]["embed_dim"]
    released = {"weight": torch.randn(5, 2 * width), "bias": torch.randn(5)}
    torch.save(released, tmp_path / "head.pth")
    with monkeypatch.context() as context:
        old = with_released_head(name, str(tmp_path / "head.pth"), context, img_size=112, **SMALL[name])
    images = torch.randn(2, 3, 112, 112)
    tokens = old.forward_features(images)
    read = torch.cat([tokens[:, 0], tokens[:, old.num_prefix_tokens :].mean(dim=1)], dim=1)
    expected = read @ released["weight"].T + released["bias"]
    extractor, head = tc.split(old, class_names=list("abcde"))
    torch.testing.assert_close(tc.compose(extractor, head)(images), expected)
    new = timm.create_model("vit_base_patch14_dinov2", num_classes=0, img_size=112, **SMALL["vit_base_patch14_dinov2"])
    photos = (torch.rand(12, 3, 60, 60) * 255).byte()
    joined = tc.join(extractor.space, new, photos, reference=extractor, heads=[head])
    assert joined.fit_report.rests_on == "12 unlabelled images"
    assert tc.compose(joined, head)(images).shape == (2, 5)


def test_without_photos_there_is_no_join_and_the_message_says_so() -> None:
    old = timm.create_model("vit_small_patch14_dinov2", num_classes=5, img_size=56, **VIT)
    new = timm.create_model("vit_base_patch14_dinov2", num_classes=0, img_size=56, **VIT)
    with pytest.raises(tc.errors.ConfigError, match="expected images, or at least two classes in common"):
        tc.swap(old, new, old_class_names=list("abcde"))


def test_weights_bring_a_classifier_to_an_architecture_that_has_none(tmp_path: Path) -> None:
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=5, img_size=56, **VIT)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    settings = {**VIT, "img_size": 56, "weights": tmp_path / "weights.safetensors"}
    extractor, head = tc.split("vit_small_patch14_dinov2", class_names=list("abcde"), **settings)
    images = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(tc.compose(extractor, head)(images), model.eval()(images))
