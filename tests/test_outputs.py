"""Outputs that cannot be written: known before any work, and what was measured is told before it is written."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import timm_compat as tc
from timm_compat.cli import main

NOWHERE = "/proc/timm-compat"  # takes no files from anybody
TRAINING = """
space: {feature_dim: 8, methods: [rotation]}
training: {epochs: 1}
members: [{name: a, backbone: test_resnet, data: {dataset: no-such-data-set}}]
"""
# Each would fail for want of its data, if it came so far.
RECIPES = {
    "train": TRAINING,
    "add": TRAINING.replace("{feature_dim: 8, methods: [rotation]}", "{folder: no-such-space}"),
}


@contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """A full disk, as far as this process can tell: no file grows beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    names = tc.data.load_digits().class_names
    space = tc.CompatSpace(8, names, ["common_classes"]).finalize()
    extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=16)
    head = tc.TaskHead(space, names)
    torch.nn.init.normal_(head.classifier.weight)
    extractor.save_pretrained(folder / "extractor")
    head.save_pretrained(folder / "head")
    return folder


class TestCheckedFirst:
    @pytest.mark.parametrize("command", RECIPES)
    def test_by_commands_that_run_a_recipe(
        self, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPES[command])
        code, _, err = run(capsys, command, recipe, "--output", NOWHERE)
        assert code == 2
        assert f"expected to write to '{NOWHERE}', got" in err
        assert len(err.splitlines()) == 1

    @pytest.mark.parametrize("command", ["adapt", "transfer", "finetune"])
    def test_by_commands_that_run_trials(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        recipes = Path(__file__).resolve().parents[1] / "scripts" / "recipes"
        recipe = next(recipes.glob(f"*{command}*digits*.yaml"), recipes / f"digits_{command}.yaml")
        code, _, err = run(capsys, command, recipe, "--output", NOWHERE)
        assert code == 2
        assert f"expected to write to '{NOWHERE}', got" in err

    @pytest.mark.parametrize(
        "words",
        [
            ["join", "--reference", "none", "--backbone", "none", "--images", "none", "--output", NOWHERE],
            ["evaluate", "none", "--data", "none", "--report", NOWHERE],
            ["compose", "none", "none", "--output", NOWHERE],
            ["demo", "--output", NOWHERE],
        ],
        ids=lambda words: words[0],
    )
    def test_by_the_others(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        code, _, err = run(capsys, *words)
        assert code == 2
        assert f"expected to write to '{NOWHERE}', got" in err

    def test_by_fit_for_checkpoints_and_cached_features(self) -> None:
        data = tc.data.load_digits("train").subset(range(8))
        space = tc.CompatSpace(8, data.class_names, ["common_classes"])
        extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=16)
        member = tc.Member("a", extractor, tc.TaskHead(space, data.class_names), data)
        before = extractor.digest()
        for setting in ("output_dir", "cache_dir"):
            with pytest.raises(tc.errors.OutputWriteError, match=r"expected to write to '/proc/.*choose another path"):
                tc.fit(space, [member], tc.TrainConfig(epochs=1, batch_size=8, **{setting: NOWHERE}), progress=None)
        assert extractor.digest() == before

    def test_on_a_full_disk(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with files_of_at_most(0):
            code, _, err = run(capsys, "demo", "--output", tmp_path / "demo")
        assert code == 2
        assert "expected to write to" in err
        assert not any(tmp_path.iterdir())


class TestWritten:
    def test_component_on_a_disk_that_fills_leaves_nothing(self, parts: Path, tmp_path: Path) -> None:
        extractor = tc.CompatExtractor.from_pretrained(parts / "extractor")
        with (
            files_of_at_most(2**14),
            pytest.raises(tc.errors.OutputWriteError, match=r"expected to write to .*permissions and space"),
        ):
            extractor.save_pretrained(tmp_path / "deep" / "extractor")
        assert not list((tmp_path / "deep").iterdir())

    @pytest.mark.parametrize("form", ["text", "json"])
    def test_evaluate_tells_first_what_it_measured(
        self, form: str, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words: list[Any] = ["evaluate", parts / "extractor", parts / "head", "--data", "digits", "--limit", 40]
        with files_of_at_most(2**13):
            code, out, err = run(
                capsys, *words, "--report", tmp_path / "report", *(["--json"] if form == "json" else [])
            )
        assert code == 2
        assert "expected to write to" in err
        assert json.loads(out)["matrix"] if form == "json" else "| " in out
        assert not any(tmp_path.iterdir())

    def test_demo_tells_first_what_it_measured(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Measured:
            def summary(self) -> dict[str, Any]:
                return {"native": 0.5}

            def matrices(self) -> dict[str, Any]:
                return {}

            def save(self, folder: Path) -> Path:
                raise tc.errors.OutputWriteError("the disk is full")

        monkeypatch.setattr("timm_compat.cli.demo.run_demo", lambda config, say: Measured())
        code, out, err = run(capsys, "demo", "--no-pretrained", "--json", "--output", tmp_path / "demo")
        assert (code, json.loads(out)["native"]) == (2, 0.5)
        assert "the disk is full" in err
