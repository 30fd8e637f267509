"""One function of the pixels: whatever reads an image, from a file or an array, gives the network the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor

import timm_compat as tc
from timm_compat.data import load_dataset
from timm_compat.data.augmentation import Augmenter, draw
from timm_compat.data.raw_batches import raw_batches
from timm_compat.data.streams import BatchStream, ImageStream
from timm_compat.data.transforms import evaluation_transform, training_transform
from timm_compat.experiments.predict import open_classifier, predict
from timm_compat.training.feature_cache import Wanted, compute_features

SIZE = 32


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth and colourful."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> Tensor:
    """(1, C, H, W), uint8."""
    array = np.array(image)
    return torch.as_tensor(array).reshape(1, *array.shape[:2], -1).permute(0, 3, 1, 2)


def make(**settings: Any) -> tc.CompatExtractor:
    space = tc.CompatSpace(8, ("a", "b"), ("common_classes",)).finalize()
    return tc.create_extractor("test_resnet", space, **{"img_size": SIZE, **settings}).eval()


def configured(**changed: Any) -> tc.CompatExtractor:
    """An extractor with other preprocessing than its own."""
    extractor = make()
    extractor.backbone.set_data_config({**extractor.data_config, **changed})
    return tc.CompatExtractor(extractor.backbone, extractor.space)


def write_classes(root: Path, images: list[Image.Image]) -> Path:
    for number, image in enumerate(images):
        for name in ("a", "b"):
            (root / name).mkdir(parents=True, exist_ok=True)
            image.save(root / name / f"{number}.png")
    return root


class TestDecoding:
    @pytest.fixture
    def ramp(self, tmp_path: Path) -> Path:
        """The same ramp as a PNG of 8 bits, and of 16 bits in three formats."""
        steps = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) // 4
        (tmp_path / "a").mkdir()
        Image.fromarray(steps.astype(np.uint8)).save(tmp_path / "a" / "0.png")
        for name in ("1.png", "2.tif", "3.pgm"):
            Image.fromarray(steps * 256 + 17).save(tmp_path / "a" / name)
        return tmp_path

    def test_of_16_bits_is_the_same_in_training_evaluation_and_predictions(self, ramp: Path, tmp_path: Path) -> None:
        extractor = make(in_chans=1)
        dataset = load_dataset("folder", ramp, in_chans=1)
        assert len({image.tobytes() for image, _ in dataset}) == 1
        features = tc.extract_features(extractor, dataset)
        torch.testing.assert_close(features, features[:1].expand(4, -1))
        files = sorted((ramp / "a").iterdir())
        opened = torch.stack([extractor.transform()(Image.open(file)) for file in files])
        torch.testing.assert_close(extractor(opened), features)
        head = tc.TaskHead(extractor.space, ("a", "b"))
        torch.nn.init.normal_(head.classifier.weight)
        model = tc.compose(extractor, head)
        model.save_pretrained(tmp_path / "model")
        found = list(predict(open_classifier(str(tmp_path / "model")), files))
        shares = model.eval().head(features).softmax(dim=1)
        for prediction, expected in zip(found, shares, strict=True):
            (answers,) = prediction.heads.values()
            assert [share for _, share in answers] == pytest.approx(sorted(expected.tolist(), reverse=True))

    @pytest.mark.parametrize("dtype", [np.int32, np.float32])
    def test_of_an_unknown_range_is_refused_everywhere(self, tmp_path: Path, dtype: type) -> None:
        file = tmp_path / "set" / "a" / "0.tif"
        file.parent.mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 70_000, dtype)).save(file)
        extractor = make()
        tc.compose(extractor, tc.TaskHead(extractor.space, ("a", "b"))).save_pretrained(tmp_path / "model")
        unknown = "whose range is not known"
        with pytest.raises(tc.errors.DataError, match=unknown):
            tc.extract_features(extractor, load_dataset("folder", tmp_path / "set"))
        with pytest.raises(tc.errors.DataError, match=unknown):
            list(predict(open_classifier(str(tmp_path / "model")), [file]))
        with pytest.raises(tc.errors.ImageError, match=unknown):
            extractor.transform()(Image.open(file))


class TestFraming:
    @pytest.mark.parametrize("shape", [(80, 80), (SIZE, SIZE), (40, 70), (70, 25), (20, 20)])
    @pytest.mark.parametrize("mode", ["center", "squash", "border"])
    @pytest.mark.parametrize("size", [(SIZE, SIZE), (24, 40)])
    def test_of_arrays_is_timm_s_of_files(self, shape: tuple[int, int], mode: str, size: tuple[int, int]) -> None:
        channels = (3, *size)
        # Of two pixels that are equally near, Pillow and torch may take another one.
        for interpolation, levels, mean in (("bilinear", 2.01, 0.5), ("bicubic", 2.01, 0.5), ("nearest", 255, 3)):
            extractor = configured(crop_pct=0.875, crop_mode=mode, interpolation=interpolation, input_size=channels)
            image = photograph(*shape)
            expected = extractor.transform()(image)
            for raw in (pixels(image), pixels(image) / 255):
                difference = (extractor.preprocess(raw)[0] - expected) * extractor.preprocess.std * 255
                assert difference.abs().max() <= levels
                assert difference.abs().mean() <= mean

    def test_features_of_the_same_pixels_agree(self, tmp_path: Path) -> None:
        images = [photograph(80, 80), photograph(80, 80, seed=1)]
        files = load_dataset("folder", write_classes(tmp_path, images))
        arrays = torch.cat([pixels(image) for image in images] * 2)
        extractor = configured(crop_pct=0.875)
        features = tc.extract_features(extractor, arrays)
        distance = (features - tc.extract_features(extractor, files)).norm() / features.norm()
        assert distance < 0.01
        loose = (features - tc.extract_features(configured(crop_pct=1.0), files)).norm() / features.norm()
        assert loose > 3 * distance  # the crop is seen at all

    def test_of_grey_images_in_a_border(self) -> None:
        extractor = make(in_chans=1)
        config = {**extractor.data_config, "crop_mode": "border", "mean": (0.3,), "crop_pct": 1.0}
        extractor.backbone.set_data_config(config)
        extractor = tc.CompatExtractor(extractor.backbone, extractor.space)
        image = photograph(40, 20).convert("L")
        close = {"atol": 2.01 / 255 / config["std"][0], "rtol": 0}
        torch.testing.assert_close(extractor.preprocess(pixels(image))[0], extractor.transform()(image), **close)

    def test_new_networks_see_the_whole_image_and_others_what_timm_says(self) -> None:
        assert make().data_config["crop_pct"] == 1.0
        timm_s = make(crop_pct=0.95)
        assert timm_s.data_config["crop_pct"] == 0.95
        adopted = tc.create_extractor(make().backbone.model, tc.CompatSpace(8, methods=("rotation",)))
        assert adopted.data_config["crop_pct"] == adopted.pretrained_cfg["crop_pct"] != 1.0
        for wrong in (0, 1.5, True, "all"):
            with pytest.raises(tc.errors.ConfigError, match="crop_pct: expected a number over 0 and at most 1"):
                make(crop_pct=wrong)

    def test_is_kept_in_files(self, tmp_path: Path) -> None:
        extractor = make(crop_pct=0.9)
        extractor.save_pretrained(tmp_path / "extractor")
        loaded = tc.CompatExtractor.from_pretrained(tmp_path / "extractor")
        assert loaded.data_config == extractor.data_config
        raw = pixels(photograph(50, 60))
        assert torch.equal(loaded.preprocess(raw), extractor.preprocess(raw))

    def test_is_known_to_a_fused_model(self) -> None:
        extractor = make(crop_pct=0.9)
        plain = tc.compose(extractor, tc.TaskHead(extractor.space, ("a", "b"))).fuse()
        assert resolve_model_data_config(plain) == extractor.data_config

    def test_without_a_filter_of_torch_is_refused(self) -> None:
        extractor = configured(interpolation="lanczos")
        assert extractor.transform()(photograph(50, 50)).shape == (3, SIZE, SIZE)
        with pytest.raises(tc.errors.ImageError, match=r"interpolation nearest, bilinear, bicubic .*'lanczos'"):
            extractor.preprocess(pixels(photograph(50, 50)))

    @pytest.mark.parametrize(
        "raw", [torch.rand(2, 3, 8, 8) * 255, torch.randn(2, 3, 8, 8) * 3, torch.full((1, 3, 8, 8), float("nan"))]
    )
    def test_refuses_floating_point_that_is_not_from_0_to_1(self, raw: Tensor) -> None:
        with pytest.raises(tc.errors.ImageError, match=r"floating point from 0 to 1, got .*divide by 255"):
            make().preprocess(raw)
        with pytest.raises(tc.errors.ImageError, match="divide by 255"):
            tc.extract_features(make(), raw)


SETTINGS = [
    {"hflip": 0.5},
    {"random_crop": 4},
    {"scale": (0.2, 0.6)},
    {"color_jitter": 0.5},
    {"hflip": 0.5, "random_crop": 4, "scale": (0.2, 1.0), "color_jitter": 0.4},
]


class TestAugmentation:
    def streams(self, folder: Path, setting: dict[str, Any]) -> list[Any]:
        image = photograph(40, 40)
        files = load_dataset("folder", write_classes(folder, [image]))
        arrays = tc.data.ArrayDataset(pixels(image).expand(2, -1, -1, -1), torch.tensor([0, 1]), ("a", "b"))
        config, augmentation = make().data_config, tc.TrainConfig(**setting)
        return [
            BatchStream(arrays, 2, 0, "m", augmentation=augmentation, data_configs={"n": config}),
            ImageStream(files, 2, 0, "m", transforms={"n": training_transform(config, augmentation)}),
        ]

    @pytest.mark.parametrize("setting", SETTINGS)
    def test_acts_on_arrays_and_files_alike(self, setting: dict[str, Any], tmp_path: Path) -> None:
        steps = [
            [next(stream.batches(step, step + 1)).images["n"] for step in range(8)]
            for stream in self.streams(tmp_path, setting)
        ]
        counts = [len({image.numpy().tobytes() for batch in made for image in batch}) for made in steps]
        assert all(image.shape == (2, 3, SIZE, SIZE) for made in steps for image in made)
        assert counts == [2, 2] if setting == {"hflip": 0.5} else min(counts) > 5

    def test_is_off_by_default_for_both(self, tmp_path: Path) -> None:
        arrays, files = (next(stream.batches(0, 1)).images["n"] for stream in self.streams(tmp_path, {}))
        assert (arrays.int() - files.int()).abs().max() <= 1
        assert torch.equal(files[0], files[1])

    def test_the_same_draws_change_the_same_pixels(self) -> None:
        augmentation = tc.TrainConfig(random_crop=3, hflip=0.5, scale=(0.3, 1.0), color_jitter=0.4)
        augmenter = Augmenter(augmentation, make().data_config)
        draws = draw(augmentation, 6, torch.Generator().manual_seed(0))
        raw = pixels(photograph(40, 50)).expand(6, -1, -1, -1)
        together = augmenter(raw, draws)
        alone = [augmenter(raw[:1], draws.share(slice(number, number + 1))) for number in range(6)]
        assert torch.equal(together, torch.cat(alone))

    @pytest.mark.parametrize("kind", ["arrays", "files"])
    def test_is_a_setting_of_training(self, kind: str, tmp_path: Path) -> None:
        images = [photograph(40, 40, seed) for seed in range(4)]
        dataset: Any = load_dataset("folder", write_classes(tmp_path, images))
        if kind == "arrays":
            stacked = torch.cat([pixels(image) for image, _ in dataset])
            dataset = tc.data.ArrayDataset(stacked, dataset.labels, dataset.class_names)

        def weights(**setting: Any) -> Tensor:
            torch.manual_seed(0)
            space = tc.CompatSpace(8, ("a", "b"), ("common_classes",))
            extractor = tc.create_extractor("test_resnet", space, img_size=SIZE)
            member = tc.Member("m", extractor, tc.TaskHead(space, ("a", "b")), dataset)
            tc.fit(space, [member], tc.TrainConfig(epochs=1, batch_size=8, **setting))
            return torch.cat([parameter.detach().flatten() for parameter in extractor.parameters()])

        plain = weights()
        assert torch.equal(plain, weights(hflip=0.0))
        for setting in ({"hflip": 0.5}, {"random_crop": 3}, {"scale": (0.3, 1)}, {"color_jitter": 0.4}):
            assert not torch.equal(plain, weights(**setting))

    @pytest.mark.parametrize(
        "setting",
        [
            {"scale": 0.5},
            {"scale": ()},
            {"scale": 0},
            {"scale": (0, 1)},
            {"scale": (0.5, 2)},
            {"scale": (1, 0.5)},
            {"ratio": None},
            {"ratio": ("a", 1)},
        ],
    )
    def test_refuses_what_is_out_of_range(self, setting: dict[str, Any]) -> None:
        with pytest.raises(tc.errors.ConfigError, match="expected least and most, two numbers over 0"):
            tc.TrainConfig(**setting)
        with pytest.raises(tc.errors.ConfigError, match="color_jitter"):
            tc.TrainConfig(color_jitter=-1)


def test_networks_that_share_a_pass_over_files_each_see_their_own_framing(tmp_path: Path) -> None:
    images = [photograph(50, 70, seed) for seed in range(3)]
    files = load_dataset("folder", write_classes(tmp_path, images))
    configs = [make(crop_pct=share, img_size=size).data_config for share, size in ((1.0, 32), (0.8, 32), (1.0, 64))]
    transforms = [evaluation_transform(config) for config in configs]
    batches = [batch.views for batch in raw_batches(files, 4, transforms)]
    assert [len(batch) for batch, _, _ in batches] == [4, 2]
    for number, transform in enumerate(transforms):
        alone = torch.cat([batch.views[0] for batch in raw_batches(files, 6, [transform])])
        assert torch.equal(torch.cat([batch[number] for batch in batches]), alone)
    extractors = [make(crop_pct=0.8), make(crop_pct=1.0, img_size=64)]
    wanted = {str(number): Wanted(extractor, whole=True) for number, extractor in enumerate(extractors)}
    for features, extractor in zip(compute_features(files, wanted).values(), extractors, strict=True):
        torch.testing.assert_close(features[:, 0], tc.extract_features(extractor, files))
