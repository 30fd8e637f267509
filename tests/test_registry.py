"""timm.create_model builds compatible extractors and composed models."""

import pytest
import timm
import torch

import timm_compat as tc


def test_timm_lists_the_entry_points() -> None:
    assert timm.list_models("compat_*") == ["compat_extractor", "compat_model"]


class TestExtractor:
    def test_timms_keywords_pass_through(self) -> None:
        extractor = timm.create_model(
            "compat_extractor", backbone="test_vit", feature_dim=24, in_chans=1, img_size=64, drop_path_rate=0.2
        )
        assert isinstance(extractor, tc.CompatExtractor)
        assert extractor(torch.randn(2, 1, 64, 64)).shape == (2, 24)
        assert extractor.backbone.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)

    def test_space_as_object_and_as_folder(self, tmp_path) -> None:
        space = tc.CompatSpace(16, methods=["rotation"]).finalize()
        space.save_pretrained(tmp_path / "space")
        by_object = timm.create_model("compat_extractor", backbone="test_resnet", space=space)
        by_folder = timm.create_model("compat_extractor", backbone="test_resnet", space=str(tmp_path / "space"))
        assert by_object.space.fingerprint == by_folder.space.fingerprint

    def test_bad_input(self) -> None:
        space = tc.CompatSpace(16, methods=["rotation"])
        with pytest.raises(tc.errors.ConfigError, match="feature_dim"):
            timm.create_model("compat_extractor", space=space, feature_dim=8)
        with pytest.raises(tc.errors.ConfigError, match="pretrained_cfg_overlay"):
            timm.create_model("compat_extractor", pretrained_cfg_overlay={"file": "weights.bin"})
        with pytest.raises(tc.errors.BackboneError, match="compat_extractor"):
            timm.create_model("compat_extractor", backbone="compat_extractor")


class TestModel:
    def test_new_parts(self) -> None:
        model = timm.create_model("compat_model", backbone="test_resnet", feature_dim=16, num_classes=7, in_chans=1)
        assert isinstance(model, tc.CompatModel)
        assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
        assert model.class_names == tuple("0123456")

    def test_folders_compose(self, tmp_path) -> None:
        space = tc.CompatSpace(16, methods=["rotation"]).finalize()
        extractor, head = tc.create_extractor("test_resnet", space).eval(), tc.TaskHead(space, ["cat", "dog"]).eval()
        torch.nn.init.normal_(head.classifier.weight)
        extractor.save_pretrained(tmp_path / "extractor")
        head.save_pretrained(tmp_path / "head")
        model = timm.create_model("compat_model", extractor=tmp_path / "extractor", head=str(tmp_path / "head"))
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(model(images), tc.compose(extractor, head)(images))
        assert model.class_names == ("cat", "dog")

    def test_new_extractor_takes_the_heads_space(self) -> None:
        head = tc.TaskHead(tc.CompatSpace(16, methods=["rotation"]), ["cat", "dog"])
        assert timm.create_model("compat_model", backbone="test_vit", head=head).extractor.space is head.space

    def test_bad_input(self) -> None:
        space = tc.CompatSpace(16, methods=["rotation"])
        extractor = tc.create_extractor("test_resnet", space)
        with pytest.raises(tc.errors.ConfigError, match="in_chans"):
            timm.create_model("compat_model", extractor=extractor, in_chans=1)
        with pytest.raises(tc.errors.SpaceMismatchError):
            timm.create_model("compat_model", extractor=extractor, head=tc.TaskHead(tc.CompatSpace(8), ["x"]))
        with pytest.raises(tc.errors.ComponentFileError, match="nowhere"):
            timm.create_model("compat_model", extractor="nowhere")

    def test_behaves_like_a_timm_model(self) -> None:
        model = timm.create_model("compat_model", backbone="test_resnet", feature_dim=16, num_classes=3).eval()
        images = torch.randn(2, 3, 64, 64)
        features = model.forward_features(images)
        assert features.shape == (2, model.num_features)
        assert torch.equal(model.forward_head(features), model(images))
        assert torch.equal(model.forward_head(features, pre_logits=True), features)
        assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 160, 160)
        assert model.get_classifier() is model.head
