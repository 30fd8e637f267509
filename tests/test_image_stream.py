"""Images decoded when asked for: sets of files, the batches drawn from them, and the pixels that a network gets."""

import logging
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import timm_compat as tc
from timm_compat.data import ImageDataset, load_dataset
from timm_compat.data.raw_batches import raw_batches
from timm_compat.data.streams import ImageStream
from timm_compat.data.transforms import evaluation_transform, training_transform

CONFIG = {
    "input_size": (3, 16, 16),
    "interpolation": "bilinear",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "crop_pct": 1.0,
    "crop_mode": "center",
}
AUGMENTED = tc.TrainConfig(random_crop=2, hflip=0.5, scale=(0.08, 1), color_jitter=0.4)
GREY = {**CONFIG, "input_size": (1, 16, 16), "mean": (0.5,), "std": (0.5,)}

# Python 3.12 and later warn of a fork of a process with threads, which a DataLoader's workers are.
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def write_folder(root: Path, count: int = 6, classes: tuple[str, ...] = ("a", "b")) -> Path:
    """``count`` PNG files of 20 x 24 in each class folder; the red of a file's pixels tells which one it is."""
    noise = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            pixels[..., 0] = 10 * (label * count + number)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def break_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images")


def load(folder: Path, **options) -> ImageDataset:
    dataset = load_dataset("folder", folder, **options)
    assert isinstance(dataset, ImageDataset)
    return dataset


class PlainStream(ImageStream):
    """A stream for one network."""

    def batches(self, first: int, last: int):
        return ((batch.images["n"], batch.labels) for batch in super().batches(first, last))

    def step_labels(self, step: int) -> torch.Tensor:
        return next(ImageStream.batches(self, step, step + 1)).step_labels


def stream(dataset: ImageDataset, batch_size: int = 4, seed: int = 0, name: str = "m", **options) -> ImageStream:
    transform = options.pop("transform", None) or training_transform(CONFIG, AUGMENTED)
    return PlainStream(dataset, batch_size, seed, name, transforms={"n": transform}, **options)


def numbers(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0] // 10).tolist()


