"""Folders of images as people have them: splits of any spelling, hidden and system files, links, and odd names."""

import logging
import os
from pathlib import Path

import pytest
from PIL import Image

import timm_compat as tc
from timm_compat.data import load_dataset
from timm_compat.data.listing import is_divided, list_images, readable_extensions
from timm_compat.experiments.predict import image_files


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "PNG")
    return path


def write_classes(root: Path, count: int = 1) -> Path:
    for name in ("ant", "bee"):
        for number in range(count):
            write(root / name / f"{number}.png")
    return root


class TestSplits:
    @pytest.mark.parametrize(
        ("train", "test"),
        [("Train", "Test"), ("training_set", "test_set"), ("TRAINING", "Testing"), ("train-images", "evaluation")],
    )
    @pytest.mark.parametrize("below", ["", "data", "Images"])
    def test_bear_synonyms_in_any_case(self, train: str, test: str, below: str, tmp_path: Path) -> None:
        write_classes(tmp_path / below / train, 3)
        write_classes(tmp_path / below / test, 2)
        for name, count in (("train", 6), ("test", 4), (test, 4), (test.upper(), 4)):
            dataset = load_dataset("folder", tmp_path, name)
            assert (len(dataset), dataset.class_names) == (count, ("ant", "bee"))
            if below != "Images":
                assert len(load_dataset("images", tmp_path / below, name)) == count
        with pytest.raises(tc.errors.DataError, match=f"expected a folder val, got .*{train}"):
            load_dataset("folder", tmp_path, "val")
        assert is_divided(tmp_path)

    @pytest.mark.parametrize("name", ["folder", "images"])
    def test_that_are_not_there_are_refused(self, name: str, tmp_path: Path) -> None:
        write_classes(tmp_path)
        assert len(load_dataset(name, tmp_path)) == len(load_dataset(name, tmp_path, "all")) == 2
        for split in ("test", "val", "nosuchsplit"):
            with pytest.raises(
                tc.errors.DataError, match=f"expected a folder {split}, got ant, bee.* leave the split out"
            ):
                load_dataset(name, tmp_path, split)
        assert not is_divided(tmp_path)

    def test_of_other_names(self, tmp_path: Path) -> None:
        write_classes(tmp_path / "fold1")
        write_classes(tmp_path / "fold2", 2)
        assert len(load_dataset("folder", tmp_path, "Fold2")) == 4

    def test_a_class_may_be_called_train(self, tmp_path: Path) -> None:
        for name in ("bus", "train"):
            write(tmp_path / name / "0.png")
        assert load_dataset("folder", tmp_path).class_names == ("bus", "train")
        assert len(load_dataset("images", tmp_path)) == 2

    def test_two_of_one_kind_are_told_apart(self, tmp_path: Path) -> None:
        write_classes(tmp_path / "val")
        write_classes(tmp_path / "validation")
        assert len(load_dataset("folder", tmp_path, "val")) == 2
        with pytest.raises(tc.errors.DataError, match="expected a folder dev, got val, validation"):
            load_dataset("folder", tmp_path, "dev")


