"""Split: a timm classifier becomes an extractor and a head that give its logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from test_sweep import FAMILIES, SIZE, SMALL
from torch import Tensor, nn

import timm_compat as tc
from timm_compat.cli import main
from timm_compat.imagenet import class_words, imagenet_names, short_words
from timm_compat.models.backbone_build import build_model
from timm_compat.models.weights import count_classes

NAMES = [f"class {number}" for number in range(7)]
# Pooled maps and tokens, behind a norm or not, a hidden layer behind the pooling, and a norm before the classifier.
KINDS = [
    *("test_resnet", "test_convnext", "test_efficientnet", "test_vit", "test_nfnet", "test_coatnet", "test_mambaout"),
    *("test_byobnet", "lcnet_035", "levit_128s"),
]
# Their classifiers read features of their own, or not only pooled ones.
NOT_LINEAR = {
    "efficientvim": "got 4, whose logits timm combines",
    "volo": "got 2, whose logits timm combines",
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def stirred(model: nn.Module) -> nn.Module:
    """The model with other weights than timm's initial ones everywhere, and with BatchNorm statistics."""
    draw = generator()
    for parameter in model.parameters():
        parameter += 0.05 * (parameter.abs().mean() + 0.1) * torch.randn(parameter.shape, generator=draw)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_var is not None:
            layer.running_mean.copy_(0.1 * torch.randn(layer.running_mean.shape, generator=draw))
            layer.running_var.copy_(0.5 + torch.rand(layer.running_var.shape, generator=draw))
    return model.eval()


def built(name: str, img_size: int | None = SIZE, **settings: Any) -> nn.Module:
    size = None if img_size is None else (img_size, img_size)
    return stirred(build_model(name, len(NAMES), img_size=size, **settings))


def inputs(extractor: tc.CompatExtractor) -> Tensor:
    return torch.randn(3, *extractor.data_config["input_size"], generator=generator(1))


def assert_same(logits: Tensor, expected: Tensor) -> None:
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def assert_splits(model: nn.Module, **settings: Any) -> tc.CompatModel:
    """The model of both parts, which gives the logits, as its fused form and the space's own head do."""
    extractor, head = tc.split(model, class_names=NAMES, **settings)
    images = inputs(extractor)
    composed = tc.compose(extractor, head)
    with torch.no_grad():
        expected = model(images)
        assert_same(composed(images), expected)
        assert_same(tc.CommonClassesHead(extractor.space)(extractor(images)), expected)
        assert_same(composed.fuse()(images), expected)
    return composed


@torch.no_grad()
def assert_loads_the_same(composed: tc.CompatModel, folder: Path) -> None:
    images = inputs(composed.extractor)
    saved = enumerate((composed.extractor, composed.head))
    body, top = (part.save_pretrained(folder / str(number)) for number, part in saved)
    loaded = tc.compose(tc.CompatExtractor.from_pretrained(body), tc.TaskHead.from_pretrained(top))
    assert_same(loaded(images), composed(images))


