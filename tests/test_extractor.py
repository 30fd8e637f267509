"""The extractor's contract on timm's tiny models: features, gradients, modes, files, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import timm_compat as tc

NAMES = timm.list_models("test_*")
SIZE = 64
D = 16
SOME = ["test_resnet", "test_vit", "test_efficientnet"]
ALL_SLOWLY = [pytest.param(name, marks=[] if name in SOME else [pytest.mark.slow]) for name in NAMES]


def space(level: str = "pooled", **settings: Any) -> tc.CompatSpace:
    return tc.CompatSpace(D, methods=settings.pop("methods", ("rotation",)), level=level, **settings)


def images(channels: int = 3, size: tuple[int, int] = (SIZE, SIZE), batch: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def make(name: str, level: str = "pooled", **settings: Any) -> tc.CompatExtractor:
    return tc.create_extractor(name, space(level), **{"img_size": SIZE, **settings})


def used(name: str, level: str = "pooled", **settings: Any) -> tc.CompatExtractor:
    """An extractor of a final space in evaluation mode whose weights and statistics are those of no fresh one."""
    extractor = tc.create_extractor(name, space(level).finalize(), **{"img_size": SIZE, **settings})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in extractor.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
        channels, height, width = extractor.data_config["input_size"]
        extractor.train()(images(channels, (height, width)))
    return extractor.eval()


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("name", ALL_SLOWLY)
class TestFeatures:
    def test_pooled(self, name: str) -> None:
        extractor = make(name)
        features = extractor(images())
        assert features.shape == (4, D)
        assert features.dtype == torch.float32
        assert extractor.num_features == D
        assert extractor.architecture == name

    def test_map(self, name: str) -> None:
        extractor = make(name, "map")
        reduction = timm.create_model(name, num_classes=0).feature_info[-1]["reduction"]
        assert extractor(images()).shape == (4, D, SIZE // reduction, SIZE // reduction)

    @pytest.mark.parametrize("level", ["pooled", "map"])
    def test_are_normalised_over_the_batch_in_training(self, name: str, level: str) -> None:
        features = make(name, level)(images(batch=8)).transpose(0, 1).flatten(1)
        torch.testing.assert_close(features.mean(1), torch.zeros(D), atol=1e-3, rtol=0)
        # BatchNorm's epsilon takes a little from directions of small variance.
        assert ((features.var(1, unbiased=False) <= 1.001) & (features.var(1, unbiased=False) > 0.5)).all()

    def test_pooled_is_the_projection_of_timms_own_features(self, name: str) -> None:
        extractor = used(name)
        model = extractor.backbone.model
        pooled = model.forward_head(model.forward_features(images()), pre_logits=True)
        weight, bias = extractor.interface.folded()
        torch.testing.assert_close(extractor(images()), pooled @ weight.float().T + bias.float(), atol=1e-4, rtol=1e-4)

    def test_map_is_the_projection_of_timms_own_stage(self, name: str) -> None:
        extractor = used(name, "map")
        stage = extractor.backbone.model.forward_intermediates(images(), output_fmt="NCHW", intermediates_only=True)[-1]
        weight, bias = (tensor.float() for tensor in extractor.interface.folded())
        expected = torch.einsum("df,bfhw->bdhw", weight, stage) + bias[:, None, None]
        torch.testing.assert_close(extractor(images()), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ALL_SLOWLY)
@pytest.mark.parametrize("level", ["pooled", "map"])
class TestTraining:
    def test_gradients_reach_every_trainable_parameter_and_no_other(self, name: str, level: str) -> None:
        extractor = make(name, level)
        features = extractor.train()(images())
        (features * images(D, tuple(features.shape[2:]) or (1, 1)).reshape(features.shape)).sum().backward()
        for key, parameter in extractor.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, key
            assert parameter.grad is None or parameter.grad.isfinite().all(), key
        first = next(parameter for parameter in extractor.backbone.parameters() if parameter.requires_grad)
        assert first.grad is not None
        assert first.grad.abs().sum() > 0

    def test_modes(self, name: str, level: str) -> None:
        extractor = make(name, level)
        assert extractor.training
        assert all(module.training for module in extractor.modules())
        assert not any(module.training for module in extractor.eval().modules())
        before = {key: value.clone() for key, value in extractor.state_dict().items()}
        assert torch.equal(extractor(images())[:2], extractor(images())[:2])
        torch.testing.assert_close(extractor(images()[:2]), extractor(images())[:2], atol=1e-5, rtol=1e-4)
        assert all(torch.equal(value, before[key]) for key, value in extractor.state_dict().items())
        extractor.train()(images())
        assert not torch.equal(extractor.interface.normalization.running_mean, torch.zeros(D))

    def test_adapter_leaves_the_backbone_bit_identical(self, name: str, level: str) -> None:
        extractor = make(name, level, trainable="adapter").train()
        assert extractor.interface.training
        assert not any(module.training for module in extractor.backbone.modules())
        before = {key: value.clone() for key, value in extractor.state_dict().items()}
        train_one_step(extractor)
        for key, value in extractor.state_dict().items():
            assert torch.equal(value, before[key]) == key.startswith("backbone."), key


def train_one_step(extractor: tc.CompatExtractor) -> None:
    optimizer = torch.optim.AdamW(extractor.parameters(), lr=0.1, weight_decay=0.1)
    features = extractor.train()(images())
    loss = (features * torch.linspace(-1, 1, features.numel()).reshape(features.shape)).sum()
    loss.backward()
    optimizer.step()


class TestAdapter:
    @pytest.mark.parametrize("name", SOME)
    @pytest.mark.parametrize("level", ["pooled", "map"])
    def test_full_is_what_moves_the_backbone(self, name: str, level: str) -> None:
        extractor = make(name, level)
        before = {key: value.clone() for key, value in extractor.backbone.state_dict().items()}
        train_one_step(extractor)
        assert any(not torch.equal(value, before[key]) for key, value in extractor.backbone.state_dict().items())

    def test_dropout_and_stochastic_depth_rest(self) -> None:
        settings: dict[str, Any] = {"drop_path_rate": 0.5, "proj_drop_rate": 0.5}
        full, adapter = (make("test_vit", trainable=trainable, **settings).train() for trainable in ("full", "adapter"))
        assert not torch.equal(full.backbone(images()), full.backbone(images()))
        assert torch.equal(adapter.backbone(images()), adapter.backbone(images()))

    def test_only_the_interface_asks_for_gradients(self) -> None:
        extractor = make("test_resnet", trainable="adapter")
        asking = {key for key, parameter in extractor.named_parameters() if parameter.requires_grad}
        assert asking == {"interface.projection.weight", "interface.projection.bias"}

    def test_loading_as_adapter(self, tmp_path: Path) -> None:
        folder = used("test_resnet").save_pretrained(tmp_path / "extractor")
        extractor = tc.CompatExtractor.from_pretrained(folder, trainable="adapter").train()
        assert not any(module.training for module in extractor.backbone.modules())
        assert not any(parameter.requires_grad for parameter in extractor.backbone.parameters())


class TestFrozen:
    def test_nothing_of_it_learns_and_a_head_does(self) -> None:
        data = tc.data.load_digits("train").subset(range(64))
        space = tc.CompatSpace(D, data.class_names, ["common_classes"])
        extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=32, trainable="frozen")
        before, head = extractor.digest(), tc.TaskHead(space, data.class_names)
        config = tc.TrainConfig(epochs=2, batch_size=32)
        tc.fit(space, [tc.Member("a", extractor, head, data)], config, progress=None)
        assert extractor.digest() == before
        assert head.classifier.weight.count_nonzero() > 0
        assert not any(module.training for module in extractor.train().backbone.modules())
        assert not extractor.interface.training

    def test_without_a_head_there_is_nothing_to_train(self) -> None:
        extractor = make("test_resnet", trainable="frozen")
        data = tc.data.ArrayDataset.from_arrays(
            torch.zeros(8, 3, SIZE, SIZE, dtype=torch.uint8).numpy(), [0, 1] * 4, "ab"
        )
        with pytest.raises(tc.errors.ConfigError, match=r"member 'a' has no head and a frozen extractor"):
            tc.fit(extractor.space, [tc.Member("a", extractor, None, data)], progress=None)


class TestCopies:
    @pytest.mark.parametrize("trainable", ["full", "adapter", "frozen"])
    def test_a_copy_in_another_space_gives_the_same_features_and_learns_alone(self, trainable: str) -> None:
        extractor = used("test_resnet", trainable="adapter").eval()
        copied = extractor.copy_to(other := space(), trainable).eval()
        assert copied.space is other
        assert copied.trainable == trainable
        assert same(copied, extractor)
        learns = {name.partition(".")[0] for name, value in copied.named_parameters() if value.requires_grad}
        assert learns == {"full": {"backbone", "interface"}, "adapter": {"interface"}, "frozen": set()}[trainable]
        with torch.no_grad():
            next(copied.parameters()).add_(1)
        assert not same(copied, extractor)

    def test_a_head_goes_along(self) -> None:
        head = tc.TaskHead(space(), ["cat", "dog"], depth=2)
        copied = head.copy_to(other := space())
        assert copied.space is other
        assert copied.class_names == head.class_names
        assert same(copied, head)
        assert (copied.device, used("test_resnet").device) == (torch.device("cpu"),) * 2

    def test_a_space_of_another_form_is_refused(self) -> None:
        with pytest.raises(tc.errors.SpaceMismatchError, match="expected a space with feature_dim"):
            used("test_resnet").copy_to(space("map"))


class TestMap:
    @pytest.mark.parametrize(("out_index", "side"), [(0, 32), (1, 16), (2, 8), (3, 4), (4, 2), (-1, 2), (-5, 32)])
    def test_every_stage(self, out_index: int, side: int) -> None:
        extractor = make("test_resnet", "map", out_index=out_index)
        assert extractor(images()).shape == (4, D, side, side)

    def test_what_lies_behind_the_stage_is_not_trained_but_saved(self, tmp_path: Path) -> None:
        extractor = used("test_resnet", "map", out_index=2)
        later = [parameter for key, parameter in extractor.named_parameters() if "layer3" in key or "layer4" in key]
        assert later
        assert not any(parameter.requires_grad for parameter in later)
        loaded = tc.CompatExtractor.from_pretrained(extractor.save_pretrained(tmp_path / "extractor"))
        assert loaded.backbone.out_index == 2
        assert same(loaded, extractor)

    def test_parameters_that_the_user_froze_stay_frozen(self) -> None:
        model = timm.create_model("test_resnet", num_classes=0)
        model.conv1.requires_grad_(False)
        extractor = tc.create_extractor(model, space("map"))
        assert not any(parameter.requires_grad for parameter in extractor.backbone.model.conv1.parameters())
        assert all(parameter.requires_grad for parameter in extractor.backbone.model.layer1.parameters())


class TestImageSizes:
    @pytest.mark.parametrize("name", ALL_SLOWLY)
    def test_another_size_where_the_extractor_is_made_for_it(self, name: str) -> None:
        extractor = make(name, img_size=(64, 96))
        assert extractor.data_config["input_size"] == (3, 64, 96)
        assert extractor(images(size=(64, 96))).shape == (4, D)

    @pytest.mark.parametrize("name", ALL_SLOWLY)
    def test_another_size_afterwards_works_or_names_the_way_out(self, name: str) -> None:
        extractor = make(name, img_size=None)
        assert extractor.data_config["input_size"] == (3, 160, 160)
        if extractor.backbone.fixed_size:
            with pytest.raises(
                tc.errors.ImageError, match=f"{name} takes 160 x 160 pixels only, got 96 x 64; .*img_size="
            ):
                extractor(images(size=(96, 64)))
        else:
            assert extractor(images(size=(96, 64))).shape == (4, D)

    def test_a_size_that_does_not_divide_into_patches(self) -> None:
        with pytest.raises(tc.errors.ImageError, match=r"test_vit cannot take 65 x 97 pixels .*divisible.*img_size="):
            make("test_vit")(images(size=(65, 97)))

    @pytest.mark.parametrize(
        ("name", "size", "reason"),
        [
            ("test_vit", 50, "Input height .50. should be divisible by patch size .16."),
            ("test_vit_relpos", 7, "Trying to create tensor with negative dimension"),
            ("test_maxvit", 7, "integer modulo by zero"),
            ("test_convnext", (3, 1), "Calculated padded input size per channel"),
            ("efficientformer_l1", 64, "The size of tensor"),
        ],
    )
    def test_a_size_that_the_architecture_cannot_be_built_for(self, name: str, size: Any, reason: str) -> None:
        with pytest.raises(tc.errors.BackboneError, match=rf"{name}: .*\({reason}.*\); "):
            tc.create_extractor(name, space(), img_size=size)

    @pytest.mark.parametrize("size", [0, -1, 1.5, "64", (64,), (64, 0), (1, 2, 3), True, 10**9])
    def test_a_size_that_is_none(self, size: Any) -> None:
        with pytest.raises(tc.errors.ConfigError, match="img_size: expected an integer"):
            make("test_vit", img_size=size)


class TestChannels:
    @pytest.mark.parametrize(("name", "channels"), [*((name, 1) for name in NAMES), *((name, 5) for name in SOME)])
    def test_forward(self, name: str, channels: int) -> None:
        extractor = make(name, in_chans=channels)
        assert extractor(images(channels)).shape == (4, D)
        config = extractor.data_config
        assert config["input_size"] == (channels, SIZE, SIZE)
        assert len(config["mean"]) == len(config["std"]) == channels
        with pytest.raises(
            tc.errors.ImageError, match=rf"expected shape \(B, {channels}, H, W\), got \(4, 3, 64, 64\)"
        ):
            extractor(images())

    @pytest.mark.parametrize("channels", [0, -1, "3", 1.0, True, 10**6])
    def test_a_number_that_is_none(self, channels: Any) -> None:
        with pytest.raises(tc.errors.ConfigError, match="in_chans: expected an integer from 1 to 1024"):
            make("test_vit", in_chans=channels)


class TestTimmKeywords:
    def test_reach_the_backbone_and_the_config(self, tmp_path: Path) -> None:
        extractor = used("test_vit", drop_path_rate=0.3, act_layer="relu")
        rates = [module.drop_prob for module in extractor.modules() if hasattr(module, "drop_prob")]
        assert max(rates) == pytest.approx(0.3)
        assert any(isinstance(module, nn.ReLU) for module in extractor.backbone.modules())
        folder = extractor.save_pretrained(tmp_path / "extractor")
        config = json.loads((folder / "config.json").read_text())
        assert config["model_args"] == {"act_layer": "relu", "drop_path_rate": 0.3, "img_size": [SIZE, SIZE]}
        loaded = tc.CompatExtractor.from_pretrained(folder)
        assert any(isinstance(module, nn.ReLU) for module in loaded.backbone.modules())
        assert torch.equal(loaded(images()), extractor(images()))

    @pytest.mark.parametrize(("pool", "factor"), [("catavgmax", 2), ("max", 1), ("", 1)])
    def test_decide_the_number_of_pooled_features(self, pool: str, factor: int, tmp_path: Path) -> None:
        extractor = used("test_resnet", global_pool=pool)
        assert extractor.backbone.num_features == factor * used("test_resnet").backbone.num_features
        loaded = tc.CompatExtractor.from_pretrained(extractor.save_pretrained(tmp_path / "extractor"))
        assert torch.equal(loaded(images()), extractor(images()))

    def test_that_are_no_json_values_are_not_saved(self, tmp_path: Path) -> None:
        extractor = used("test_vit", act_layer=nn.ReLU)
        with pytest.raises(tc.errors.ConfigError, match=r"expected JSON values .*act_layer='relu'"):
            extractor.save_pretrained(tmp_path / "extractor")
        assert not any(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "keyword", ["num_classes", "features_only", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"]
    )
    def test_that_are_set_here_are_refused(self, keyword: str) -> None:
        with pytest.raises(tc.errors.ConfigError, match=f"{keyword}: expected timm's model arguments"):
            make("test_resnet", **{keyword: 1})

    def test_that_the_architecture_does_not_take(self) -> None:
        with pytest.raises(tc.errors.BackboneError, match=r"test_resnet: .*no_such_thing.*drop the argument"):
            make("test_resnet", no_such_thing=1)

    def test_that_divide_by_zero(self) -> None:
        with pytest.raises(tc.errors.BackboneError, match="test_vit: timm could not build it"):
            make("test_vit", num_heads=0)


@pytest.mark.parametrize("name", ALL_SLOWLY)
class TestStateDict:
    @pytest.mark.parametrize("level", ["pooled", "map"])
    def test_round_trips(self, name: str, level: str, tmp_path: Path) -> None:
        extractor = used(name, level)
        other = make(name, level).eval()
        assert other.digest() != extractor.digest()
        other.load_state_dict(extractor.state_dict())
        assert other.digest() == extractor.digest()
        assert torch.equal(other(images()), extractor(images()))

        loaded = tc.CompatExtractor.from_pretrained(extractor.save_pretrained(tmp_path / "extractor"))
        assert not loaded.training
        assert torch.equal(loaded(images()), extractor(images()))
        assert loaded.space.to_config() == extractor.space.to_config()
        assert loaded.data_config == extractor.data_config
        raw = torch.randint(0, 256, (2, 3, 50, 40), dtype=torch.uint8)
        assert torch.equal(loaded.preprocess(raw), extractor.preprocess(raw))
        frozen = [{key for key, value in e.named_parameters() if not value.requires_grad} for e in (loaded, extractor)]
        assert frozen[0] == frozen[1]

    def test_folder_round_trip_of_another_shape_of_images(self, name: str, tmp_path: Path) -> None:
        extractor = used(name, img_size=(64, 96), in_chans=1)
        loaded = tc.CompatExtractor.from_pretrained(extractor.save_pretrained(tmp_path / "extractor"))
        assert loaded.data_config == extractor.data_config
        assert torch.equal(loaded(images(1, (64, 96))), extractor(images(1, (64, 96))))


class TestFolder:
    def test_holds_what_it_says(self, tmp_path: Path) -> None:
        extractor = used("test_resnet", in_chans=1)
        folder = extractor.save_pretrained(tmp_path / "a" / "extractor")
        assert sorted(file.name for file in folder.iterdir()) == [
            "README.md",
            "config.json",
            "interface.safetensors",
            "model.safetensors",
        ]
        config = json.loads((folder / "config.json").read_text())
        assert config["architecture"] == "test_resnet"
        assert config["num_classes"] == 0
        assert config["timm_compat"]["role"] == "extractor"
        assert config["timm_compat"]["space"]["fingerprint"] == extractor.space.fingerprint
        assert f"timm-compat-space:{extractor.space.fingerprint}" in (folder / "README.md").read_text()

    def test_of_a_draft_is_not_written(self, tmp_path: Path) -> None:
        with pytest.raises(tc.errors.DraftSpaceError, match="finalize"):
            make("test_resnet").save_pretrained(tmp_path / "extractor")
        assert not any(tmp_path.iterdir())

    def test_that_exists_is_kept(self, tmp_path: Path) -> None:
        extractor = used("test_resnet")
        folder = extractor.save_pretrained(tmp_path / "extractor")
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        with pytest.raises(tc.errors.OutputExistsError):
            used("test_vit").save_pretrained(folder)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before

    @pytest.mark.parametrize("name", ["layer1.0.conv1.weight", "bn1.running_var"])
    def test_of_an_extractor_that_has_diverged_is_not_written(self, name: str, tmp_path: Path) -> None:
        extractor = used("test_resnet")
        extractor.backbone.model.state_dict()[name].view(-1)[0] = torch.inf
        with pytest.raises(tc.errors.ConfigError, match=rf"{name}: expected finite numbers, .*diverged"):
            extractor.save_pretrained(tmp_path / "extractor")
        assert not any(tmp_path.iterdir())

    def test_keeps_limits_that_are_infinite(self, tmp_path: Path) -> None:
        extractor = used("gemma4_vit_167m", depth=1)
        limits = [value for key, value in extractor.state_dict().items() if key.endswith("input_max")]
        assert limits
        assert all(value.isinf() for value in limits)
        loaded = tc.CompatExtractor.from_pretrained(extractor.save_pretrained(tmp_path / "extractor"))
        assert same(loaded, extractor)

    def test_of_an_unknown_trainable(self, tmp_path: Path) -> None:
        folder = used("test_resnet").save_pretrained(tmp_path / "extractor")
        with pytest.raises(tc.errors.ConfigError, match="trainable: expected one of full, adapter, frozen, got 'head'"):
            tc.CompatExtractor.from_pretrained(folder, trainable="head")

    def test_of_a_model_that_timm_could_not_rebuild_is_not_written(self, tmp_path: Path) -> None:
        model = timm.create_model("test_resnet", num_classes=0)
        model.layer4 = nn.Identity()
        model.layer4.extra = nn.Linear(2, 2)
        extractor = tc.create_extractor(model, space("map").finalize(), out_index=3)
        with pytest.raises(tc.errors.ConfigError, match=r"test_resnet: expected a model as timm builds it .*layer4"):
            extractor.save_pretrained(tmp_path / "extractor")
        assert not any(tmp_path.iterdir())


READER = """
import json, sys
import timm, torch
from safetensors.torch import load_file