class TestImageDataset:
    def test_reads_and_selects_as_sets_in_memory_do(self, folder: Path) -> None:
        dataset = load(folder)
        assert (len(dataset), dataset.class_names, dataset.labels.tolist()) == (12, ("a", "b"), [0] * 6 + [1] * 6)
        image, label = dataset[7]
        assert (image.size, image.mode, image.getpixel((0, 0))[0], label) == ((24, 20), "RGB", 70, 1)
        chosen = dataset.of_classes(["b"]).subset([1, 3])
        assert [chosen.open(index).getpixel((0, 0))[0] for index in range(2)] == [70, 90]
        assert (chosen.labels.tolist(), chosen.class_names) == ([0, 0], ("b",))
        halves = dataset.halves(torch.Generator().manual_seed(0))
        assert sorted(torch.cat([half.indices for half in halves]).tolist()) == list(range(12))
        with pytest.raises(tc.errors.DataError, match="got c"):
            dataset.of_classes(["c"])
        with pytest.raises(tc.errors.DataError, match="'a' several times"):
            dataset.of_classes(["a", "a"])
        assert len(list(dataset)) == 12

    def test_grey_and_colour(self, folder: Path) -> None:
        dataset = load(folder)
        assert dataset.with_channels(1).open(0).mode == "L"
        with pytest.raises(tc.errors.ConfigError, match=r"1 \(grey\) or 3"):
            dataset.with_channels(4)
        with pytest.raises(tc.errors.ConfigError, match="mode"):
            ImageDataset(dataset.source, dataset.indices, dataset.labels, dataset.class_names, "CMYK")

    def test_formats_and_palettes(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        picture = Image.new("RGB", (9, 8), (200, 30, 30))
        picture.save(tmp_path / "a" / "0.jpg")
        picture.convert("P").save(tmp_path / "a" / "1.png", transparency=b"\x00\x80")
        picture.convert("LA").save(tmp_path / "a" / "2.png")
        picture.convert("CMYK").save(tmp_path / "a" / "3.jpg")
        assert {image.mode for image, _ in load(tmp_path)} == {"RGB"}

    def test_of_16_bits_keep_their_upper_half_and_unknown_ranges_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        ramp = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096
        Image.fromarray(ramp).save(tmp_path / "a" / "0.png")
        Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "a" / "1.tiff")
        dataset = load(tmp_path, in_chans=1)
        assert np.asarray(dataset.open(0)).ravel().tolist() == list(range(0, 256, 16))
        with pytest.raises(tc.errors.DataError, match=r"1\.tiff: .* mode F, whose range is not known"):
            dataset.open(1)

    @pytest.mark.parametrize(
        ("indices", "labels", "message"),
        [
            (torch.tensor([0, 12]), torch.zeros(2, dtype=torch.int64), "0 to 11, got 12"),
            (torch.tensor([0.0]), torch.zeros(1, dtype=torch.int64), "int64"),
            (torch.tensor([0]), torch.tensor([2]), "0 to 1, got 2"),
            (torch.tensor([0]), torch.tensor([0, 1]), "one per image"),
        ],
    )
    def test_refuses_what_does_not_fit(self, folder: Path, indices, labels, message: str) -> None:
        with pytest.raises(tc.errors.DataError, match=message):
            ImageDataset(load(folder).source, indices, labels, ("a", "b"))

    def test_digest_follows_the_images_and_their_order(self, folder: Path) -> None:
        dataset = load(folder)
        digest = dataset.digest()
        assert digest == load(folder).digest() == dataset.subset(range(12)).digest()
        others = [dataset.subset([1, 0]), dataset.subset([0, 1]), dataset.with_channels(1)]
        assert len({digest, *(other.digest() for other in others)}) == 4
        Image.new("RGB", (3, 3)).save(folder / "b" / "2.png")
        assert load(folder).digest() != digest

    def test_digest_of_what_is_no_file_is_that_of_the_pixels(self) -> None:
        def made(*greys: int) -> ImageDataset:
            return ImageDataset.from_source([(Image.new("L", (2, 2), grey), 0) for grey in greys], [0, 0], ["a"])

        assert made(1, 2).digest() == made(1, 2).digest() != made(1, 3).digest()