class TestWhatIsLeftOut:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        root = write_classes(tmp_path / "set")
        for name in (".ipynb_checkpoints", ".cache", "__MACOSX", "@eaDir"):
            write(root / name / "0.png")
            write(root / "ant" / name / "0.png")
        write(root / "ant" / "._0.png")
        (root / "bee" / ".DS_Store").write_bytes(b"")
        (root / "bee" / "notes.txt").write_text("no image")
        (root / "bee" / "raw.cr2").write_bytes(b"")
        return root

    def test_hidden_and_system_folders_are_no_classes(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            dataset = load_dataset("folder", folder)
        assert (len(dataset), dataset.class_names) == (2, ("ant", "bee"))
        said = "left out 1 hidden images, 8 hidden or system folders, 2 files of other extensions (.txt, .cr2)"
        assert [record.getMessage() for record in caplog.records] == [f"{folder}: {said}"]

    def test_for_all_readers_alike(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        write(folder / "loose.png")
        with caplog.at_level(logging.WARNING):
            load_dataset("folder", folder)
        assert "1 images outside of the class folders" in caplog.text
        (folder / "loose.png").unlink()
        files = [name for name, _ in load_dataset("folder", folder).source.samples]
        assert files == [name for name, _ in load_dataset("images", folder).source.samples]
        assert files == [str(file) for file in image_files(folder)]

    def test_below_a_hidden_root_nothing_is_hidden(self, tmp_path: Path) -> None:
        write_classes(tmp_path / ".cache" / "set")
        assert len(load_dataset("folder", tmp_path / ".cache" / "set")) == 2

    @pytest.mark.parametrize("ending", [".gif", ".jfif", ".avif", ".JPG", ".webp", ".jp2"])
    def test_formats_that_pillow_reads_are_not(self, ending: str, tmp_path: Path) -> None:
        if ending.lower() not in readable_extensions():
            pytest.skip(f"this Pillow reads no {ending}")
        for name in ("ant", "bee"):
            (tmp_path / name).mkdir()
            Image.new("RGB", (16, 16), (90, 10, 10)).save(
                tmp_path / name / f"0{ending}", "JPEG" if "j" in ending else None
            )
        assert [label for _, label in load_dataset("folder", tmp_path)] == [0, 1]
        assert len(load_dataset("images", tmp_path)) == len(image_files(tmp_path)) == 2

    def test_an_empty_class_is_named(self, tmp_path: Path) -> None:
        write_classes(tmp_path)
        (tmp_path / "dog").mkdir()
        write(tmp_path / "dog" / "._0.png")
        with pytest.raises(tc.errors.DataError, match="every class folder, got none in: dog"):
            load_dataset("folder", tmp_path)


class TestLinks:
    def test_are_followed_by_all_readers(self, tmp_path: Path) -> None:
        store, root = write_classes(tmp_path / "store"), tmp_path / "set"
        root.mkdir()
        (root / "ant").symlink_to(store / "ant")
        (root / "bee").mkdir()
        (root / "bee" / "0.png").symlink_to(store / "bee" / "0.png")
        assert load_dataset("folder", root).class_names == ("ant", "bee")
        assert len(load_dataset("folder", root)) == len(load_dataset("images", root)) == len(image_files(root)) == 2

    def test_in_a_circle_are_left_out(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        root = write_classes(tmp_path / "set")
        (root / "ant" / "again").symlink_to(root)
        (root / "bee" / "self").symlink_to(root / "bee")
        (root / "bee" / "1.png").symlink_to(tmp_path / "nowhere.png")
        with caplog.at_level(logging.WARNING):
            assert len(list_images(root)) == 2
        assert "2 links to a folder that they lie in" in caplog.text
        assert "1 links that lead nowhere" in caplog.text
        assert len(load_dataset("folder", root)) == 2


class TestNames:
    def test_that_are_not_utf_8_are_refused_at_once(self, tmp_path: Path) -> None:
        write_classes(tmp_path)
        odd = os.fsencode(tmp_path) + b"/caf\xe9"
        try:
            os.mkdir(odd)
        except OSError:
            pytest.skip("this file system takes UTF-8 only")
        write(Path(os.fsdecode(odd)) / "0.png")
        with pytest.raises(tc.errors.DataError, match=r"names in UTF-8, got b'caf\\xe9'; rename it"):
            load_dataset("folder", tmp_path)

    def test_of_files_that_are_not_utf_8_do_no_harm(self, tmp_path: Path) -> None:
        write_classes(tmp_path)
        try:
            os.rename(tmp_path / "ant" / "0.png", os.fsencode(tmp_path / "ant") + b"/caf\xe9.png")
        except OSError:
            pytest.skip("this file system takes UTF-8 only")
        dataset = load_dataset("folder", tmp_path)
        assert len(list(dataset)) == 2
        assert dataset.digest() == load_dataset("folder", tmp_path).digest()