@pytest.mark.parametrize("name", KINDS)
def test_the_parts_give_the_logits(name: str, tmp_path) -> None:
    assert_loads_the_same(assert_splits(built(name), img_size=SIZE), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_splits_or_says_why_not(family: str) -> None:
    name, settings = SMALL[family]
    settings = {"img_size": SIZE, **settings}
    model = built(name, **settings)
    if family in NOT_LINEAR:
        with pytest.raises(tc.errors.BackboneError, match=NOT_LINEAR[family]):
            tc.split(model, class_names=NAMES, img_size=settings["img_size"])
    else:
        assert_splits(model, img_size=settings["img_size"])


@pytest.fixture(scope="module")
def model() -> Any:
    return built("test_resnet")


class TestTheSpace:
    def test_holds_the_classifier_and_the_features(self, model) -> None:
        extractor, head = tc.split(model, class_names=NAMES, img_size=SIZE)
        space = extractor.space
        assert space.is_final
        assert space is head.space
        assert space.reference == extractor.digest()
        assert (space.level, space.normalization, space.methods) == ("pooled", "batch", ("common_classes",))
        assert space.class_names == head.class_names == tuple(NAMES)
        assert torch.equal(space.shared["common_classes.weight"], model.fc.weight)
        assert torch.equal(space.shared["common_classes.bias"], head.classifier.bias)
        features = model.forward_head(model.forward_features(inputs(extractor)), pre_logits=True)
        centre = extractor.interface.normalization.running_mean  # what BatchNorm knows of the features' mean
        torch.testing.assert_close(extractor(inputs(extractor)), features - centre)
        assert centre.abs().max() > 0

    def test_is_the_same_for_the_same_classifier_and_another_for_another(self, model) -> None:
        first, second = (tc.split(model, class_names=NAMES)[0].space.fingerprint for _ in range(2))
        assert first == second
        other = tc.split(timm.create_model("test_resnet", num_classes=7), class_names=NAMES)[0]
        assert other.space.fingerprint != first

    def test_nothing_trains_and_the_model_is_left_alone(self, model) -> None:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        extractor, _ = tc.split(model.train(), class_names=NAMES)
        assert model.training
        model.eval()
        assert not any(parameter.requires_grad for parameter in extractor.backbone.parameters())
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def photos() -> Tensor:
    patches = torch.randint(256, (40, 3, 4, 4), dtype=torch.uint8, generator=generator(2))
    return patches.repeat_interleave(SIZE // 4, dim=2).repeat_interleave(SIZE // 4, dim=3)


class TestWithImages:
    def test_features_are_standardised_and_the_head_takes_it_back(self, model, photos, tmp_path) -> None:
        extractor, _ = tc.split(model, class_names=NAMES, images=photos, img_size=SIZE, batch_size=7)
        features = tc.extract_features(extractor, photos)
        plain = tc.extract_features(tc.split(model, class_names=NAMES, img_size=SIZE)[0], photos).std(dim=0)
        varies = plain.square() > 0.11 * plain.square().mean()
        assert extractor.space.normalization == "batch"
        torch.testing.assert_close(features.mean(dim=0), torch.zeros(96), atol=1e-3, rtol=0)
        torch.testing.assert_close(
            features.std(dim=0, unbiased=False)[varies], torch.ones(96)[varies], atol=1e-3, rtol=0
        )
        assert varies.sum() > 10
        assert_loads_the_same(assert_splits(model, images=photos, img_size=SIZE), tmp_path)

    def test_a_feature_that_hardly_varies_is_not_all_that_other_images_are_told_by(self, photos) -> None:
        model = built("test_efficientnet")
        model.bn2.weight.data *= 30
        model.bn2.weight.data[:3] *= 0.05
        extractor, _ = tc.split(model, class_names=NAMES, images=photos, img_size=SIZE)
        features = tc.extract_features(extractor, photos).square().mean(dim=0)
        assert features[:3].max() < 0.2
        assert features.max() < 1.01

    def test_a_feature_that_never_varies_stays_finite(self, photos, tmp_path) -> None:
        model = built("test_efficientnet")
        model.bn2.weight.data[:3] = 0
        extractor, _ = tc.split(model, class_names=NAMES, images=photos, img_size=SIZE)
        assert tc.extract_features(extractor, photos)[:, :3].abs().max() < 1e-2
        assert_loads_the_same(assert_splits(model, images=photos, img_size=SIZE), tmp_path)


class TestClassNames:
    def test_of_imagenet_come_from_timm(self) -> None:
        _, head = tc.split("test_resnet", img_size=SIZE)
        assert head.class_names[:2] == ("n01440764", "n01443537")
        assert len(head.class_names) == 1000

    @pytest.mark.parametrize(("count", "first"), [(11821, "n00005787"), (21843, "n00004475"), (1000, "n01440764")])
    def test_of_its_subsets(self, count: int, first: str) -> None:
        names = imagenet_names(count)
        assert names is not None
        assert (names[0], len(set(names))) == (first, count)

    def test_are_shown_in_words(self, capsys, tmp_path) -> None:
        names = ["n01440764", "n01443537", "rose"]
        space = tc.CompatSpace(4).finalize(reference="0" * 64)
        tc.TaskHead(space, names).save_pretrained(tmp_path / "head")
        assert main(["info", str(tmp_path / "head")]) == 0
        assert "class_names: 3: tench; goldfish; rose\n" in capsys.readouterr().out
        assert main(["info", str(tmp_path / "head"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["class_names"] == names

    def test_in_words(self) -> None:
        assert class_words("n01440764") == "tench, Tinca tinca"
        assert class_words("n99999999") == "n99999999"
        assert class_words("rose") == "rose"
        assert short_words("n01440764") == "tench"
        assert short_words("a, b\x1b[0m") == "a, b[0m"  # a name of one's own, without what steers a terminal

    def test_that_the_model_brings(self, model) -> None:
        fused = tc.compose(*tc.split(model, class_names=NAMES)).fuse()
        assert tc.split(fused)[1].class_names == tuple(NAMES)
        fused.pretrained_cfg["label_names"] = {str(number): name for number, name in reversed([*enumerate(NAMES)])}
        assert tc.split(fused)[1].class_names == tuple(NAMES)

    def test_are_asked_for(self, model) -> None:
        with pytest.raises(tc.errors.ConfigError, match=r"7 classes.*class_names=\[\.\.\.\].*--class-names FILE"):
            tc.split(model)

    def test_that_are_too_few(self, model) -> None:
        with pytest.raises(tc.errors.ConfigError, match="expected the 7 names of test_resnet's classes, got 6"):
            tc.split(model, class_names=NAMES[:6])

    def test_decide_how_many_classes_untrained_weights_have(self) -> None:
        assert tc.split("test_resnet", class_names=NAMES)[1].num_classes == 7


class TestWeights:
    def test_of_a_file(self, model, tmp_path) -> None:
        save_file(model.state_dict(), tmp_path / "mine.safetensors")
        extractor, head = tc.split("test_resnet", weights=tmp_path / "mine.safetensors", class_names=NAMES)
        assert torch.equal(head.classifier.weight, model.fc.weight)
        assert torch.equal(extractor.backbone.model.conv1[0].weight, model.conv1[0].weight)

    @pytest.mark.parametrize("name", ["levit_128s", "efficientvit_b0", "crossvit_tiny_240"])
    def test_tell_how_many_classes_there_are(self, name: str, tmp_path) -> None:
        with torch.device("meta"):
            whole, other = (timm.create_model(name, num_classes=count) for count in (7, 9))
        save_file(
            {key: torch.zeros(value.shape) for key, value in whole.state_dict().items()}, tmp_path / "x.safetensors"
        )
        assert count_classes(other, tmp_path / "x.safetensors") == 7

    def test_without_classifier(self, tmp_path) -> None:
        save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "mine.safetensors")
        with pytest.raises(tc.errors.BackboneError, match=r"expected the classifier .*fc\.weight"):
            tc.split("test_resnet", weights=tmp_path / "mine.safetensors", class_names=NAMES)

    def test_of_another_architecture(self, tmp_path) -> None:
        save_file(timm.create_model("test_efficientnet").state_dict(), tmp_path / "mine.safetensors")
        with pytest.raises(tc.errors.BackboneError, match="expected"):
            tc.split("test_resnet", weights=tmp_path / "mine.safetensors", class_names=NAMES)

    def test_pickles_are_refused(self, tmp_path) -> None:
        torch.save({}, tmp_path / "mine.pth")
        with pytest.raises(tc.errors.BackboneError, match=r"pickle.*load_state_dict"):
            tc.split("test_resnet", weights=tmp_path / "mine.pth", class_names=NAMES)


class TestRefuses:
    def test_a_model_without_classifier(self) -> None:
        with pytest.raises(tc.errors.BackboneError, match="got one without"):
            tc.split(timm.create_model("test_resnet", num_classes=0), class_names=NAMES)

    def test_something_else(self) -> None:
        with pytest.raises(tc.errors.BackboneError, match="built by timm"):
            tc.split(nn.Linear(3, 7), class_names=NAMES)  # type: ignore[arg-type]

    def test_a_hidden_layer_that_goes_with_the_classifier(self, model) -> None:
        other = timm.create_model("test_resnet", num_classes=7)
        other.fc = nn.Sequential(nn.Linear(96, 20), nn.ReLU(), nn.Linear(20, 7))
        with pytest.raises(tc.errors.BackboneError, match="hidden layer"):
            tc.split(other, class_names=NAMES)

    def test_two_tokens(self) -> None:
        with pytest.raises(tc.errors.BackboneError, match="got 2, whose logits"):
            tc.split(built("deit_tiny_distilled_patch16_224"), class_names=NAMES, img_size=SIZE)

    @pytest.mark.parametrize(
        "settings", [{"pretrained": True, "weights": "x.safetensors"}, {"num_classes": 7}, {"img_size": 0}]
    )
    def test_arguments_that_do_not_fit(self, settings) -> None:
        with pytest.raises(tc.errors.ConfigError):
            tc.split("test_resnet", class_names=NAMES, **settings)

    def test_a_built_model_with_a_builders_arguments(self, model) -> None:
        with pytest.raises(tc.errors.ConfigError, match="drop them"):
            tc.split(model, class_names=NAMES, pretrained=True)