class TestCorruptImages:
    @pytest.mark.parametrize("damage", [b"", b"no image", None])
    def test_are_named(self, folder: Path, damage: bytes | None) -> None:
        path = folder / "b" / "1.png"
        if damage is None:
            break_file(path)
        else:
            path.write_bytes(damage)
        dataset = load(folder)
        with pytest.raises(tc.errors.DataError, match=r"b.1\.png: expected an image .* or set skip_corrupt"):
            dataset.read(7)
        assert dataset.read(6)[1] == 1

    def test_that_vanished_are_named(self, folder: Path) -> None:
        dataset = load(folder)
        (folder / "a" / "0.png").unlink()
        with pytest.raises(tc.errors.DataError, match=r"a.0\.png"):
            dataset.open(0)

    def test_are_skipped_within_their_class_when_asked(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        for name in ("4.png", "5.png"):
            break_file(folder / "a" / name)
        dataset = load(folder, skip_corrupt=True)
        with caplog.at_level(logging.WARNING):
            for index in (4, 5, 4):
                image, label = dataset.read(index)
                assert (image.getpixel((0, 0))[0], label) == (0, 0)
            dataset.subset([4, 0]).read(0)
        assert [record.getMessage().split(" ")[0][-5:] for record in caplog.records] == ["4.png", "5.png"]

    def test_all_of_a_class(self, folder: Path) -> None:
        for path in (folder / "a").iterdir():
            break_file(path)
        dataset = load(folder, skip_corrupt=True)
        with pytest.raises(tc.errors.DataError, match=r"class 'a': .* none among 6"):
            dataset.read(2)

    @forks
    @pytest.mark.parametrize("workers", [0, 2])
    def test_reach_the_caller_of_a_stream(self, folder: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
        break_file(folder / "b" / "1.png")
        with pytest.raises(
            tc.errors.DataError,
            match=r"^\S*1\.png: expected an image .* set skip_corrupt \(on the command line --skip-corrupt\)$",
        ):
            list(stream(load(folder), 12, workers=workers).batches(0, 1))
        with caplog.at_level(logging.WARNING):
            steps = list(stream(load(folder, skip_corrupt=True), 12, workers=workers).batches(0, 2))
        assert all(len(images) == 12 for images, _ in steps)
        assert len(caplog.records) == 1


class TestImageStream:
    def test_every_pass_sees_every_image_once(self, folder: Path) -> None:
        plain = evaluation_transform({**CONFIG, "input_size": (3, 20, 20)})
        seen = [
            number for images, _ in stream(load(folder), 5, transform=plain).batches(0, 5) for number in numbers(images)
        ]
        assert sorted(seen[:12]) == sorted(seen[12:24]) == list(range(12))
        assert seen[:12] != seen[12:24]

    @forks
    def test_is_the_same_for_any_workers_and_first_step(self, folder: Path) -> None:
        transform = training_transform(CONFIG, AUGMENTED)
        alone = list(stream(load(folder), transform=transform).batches(0, 5))
        helped = list(stream(load(folder), transform=transform, workers=2).batches(0, 5))
        later = list(stream(load(folder), transform=transform, workers=2).batches(3, 5))
        for one, other in [*zip(alone, helped, strict=True), *zip(alone[3:], later, strict=True)]:
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])
        assert alone[0][0].shape == (4, 3, 16, 16)
        assert alone[0][0].dtype == torch.uint8

    def test_processes_share_a_step_without_overlap(self, folder: Path) -> None:
        whole, labels = next(stream(load(folder), 6).batches(2, 3))
        parts = [next(stream(load(folder), 6, process=(rank, 2)).batches(2, 3)) for rank in range(2)]
        for rank, (images, own) in enumerate(parts):
            assert torch.equal(images, whole[rank::2])
            assert torch.equal(own, labels[rank::2])
        assert torch.equal(stream(load(folder), 6, process=(1, 2)).step_labels(2), labels)

    def test_augments_an_image_anew_in_every_pass(self, folder: Path) -> None:
        dataset = load(folder).subset([3])
        (first, _), (second, _) = stream(dataset, 1).batches(0, 2)
        assert not torch.equal(first, second)

    def test_names_and_seeds_keep_streams_apart(self, folder: Path) -> None:
        made = [stream(load(folder), 12, seed, name) for seed, name in [(0, "a"), (0, "b"), (1, "a")]]
        labels = [one.step_labels(0).tolist() for one in made]
        assert labels[0] != labels[1] != labels[2] != labels[0]

    @forks
    @pytest.mark.parametrize("workers", [0, 1])
    def test_leaves_random_states_alone(self, folder: Path, workers: int) -> None:
        def draw() -> tuple:
            return torch.rand(()).item(), random.random(), np.random.random()

        def states() -> tuple:
            return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

        draw()
        before = states()
        list(stream(load(folder), workers=workers).batches(0, 2))
        assert states() == before

    def test_no_steps(self, folder: Path) -> None:
        assert list(stream(load(folder)).batches(3, 3)) == []

    def test_refuses_what_it_cannot_serve(self, folder: Path) -> None:
        with pytest.raises(tc.errors.DataError, match="empty"):
            stream(load(folder).subset([]))
        with pytest.raises(tc.errors.ConfigError, match="at least one image per process"):
            stream(load(folder), 1, process=(0, 2))
        with pytest.raises(tc.errors.ConfigError, match="workers"):
            stream(load(folder), workers=-1)
        with pytest.raises(tc.errors.DataError, match=r"uint8, got .*float32"):
            next(stream(load(folder), transform=lambda image: torch.zeros(3, 4, 4)).batches(0, 1))
        with pytest.raises(tc.errors.DataError, match="got PngImageFile"):
            next(stream(load(folder), transform=lambda image: image).batches(0, 1))
        sizes = iter(range(1, 9))
        uneven = stream(load(folder), transform=lambda image: torch.zeros(3, 4, next(sizes), dtype=torch.uint8))
        with pytest.raises(tc.errors.DataError, match="one size"):
            next(uneven.batches(0, 1))


