"""Data sets by name, from files that the tests write."""

import io
import json
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import timm_compat as tc
from timm_compat.data import ImageDataset, load_dataset
from timm_compat.data.map_style import adopt


def write_png(path: Path, value: int, size: tuple[int, int] = (6, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def write_folder(root: Path, per_class: int = 4) -> Path:
    for label, name in enumerate(("ant", "bee", "cat")):
        for number in range(per_class):
            write_png(root / name / f"{number}.png", 20 * label + number)
    return root


def values(dataset) -> list[int]:
    """Which images are there: the value of each one's first pixel."""
    if isinstance(dataset, ImageDataset):
        return [image.getpixel((0, 0))[0] for image, _ in dataset]
    return dataset.images[:, 0, 0, 0].tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "insects")


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    images = np.arange(20, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(20) % 4, class_names=["p", "q", "r", "s"])
    return tmp_path / "set.npz"


class TestFolder:
    def test_one_folder_a_class(self, folder: Path) -> None:
        dataset = load_dataset("folder", folder)
        assert dataset.class_names == ("ant", "bee", "cat")
        assert dataset.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert values(dataset) == [0, 1, 2, 3, 20, 21, 22, 23, 40, 41, 42, 43]

    def test_splits_are_folders(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "train", 2)
        write_folder(tmp_path / "val", 1)
        assert len(load_dataset("folder", tmp_path)) == 6
        assert len(load_dataset("Folder", str(tmp_path), "val")) == 3
        with pytest.raises(tc.errors.DataError, match="expected a folder test, got train, val"):
            load_dataset("folder", tmp_path, "test")

    def test_that_hold_no_images(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(tc.errors.DataError, match=r"folder: expected a folder .*nowhere, got nothing there"):
            load_dataset("folder", tmp_path / "nowhere")
        with pytest.raises(tc.errors.DataError, match="got a file"):
            load_dataset("folder", folder / "ant" / "0.png")
        with pytest.raises(tc.errors.DataError, match="one folder of images per class"):
            load_dataset("folder", folder / "ant")
        (folder / "dog").mkdir()
        with pytest.raises(tc.errors.DataError, match=r"every class folder.* dog"):
            load_dataset("folder", folder)

    def test_root_is_needed(self) -> None:
        for name in ("folder", "npz", "CIFAR10", "wds/", "torch/cifar10"):
            with pytest.raises(tc.errors.ConfigError, match="root"):
                load_dataset(name)

    def test_channels(self, folder: Path) -> None:
        assert load_dataset("folder", folder, in_chans=1)[0][0].mode == "L"
        assert load_dataset("folder", folder)[0][0].mode == "RGB"


class TestUnlabelled:
    def test_every_image_below_the_folder(self, folder: Path) -> None:
        (folder / "notes.txt").write_text("no image")
        write_png(folder / "deep" / "er" / "last.PNG", 99)
        dataset = load_dataset("images", folder)
        assert dataset.class_names == ("unlabelled",)
        assert sorted(values(dataset)) == [0, 1, 2, 3, 20, 21, 22, 23, 40, 41, 42, 43, 99]

    def test_none_and_damaged_ones(self, tmp_path: Path, folder: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(tc.errors.DataError, match="expected image files"):
            load_dataset("images", tmp_path / "empty")
        (folder / "ant" / "1.png").write_bytes(b"no image")
        with pytest.raises(tc.errors.DataError, match=r"1\.png"):
            values(load_dataset("images", folder))
        assert len(values(load_dataset("images", folder, skip_corrupt=True))) == 12


class TestNpz:
    def test_arrays(self, npz: Path) -> None:
        dataset = load_dataset("npz", npz)
        assert isinstance(dataset, tc.data.ArrayDataset)
        assert dataset.images.shape == (20, 1, 4, 4)
        assert dataset.class_names == ("p", "q", "r", "s")

    @pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("x", "y")])
    def test_splits_in_one_file(self, tmp_path: Path, images: str, labels: str) -> None:
        arrays = {}
        for split, count in (("train", 5), ("test", 3)):
            arrays[f"{split}_{images}"] = np.zeros((count, 8, 8, 3), np.uint8)
            arrays[f"{split}_{labels}"] = np.arange(count, dtype=np.uint8)
        np.savez(tmp_path / "both.npz", **arrays)
        train = load_dataset("npz", tmp_path / "both.npz")
        assert (tuple(train.images.shape), train.class_names) == ((5, 3, 8, 8), ("0", "1", "2", "3", "4"))
        assert len(load_dataset("npz", tmp_path / "both.npz", "test")) == 3
        with pytest.raises(tc.errors.DataError, match="val_images and val_labels, got train_"):
            load_dataset("npz", tmp_path / "both.npz", "val")

    def test_without_splits_is_no_other_split(self, npz: Path) -> None:
        assert len(load_dataset("npz", npz, "all")) == 20
        with pytest.raises(tc.errors.DataError, match="expected nosuchsplit_images and nosuchsplit_labels, got images"):
            load_dataset("npz", npz, "nosuchsplit")

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"images": np.zeros((2, 4, 4)), "labels": np.zeros(2, int)}, "uint8, got .2, 4, 4. of float64"),
            ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)}, "one label per image"),
            ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0.0, 1.0])}, "integers"),
            ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, -1])}, "integers from 0"),
            ({"images": np.zeros((0, 4, 4), np.uint8), "labels": np.zeros(0, int)}, "at least one image"),
            ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, None])}, "plain arrays"),
            ({"pictures": np.zeros(2)}, "expected arrays images and labels.*got pictures"),
        ],
    )
    def test_that_does_not_fit(self, tmp_path: Path, arrays: dict, message: str) -> None:
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(tc.errors.DataError, match=message):
            load_dataset("npz", tmp_path / "bad.npz")

    def test_that_is_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(tc.errors.DataError, match="nothing there"):
            load_dataset("npz", tmp_path / "none.npz")
        with pytest.raises(tc.errors.DataError, match="a folder"):
            load_dataset("npz", tmp_path)
        (tmp_path / "text.npz").write_text("no arrays")
        with pytest.raises(tc.errors.DataError, match="plain arrays"):
            load_dataset("npz", tmp_path / "text.npz")
        np.save(tmp_path / "one.npy", np.zeros(3))
        with pytest.raises(tc.errors.DataError, match="a single one"):
            load_dataset("npz", tmp_path / "one.npy")


