"""``timm-compat join`` on a folder of pictures."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import timm_compat as tc
from timm_compat.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:join")  # a handful of images is too few for a good fit


@pytest.fixture
def parts(tmp_path) -> Path:
    """A reference with its head, and a folder of pictures in no order."""
    space = tc.CompatSpace(8, ["0", "1"], ["common_classes"]).finalize()
    torch.manual_seed(0)
    tc.create_extractor("test_resnet", space, in_chans=1, img_size=16).save_pretrained(tmp_path / "extractor")
    tc.TaskHead(space, ["0", "1"]).save_pretrained(tmp_path / "head")
    space.save_pretrained(tmp_path / "space")
    for number, image in enumerate(tc.data.load_digits().images[:40, 0].numpy()):
        folder = tmp_path / "photos" / str(number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    return tmp_path


def run(capsys, parts: Path, *words: object) -> tuple[int, str, str]:
    first = ["join", "--reference", parts / "extractor", "--output", parts / "joined"]
    code = main([str(word) for word in (*first, *words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_joins_a_backbone_from_a_folder_of_pictures(capsys, parts) -> None:
    words = ["--backbone", "test_efficientnet", "--img-size", 32, "--images", parts / "photos"]
    code, out, err = run(capsys, parts, *words, "--head", parts / "head", "--space", parts / "space", "--json")
    assert code == 0, err
    assert err.count("batch size") == 1  # where it ran is said once
    facts = json.loads(out)
    assert facts["fit"]["num_images"] == 40
    assert facts["space"] == tc.CompatSpace.from_pretrained(parts / "space").fingerprint
    model = tc.compose(
        tc.CompatExtractor.from_pretrained(parts / "joined"), tc.TaskHead.from_pretrained(parts / "head")
    )
    assert model(model.extractor.preprocess(tc.data.load_digits().images[:3])).shape == (3, 2)


def test_own_weights_and_a_data_set_by_name(capsys, parts) -> None:
    model = timm.create_model("test_resnet", in_chans=1, num_classes=5)
    save_file(model.state_dict(), parts / "mine.safetensors")
    words = ["--backbone", "test_resnet", "--img-size", 16, "--weights", parts / "mine.safetensors"]
    code, out, err = run(capsys, parts, *words, "--images", "digits", "--limit", 50)
    assert code == 0, err
    assert "rests on 50 unlabelled images" in out
    saved = tc.CompatExtractor.from_pretrained(parts / "joined").backbone.model.state_dict()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in saved.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbone", "test_resnet", "--images", "nowhere"], "nowhere"),
        (["--backbone", "test_resnot", "--images", "digits"], "did you mean"),
        (["--backbone", "test_resnet", "--images", "digits", "--weights", "none.safetensors"], "safetensors file"),
        (["--backbone", "test_resnet", "--images", "digits", "--head", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_leaves_nothing_behind(capsys, parts, words, message) -> None:
    code, out, err = run(capsys, parts, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert not (parts / "joined").exists()


def test_folder_without_pictures(capsys, parts) -> None:
    code, _, err = run(capsys, parts, "--backbone", "test_resnet", "--images", parts / "head")
    assert code == 2
    assert "expected image files" in err


def test_head_of_another_space(capsys, parts) -> None:
    other = tc.CompatSpace(8, ["x"], ["common_classes"]).finalize()
    tc.TaskHead(other, ["x"]).save_pretrained(parts / "strange")
    words = ["--backbone", "test_resnet", "--img-size", 16, "--images", "digits", "--limit", 20]
    code, _, err = run(capsys, parts, *words, "--head", parts / "strange")
    assert code == 2
    assert "different spaces" in err
