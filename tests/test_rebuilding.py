"""What is saved comes back as the same network: pooling, activations and sizes that were changed after building."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import timm_compat as tc

SIZE = 64


def final_space(level: str = "pooled") -> tc.CompatSpace:
    return tc.CompatSpace(16, methods=("rotation",), level=level).finalize()


def images_of(extractor: tc.CompatExtractor) -> Tensor:
    return torch.randn(2, *extractor.data_config["input_size"], generator=torch.Generator().manual_seed(0))


def reloaded(extractor: tc.CompatExtractor, folder: Path) -> tc.CompatExtractor:
    return tc.CompatExtractor.from_pretrained(extractor.save_pretrained(folder))


def replace_all(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is old:
                setattr(parent, name, new())


class TestWithoutPooling:
    @pytest.mark.parametrize("name", ["test_mambaout", "test_vit", "test_convnext", "test_resnet"])
    @pytest.mark.parametrize("how", ["name", "object", "reset"])
    def test_features_are_the_mean_over_places_in_every_layout(self, name: str, how: str, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"img_size": SIZE} if how == "name" else {}
        model = timm.create_model(name, **({} if how == "reset" else {"global_pool": ""}))
        if how == "reset":
            model.reset_classifier(3, global_pool="")
        given = {"model": name, "global_pool": ""} if how == "name" else {"model": model}
        extractor = tc.create_extractor(space=final_space(), **given, **settings).eval()
        body = extractor.backbone.model
        stage = body.forward_intermediates(images_of(extractor), output_fmt="NCHW", norm=True)[1][-1]
        assert extractor.backbone.num_features == body.head_hidden_size
        if name in ("test_vit", "test_resnet"):  # the others have a norm or an MLP behind their last stage
            torch.testing.assert_close(extractor.backbone(images_of(extractor)), stage.mean(dim=(2, 3)))
        loaded = reloaded(extractor, tmp_path / "extractor")
        assert torch.equal(loaded(images_of(extractor)), extractor(images_of(extractor)))
        assert loaded.backbone.model_args["global_pool"] == ""

    def test_of_a_channels_last_architecture_counts_features_and_not_rows(self) -> None:
        tiny = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
        extractor = tc.create_extractor("swin_tiny_patch4_window7_224", tc.CompatSpace(16), global_pool="", **tiny)
        assert extractor.backbone.num_features == extractor.backbone.model.head_hidden_size == 192

    def test_an_architecture_that_returns_no_features_then_is_refused(self) -> None:
        with pytest.raises(
            tc.errors.BackboneError, match=r"efficientvim_m1: expected 960 features .*got list; .*global_pool"
        ):
            tc.create_extractor("efficientvim_m1", tc.CompatSpace(16), global_pool="")

    def test_is_not_fused_into_a_model_that_does_not_pool(self) -> None:
        space = final_space()
        extractor = tc.create_extractor("test_resnet", space, img_size=SIZE, global_pool="")
        with pytest.raises(tc.errors.FuseError, match=r"timm cannot classify .*global_pool that pools, or keep"):
            tc.compose(extractor, tc.TaskHead(space, ["a", "b"])).fuse()


def changed_pool(name: str = "test_resnet", pool: str = "max") -> nn.Module:
    model = timm.create_model(name).eval()
    model.reset_classifier(5, global_pool=pool)
    return model


def with_one_other_activation() -> nn.Module:
    model = timm.create_model("test_resnet", zero_init_last=False)
    model.layer2[0].act1 = nn.GELU()
    return model


class TestChangedAfterBuilding:
    @pytest.mark.parametrize(
        ("name", "pool"), [("test_resnet", "max"), ("test_convnext", "avgmax"), ("test_vit", "token")]
    )
    def test_pooling_is_recorded(self, name: str, pool: str, tmp_path: Path) -> None:
        if name == "test_vit":
            model = timm.create_model(name, global_pool="avg", fc_norm=False)
            model.reset_classifier(5, global_pool=pool)
        else:
            model = changed_pool(name, pool)
        extractor = tc.create_extractor(model, final_space()).eval()
        loaded = reloaded(extractor, tmp_path / "extractor")
        assert json.loads((tmp_path / "extractor" / "config.json").read_text())["model_args"]["global_pool"] == pool
        assert torch.equal(loaded(images_of(extractor)), extractor(images_of(extractor)))

    def test_activations_are_recorded(self, tmp_path: Path) -> None:
        model = timm.create_model("test_resnet")
        replace_all(model, nn.ReLU, nn.SiLU)
        extractor = tc.create_extractor(model, final_space()).eval()
        loaded = reloaded(extractor, tmp_path / "extractor")
        assert loaded.backbone.model_args == {"act_layer": "silu"}
        assert torch.equal(loaded(images_of(extractor)), extractor(images_of(extractor)))

    def test_image_size_is_recorded(self, tmp_path: Path) -> None:
        model = timm.create_model("test_vit")
        model.set_input_size(img_size=(64, 96))
        extractor = tc.create_extractor(model, final_space()).eval()
        assert extractor.data_config["input_size"] == (3, 64, 96)
        loaded = reloaded(extractor, tmp_path / "extractor")
        assert torch.equal(loaded(images_of(extractor)), extractor(images_of(extractor)))

    @pytest.mark.parametrize("level", ["pooled", "map"])
    def test_one_other_activation_is_refused_by_name(self, level: str, tmp_path: Path) -> None:
        model = with_one_other_activation()
        extractor = tc.create_extractor(model, final_space(level))
        with pytest.raises(
            tc.errors.ConfigError, match=r"layer2\.0\.act1: layer is 'GELU', timm builds 'ReLU'.*act_layer="
        ):
            extractor.save_pretrained(tmp_path / "extractor")
        assert not any(tmp_path.iterdir())

    def test_settings_of_a_layer_are_refused_by_name(self, tmp_path: Path) -> None:
        extractor = tc.create_extractor("test_resnet", final_space(), img_size=SIZE)
        for module in extractor.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.1
        with pytest.raises(tc.errors.ConfigError, match=r"conv1\.1: eps is 0\.1, timm builds 1e-05"):
            extractor.save_pretrained(tmp_path / "extractor")

    def test_pooling_that_was_changed_inside_an_extractor_is_refused(self, tmp_path: Path) -> None:
        extractor = tc.create_extractor("test_resnet", final_space(), img_size=SIZE)
        extractor.backbone.model.reset_classifier(0, global_pool="max")
        for save in (extractor, tc.compose(extractor, tc.TaskHead(extractor.space, ["a", "b"]))):
            with pytest.raises(tc.errors.ConfigError, match="global_pool"):
                save.save_pretrained(tmp_path / "part")
        assert not any(tmp_path.iterdir())

    def test_a_hook_is_noticed(self, tmp_path: Path) -> None:
        extractor = tc.create_extractor("test_resnet", final_space(), img_size=SIZE)
        extractor.backbone.model.layer1.register_forward_hook(lambda module, inputs, output: output * 2)
        with pytest.raises(tc.errors.ConfigError, match="perhaps a hook"):
            extractor.save_pretrained(tmp_path / "part")

    def test_leaves_the_extractor_as_it_is(self, tmp_path: Path) -> None:
        extractor = tc.create_extractor("test_vit", final_space(), img_size=SIZE).train()
        extractor.backbone.model.blocks[0].eval()
        modes = [module.training for module in extractor.modules()]
        digest = extractor.digest()
        extractor.save_pretrained(tmp_path / "extractor")
        assert [module.training for module in extractor.modules()] == modes
        assert extractor.digest() == digest
        extractor.backbone.model.blocks[0].norm1.weight.data.zero_()
        assert extractor.digest() != digest


class TestFused:
    def test_of_a_recorded_change_comes_back(self, tmp_path: Path) -> None:
        extractor = tc.create_extractor(changed_pool(), final_space()).eval()
        head = tc.TaskHead(extractor.space, ["a", "b", "c"]).eval()
        nn.init.normal_(head.classifier.weight)
        model = tc.compose(extractor, head)
        folder = model.save_pretrained(tmp_path / "fused", fused=True)
        plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        inputs = images_of(extractor)
        torch.testing.assert_close(plain(inputs), model(inputs), atol=1e-4, rtol=1e-4)

    def test_of_another_change_is_refused(self, tmp_path: Path) -> None:
        model = with_one_other_activation()
        extractor = tc.create_extractor(model, final_space())
        head = tc.TaskHead(extractor.space, ["a", "b"])
        nn.init.normal_(head.classifier.weight)
        composed = tc.compose(extractor, head)
        with pytest.raises(tc.errors.ConfigError, match=r"layer2\.0\.act1"):
            composed.fuse()
        with pytest.raises(tc.errors.ConfigError, match=r"layer2\.0\.act1"):
            composed.save_pretrained(tmp_path / "fused", fused=True)
        assert not any(tmp_path.iterdir())