report = {}
for folder in sys.argv[1:]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=5).eval()
    saved, state = load_file(f"{folder}/model.safetensors"), model.state_dict()
    size = timm.data.resolve_model_data_config(model)["input_size"]
    report[folder] = {
        "other": [name for name in saved if not torch.equal(saved[name], state[name])],
        "new": sorted(state.keys() - saved.keys()),
        "shape": list(model(torch.zeros(2, *size)).shape),
        "size": list(size),
    }
assert not any(name.split(".")[0] == "timm_compat" for name in sys.modules)
print(json.dumps(report))
"""


@pytest.mark.slow
class TestPlainTimm:
    def test_loads_the_folders_in_a_process_without_this_package(self, tmp_path: Path) -> None:
        shapes: dict[str, dict[str, Any]] = {
            "plain": {},
            "other": {"img_size": (64, 96), "in_chans": 1},
            "map": {"level": "map"},
        }
        folders = {
            str(used(name, **settings).save_pretrained(tmp_path / f"{name}-{kind}")): (name, settings)
            for kind, settings in shapes.items()
            for name in (NAMES if kind == "plain" else SOME)
        }
        command = [sys.executable, "-W", "error", "-c", READER, *folders]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, env=environment)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report.keys() == folders.keys()
        for folder, found in report.items():
            name, settings = folders[folder]
            size = settings.get("img_size", (SIZE, SIZE))
            assert found["other"] == [], folder
            assert found["new"], folder
            assert found["shape"] == [2, 5], folder
            assert found["size"] == [settings.get("in_chans", 3), *size], folder
            with_classifier, without = (timm.create_model(name, num_classes=k).state_dict() for k in (5, 0))
            assert set(found["new"]) == with_classifier.keys() - without.keys(), folder

    @pytest.mark.parametrize(("name", "img_size"), [("test_resnet", 96), ("test_vit3", (96, 64))])
    def test_name_of_a_folder_makes_an_extractor(self, name: str, img_size: Any, tmp_path: Path) -> None:
        first = used(name, in_chans=1)
        folder = first.save_pretrained(tmp_path / "first")
        second = tc.create_extractor(f"local-dir:{folder}", first.space, pretrained=True, img_size=None).eval()
        assert same(second.backbone, first.backbone)
        assert second.data_config == first.data_config
        again = tc.CompatExtractor.from_pretrained(second.save_pretrained(tmp_path / "second"))
        assert torch.equal(again(images(1)), second(images(1)))
        third = tc.create_extractor(f"local-dir:{folder}", first.space, img_size=img_size)
        size = third.data_config["input_size"]
        assert size == (1, 96, 96) if isinstance(img_size, int) else (1, *img_size)
        assert third(images(1, size[1:])).shape == (4, D)


class TestAdoption:
    @pytest.mark.parametrize("name", ALL_SLOWLY)
    def test_of_a_built_model(self, name: str, tmp_path: Path) -> None:
        model = timm.create_model(name, num_classes=7, in_chans=1).eval()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        extractor = tc.create_extractor(model, space().finalize()).eval()
        size = extractor.data_config["input_size"]
        inputs = images(1, size[1:], batch=2)
        features = model.forward_head(model.forward_features(inputs), pre_logits=True)
        assert torch.equal(extractor.backbone(inputs), features)
        assert model.num_classes == 7
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        train_parameters = {id(parameter) for parameter in extractor.parameters()}
        assert not train_parameters & {id(parameter) for parameter in model.parameters()}
        loaded = tc.CompatExtractor.from_pretrained(extractor.save_pretrained(tmp_path / "extractor"))
        assert torch.equal(loaded(inputs), extractor(inputs))

    @pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_vit3"])
    def test_for_another_image_size(self, name: str, tmp_path: Path) -> None:
        model = timm.create_model(name, num_classes=7)
        extractor = tc.create_extractor(model, space().finalize(), img_size=(64, 96)).eval()
        inputs = images(size=(64, 96))
        assert extractor(inputs).shape == (4, D)
        loaded = tc.CompatExtractor.from_pretrained(extractor.save_pretrained(tmp_path / "extractor"))
        assert torch.equal(loaded(inputs), extractor(inputs))

    def test_for_a_size_that_timm_cannot_change(self) -> None:
        model = timm.create_model("levit_128s")
        with pytest.raises(tc.errors.BackboneError, match=r"levit_128s: timm cannot change .*by name with img_size="):
            tc.create_extractor(model, space(), img_size=SIZE)

    @pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(), timm.create_model("test_resnet").layer1])
    def test_of_something_else(self, model: nn.Module) -> None:
        with pytest.raises(tc.errors.BackboneError, match=r"expected a model built by timm\.create_model, got "):
            tc.create_extractor(model, space())

    def test_of_a_feature_list(self) -> None:
        with pytest.raises(
            tc.errors.BackboneError, match=r"expected a model built by timm\.create_model, got FeatureListNet"
        ):
            tc.create_extractor(timm.create_model("test_resnet", features_only=True), space())

    @pytest.mark.parametrize("settings", [{"pretrained": True}, {"drop_rate": 0.1}])
    def test_takes_no_keywords(self, settings: dict[str, Any]) -> None:
        with pytest.raises(tc.errors.ConfigError, match="this one is built already: drop them"):
            tc.create_extractor(timm.create_model("test_resnet"), space(), **settings)


class TestInitialWeights:
    @pytest.mark.parametrize("name", SOME)
    def test_are_one_start_for_each_architecture(self, name: str) -> None:
        shared = space(methods=("initial_weights",))
        torch.manual_seed(1)
        first = tc.create_extractor(name, shared, img_size=SIZE)
        torch.manual_seed(2)
        second = tc.create_extractor(name, shared, img_size=SIZE)
        assert same(first, second)
        other = space(methods=("initial_weights",), seed=1)
        assert not same(first, tc.create_extractor(name, other, img_size=SIZE))
        assert not same(make(name), make(name))

    def test_leave_the_callers_random_state(self) -> None:
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        tc.create_extractor("test_resnet", space(methods=("initial_weights",)))
        assert torch.equal(torch.rand(3), expected)

    def test_may_differ_between_architectures_arguments_and_stages(self) -> None:
        shared = space("map", methods=("initial_weights",))
        tc.create_extractor("test_resnet", shared)
        tc.create_extractor("test_resnet", shared, out_index=2)
        tc.create_extractor("test_resnet", shared, in_chans=1)
        tc.create_extractor("test_vit", shared)
        assert len(shared.definition()["initial_weights"]) == 4

    def test_of_a_final_space_are_checked(self, tmp_path: Path) -> None:
        shared = space(methods=("initial_weights", "rotation"))
        start = tc.create_extractor("test_resnet", shared, img_size=SIZE)
        folder = shared.finalize().save_pretrained(tmp_path / "space")
        loaded = tc.CompatSpace.from_pretrained(folder)
        assert same(tc.create_extractor("test_resnet", loaded, img_size=SIZE), start)
        assert tc.create_extractor("test_vit", loaded, img_size=SIZE).space.fingerprint == shared.fingerprint
        # The seed is no part of the fingerprint: with another one the start is another, and that is what is refused.
        file = folder / "config.json"
        file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
        with pytest.raises(
            tc.errors.SpaceMismatchError, match=r"test_resnet: expected initial weights .*use the space's seed"
        ):
            tc.create_extractor("test_resnet", tc.CompatSpace.from_pretrained(folder), img_size=SIZE)


class TestPreprocess:
    def test_scales_and_normalises(self) -> None:
        extractor = make("test_resnet")
        raw = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
        mean, std = (torch.tensor(extractor.data_config[key])[:, None, None] for key in ("mean", "std"))
        torch.testing.assert_close(extractor.preprocess(raw), (raw / 255 - mean) / std)
        torch.testing.assert_close(extractor.preprocess(raw / 255), extractor.preprocess(raw))

    @pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
    def test_resizes_to_what_the_backbone_takes(self, channels: int, mode: str) -> None:
        extractor = make("test_vit3", img_size=(64, 96), in_chans=channels)
        raw = torch.randint(0, 256, (2, channels, 30, 50), dtype=torch.uint8)
        assert extractor.preprocess(raw).shape == (2, channels, 64, 96)
        assert extractor(extractor.preprocess(raw)).shape == (2, D)
        assert extractor.transform()(Image.new(mode, (50, 30))).shape == (channels, 64, 96)

    def test_takes_the_mean_over_colours_where_the_channels_are_others(self) -> None:
        colour, grey = make("test_vit"), make("test_vit", in_chans=1)
        assert grey.data_config["mean"] == pytest.approx([sum(colour.data_config["mean"]) / 3])

    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            (torch.zeros(3, 8, 8, dtype=torch.uint8), r"expected shape \(B, 3, h, w\), got \(3, 8, 8\)"),
            (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"got \(2, 1, 8, 8\)"),
            (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"got \(2, 8, 8, 3\)"),
            (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "expected uint8 .*got torch.int64"),
            (torch.zeros(2, 3, 8, 8, dtype=torch.bool), "expected uint8 .*got torch.bool"),
            (torch.zeros(2, 3, 8, 8).numpy(), "expected a tensor, got ndarray"),
        ],
    )
    def test_refuses(self, raw: Any, message: str) -> None:
        with pytest.raises(tc.errors.ImageError, match=message):
            make("test_resnet").preprocess(raw)


class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "close"),
        [("resnet81", "resnet"), ("test_resnett", "test_resnet"), ("vit_tiny_patch16_225", "vit_tiny_patch16_224")],
    )
    def test_an_unknown_name_with_close_ones(self, name: str, close: str) -> None:
        with pytest.raises(tc.errors.BackboneError, match=f"got '{name}'; did you mean .*{close}"):
            tc.create_extractor(name, space())

    @pytest.mark.parametrize("name", ["qqqqqqqq", "", "compat_extractor", "../resnet18", "torch.nn.Linear"])
    def test_an_unknown_name(self, name: str) -> None:
        with pytest.raises(tc.errors.BackboneError, match=r"expected a model name that timm .* knows") as caught:
            tc.create_extractor(name, space())
        assert "compat_" not in str(caught.value).replace(name, "")

    @pytest.mark.parametrize("name", ["nowhere:resnet18", "local-dir:/no/such/folder", "hf-hub:", "local-dir:"])
    def test_an_unknown_source(self, name: str) -> None:
        with pytest.raises(tc.errors.BackboneError, match=name):
            tc.create_extractor(name, space())

    @pytest.mark.parametrize("name", [None, 18, ["resnet18"], timm.create_model])
    def test_no_name(self, name: Any) -> None:
        with pytest.raises(tc.errors.BackboneError, match="expected a model name or a model built by timm"):
            tc.create_extractor(name, space())

    @pytest.mark.parametrize("wrong", [64, None, "space"])
    def test_no_space(self, wrong: Any) -> None:
        with pytest.raises(tc.errors.ConfigError, match=r"space: expected a CompatSpace, got .*make one"):
            tc.create_extractor("test_resnet", wrong)

    @pytest.mark.parametrize("name", ["test_resnet", "hf-hub:timm/test_resnet.r160_in1k"])
    def test_pretrained_weights_that_cannot_be_fetched(self, name: str) -> None:
        with pytest.raises(tc.errors.BackboneError, match="check the network, or build it with pretrained=False"):
            tc.create_extractor(name, space(), pretrained=True)

    def test_pretrained_weights_that_do_not_exist(self) -> None:
        with pytest.raises(tc.errors.BackboneError, match="vit_tiny_r_s16_p8_224"):
            tc.create_extractor("vit_tiny_r_s16_p8_224.no_such_tag", space(), pretrained=True)

    @pytest.mark.parametrize("trainable", ["none", "", None, True])
    def test_an_unknown_trainable(self, trainable: Any) -> None:
        with pytest.raises(tc.errors.ConfigError, match="trainable: expected one of full, adapter"):
            make("test_resnet", trainable=trainable)

    @pytest.mark.parametrize("out_index", [5, -6, 10**30, 1.0, "1", None, True])
    def test_an_unknown_stage(self, out_index: Any) -> None:
        with pytest.raises(tc.errors.BackboneError, match="test_resnet: out_index: expected -5 to 4, got"):
            make("test_resnet", "map", out_index=out_index)

    def test_a_stage_of_pooled_features(self) -> None:
        with pytest.raises(
            tc.errors.ConfigError, match='out_index: expected none for a space of level "pooled", got 2'
        ):
            make("test_resnet", out_index=2)

    @pytest.mark.parametrize("name", SOME)
    @pytest.mark.parametrize("level", ["pooled", "map"])
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (images()[0], r"expected shape \(B, 3, H, W\), got \(3, 64, 64\)"),
            (images(1), r"expected shape \(B, 3, H, W\), got \(4, 1, 64, 64\)"),
            (images().movedim(1, -1), r"expected shape \(B, 3, H, W\), got \(4, 64, 64, 3\)"),
            (images().to(torch.uint8), r"expected normalised floating point, got torch.uint8; .*preprocess"),
            (images().double(), "expected torch.float32 as the weights are, got torch.float64"),
            (images().half(), "expected torch.float32 as the weights are, got torch.float16"),
            (images(size=(0, 0)), "cannot take 0 x 0 pixels"),
            (images().numpy(), "expected a tensor, got ndarray"),
        ],
        ids=["rank", "channels", "layout", "uint8", "float64", "float16", "nothing", "array"],
    )
    def test_images(self, name: str, level: str, wrong: Any, message: str) -> None:
        with pytest.raises(tc.errors.ImageError, match=message):
            make(name, level)(wrong)

    def test_other_dtypes_pass_under_autocast(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            assert make("test_resnet")(images().to(torch.bfloat16)).shape == (4, D)


class TestCompile:
    @pytest.mark.parametrize(("name", "level"), [*((name, "pooled") for name in SOME), ("test_vit", "map")])
    def test_as_one_graph(self, name: str, level: str) -> None:
        torch.compiler.reset()
        extractor = used(name, level)
        compiled = torch.compile(extractor, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(images()), extractor(images()), atol=1e-5, rtol=1e-5)
