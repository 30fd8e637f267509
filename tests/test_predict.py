"""``timm-compat predict``: several heads on one pass, files that cannot be read, pipes and terminals; ``compose``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import timm_compat as tc
from timm_compat.cli import main

ANIMALS, COLOURS = ("cat", "dog", "犬"), ("red", "green")


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """An extractor, two heads, a composed model, and a folder of five photos."""
    root = tmp_path_factory.mktemp("parts")
    space = tc.CompatSpace(8, ANIMALS, ["common_classes"]).finalize()
    torch.manual_seed(0)
    extractor = tc.create_extractor("test_resnet", space, img_size=32).eval()
    extractor.save_pretrained(root / "extractor-x")
    heads = {}
    for name, classes in (("animals", ANIMALS), ("colours", COLOURS)):
        heads[name] = tc.TaskHead(space, classes).eval()
        torch.nn.init.normal_(heads[name].classifier.weight)
        heads[name].save_pretrained(root / f"head-{name}")
    tc.compose(extractor, heads["animals"]).save_pretrained(root / "model")
    (root / "photos").mkdir()
    for number in range(5):
        pixels = torch.randint(256, (40, 40, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(root / "photos" / f"{number}.png")
    return root


@pytest.fixture
def photos(parts, tmp_path) -> Path:
    """Those photos, a file that is cut off, and two that only look like images."""
    for file in (parts / "photos").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (parts / "photos" / "0.png").read_bytes()
    (tmp_path / "2b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "3b.png").mkdir()
    (tmp_path / "._3.jpg").write_bytes(b"Mac OS X")
    return tmp_path


def run(capsys, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in ("predict", *words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


class TestHeads:
    def test_several_heads_give_what_each_gives_alone(self, parts) -> None:
        extractor = tc.CompatExtractor.from_pretrained(parts / "extractor-x")
        heads = {name: tc.TaskHead.from_pretrained(parts / f"head-{name}") for name in ("animals", "colours")}
        images, passes = torch.randn(3, 3, 32, 32), []
        extractor.register_forward_hook(lambda *_: passes.append(1))
        model = tc.compose(extractor, heads)
        with torch.no_grad():
            logits = model(images)
            assert len(passes) == 1
            assert list(logits) == ["animals", "colours"]
            for name, head in heads.items():
                torch.testing.assert_close(logits[name], tc.compose(extractor, head)(images))
        assert model.class_names == {"animals": ANIMALS, "colours": COLOURS}
        assert model.heads["colours"] is heads["colours"]
        assert not model.training

    def test_it_is_saved_by_its_parts(self, parts, tmp_path) -> None:
        extractor = tc.CompatExtractor.from_pretrained(parts / "extractor-x")
        model = tc.compose(extractor, {"a.b": tc.TaskHead(extractor.space, COLOURS)})
        with pytest.raises(tc.errors.ConfigError, match=r"save model\.extractor and each of model\.heads"):
            model.save_pretrained(tmp_path / "new")
        assert not (tmp_path / "new").exists()
        with pytest.raises(tc.errors.ConfigError, match="fuse each"):
            model.fuse()

    def test_what_does_not_fit_is_refused(self, parts) -> None:
        extractor = tc.CompatExtractor.from_pretrained(parts / "extractor-x")
        with pytest.raises(tc.errors.ConfigError, match="heads: expected one or more by name"):
            tc.compose(extractor, {})
        with pytest.raises(tc.errors.SpaceMismatchError, match="the head 'other'"):
            tc.compose(extractor, {"other": tc.TaskHead(tc.CompatSpace(4), COLOURS)})

    def test_predict_with_several_heads(self, parts, capsys) -> None:
        heads = [parts / "head-animals", "--head", f"hue={parts / 'head-colours'}"]
        code, out, _ = run(capsys, parts / "extractor-x", parts / "photos", "--head", *heads, "--json")
        assert code == 0
        found = json.loads(out)
        assert [list(one["heads"]) for one in found] == [["animals", "hue"]] * 5
        code, out, _ = run(capsys, parts / "model", parts / "photos", "--head", parts / "head-colours", "--json")
        for one, both in zip(json.loads(out), found, strict=True):
            assert one["heads"]["model"] == both["heads"]["animals"]
            assert one["heads"]["colours"] == both["heads"]["hue"]
        code, out, _ = run(capsys, parts / "model", parts / "photos", "--json")
        assert [one["classes"] for one in json.loads(out)] == [both["heads"]["animals"] for both in found]
        code, out, _ = run(capsys, parts / "extractor-x", parts / "photos", "--head", *heads)
        assert out.splitlines()[0].count("|") == 1

    def test_two_heads_of_one_name_are_refused(self, parts, capsys) -> None:
        heads = ["--head", parts / "head-animals"] * 2
        code, _, err = run(capsys, parts / "extractor-x", parts / "photos", *heads)
        assert (code, "got 'animals' twice" in err) == (2, True)


class TestFiles:
    def test_sound_files_are_answered(self, parts, photos, capsys) -> None:
        code, out, err = run(capsys, parts / "model", photos)
        assert code == 1
        assert [Path(line.split()[0]).name for line in out.splitlines()] == [f"{number}.png" for number in range(5)]
        assert "2b.png: expected an image that can be decoded" in err
        assert "3b.png" not in err
        code, again, err = run(capsys, parts / "model", photos, "--skip-corrupt", "--workers", 2, "--batch-size", 2)
        assert (code, again) == (0, out)
        code, out, err = run(capsys, parts / "model", photos, "--json")
        assert (code, len(json.loads(out))) == (1, 5)

    def test_nothing_but_damage_is_an_error(self, parts, photos, capsys) -> None:
        code, out, err = run(capsys, parts / "model", photos / "2b.png", "--skip-corrupt")
        assert (code, out, err.count("\n")) == (2, "", 1)
        (photos / "sub").mkdir()
        for name in ("a.png", "b.jpg"):
            (photos / "sub" / name).write_bytes(b"no image")
        code, out, err = run(capsys, parts / "model", photos / "sub")
        assert (code, "got none among 2 files" in err) == (2, True)

    def test_it_says_where_it_runs(self, parts, capsys) -> None:
        code, _, err = run(
            capsys, parts / "model", parts / "photos", "--batch-size", 2, "--amp", "bf16", "--device", "cpu"
        )
        assert (code, err) == (0, "timm-compat: cpu, batch size 2, bf16\n")
        code, _, err = run(capsys, parts / "model", parts / "photos", "--device", "cuda:99")
        assert (code, err.count("\n")) == (2, 1)
        assert "device: expected one of cpu" in err


class TestStreams:
    def start(self, parts, **environment) -> subprocess.Popen:
        words = [sys.executable, "-m", "timm_compat", "predict", parts / "model", parts / "photos", "--top", "3"]
        return subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )

    @pytest.mark.slow
    def test_a_reader_that_has_enough(self, parts) -> None:
        with self.start(parts) as process:
            process.stdout.close()
            err = process.stderr.read()
        assert process.returncode == 141
        assert err == b"timm-compat: cpu, batch size 256, float32\n"

    @pytest.mark.slow
    def test_a_terminal_without_the_characters(self, parts) -> None:
        with self.start(parts, PYTHONIOENCODING="cp1252") as process:
            out, err = process.communicate()
        assert (process.returncode, err.count(b"\n")) == (0, 1)
        assert b"\\u72ac" in out
