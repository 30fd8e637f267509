"""``timm-compat split``: three parts in one folder, or nothing."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import timm_compat as tc
from timm_compat.cli import main

NAMES = ["rose", "tulip", "daisy"]


def run(capsys, *words: object) -> tuple[int, str, str]:
    code = main(["split", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def test_writes_three_parts_that_give_the_logits(capsys, tmp_path, weights) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    words = ["test_resnet", "--weights", weights, "--class-names", tmp_path / "names.txt", "--img-size", 32]
    code, out, err = run(capsys, *words, "--output", tmp_path / "parts", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["class_names"] == NAMES
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["extractor", "head", "space"]
    extractor = tc.CompatExtractor.from_pretrained(tmp_path / "parts" / "extractor")
    head = tc.TaskHead.from_pretrained(tmp_path / "parts" / "head")
    space = tc.CompatSpace.from_pretrained(tmp_path / "parts" / "space")
    assert space.fingerprint == facts["space"] == head.space.fingerprint
    model = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(weights)).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(tc.compose(extractor, head)(images), model(images))


def test_standardises_over_a_folder_of_pictures(capsys, tmp_path, weights) -> None:
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(tc.data.load_digits().images[:12, 0].numpy()):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "names.json").write_text(json.dumps(NAMES), encoding="utf-8")
    words = ["test_resnet", "--weights", weights, "--class-names", tmp_path / "names.json", "--img-size", 32]
    code, out, err = run(capsys, *words, "--images", tmp_path / "photos", "--output", tmp_path / "parts")
    assert code == 0, err
    assert "96 features, 3 classes" in out
    assert "rose; tulip; daisy" in out
    assert "cpu" in err
    assert tc.CompatSpace.from_pretrained(tmp_path / "parts" / "space").normalization == "batch"


def test_of_a_folder_with_a_file_that_is_no_picture(capsys, tmp_path, weights) -> None:
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(tc.data.load_digits().images[:6, 0].numpy()):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "torn.png").write_bytes((tmp_path / "photos" / "0.png").read_bytes()[:40])
    (tmp_path / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    words = ["test_resnet", "--weights", weights, "--class-names", tmp_path / "names.txt", "--img-size", 32]
    words += ["--images", tmp_path / "photos", "--output", tmp_path / "parts"]
    code, _, err = run(capsys, *words)
    assert code != 0
    assert "torn.png" in err
    assert not (tmp_path / "parts").exists()
    code, _, err = run(capsys, *words, "--skip-corrupt")
    assert code == 0, err


def test_shows_the_words_of_imagenet_classes(capsys, tmp_path) -> None:
    code, out, err = run(capsys, "test_resnet", "--img-size", 32, "--output", tmp_path / "parts")
    assert code == 0, err
    assert "Classes: tench; goldfish; great white shark; tiger shark; hammerhead; 995 more" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["test_resnot"], "did you mean test_resnet"),
        (["test_resnet", "--weights", "nowhere.safetensors"], "safetensors file"),
        (["test_resnet", "--weights", "MINE"], "--class-names FILE"),
        (["test_resnet", "--class-names", "nowhere.txt"], "one name per line"),
        (["test_resnet", "--images", "nowhere"], "nowhere"),
        (["test_resnet", "--device", "abacus"], "device"),
    ],
)
def test_bad_input_leaves_nothing_behind(capsys, tmp_path, weights, words, message) -> None:
    given = [weights if word == "MINE" else word for word in words]
    code, out, err = run(capsys, *given, "--output", tmp_path / "parts")
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("text", ['{"0": "rose"}', '["rose", 1]', "", "rose\nrose"])
def test_class_names_that_are_none(capsys, tmp_path, text) -> None:
    (tmp_path / "names").write_text(text, encoding="utf-8")
    code, _, err = run(capsys, "test_resnet", "--class-names", tmp_path / "names", "--output", tmp_path / "parts")
    assert code == 2
    assert "class" in err


def test_a_folder_that_holds_something(capsys, tmp_path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "mine.txt").touch()
    code, _, err = run(capsys, "test_resnet", "--output", tmp_path / "parts")
    assert code == 2
    assert "new or empty" in err