def write_mnist(root: Path, train: int = 7, test: int = 3) -> Path:
    """MNIST's own files, with blank images whose first pixel is their number (Y. LeCun, the IDX format)."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", train), ("t10k", test)):
        pixels = np.zeros((count, 28, 28), np.uint8)
        pixels[:, 0, 0] = np.arange(count)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">BBBBIII", 0, 0, 8, 3, count, 28, 28) + pixels.tobytes()
        )
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, count) + labels.tobytes())
    return root


class TestTorchvision:
    @pytest.mark.parametrize("name", ["MNIST", "mnist", "torch/mnist"])
    def test_small_images_come_into_memory(self, tmp_path: Path, name: str) -> None:
        write_mnist(tmp_path)
        train = load_dataset(name, tmp_path)
        assert isinstance(train, tc.data.ArrayDataset)
        assert (values(train), len(train.class_names)) == (list(range(7)), 10)
        assert len(load_dataset(name, tmp_path, "test")) == 3
        with pytest.raises(tc.errors.ConfigError, match=r"split: expected one of train.*got 'trian'"):
            load_dataset(name, tmp_path, "trian")

    def test_grey_and_colour_in_memory(self, tmp_path: Path) -> None:
        dataset = load_dataset("mnist", write_mnist(tmp_path), in_chans=3)
        assert dataset.images.shape == (7, 3, 28, 28)
        assert torch.equal(dataset.images[:, 0], dataset.images[:, 2])
        assert torch.equal(dataset.with_channels(1).images[:, 0], dataset.images[:, 0])
        noise = np.random.default_rng(0).integers(0, 256, (5, 9, 8, 3), dtype=np.uint8)
        grey = tc.data.ArrayDataset.from_arrays(noise, [0] * 5, ["n"]).with_channels(1).images
        pillow = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in noise])
        assert torch.equal(grey[:, 0], torch.as_tensor(pillow))
        with pytest.raises(tc.errors.ConfigError, match="channels"):
            load_dataset("mnist", tmp_path, in_chans=2)

    def test_other_images_stay_in_their_files(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "eurosat" / "2750")
        dataset = load_dataset("EuroSAT", tmp_path)
        assert isinstance(dataset, ImageDataset)
        assert dataset.class_names == ("ant", "bee", "cat")
        (tmp_path / "eurosat" / "2750" / "bee" / "1.png").write_bytes(b"")
        with pytest.raises(tc.errors.DataError, match=r"bee.1\.png"):
            dataset.read(5)
        with pytest.raises(tc.errors.ConfigError, match=r"EuroSAT has none of its own.*part"):
            load_dataset("EuroSAT", tmp_path, "test")

    def test_image_folder_of_timm(self, folder: Path) -> None:
        dataset = load_dataset("torch/image_folder", folder)
        assert (len(dataset), dataset.class_names) == (12, ("ant", "bee", "cat"))

    @pytest.mark.parametrize("name", ["CIFAR10", "SVHN", "STL10", "USPS", "Flowers102", "SEMEION", "Imagenette"])
    def test_missing_files_say_where_and_how(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(
            tc.errors.DataError, match=rf"{tmp_path}.*torchvision.datasets.{name}.*download=True"
        ) as raised:
            load_dataset(name.lower(), tmp_path)
        assert raised.value.__cause__ is not None

    def test_splits_are_torchvision_s_own(self, tmp_path: Path) -> None:
        with pytest.raises(tc.errors.ConfigError, match=r"DTD.*'dev'.*val"):
            load_dataset("dtd", tmp_path, "dev")
        with pytest.raises(tc.errors.DataError, match="split='trainval'"):
            load_dataset("OxfordIIITPet", tmp_path)

    def test_timm_s_unknown_names(self, tmp_path: Path) -> None:
        with pytest.raises(tc.errors.DataError, match="torch/nothing"):
            load_dataset("torch/nothing", tmp_path)


class TestAdopt:
    """What torchvision's sets look like, without their files."""

    class Source:
        def __init__(self, **attributes) -> None:
            self.__dict__.update(attributes)

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int):
            return Image.new("RGB", (4, 4)), 0

    @pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 8, 8, 3), (4, 8, 8)])
    def test_axes(self, shape: tuple[int, ...]) -> None:
        pixels = np.arange(np.prod(shape), dtype=np.uint32).astype(np.uint8).reshape(shape)
        dataset = adopt(self.Source(data=pixels, labels=[0, 1, 2, 1]))
        assert dataset.images.shape == (4, 3 if 3 in shape else 1, 8, 8)
        nchw = pixels if shape[1:2] == (3,) else pixels.reshape(4, 8, 8, -1).transpose(0, 3, 1, 2)
        assert np.array_equal(dataset.images.numpy(), nchw)
        assert dataset.class_names == ("0", "1", "2")

    def test_names(self) -> None:
        source = self.Source(_labels=[0, 1, 2, 0], classes=[("tench", "Tinca"), ("crane",), ("crane",)])
        assert adopt(source).class_names == ("tench, Tinca", "crane (1)", "crane (2)")

    def test_labels_in_samples(self) -> None:
        assert adopt(self.Source(_samples=[("a.png", n) for n in range(4)])).labels.tolist() == [0, 1, 2, 3]

    def test_without_labels(self) -> None:
        with pytest.raises(tc.errors.DataError, match="one folder per class"):
            adopt(self.Source())
        with pytest.raises(tc.errors.DataError, match="one label per image"):
            adopt(self.Source(targets=[None] * 4))


