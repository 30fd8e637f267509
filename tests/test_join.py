"""Joining a frozen backbone to a space in closed form."""

import copy
import warnings

import pytest
import timm
import torch
from PIL import Image
from sklearn.metrics import r2_score

import timm_compat as tc
from timm_compat.data.image_files import load_images
from timm_compat.evaluation.intervals import wilson_interval
from timm_compat.evaluation.scores import linear_cka

# Backbones with random weights explain little.
POOR_FIT = pytest.mark.filterwarnings("ignore:join")


@pytest.fixture(scope="module")
def space() -> tc.CompatSpace:
    return tc.CompatSpace(16, [str(digit) for digit in range(10)], ["common_classes"]).finalize()


@pytest.fixture(scope="module")
def reference(space: tc.CompatSpace) -> tc.CompatExtractor:
    torch.manual_seed(0)
    extractor = tc.create_extractor("test_resnet", space, in_chans=1, img_size=16)
    extractor.train()
    for _ in range(80):  # running statistics that are those of digits
        extractor(extractor.preprocess(tc.data.load_digits("train").subset(range(128)).images))
    return extractor.eval()


@pytest.fixture
def head(space: tc.CompatSpace) -> tc.TaskHead:
    torch.manual_seed(0)
    head = tc.TaskHead(space, [str(digit) for digit in range(10)])
    torch.nn.init.normal_(head.classifier.weight)
    return head.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return tc.data.load_digits("train").subset(range(300)).images


