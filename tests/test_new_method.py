"""A method of one's own: one object, and it trains, saves, loads, and is found in recipes and on the command line."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import timm_compat as tc
from timm_compat.cli import main
from timm_compat.methods import registry

RECIPE = """
space: {feature_dim: 8, methods: [invert]}
members:
  - {name: a, backbone: test_vit, img_size: 16, arguments: {in_chans: 1}, labelled: false, data: {dataset: digits}}
training: {epochs: 1, batch_size: 300, output_dir: OUTPUT}
"""


def invert(images: Tensor, answers: Tensor) -> Tensor:
    """A negative of every image whose answer is 1."""
    return torch.where((answers == 1).to(images.device)[:, None, None, None], -images, images)


INVERT = tc.SelfSupervisedTask("invert", 2, invert)


class Small(tc.Method):
    """Small features: a loss without a shared head."""

    name = "small"

    def weight(self, config: tc.TrainConfig) -> float:
        return 1.0

    def losses(self, head: object, seen: tc.Seen) -> tuple[Tensor, int]:
        return seen.features.square().mean(dim=1), seen.num_images


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))  # for this test only
    tc.register_method(INVERT)
    tc.register_method(Small())


@pytest.mark.parametrize("trainable", ["full", "adapter"])
def test_it_trains_saves_and_loads(tmp_path: Path, trainable: str) -> None:
    space = tc.CompatSpace(16, methods=["invert"])
    extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=32, trainable=trainable)
    member = tc.Member("a", extractor, None, tc.data.load_digits("train").subset(range(300)))
    config = tc.TrainConfig(epochs=6, batch_size=50, self_supervised_weight=1.0, self_supervised_fraction=1.0)
    losses = [record["a/invert"] for record in tc.fit(space, [member], config, progress=None).history]
    assert losses[-1] < 0.5 * losses[0]
    loaded = tc.CompatExtractor.from_pretrained(extractor.save_pretrained(tmp_path / "extractor"))
    known = tc.CompatSpace.from_pretrained(space.save_pretrained(tmp_path / "space"))
    assert known.methods == loaded.space.methods == ("invert",)
    images = extractor.preprocess(tc.data.load_digits("test").images)
    inputs, answers = torch.cat([images, -images]), torch.tensor([0, 1]).repeat_interleave(len(images))
    with torch.no_grad():
        told = tc.AuxiliaryHead(known, "invert")(loaded(inputs)).argmax(dim=1)
    assert (told == answers).float().mean() > 0.9


def test_a_loss_without_a_head_is_part_of_the_sum() -> None:
    space = tc.CompatSpace(8, methods=["invert", "small"], normalization="none")
    extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=32)
    member = tc.Member("a", extractor, None, tc.data.load_digits("train").subset(range(90)))
    config = tc.TrainConfig(epochs=3, batch_size=30, grad_accum_steps=2, self_supervised_weight=0.5)
    history = tc.fit(space, [member], config, progress=None).history
    for record in history:
        assert record["loss"] == pytest.approx(record["a/small"] + 0.5 * record["a/invert"], rel=1e-5)
    assert history[-1]["a/small"] < history[0]["a/small"]


def test_recipes_know_it(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.replace("OUTPUT", str(tmp_path / "run")))
    assert main(["train", str(file)]) == 0
    (saved,) = tmp_path.rglob("extractor-a")
    assert tc.CompatExtractor.from_pretrained(saved).space.methods == ("invert",)


def test_what_is_no_method_is_refused() -> None:
    assert tc.register_method(INVERT) is INVERT
    with pytest.raises(tc.errors.ConfigError, match="'rotation', which is one of common_classes"):
        tc.register_method(tc.SelfSupervisedTask("rotation", 2, invert))
    with pytest.raises(tc.errors.ConfigError, match="letters, digits and _, got 'two words'"):
        tc.register_method(tc.SelfSupervisedTask("two words", 2, invert))
    with pytest.raises(tc.errors.ConfigError, match="expected a Method"):
        tc.register_method("rotation")
    with pytest.raises(tc.errors.ConfigError, match=r"methods: expected one of .*invert.*, got 'nothing'"):
        tc.CompatSpace(8, methods=["nothing"])


def test_images_that_a_method_cannot_take_are_refused_before_training() -> None:
    space = tc.CompatSpace(8, methods=["rotation"])
    extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=(32, 48))
    member = tc.Member("a", extractor, None, tc.data.load_digits("train").subset(range(60)))
    with pytest.raises(tc.errors.ImageError, match=r"member 'a': rotation: expected square images, got \(32, 48\)"):
        tc.fit(space, [member], tc.TrainConfig(epochs=1), progress=None)