class TestChoice:
    def test_parts_are_disjoint_and_complete_and_stay(self, folder: Path) -> None:
        whole = values(load_dataset("folder", folder))
        parts = [values(load_dataset("folder", folder, part=f"{number}/5", seed=3)) for number in range(1, 6)]
        assert sorted(value for part in parts for value in part) == whole
        assert [len(part) for part in parts] == [3, 3, 2, 2, 2]
        assert parts[1] == values(load_dataset("folder", folder, part="2/5", seed=3))
        assert parts[1] != values(load_dataset("folder", folder, part="2/5", seed=4))

    def test_classes_leave_the_parts_as_they_are(self, npz: Path) -> None:
        part = load_dataset("npz", npz, part="1/2")
        chosen = load_dataset("npz", npz, part="1/2", classes=["s", "q"])
        assert values(chosen) == values(part.of_classes(["s", "q"]))
        assert chosen.class_names == ("s", "q")

    def test_limit_is_random_within_what_is_left(self, npz: Path) -> None:
        few = [load_dataset("npz", npz, classes=["q"], limit=2, seed=seed) for seed in range(8)]
        assert {len(dataset) for dataset in few} == {2}
        assert len({tuple(values(dataset)) for dataset in few}) > 1
        assert set(few[0].labels.tolist()) == {0}
        assert len(load_dataset("npz", npz, limit=1000)) == 20

    def test_digits(self) -> None:
        assert len(load_dataset("digits", split="test", classes=["3", "1"], limit=9)) == 9

    @pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3", ""])
    def test_bad_parts(self, npz: Path, part: str) -> None:
        with pytest.raises(tc.errors.ConfigError, match="part: expected such as"):
            load_dataset("npz", npz, part=part)

    def test_nothing_left(self, npz: Path) -> None:
        with pytest.raises(tc.errors.DataError, match="got none that part and classes leave"):
            load_dataset("npz", npz, part="25/30")
        with pytest.raises(tc.errors.ConfigError, match="limit"):
            load_dataset("npz", npz, limit=0)
        with pytest.raises(tc.errors.DataError, match="got t"):
            load_dataset("npz", npz, classes=["t"])