class TestTransforms:
    def test_give_the_network_s_size_and_channels(self, folder: Path) -> None:
        image = load(folder).open(0)
        for config in (CONFIG, GREY, {**CONFIG, "input_size": (3, 12, 30)}):
            for transform in (
                training_transform(config),
                training_transform(config, AUGMENTED),
                training_transform(config, tc.TrainConfig(hflip=0.5)),
                evaluation_transform(config),
            ):
                pixels = transform(image)
                assert tuple(pixels.shape) == config["input_size"]
                assert pixels.dtype == torch.uint8
                assert pickle.loads(pickle.dumps(transform)) is not None

    def test_only_what_is_asked_for_is_random(self, folder: Path) -> None:
        image = load(folder).open(0)
        plain = evaluation_transform(CONFIG)(image)
        assert torch.equal(training_transform(CONFIG)(image), plain)
        flipped = training_transform(CONFIG, tc.TrainConfig(hflip=0.5))
        seen = [flipped(image).int() for _ in range(20)]
        for expected in (plain, evaluation_transform(CONFIG)(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
            assert any((one - expected.int()).abs().max() <= 1 for one in seen)
        assert len({one.numpy().tobytes() for one in seen}) == 2

    def test_evaluation_is_timm_s_but_for_the_normalisation(self, folder: Path) -> None:
        from timm.data import create_transform

        image = load(folder).open(3)
        theirs = create_transform(**CONFIG, is_training=False)(image)
        ours = evaluation_transform(CONFIG)(image).float() / 255
        torch.testing.assert_close((ours - 0.5) / 0.5, theirs)

    def test_refuse_other_channels(self) -> None:
        for make in (training_transform, evaluation_transform):
            with pytest.raises(tc.errors.DataError, match="got 4"):
                make({**CONFIG, "input_size": (4, 16, 16)})


class TestThroughANetwork:
    @pytest.fixture
    def extractor(self) -> tc.CompatExtractor:
        space = tc.CompatSpace(8, ("a", "b"), ["common_classes"])
        return tc.create_extractor("test_resnet", space, img_size=32).eval()

    def test_features_are_those_of_the_decoded_images(self, folder: Path, extractor: tc.CompatExtractor) -> None:
        dataset = load(folder)
        pixels = torch.stack([evaluation_transform(extractor.data_config)(image) for image, _ in dataset])
        torch.testing.assert_close(
            tc.extract_features(extractor, dataset, batch_size=5), extractor(extractor.preprocess(pixels, framed=True))
        )

    def test_batches_need_a_size(self, folder: Path) -> None:
        with pytest.raises(tc.errors.DataError, match="data_config"):
            list(raw_batches(load(folder), 4, []))
        framed = [evaluation_transform(CONFIG)]
        assert [len(batch.views[0]) for batch in raw_batches(load(folder), 5, framed)] == [5, 5, 2]
        with pytest.raises(tc.errors.DataError, match="at least one"):
            list(raw_batches(load(folder).subset([]), 5, framed))

    def test_matrix(self, folder: Path, extractor: tc.CompatExtractor) -> None:
        head = tc.TaskHead(extractor.space, ("a", "b"))
        matrix = tc.recombination_matrix({"n": extractor}, {"n": head}, load(folder))
        assert matrix.counts == (12,)
