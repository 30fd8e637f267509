"""Joining a frozen backbone to a space in closed form."""

import copy

import pytest
import torch

import timm_compat as tc


@pytest.fixture
def space() -> tc.CompatSpace:
    return tc.CompatSpace(16, [str(digit) for digit in range(10)], ["common_classes"]).finalize()


@pytest.fixture
def reference(space: tc.CompatSpace) -> tc.CompatExtractor:
    torch.manual_seed(0)
    extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=16)
    extractor.train()
    for _ in range(20):  # running statistics that mean something
        extractor(extractor.preprocess(tc.load_digits("train").subset(range(128)).images))
    return extractor.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return tc.load_digits("train").subset(range(300)).images


class TestJoin:
    def test_own_backbone_gives_the_reference_features(self, space, reference, images) -> None:
        joined = tc.join(space, reference.backbone.model, images, reference=reference, img_size=16)
        test = tc.load_digits("test")
        torch.testing.assert_close(
            tc.extract_features(joined, test), tc.extract_features(reference, test), rtol=0, atol=0.05
        )
        assert joined.fit_report.r2 > 0.999
        assert joined.fit_report.num_images == 300

    def test_result_is_frozen_ready_and_composable(self, space, reference, images) -> None:
        joined = tc.join(space, "test_efficientnet", images, reference=reference, in_chans=1, img_size=16)
        assert not joined.training
        assert joined.trainable == "adapter"
        assert not any(parameter.requires_grad for parameter in joined.backbone.parameters())
        logits = tc.compose(joined, tc.TaskHead(space, ["p", "q"]))(joined.preprocess(images[:4]))
        assert logits.shape == (4, 2)

    @pytest.mark.filterwarnings("ignore:join")
    def test_forms_of_images_give_one_result(self, space, reference, images) -> None:
        dataset = tc.load_digits("train").subset(range(300))
        backbone = tc.create_extractor("test_efficientnet", space, in_chans=1, img_size=16).backbone.model
        joined = [
            tc.join(space, backbone, form, reference=reference, img_size=16, batch_size=size)
            for form, size in [(images, 256), (images, 7), (dataset, 64), (images.split(50), 1)]
        ]
        features = [tc.extract_features(extractor, images) for extractor in joined]
        for other in features[1:]:
            torch.testing.assert_close(other, features[0], rtol=0, atol=0.01)

    def test_leaves_reference_and_callers_model_alone(self, space, reference, images) -> None:
        model = tc.create_extractor("test_efficientnet", space, in_chans=1, img_size=16).backbone.model.train()
        before = copy.deepcopy(model.state_dict()), reference.digest()
        tc.join(space, model, images, reference=reference, img_size=16)
        assert all(torch.equal(tensor, before[0][name]) for name, tensor in model.state_dict().items())
        assert reference.digest() == before[1]
        assert model.training

    @pytest.mark.parametrize("normalization", ["none", "layer"])
    def test_other_normalisations(self, normalization, images) -> None:
        space = tc.CompatSpace(16, ["x"], ["common_classes"], normalization=normalization).finalize()
        torch.manual_seed(0)
        reference = tc.create_extractor("test_resnet", space, in_chans=1, img_size=16).eval()
        joined = tc.join(space, reference.backbone.model, images, reference=reference, img_size=16)
        ours, theirs = tc.extract_features(joined, images), tc.extract_features(reference, images)
        assert torch.nn.functional.cosine_similarity(ours, theirs).mean() > 0.99

    def test_warns_where_the_fit_is_poor(self, space, reference) -> None:
        noise = torch.randint(256, (40, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        with pytest.warns(UserWarning, match="held-out images"):
            tc.join(space, "test_vit", noise, reference=reference, in_chans=1, img_size=16)

    def test_survives_saving(self, space, reference, images, tmp_path) -> None:
        joined = tc.join(space, reference.backbone.model, images, reference=reference, img_size=16)
        joined.save_pretrained(tmp_path / "joined")
        loaded = tc.CompatExtractor.from_pretrained(tmp_path / "joined")
        assert torch.equal(tc.extract_features(loaded, images), tc.extract_features(joined, images))

    def test_bad_input(self, space, reference, images) -> None:
        other = tc.CompatSpace(16, ["x"], ["rotation"]).finalize()
        with pytest.raises(tc.SpaceMismatchError, match="reference extractor"):
            tc.join(other, "test_resnet", images, reference=reference)
        with pytest.raises(tc.DataError, match="unlabelled images"):
            tc.join(space, "test_resnet", images[:5], reference=reference, in_chans=1, img_size=16)
        with pytest.raises(tc.DataError, match="at least one"):
            tc.join(space, "test_resnet", images[:0], reference=reference, in_chans=1, img_size=16)
        with pytest.raises(tc.ImageError, match="expected shape"):
            tc.join(space, "test_resnet", images, reference=reference, img_size=16)
        with pytest.raises(tc.BackboneError, match="did you mean"):
            tc.join(space, "test_resnt", images, reference=reference)
        maps = tc.CompatSpace(16, ["x"], ["rotation"], level="map").finalize()
        with pytest.raises(tc.ConfigError, match="pooled"):
            tc.join(maps, "test_resnet", images, reference=tc.create_extractor("test_resnet", maps))
