"""Composition and fusion: parts of one space join, others are refused; a fused model is plain timm, same logits."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

import timm_compat as tc

D = 16
SIZE = 64
CLASSES = ("cat", "dog", "owl")
NAMES = timm.list_models("test_*")
SOME = ("test_resnet", "test_vit", "test_efficientnet", "test_convnext")
TWO = SOME[:2]
ALL_SLOWLY = [pytest.param(name, marks=[] if name in TWO else [pytest.mark.slow]) for name in NAMES]

# Small members of the families whose classifiers are no single linear layer behind a pooling.
UNUSUAL: dict[str, dict[str, Any]] = {
    "cait_xxs24_224": {"depth": 2},
    "convnext_atto": {"head_hidden_size": 32, "depths": (1, 1, 1, 1)},
    "crossvit_tiny_240": {"img_size": None},
    "deit_tiny_distilled_patch16_224": {"depth": 2},
    "dpn48b": {},
    "efficientformer_l1": {"img_size": None},
    "levit_128s": {},
    "mobilenetv3_small_050": {},
    "repvit_m1": {},
    "resnetv2_18": {},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1)},
    "test_resnet": {"global_pool": "catavgmax"},
    "vgg11": {"mlp_ratio": 0.05},
}
NOT_FOLDABLE: dict[str, tuple[dict[str, Any], str]] = {
    "caformer_s18": ({}, "timm's classifier is MlpHead, not one linear map of its 512 pooled features"),
    "deepseek_vit_412m_enc": ({"depth": 1, "img_size": 84}, "has no classifier in timm"),
    "efficientvim_m1": ({}, "timm treats the pooled features once more before its classifier"),
    "gemma4_vit_167m_enc": ({"depth": 1, "img_size": 96}, "has no classifier in timm"),
    "mobilenetv5_300m_enc": ({"channel_multiplier": 0.1}, "has no classifier in timm"),
    "qwen3_vit_88m_enc": ({"depth": 1}, "has no classifier in timm"),
    "volo_d1_224": ({}, "timm treats the pooled features once more before its classifier"),
}


def space(**settings: Any) -> tc.CompatSpace:
    return tc.CompatSpace(D, CLASSES, settings.pop("methods", ("common_classes",)), **settings)


def images(model: nn.Module, batch: int = 4, seed: int = 0) -> Tensor:
    extractor = model.extractor if isinstance(model, tc.CompatModel) else model
    size = extractor.data_config["input_size"]
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(seed))


def trained(
    name: str, shared: tc.CompatSpace | None = None, head: dict[str, Any] | None = None, **settings: Any
) -> tc.CompatModel:
    """A composed model in evaluation mode whose weights and statistics are those of no fresh one."""
    shared = shared or space()
    extractor = tc.create_extractor(name, shared, **{"img_size": SIZE, **settings})
    model = tc.compose(extractor, tc.TaskHead(shared, CLASSES, **(head or {})))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
        for parameter in model.head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
        model.train()
        for seed in range(3):
            model(images(model, seed=seed))
    return model.eval()


def assert_same_logits(model: nn.Module, other: nn.Module, inputs: Tensor) -> None:
    with torch.no_grad():
        expected, found = model(inputs), other(inputs)
    assert expected.shape == (len(inputs), len(CLASSES))
    assert expected.std() > 1e-2
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


class TestCompose:
    @pytest.mark.parametrize("level", ["pooled", "map"])
    @pytest.mark.parametrize("depth", [1, 2])
    def test_is_the_head_after_the_extractor(self, level: str, depth: int) -> None:
        model = trained("test_resnet", space(level=level), head={"depth": depth})
        inputs = images(model)
        expected = model.head(model.extractor(inputs))
        assert torch.equal(model(inputs), expected)
        assert torch.equal(model.forward_head(model.forward_features(inputs)), expected)
        features = model.forward_features(inputs)
        assert torch.equal(model.forward_head(features, pre_logits=True), features)

    def test_follows_timms_conventions(self) -> None:
        model = trained("test_resnet", in_chans=1)
        assert model.num_classes == 3
        assert model.num_features == model.head_hidden_size == D
        assert model.class_names == CLASSES
        assert model.get_classifier() is model.head
        assert model.pretrained_cfg["label_names"] == list(CLASSES)
        assert timm.data.resolve_model_data_config(model)["input_size"] == (1, SIZE, SIZE)

    def test_shares_its_parts(self) -> None:
        shared = space()
        extractor, head = tc.create_extractor("test_resnet", shared), tc.TaskHead(shared, CLASSES)
        model = tc.compose(extractor, head)
        assert model.extractor is extractor
        assert model.head is head

    def test_trains_end_to_end(self) -> None:
        model = trained("test_resnet").train()
        model(images(model)).square().sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_of_components_that_were_saved_apart(self, tmp_path: Path) -> None:
        shared = space().finalize()
        one, other = trained("test_resnet", shared), trained("test_vit", shared)
        extractor = tc.CompatExtractor.from_pretrained(one.extractor.save_pretrained(tmp_path / "extractor"))
        head = tc.TaskHead.from_pretrained(other.head.save_pretrained(tmp_path / "head"))
        model = tc.compose(extractor, head)
        assert not model.training
        assert_same_logits(model, tc.compose(one.extractor, other.head), images(one))


class TestAnotherSpace:
    @pytest.mark.parametrize(
        ("changes", "lines"),
        [
            ({"normalization": "layer"}, ["normalization: batch / layer"]),
            ({"seed": 1}, ["shared: "]),
            ({"methods": ("rotation",)}, ["methods: common_classes / rotation", "shared: "]),
            ({"level": "map", "normalization": "none"}, ["level: pooled / map", "normalization: batch / none"]),
        ],
        ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
    )
    def test_is_refused_with_the_fields_that_differ(self, changes: dict[str, Any], lines: list[str]) -> None:
        mine, theirs = space().finalize(), space(**changes).finalize()
        with pytest.raises(tc.errors.SpaceMismatchError) as caught:
            tc.compose(tc.create_extractor("test_resnet", mine), tc.TaskHead(theirs, CLASSES))
        message = str(caught.value)
        listed = [line.strip() for line in message.splitlines() if line.startswith("  ")]
        assert len(listed) == len(lines)
        assert all(found.startswith(expected) for found, expected in zip(listed, lines, strict=True))
        assert "the extractor and the head live in different spaces" in message
        assert f"({mine.fingerprint} / {theirs.fingerprint})" in message
        assert "timm_compat.join" in message

    def test_of_another_dimension(self) -> None:
        head = tc.TaskHead(tc.CompatSpace(D + 1, CLASSES, ("common_classes",)).finalize(), CLASSES)
        with pytest.raises(tc.errors.SpaceMismatchError, match=f"feature_dim: {D} / {D + 1}"):
            tc.compose(tc.create_extractor("test_resnet", space().finalize()), head)

    def test_that_is_another_draft(self) -> None:
        with pytest.raises(tc.errors.SpaceMismatchError, match="identity: two drafts of the same definition"):
            tc.compose(tc.create_extractor("test_resnet", space()), tc.TaskHead(space(), CLASSES))

    def test_a_draft_and_its_twin_that_is_final(self) -> None:
        with pytest.raises(tc.errors.SpaceMismatchError, match="state: draft"):
            tc.compose(tc.create_extractor("test_resnet", space()), tc.TaskHead(space().finalize(), CLASSES))

    def test_one_draft_is_one_space_before_and_after_it_is_final(self) -> None:
        shared = space()
        extractor, head = tc.create_extractor("test_resnet", shared), tc.TaskHead(shared, CLASSES)
        before = tc.compose(extractor, head)
        shared.finalize()
        assert before.extractor.space is tc.compose(copy.deepcopy(extractor), head).extractor.space


@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, {}) for name in NAMES), *UNUSUAL.items()],
    ids=[*NAMES, *(f"{name} {settings}" for name, settings in UNUSUAL.items())],
)
class TestFuse:
    def test_gives_a_plain_timm_model_with_the_same_logits(self, name: str, settings: dict[str, Any]) -> None:
        model = trained(name, **settings)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        fused = model.fuse()
        assert not fused.training
        assert_same_logits(model, fused, images(model, seed=7))
        assert fused.num_classes == 3
        assert type(fused) is type(timm.create_model(name, **{k: v for k, v in settings.items() if k != "img_size"}))
        assert not [part for part in fused.modules() if type(part).__module__.startswith("timm_compat")]
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        own = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
        assert not own & {id(tensor) for tensor in fused.state_dict(keep_vars=True).values()}


class TestFused:
    @pytest.mark.parametrize("name", SOME)
    def test_timm_saves_and_loads_it(self, name: str, tmp_path: Path) -> None:
        model = trained(name, in_chans=1)
        fused = model.fuse()
        save_for_hf(fused, tmp_path / "plain", safe_serialization=True)
        loaded = timm.create_model(f"local-dir:{tmp_path / 'plain'}", pretrained=True).eval()
        assert loaded.num_classes == 3
        assert_same_logits(model, loaded, images(model))
        assert timm.data.resolve_model_data_config(loaded)["input_size"] == (1, SIZE, SIZE)
        assert loaded.pretrained_cfg["label_names"] == list(CLASSES)

    def test_its_description_is_json_and_names_the_classes(self) -> None:
        config = json.loads(json.dumps(trained("test_resnet").fuse().pretrained_cfg))
        assert config["label_names"] == list(CLASSES)
        assert config["num_classes"] == 3
        assert config["architecture"] == "test_resnet"
        assert not [key for key in ("url", "file", "hf_hub_id", "state_dict") if config.get(key)]

    @pytest.mark.parametrize("normalization", ["batch", "none"])
    def test_without_or_with_statistics(self, normalization: str) -> None:
        model = trained("test_resnet", space(normalization=normalization))
        assert_same_logits(model, model.fuse(), images(model))

    def test_ignores_the_heads_dropout(self) -> None:
        model = trained("test_resnet", head={"drop_rate": 0.9})
        assert_same_logits(model, model.fuse(), images(model))

    @pytest.mark.parametrize("modes", [(True, True), (True, False), (False, True), (False, False)])
    def test_leaves_every_mode_as_it_was(self, modes: tuple[bool, bool]) -> None:
        model = trained("test_resnet")
        model.extractor.train(modes[0])
        model.head.train(modes[1])
        fused = model.fuse()
        assert (model.extractor.backbone.training, model.head.classifier.training) == modes
        assert_same_logits(model.eval(), fused, images(model))

    @pytest.mark.parametrize("trainable", ["full", "adapter"])
    def test_trains_further(self, trainable: str) -> None:
        fused = trained("test_resnet", trainable=trainable).fuse().train()
        fused(torch.randn(4, 3, SIZE, SIZE)).square().sum().backward()
        assert fused.get_classifier().weight.grad.abs().sum() > 0

    def test_holds_a_joined_interface(self) -> None:
        model = trained("test_resnet")
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(D, model.extractor.backbone.num_features, generator=generator)
        bias = torch.randn(D, generator=generator)
        model.extractor.interface.set_linear(weight, bias)
        with torch.no_grad():
            pooled = model.extractor.backbone(images(model))
            torch.testing.assert_close(model.extractor(images(model)), pooled @ weight.T + bias, atol=1e-4, rtol=1e-4)
        assert_same_logits(model, model.fuse(), images(model))


class TestNotFusable:
    @pytest.mark.parametrize("name", NOT_FOLDABLE)
    def test_names_the_classifier(self, name: str) -> None:
        settings, reason = NOT_FOLDABLE[name]
        model = trained(name, **settings)
        with torch.no_grad():
            assert model(images(model)).shape == (4, 3)
        with pytest.raises(tc.errors.FuseError, match=f"{name}:? {reason}.*keep.* composed"):
            model.fuse()

    @pytest.mark.parametrize(
        ("settings", "head", "reason"),
        [
            ({}, {"depth": 2}, r"the head has depth 2, only a linear one \(depth 1\) folds"),
            ({}, {"depth": 3}, "the head has depth 3, only a linear one .* folds"),
            ({"normalization": "layer"}, {}, r'the interface normalises each sample \("layer"\), which is not linear'),
            ({"level": "map"}, {}, 'a space of level "map" has its interface before the pooling'),
        ],
    )
    def test_names_the_part(self, settings: dict[str, Any], head: dict[str, Any], reason: str) -> None:
        model = trained("test_resnet", space(**settings), head=head)
        with pytest.raises(tc.errors.FuseError, match=f"{reason}; keep .*composed"):
            model.fuse()

    def test_leaves_the_model_as_it_was(self) -> None:
        model = trained("volo_d1_224").train()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(tc.errors.FuseError):
            model.fuse()
        assert all(module.training for module in model.modules())
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def exported(model: nn.Module) -> nn.Module:
    example = images(model) if isinstance(model, tc.CompatModel) else torch.randn(4, 3, SIZE, SIZE)
    batch = torch.export.Dim("batch", min=1, max=64)
    return torch.export.export(model, (example,), dynamic_shapes=({0: batch},)).module()


class TestExport:
    @pytest.mark.parametrize("name", ALL_SLOWLY)
    def test_composed_and_fused(self, name: str) -> None:
        model = trained(name)
        inputs = images(model, batch=7)
        for plain in (model, model.fuse()):
            assert_same_logits(model, exported(plain), inputs)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", NAMES)
    def test_at_level_map_with_a_deeper_head(self, name: str) -> None:
        model = trained(name, space(level="map"), head={"depth": 2})
        assert_same_logits(model, exported(model), images(model, batch=7))

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        model = trained("test_resnet")
        torch.export.save(torch.export.export(model, (images(model),)), tmp_path / "model.pt2")
        assert_same_logits(model, torch.export.load(tmp_path / "model.pt2").module(), images(model))


@pytest.mark.slow
class TestCompile:
    @pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
    def test_as_one_graph(self, name: str) -> None:
        torch.compiler.reset()
        model = trained(name)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert_same_logits(model, compiled, images(model))