class TestJoin:
    def test_own_backbone_gives_the_reference_features(self, space, reference, images) -> None:
        joined = tc.join(space, reference.backbone.model, images, reference=reference, img_size=16)
        test = tc.data.load_digits("test")
        torch.testing.assert_close(
            tc.extract_features(joined, test), tc.extract_features(reference, test), rtol=0, atol=0.05
        )
        assert joined.fit_report.r2 > 0.999
        assert joined.fit_report.num_images == 300

    @POOR_FIT
    def test_result_is_frozen_ready_and_composable(self, space, reference, images) -> None:
        joined = tc.join(space, "test_efficientnet", images, reference=reference, in_chans=1, img_size=16)
        assert not joined.training
        assert joined.trainable == "adapter"
        assert not any(parameter.requires_grad for parameter in joined.backbone.parameters())
        logits = tc.compose(joined, tc.TaskHead(space, ["p", "q"]))(joined.preprocess(images[:4]))
        assert logits.shape == (4, 2)

    @POOR_FIT
    def test_forms_of_images_give_one_result(self, space, reference, images) -> None:
        dataset = tc.data.load_digits("train").subset(range(300))
        backbone = tc.create_extractor("test_efficientnet", space, in_chans=1, img_size=16).backbone.model
        joined = [
            tc.join(space, backbone, form, reference=reference, img_size=16, batch_size=size)
            for form, size in [(images, 256), (images, 7), (dataset, 64), (images.split(50), 1)]
        ]
        features = [tc.extract_features(extractor, images) for extractor in joined]
        for other in features[1:]:
            torch.testing.assert_close(other, features[0], rtol=0, atol=0.01)

    @POOR_FIT
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
        bare = tc.CompatSpace.from_config(space.to_config())  # without its classes, whose agreement says more
        with pytest.warns(UserWarning, match="of the reference features' variance on held-out images"):
            tc.join(bare, "test_vit", noise, reference=reference, in_chans=1, img_size=16)

    def test_warns_of_a_small_pool(self, space, reference, images) -> None:
        with pytest.warns(UserWarning, match="only 50 images"):
            joined = tc.join(space, reference.backbone.model, images[:50], reference=reference, img_size=16)
        assert "a backbone with its classifier" in joined.fit_report.advice

    def test_tells_how_far_the_images_are_from_those_of_the_reference(self, space, reference, images) -> None:
        options = {"reference": reference, "img_size": 16}
        backbone = reference.backbone.model
        near = tc.join(space, backbone, images, **options).fit_report.shift
        features = tc.extract_features(reference, images)
        by_hand = features.mean(0).square().sum() / features.var(0, correction=0).sum()
        assert near == pytest.approx(by_hand.item(), rel=1e-3)
        assert near < 0.05
        with pytest.warns(UserWarning, match="unlike those that the reference learned from"):
            far = tc.join(space, backbone, 255 - images, **options).fit_report.shift
        assert far > 3 * near

    def test_warns_where_heads_disagree(self, space, reference, head, images, monkeypatch) -> None:
        monkeypatch.setattr("timm_compat.joining.report.LOW_AGREEMENT", 0.999)
        with pytest.warns(UserWarning, match="makes the heads predict"):
            tc.join(space, "test_vit", images, reference=reference, heads=[head], in_chans=1, img_size=16)

    @POOR_FIT
    def test_report_equals_measuring_by_hand(self, reference, space, head, images) -> None:
        torch.manual_seed(1)
        backbone = tc.create_extractor("test_efficientnet", space, in_chans=1, img_size=16).backbone.model
        options = {"reference": reference, "heads": [head], "img_size": 16}
        report = tc.join(space, backbone, images, **options).fit_report
        held_out = torch.arange(300) % 5 == 4
        trial = tc.join(space, backbone, images[~held_out], **options)
        ours, theirs = tc.extract_features(trial, images[held_out]), tc.extract_features(reference, images[held_out])
        assert report.r2 == pytest.approx(r2_score(theirs, ours, multioutput="variance_weighted"), abs=1e-3)
        assert report.cka == pytest.approx(linear_cka(ours, theirs), abs=1e-3)
        same = (head(ours).argmax(1) == head(theirs).argmax(1)).float().mean().item()
        assert report.agreement == pytest.approx(same, abs=1e-2)
        (measured,) = report.agreements.values()
        low, high = wilson_interval(measured.share, 60)
        assert measured.high == high
        assert low - 0.1 < measured.low < low - 0.01  # heads flatter photos that they learned from
        assert report.rests_on == "300 unlabelled images"
        assert report.seconds > 0

    @pytest.mark.parametrize(
        ("training", "optimism"),
        [
            ({"training_accuracy": 1, "cross_validation_accuracy": 0.6}, 0.4),
            ({"training_accuracy": 1.0, "cross_validation_accuracy": "0.6"}, 0),
            ({"training_accuracy": 7.0, "cross_validation_accuracy": float("nan")}, 0),
            ({"training_accuracy": True, "cross_validation_accuracy": 0.1}, 0),
            ({}, 0),
        ],
    )
    @POOR_FIT
    def test_states_less_where_a_head_knows_its_images_by_heart(
        self, reference, space, head, images, training, optimism
    ) -> None:
        head.facts = tc.Facts(training=training)
        report = tc.join(space, reference.backbone.model, images, reference=reference, heads=[head], img_size=16)
        (measured,) = report.fit_report.agreements.values()
        low, _ = wilson_interval(measured.share, 60)
        assert measured.low == pytest.approx(low - max(0.04, optimism * measured.share))

    def test_without_heads_there_is_no_agreement(self, reference, space, images) -> None:
        bare = tc.CompatSpace.from_config(space.to_config())  # as it comes with an extractor: without its classes
        report = tc.join(bare, reference.backbone.model, images, reference=reference, img_size=16).fit_report
        assert report.agreement is None
        assert report.cka > 0.99

    def test_heads_stay_as_they_are(self, space, reference, head, images) -> None:
        before = copy.deepcopy(head.state_dict())
        head.train()
        backbone = reference.backbone.model
        joined, plain = (
            tc.join(space, backbone, images, reference=reference, heads=heads, img_size=16) for heads in ([head], [])
        )
        assert joined.fit_report.agreement > 0.9
        assert joined.digest() == plain.digest()  # they inform the report only
        assert head.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())
        assert all(parameter.grad is None for parameter in head.parameters())

    def test_image_files_are_decoded_on_the_way(self, space, reference, images, tmp_path) -> None:
        for number, image in enumerate(images[:120]):
            Image.fromarray(image[0].numpy()).save(tmp_path / f"{number:03}.png")
        files = load_images(tmp_path)
        options = {"reference": reference, "img_size": 16, "batch_size": 50}
        from_files = tc.join(space, reference.backbone.model, files, **options)
        assert from_files.data_config["crop_pct"] != reference.data_config["crop_pct"]
        from_tensor = tc.join(space, reference.backbone.model, images[:120], **options)
        torch.testing.assert_close(
            tc.extract_features(from_files, images), tc.extract_features(from_tensor, images), rtol=0, atol=0.01
        )
        assert from_files.fit_report.num_images == 120

    def test_survives_saving(self, space, reference, images, tmp_path) -> None:
        joined = tc.join(space, reference.backbone.model, images, reference=reference, img_size=16)
        joined.save_pretrained(tmp_path / "joined")
        loaded = tc.CompatExtractor.from_pretrained(tmp_path / "joined")
        assert torch.equal(tc.extract_features(loaded, images), tc.extract_features(joined, images))

    def test_says_where_the_classes_mislead(self) -> None:
        # One backbone, whose classifier says "a" to what the space calls "j": only images tell the truth.
        names, pool = list("abcdefghij"), torch.randint(0, 256, (120, 3, 64, 64), dtype=torch.uint8)
        pool[:, :, :, :] = pool[:, :, ::16, ::16].repeat_interleave(16, 2).repeat_interleave(16, 3)
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=10)
        extractor, head = tc.split(model, class_names=names, images=pool, img_size=64)
        arguments = {"reference": extractor, "heads": [head], "img_size": 64}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            misled = tc.join(extractor.space, model, pool, class_names=names[::-1], **arguments)
            freed = tc.join(extractor.space, model, pool, class_names=names[::-1], classes=False, **arguments)
        (share,) = misled.fit_report.without_classes.values()
        assert share.share > misled.fit_report.agreement + 0.1
        assert f"agree on {share.share:.0%}" in misled.fit_report.advice
        assert "classes=False, --no-classes" in misled.fit_report.advice
        assert freed.fit_report.num_common_classes == 0
        assert freed.fit_report.agreement > misled.fit_report.agreement + 0.1
        assert freed.fit_report.without_classes == {}
        assert "classifier" not in freed.fit_report.advice, "whoever switched classes off is not asked for them"
        with pytest.raises(tc.errors.ConfigError, match=r"join: expected images, .*classes=False"):
            tc.join(extractor.space, model, class_names=names, classes=False)

    def test_images_that_a_space_was_standardised_by_do_not_move_its_centre(self) -> None:
        train, test = (tc.data.load_digits(part) for part in ("train", "test"))
        prepare = tc.create_extractor("test_resnet", tc.CompatSpace(1), in_chans=1, img_size=32).preprocess
        torch.manual_seed(0)
        network = timm.create_model("test_resnet", num_classes=10, in_chans=1).train()
        for _ in range(40):  # running statistics that are those of digits
            network(prepare(train.images[:64]))
        dark = (train.images[:100].float() / 10).to(torch.uint8)
        reference, head = tc.split(network.eval(), images=dark, class_names=train.class_names, img_size=32)
        given = {"reference": reference, "class_names": train.class_names, "img_size": 32}
        joined = tc.join(reference.space, network, dark[:30], **given)
        said, wanted = (head(tc.extract_features(one, test)).argmax(dim=1) for one in (joined, reference))
        assert (said == wanted).float().mean() > 0.95

    def test_bad_input(self, space, reference, images) -> None:
        other = tc.CompatSpace(16, ["x"], ["rotation"]).finalize()
        with pytest.raises(tc.errors.SpaceMismatchError, match="reference extractor"):
            tc.join(other, "test_resnet", images, reference=reference)
        with pytest.raises(tc.errors.SpaceMismatchError, match="the head over p, q"):
            tc.join(space, "test_resnet", images, reference=reference, heads=[tc.TaskHead(other, ["p", "q"])])
        with pytest.raises(tc.errors.DataError, match="at least 10 images"):
            tc.join(space, "test_resnet", images[:5], reference=reference, in_chans=1, img_size=16)
        with pytest.raises(tc.errors.DataError, match="at least one"):
            tc.join(space, "test_resnet", images[:0], reference=reference, in_chans=1, img_size=16)
        with pytest.raises(tc.errors.ImageError, match="expected shape"):
            tc.join(space, "test_resnet", images, reference=reference, img_size=16)
        with pytest.raises(tc.errors.BackboneError, match="did you mean"):
            tc.join(space, "test_resnt", images, reference=reference)
        maps = tc.CompatSpace(16, ["x"], ["rotation"], level="map").finalize()
        with pytest.raises(tc.errors.ConfigError, match="pooled"):
            tc.join(maps, "test_resnet", images, reference=tc.create_extractor("test_resnet", maps))
        with pytest.raises(tc.errors.ConfigError, match="images need a reference"):
            tc.join(space, "test_resnet", images, in_chans=1, img_size=16)
        with pytest.raises(tc.errors.ConfigError, match="no trained classifier"):
            tc.join(space, "test_resnet", in_chans=1, img_size=16)
        with pytest.raises(tc.errors.ConfigError, match="expected a trained model"):
            tc.join(space, "test_resnet", class_names=["0", "1"], in_chans=1, img_size=16)
