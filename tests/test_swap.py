"""Swap: a classifier on another backbone, what its report says, and files that run without this package."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import timm_compat as tc
from timm_compat.cli import main
from timm_compat.models.cost import measure_cost
from timm_compat.models.export import export_model

pytestmark = pytest.mark.filterwarnings("ignore:join")  # random weights
NAMES = ["rose", "tulip", "daisy", "aster"]
SIZE = 32


def trained(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=len(NAMES)).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": NAMES}
    model.pretrained_cfg["input_size"] = (3, SIZE, SIZE)
    return model


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(256, (60, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def swapped(images) -> tc.CompatModel:
    return tc.swap(trained("test_resnet"), trained("test_efficientnet", 1), images)


class TestSwap:
    def test_of_a_model_for_itself_changes_nothing(self, images) -> None:
        old = trained("test_resnet")
        model = tc.swap(old, old, images)
        report = model.swap_report
        assert report.agreement.share == 1.0
        assert report.changes == ()
        assert report.old.gflop == pytest.approx(report.new.gflop)
        assert report.old.parameters == report.new.parameters == sum(p.numel() for p in old.parameters())

    def test_says_what_changes(self, swapped, images) -> None:
        report, old = swapped.swap_report, trained("test_resnet")
        assert swapped.class_names == tuple(NAMES)
        assert report.join.num_common_classes == len(NAMES)
        assert report.join.num_images == 60
        extractor, head = tc.split(old)
        with torch.no_grad():
            was = head(tc.extract_features(extractor, images)).argmax(dim=1)
            now = swapped.head(tc.extract_features(swapped.extractor, images)).argmax(dim=1)
        assert sum(change.changed for change in report.changes) == int((was != now).sum())
        for change in report.changes:
            chosen = was == NAMES.index(change.name)
            assert (change.num_images, change.changed) == (int(chosen.sum()), int((now != was)[chosen].sum()))
        assert "parameters:" in str(report)
        json.dumps(report.to_dict())

    def test_shows_images_to_the_old_network_once(self, images) -> None:
        seen: Counter[str] = Counter()

        def counted(name: str) -> Any:
            def note(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                seen[name] += len(inputs[0]) == len(images)

            model = trained(name)
            model.register_forward_hook(note)
            return model

        tc.swap(counted("test_resnet"), counted("test_efficientnet"), images)
        assert seen == {"test_resnet": 1, "test_efficientnet": 2}

    def test_warns_where_it_is_called(self, images) -> None:
        with pytest.warns(UserWarning, match="expect lower accuracy") as caught:
            tc.swap(trained("test_resnet"), trained("test_efficientnet", 1), images[:12])
        assert {warning.filename for warning in caught} == {__file__}

    def test_its_card_tells_both_sides_and_the_join(self, swapped) -> None:
        made = swapped.facts.training
        assert (made["backbone"], made["classifier of"]) == ("test_efficientnet", "test_resnet")
        assert "classes in common and" in made["rests_on"]
        card = swapped.card()
        assert "- classifier of: test_resnet" in card
        assert re.search(
            r"- agreement under the head over .*: 0\.\d\d \(0\.\d\d to [01]\.\d\d, \d+ held-out images\)", card
        )

    def test_base_models_of_both_sides_are_named(self) -> None:
        model = tc.compose(*tc.split(trained("test_resnet")))
        model.extractor.facts, model.head.facts = (tc.Facts(base_model=f"timm/{name}") for name in ("new", "old"))
        assert "base_model:\n- timm/new\n- timm/old\n" in model.card()

    def test_without_images(self) -> None:
        model = tc.swap(trained("test_resnet"), trained("test_efficientnet", 1))
        assert model.swap_report.agreement is None
        assert "not measured" in str(model.swap_report)
        assert not model.training

    def test_of_a_composed_model(self) -> None:
        model = tc.compose(*tc.split(trained("test_resnet")))
        again = tc.swap(model, trained("test_efficientnet", 1))
        assert again.class_names == tuple(NAMES)

    def test_of_an_iterator(self, images) -> None:
        with pytest.raises(tc.errors.ConfigError, match="read twice"):
            tc.swap(trained("test_resnet"), trained("test_efficientnet"), iter(images.split(10)))


def test_cost_of_one_layer() -> None:
    cost = measure_cost(nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10)), (3, 4, 4))
    assert cost.parameters == 490
    assert cost.gflop == pytest.approx(2 * 480 / 1e9)
    assert cost.milliseconds > 0


class TestExport:
    def test_as_a_program(self, swapped, tmp_path) -> None:
        file = export_model(swapped, tmp_path / "model.pt2")
        extra = {"timm_compat.json": ""}
        program = torch.export.load(file, extra_files=extra).module()
        batch = torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            torch.testing.assert_close(program(batch), swapped(batch), atol=1e-4, rtol=1e-4)
        assert json.loads(extra["timm_compat.json"])["class_names"] == NAMES

    @pytest.mark.slow
    def test_as_onnx(self, swapped, tmp_path) -> None:
        pytest.importorskip("onnxscript")
        runtime = pytest.importorskip("onnxruntime")
        file = export_model(swapped, tmp_path / "model.onnx")
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        batch = torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            expected = swapped(batch).numpy()
        np.testing.assert_allclose(session.run(None, {"images": batch.numpy()})[0], expected, atol=1e-4, rtol=1e-3)
        properties = session.get_modelmeta().custom_metadata_map
        assert json.loads(properties["class_names"]) == NAMES
        assert json.loads(properties["preprocessing"])["input_size"] == [3, SIZE, SIZE]

    def test_is_held_against_the_model_on_the_images(self, swapped, tmp_path) -> None:
        (tmp_path / "photos").mkdir()
        Image.new("RGB", (40, 30), "red").save(tmp_path / "photos" / "0.png")
        photos = tc.data.load_dataset("images", tmp_path / "photos")
        assert export_model(swapped, tmp_path / "model.pt2", photos).is_file()
        (tmp_path / "photos" / "0.png").write_bytes(b"no image")
        with pytest.raises(tc.errors.DataError, match=r"0\.png"):
            export_model(swapped, tmp_path / "other.pt2", photos)
        assert not (tmp_path / "other.pt2").exists()

    def test_to_a_file_of_another_kind(self, swapped, tmp_path) -> None:
        with pytest.raises(tc.errors.ConfigError, match=r"\.onnx or \.pt2"):
            export_model(swapped, tmp_path / "model.h5")

    def test_over_a_file_that_is_there(self, swapped, tmp_path) -> None:
        (tmp_path / "model.pt2").write_text("mine", encoding="utf-8")
        with pytest.raises(tc.errors.OutputExistsError):
            export_model(swapped, tmp_path / "model.pt2")

    def test_of_what_cannot_be_exported(self, tmp_path) -> None:
        class Moody(nn.Module):
            def forward(self, features: Tensor) -> Tensor:
                return features if features.sum() > 0 else -features

        extractor, head = tc.split(trained("test_resnet"))
        extractor.interface.normalization = Moody()
        extractor.interface.folded = lambda: None
        with pytest.raises(tc.errors.ExportError, match=r"test_resnet.*\.pt2"):
            export_model(tc.compose(extractor, head), tmp_path / "model.pt2")
        assert not list(tmp_path.iterdir())


class TestTheCommand:
    @pytest.fixture
    def words(self, tmp_path, images) -> list[object]:
        for name in ("test_resnet", "test_efficientnet"):
            save_file(trained(name).state_dict(), tmp_path / f"{name}.safetensors")
        (tmp_path / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
        (tmp_path / "photos").mkdir()
        for number, image in enumerate(images.permute(0, 2, 3, 1).numpy()[:20]):
            Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
        old = ["swap", "test_resnet", "--old-weights", tmp_path / "test_resnet.safetensors"]
        new = ["--backbone", "test_efficientnet", "--weights", tmp_path / "test_efficientnet.safetensors"]
        names = tmp_path / "names.txt"
        return [*old, "--old-class-names", names, *new, "--class-names", names, "--img-size", SIZE]

    @pytest.mark.slow
    def test_writes_a_plain_model_and_a_program(self, capsys, tmp_path, words) -> None:
        (tmp_path / "photos" / "torn.png").write_bytes(b"\x89PNG")
        more = ["--output", tmp_path / "model", "--fuse", "--export", tmp_path / "model.pt2", "--json"]
        more += ["--images", tmp_path / "photos", "--skip-corrupt"]
        assert main([str(word) for word in (*words, *more)]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["join"]["num_images"] == 21  # another one in place of the torn one
        assert facts["agreement"]["num_images"] > 0
        plain = timm.create_model(f"local-dir:{facts['output']}", pretrained=True).eval()
        batch = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            program = torch.export.load(facts["export"]).module()
            torch.testing.assert_close(program(batch), plain(batch), atol=1e-4, rtol=1e-4)

    def test_without_images(self, capsys, tmp_path, words) -> None:
        assert main([str(word) for word in (*words, "--output", tmp_path / "model")]) == 0
        assert "4 classes in common" in capsys.readouterr().out
        assert tc.CompatModel.from_pretrained(tmp_path / "model").class_names == tuple(NAMES)

    @pytest.mark.parametrize("more", [[], ["--output", "DIR", "--export", "model.h5"]])
    def test_bad_input_leaves_nothing_behind(self, capsys, tmp_path: Path, words, more) -> None:
        given = [tmp_path / "model" if word == "DIR" else word for word in more]
        assert main([str(word) for word in (*words, *given)]) == 2
        assert "error: " in capsys.readouterr().err
        assert not (tmp_path / "model").exists()