class TestNames:
    @pytest.mark.parametrize(
        ("name", "close"), [("cifar11", "CIFAR10"), ("foldr", "folder"), ("fds/a/b", "hfds/"), ("digit", "digits")]
    )
    def test_unknown_ones(self, tmp_path: Path, name: str, close: str) -> None:
        with pytest.raises(tc.errors.ConfigError, match=rf"expected .*{close}.*got '{name}'"):
            load_dataset(name, tmp_path)

    @pytest.mark.parametrize("name", ["hfids/owner/name", "tfds/mnist"])
    def test_streams_say_what_to_use_instead(self, name: str) -> None:
        with pytest.raises(tc.errors.DataError, match=r"got a stream; .*hfds/\.\.\."):
            load_dataset(name)


def write_shard(path: Path, numbers: range, *, label: bytes | None = None) -> None:
    with tarfile.open(path, "w") as shard:
        for number in numbers:
            pixels = io.BytesIO()
            Image.new("RGB", (6, 5), (number, 0, 0)).save(pixels, "PNG")
            text = str(number % 3).encode() if label is None else label
            for suffix, content in (("png", pixels.getvalue()), ("cls", text), ("json", b"{}")):
                member = tarfile.TarInfo(f"images/{number:05d}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


class TestShards:
    @pytest.fixture
    def shards(self, tmp_path: Path) -> Path:
        for number in range(3):
            write_shard(tmp_path / f"set-train-{number:02d}.tar", range(4 * number, 4 * number + 4))
        write_shard(tmp_path / "set-test-00.tar", range(90, 92))
        return tmp_path

    @pytest.mark.parametrize("split", ["train", "set-train-{00..02}.tar", "set-train-{00..02}.tar|12"])
    def test_are_read_in_any_order(self, shards: Path, split: str) -> None:
        dataset = load_dataset("wds/set", shards, split)
        assert values(dataset) == list(range(12))
        assert (dataset.labels.tolist(), dataset.class_names) == ([n % 3 for n in range(12)], ("0", "1", "2"))
        assert values(dataset.subset([11, 0])) == [11, 0]
        assert dataset.digest() == load_dataset("wds/set", shards, split).digest() != dataset.subset([11, 0]).digest()

    def test_names_with_dots_and_several_images_of_a_label_lose_none(self, tmp_path: Path) -> None:
        samples = {
            "2024.1": ["2024.1.jpg"],
            "2024.2": ["2024.2.JPG"],
            "pair": ["pair.a.png", "pair.jpg"],
        }
        with tarfile.open(tmp_path / "set-train.tar", "w") as shard:
            for label, (key, names) in enumerate(samples.items()):
                for name, content in [(f"./{key}.cls", str(label).encode()), *((f"./{name}", b"x") for name in names)]:
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
            shard.addfile(tarfile.TarInfo("./._2024.1.jpg"))
        dataset = load_dataset("wds/set", tmp_path)
        names = [dataset.source.filename(number).partition(":./")[2] for number in range(len(dataset))]
        assert dict(zip(names, dataset.labels.tolist(), strict=True)) == {
            "2024.1.jpg": 0, "2024.2.JPG": 1, "pair.a.png": 2, "pair.jpg": 2,
        }  # fmt: skip

    def test_listed_by_an_info_file(self, shards: Path) -> None:
        info = {"splits": {"train": {"filenames": ["set-train-01.tar"]}}}
        (shards / "_info.json").write_text(json.dumps(info))
        assert values(load_dataset("wds/", shards)) == [4, 5, 6, 7]
        (shards / "_info.json").write_text("[]")
        with pytest.raises(tc.errors.DataError, match=r"_info\.json"):
            load_dataset("wds/", shards)

    def test_corrupt_images_are_named(self, shards: Path) -> None:
        dataset = load_dataset("wds/", shards)
        entry = dataset.source.entries[5]
        content = bytearray(entry.shard.read_bytes())
        content[entry.offset : entry.offset + entry.size] = bytes(entry.size)
        entry.shard.write_bytes(content)
        with pytest.raises(tc.errors.DataError, match=r"set-train-01\.tar:images/00005\.png"):
            dataset.read(5)

    def test_that_cannot_be_read(self, shards: Path) -> None:
        with pytest.raises(tc.errors.DataError, match=r"got set-test-00\.tar, set-train-00"):
            load_dataset("wds/", shards, "val")
        with pytest.raises(tc.errors.DataError, match=r"expected set-train-03\.tar"):
            load_dataset("wds/", shards, "set-train-{00..03}.tar")
        (shards / "bad-0.tar").write_bytes(b"\x1f\x8b" + bytes(600))
        with pytest.raises(tc.errors.DataError, match="without compression"):
            load_dataset("wds/", shards, "bad")
        write_shard(shards / "odd-0.tar", range(2), label=b"dog")
        with pytest.raises(tc.errors.DataError, match="class as an integer from 0, got b'dog'"):
            load_dataset("wds/", shards, "odd")
        write_shard(shards / "much-0.tar", range(2), label=b"9" * 5000)
        with pytest.raises(tc.errors.DataError, match="class as an integer"):
            load_dataset("wds/", shards, "much")
        with tarfile.open(shards / "bare-0.tar", "w") as shard:
            shard.addfile(tarfile.TarInfo("a.jpg"))
        with pytest.raises(tc.errors.DataError, match=r"expected a\.cls"):
            load_dataset("wds/", shards, "bare")
        with pytest.raises(tc.errors.DataError, match="folder of tar shards"):
            load_dataset("wds/", shards / "none")


class TestHuggingFace:
    def test_needs_its_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(tc.errors.MissingExtraError, match=r"timm-compat\[datasets\]"):
            load_dataset("hfds/owner/name")

    @pytest.mark.filterwarnings("ignore")
    def test_local_folder(self, folder: Path, tmp_path: Path) -> None:
        write_folder(tmp_path / "hub" / "train")
        dataset = load_dataset(f"hfds/{tmp_path / 'hub'}", tmp_path / "cache", classes=["cat", "ant"])
        assert (dataset.class_names, sorted(values(dataset))) == (("cat", "ant"), [0, 1, 2, 3, 40, 41, 42, 43])
        with pytest.raises(tc.errors.DataError, match="hub"):
            load_dataset(f"hfds/{tmp_path / 'hub'}", tmp_path / "cache", "nosuch")
        with pytest.raises(tc.errors.DataError, match="nowhere"):
            load_dataset(f"hfds/{tmp_path / 'nowhere'}", tmp_path / "cache")
