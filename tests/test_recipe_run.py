"""Recipes end to end through the command line: train, add, resume, and what bad input says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import timm_compat as tc
from timm_compat.cli import main

RECIPES = Path(__file__).resolve().parents[1] / "scripts" / "recipes"
QUICK = ["training.epochs=1", "members.a.data.limit=100", "members.b.data.limit=100"]


def run(capsys, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def train_digits(capsys, output: Path, *overrides: str) -> dict:
    code, out, err = run(capsys, "train", RECIPES / "digits.yaml", *QUICK, *overrides, "--output", output, "--json")
    assert code == 0, err
    return json.loads(out)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestTrain:
    def test_writes_components_log_recipe_and_matrix(self, capsys, tmp_path) -> None:
        summary = train_digits(capsys, tmp_path / "run")
        assert summary["matrix"]["rows"] == summary["matrix"]["columns"] == ["a", "b"]
        assert summary["matrix"]["counts"] == [449, 449]
        names = {path.name for path in (tmp_path / "run").iterdir()}
        assert {"space", "extractor-a", "head-b", "recipe.yaml", "matrix.json", "history.jsonl", "run.json"} <= names
        model = tc.compose(
            tc.CompatExtractor.from_pretrained(tmp_path / "run" / "extractor-a"),
            tc.TaskHead.from_pretrained(tmp_path / "run" / "head-b"),
        )
        assert model.extractor.space.fingerprint == summary["space"]

    def test_the_saved_recipe_gives_the_same_again(self, capsys, tmp_path) -> None:
        first = train_digits(capsys, tmp_path / "first")
        code, out, _ = run(
            capsys, "train", tmp_path / "first" / "recipe.yaml", "--output", tmp_path / "again", "--json"
        )
        again = json.loads(out)
        assert code == 0
        assert again["space"] == first["space"]
        assert again["matrix"] == first["matrix"]

    def test_validation_images_choose_the_epoch(self, capsys, tmp_path) -> None:
        parts = [
            f"members.{name}.{use}={{dataset: digits, split: train, part: {part}, limit: 60}}"
            for name in "ab"
            for use, part in (("data", "1-3/4"), ("validation", "4/4"))
        ]
        summary = train_digits(
            capsys, tmp_path / "run", *parts, "training.best_metric=native", "training.epochs=3", "evaluate=false"
        )
        assert summary["matrix"] is None
        lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
        assert all({"native", "recombined"} <= json.loads(line).keys() for line in lines)
        data, validation = (
            tc.data.load_dataset("digits", part=part).images.flatten(1).tolist() for part in ("1-3/4", "4/4")
        )
        whole = tc.data.load_digits().images.flatten(1).tolist()
        assert sorted(data + validation) == sorted(whole)

    def test_table_for_people(self, capsys, tmp_path) -> None:
        code, out, _ = run(capsys, "train", RECIPES / "digits.yaml", *QUICK, "--output", tmp_path / "run")
        assert code == 0
        assert "| extractor \\ head |" in out
        assert "Space " in out
        assert str(tmp_path / "run") in out

    def test_resume_of_a_finished_run(self, capsys, tmp_path) -> None:
        first = train_digits(capsys, tmp_path / "run")
        again = train_digits(capsys, tmp_path / "run", "training.epochs=1", "--resume")
        assert again["space"] == first["space"]
        code, _, err = run(capsys, "train", RECIPES / "digits.yaml", *QUICK, "--output", tmp_path / "run")
        assert code == 2
        assert "--resume" in err

    def test_members_without_labels_and_without_tests(self, capsys, tmp_path) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(
            "space: {feature_dim: 16, methods: [rotation]}\n"
            "members:\n"
            "  - {name: a, backbone: test_resnet, img_size: 16, data: {dataset: digits, limit: 64}}\n"
            "  - {name: b, backbone: test_resnet, img_size: 16, data: {dataset: digits, limit: 64}, labelled: false}\n"
            "training: {epochs: 1}\n"
        )
        code, out, err = run(capsys, "train", recipe, "--output", tmp_path / "run", "--json")
        assert code == 0, err
        assert json.loads(out)["matrix"] is None
        assert not (tmp_path / "run" / "head-b").exists()

    def test_common_classes_are_found_by_name(self, capsys, tmp_path) -> None:
        summary = train_digits(
            capsys,
            tmp_path / "run",
            *("members.a.data.classes=['0','1','2','3']", "members.b.data.classes=['2','3','4']"),
            *("members.a.test.classes=['0','1','2','3']", "members.b.test.classes=['2','3','4']"),
        )
        assert tc.CompatSpace.from_pretrained(tmp_path / "run" / "space").class_names == ("2", "3")
        assert summary["matrix"]["chance"] == [1 / 4, 1 / 3]

    def test_adapters_on_the_users_own_weights(self, capsys, tmp_path) -> None:
        import timm

        model = timm.create_model("test_resnet", num_classes=7, in_chans=1)
        save_file(model.state_dict(), tmp_path / "mine.safetensors")
        overrides = [
            *(f"members.a.{setting}" for setting in ("trainable=adapter", f"weights={tmp_path / 'mine.safetensors'}")),
            *("members.b.trainable=adapter", "training.random_crop=0", "training.alignment=l2"),
        ]
        train_digits(capsys, tmp_path / "run", *overrides)
        extractor = tc.CompatExtractor.from_pretrained(tmp_path / "run" / "extractor-a")
        saved = extractor.backbone.model.state_dict()
        assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items() if name in saved)

    @pytest.mark.slow
    def test_under_accelerates_launcher(self, tmp_path) -> None:
        words = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=1", "--num_machines=1"]
        words += ["--mixed_precision=no", "--dynamo_backend=no", "-m", "timm_compat", "train"]
        words += [str(RECIPES / "digits.yaml"), *QUICK, "--output", str(tmp_path / "run"), "--json"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["output"] == str(tmp_path / "run")


@pytest.mark.slow
class TestAdd:
    @pytest.fixture
    def published(self, capsys, tmp_path) -> Path:
        train_digits(
            capsys, tmp_path / "run", "training.epochs=6", "members.a.data.limit=null", "members.b.data.limit=null"
        )
        return tmp_path / "run"

    def test_new_member_fits_and_old_files_stay(self, capsys, published, tmp_path) -> None:
        before = files_of(published)
        code, out, err = run(
            capsys,
            *("add", RECIPES / "digits_add.yaml", "--space", published / "space", "training.epochs=6"),
            *("members.c.backbone=test_efficientnet", "--output", tmp_path / "added", "--json"),
        )
        assert code == 0, err
        assert files_of(published) == before
        old = tc.CompatSpace.from_pretrained(published / "space").fingerprint
        assert json.loads(out)["space"] == old
        parts = {
            name: (
                tc.CompatExtractor.from_pretrained(folder / f"extractor-{name}"),
                tc.TaskHead.from_pretrained(folder / f"head-{name}"),
            )
            for name, folder in (("a", published), ("c", tmp_path / "added"))
        }
        extractors, heads = ({name: pair[place] for name, pair in parts.items()} for place in (0, 1))
        matrix = tc.recombination_matrix(extractors, heads, tc.data.load_digits("test"))
        assert matrix.recombined_accuracy > 0.8
        assert matrix.native_accuracy - matrix.recombined_accuracy < 0.1


class TestBadInput:
    def test_add_needs_a_space(self, capsys, tmp_path) -> None:
        code, _, err = run(capsys, "add", RECIPES / "digits.yaml", "--output", tmp_path / "run")
        assert code == 2
        assert "--space DIR" in err

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["training.epocs=3"], "did you mean 'epochs'"),
            (["members.a.data.classes=['0', 'x']"], "member 'a': .*got x"),
            (
                ["members.a.data.classes=['0']", "members.b.data.classes=['1']"],
                "classes that at least two members have",
            ),
            (["members.a.data.dataset=folder", "members.a.data.root=nowhere"], "member 'a': .*nowhere"),
            (["members.a.backbone=resnet18x"], "did you mean"),
            (["space.class_names=['x']"], "common_classes needs a class"),
            (["reference.extractor=nowhere", "training.alignment=l2"], "nowhere"),
            (["members.a.weights=nowhere.safetensors"], "weights: expected a safetensors file"),
            (
                ["training.lr=1e30"],
                "expected a finite loss, got .* of member '[ab]'; last good checkpoint: ",
            ),
            (["training.best_metric=nonsense"], "best_metric: expected one of native, recombined, got 'nonsense'"),
            (
                ["training.best_metric=native"],
                r"best_metric: needs members.0.validation, .*no test images, got none; .*part: 1-4/5",
            ),
            (
                ["members.a.validation={dataset: digits, split: test}"],
                "validation of member 'a': expected other images than its test, got the same",
            ),
        ],
    )
    def test_is_refused_in_one_line(self, capsys, tmp_path, overrides, message) -> None:
        import re

        code, out, err = run(
            capsys,
            "train",
            RECIPES / "digits.yaml",
            *QUICK,
            *overrides,
            "training.epochs=2",
            "--output",
            tmp_path / "run",
        )
        assert (code, out) == (2, "")
        assert re.search(message, err), err
        assert len(err.strip().splitlines()) == 1

    def test_weights_of_another_architecture(self, capsys, tmp_path) -> None:
        import timm

        save_file(timm.create_model("test_vit", in_chans=1).state_dict(), tmp_path / "mine.safetensors")
        code, _, err = run(
            capsys, "train", RECIPES / "digits.yaml", *QUICK, f"members.a.weights={tmp_path / 'mine.safetensors'}"
        )
        assert code == 2
        assert "expected the tensors of timm's test_resnet" in err

    def test_corrupt_image_is_named_and_skipped_only_when_asked(self, capsys, tmp_path) -> None:
        for label in ("cat", "dog"):
            (tmp_path / "images" / label).mkdir(parents=True)
            for number in range(6):
                color = (40 * number, 255 if label == "cat" else 0, 90)
                Image.new("RGB", (40, 36), color).save(tmp_path / "images" / label / f"{number}.png")
        (tmp_path / "images" / "dog" / "3.png").write_bytes(b"no image")
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(
            "space: {feature_dim: 8}\n"
            "members:\n"
            f"  - {{name: a, backbone: test_resnet, data: &data {{dataset: folder, root: {tmp_path / 'images'}}}}}\n"
            "  - {name: b, backbone: test_efficientnet, img_size: 64, data: *data}\n"
            "training: {epochs: 1, batch_size: 8}\n"
        )
        code, _, err = run(capsys, "train", recipe, "--output", tmp_path / "run")
        assert code == 2
        assert str(Path("dog") / "3.png") in err
        assert not (tmp_path / "run" / "extractor-a").exists()
        code, out, err = run(
            capsys, "train", recipe, "members.a.data.skip_corrupt=true", "members.b.data.skip_corrupt=true", "--json"
        )
        assert code == 0, err
        assert json.loads(out)["losses"]["a/task"] > 0
