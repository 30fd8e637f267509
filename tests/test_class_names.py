"""Class names as they come: bytes, look-alikes in Unicode, what is no text at all, and very many of them."""

import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import timm_compat as tc
from timm_compat.data import load_dataset
from timm_compat.recipes.schema import DataRecipe
from timm_compat.space import _fingerprint

NFC = unicodedata.normalize("NFC", "café")
NFD = unicodedata.normalize("NFD", "café")


def small_set(names: list[Any], per_class: int = 20) -> tc.data.ArrayDataset:
    labels = torch.arange(len(names)).repeat_interleave(per_class)
    images = torch.randint(
        0, 256, (len(labels), 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return tc.data.ArrayDataset(images, labels, tuple(names))


def network(*names: str) -> tuple[tc.CompatExtractor, tc.TaskHead]:
    space = tc.CompatSpace(8, methods=("rotation",)).finalize()
    return tc.create_extractor("test_resnet", space, img_size=32), tc.TaskHead(space, names)


class TestNpz:
    def test_rgba_images_lose_their_opacity_as_files_do(self, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 4), dtype=np.uint8)
        np.savez(tmp_path / "set.npz", images=images, labels=np.arange(3))
        dataset = load_dataset("npz", tmp_path / "set.npz")
        assert dataset.images.shape == (3, 3, 32, 32)
        plain = np.asarray(Image.fromarray(images[0], "RGBA").convert("RGB"))
        assert np.array_equal(dataset.images[0].permute(1, 2, 0), plain)
        grey = tc.data.ArrayDataset.from_arrays(images[..., :2], [0, 1, 2], "abc")
        assert torch.equal(grey.images[:, 0], torch.as_tensor(images[..., 0]))
        assert tc.data.ArrayDataset.from_arrays(images.transpose(0, 3, 1, 2), [0, 1, 2], "abc").images.shape[1] == 4

    def test_names_in_bytes_are_text(self, tmp_path: Path) -> None:
        images, labels = np.zeros((2, 8, 8), np.uint8), np.arange(2)
        for names in ([b"cat", NFC.encode()], ["cat", NFC]):
            np.savez(tmp_path / "set.npz", images=images, labels=labels, class_names=np.array(names))
            assert load_dataset("npz", tmp_path / "set.npz").class_names == ("cat", NFC)
        np.savez(tmp_path / "set.npz", images=images, labels=labels, class_names=np.array([b"cat", b"caf\xe9"]))
        with pytest.raises(tc.errors.DataError, match=r"UTF-8, got .*caf\\xe9"):
            load_dataset("npz", tmp_path / "set.npz")

    @pytest.mark.parametrize("label", [987_654_321, 1_000_000])
    def test_a_label_that_is_no_class_is_refused_at_once(self, label: int, tmp_path: Path) -> None:
        np.savez(tmp_path / "set.npz", images=np.zeros((2, 8, 8), np.uint8), labels=np.array([0, label]))
        with pytest.raises(tc.errors.DataError, match=f"numbers of classes, 0 to 999999, got {label}"):
            load_dataset("npz", tmp_path / "set.npz")


class TestUnicode:
    def test_what_looks_alike_is_one_name_wherever_it_enters(self, tmp_path: Path) -> None:
        extractor, head = network("ant", "bee", NFD)
        assert head.class_names == ("ant", "bee", NFC)
        assert tc.CompatSpace(8, ("ant", NFD)).class_names == ("ant", NFC)
        dataset = small_set(["ant", "bee", NFD])
        assert dataset.class_names == ("ant", "bee", NFC)
        for data in (dataset, small_set(["ant", "bee", "x"]).renamed({"x": NFD}), dataset.of_classes([NFD, "ant"])):
            matrix = tc.recombination_matrix({"n": extractor}, {"n": head}, data)
            assert (matrix.counts, matrix.left_out) == ((len(data),), (0,))
        (tmp_path / NFD).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / NFD / "0.png")
        assert load_dataset("folder", tmp_path, classes=[NFC]).class_names == (NFC,)
        recipe = DataRecipe("digits", classes=(NFD,), rename={NFD: "b"})
        assert (recipe.classes, dict(recipe.rename)) == ((NFC,), {NFC: "b"})

    def test_two_that_become_one_are_refused_with_both(self, tmp_path: Path) -> None:
        both = r"'caf\\xe9' and 'cafe\\u0301', which are one name"
        with pytest.raises(tc.errors.ConfigError, match=both):
            network(NFC, NFD)
        with pytest.raises(tc.errors.ConfigError, match=both):
            tc.CompatSpace(8, (NFC, NFD))
        with pytest.raises(tc.errors.DataError, match=both):
            small_set([NFC, NFD])

    @pytest.mark.parametrize("name", ["caf\udce9", "\ud800"])
    def test_a_lone_surrogate_is_no_name(self, name: str) -> None:
        for make, error in (
            (network, tc.errors.ConfigError),
            (lambda *names: small_set(list(names)), tc.errors.DataError),
        ):
            with pytest.raises(error, match="which UTF-8 cannot encode; rename it"):
                make("ant", name)

    def test_components_with_other_forms_still_load_under_their_fingerprint(self) -> None:
        space = tc.CompatSpace(8, ("ant", NFC), ("common_classes",)).finalize()
        recorded = {**space.definition(), "class_names": ["ant", NFD]}
        config = {**recorded, "seed": 0, "fingerprint": _fingerprint(recorded)}
        loaded = tc.CompatSpace.from_config(config)
        assert loaded.fingerprint == config["fingerprint"] != space.fingerprint
        assert loaded.class_names == ("ant", NFC)
        assert loaded.to_config() == config
        assert tc.CompatSpace.from_config(loaded.to_config()).fingerprint == loaded.fingerprint


class TestTable:
    def test_says_how_many_images_a_head_was_not_measured_on(self) -> None:
        extractor, head = network("ant", "bee")
        whole = tc.TaskHead(extractor.space, ("ant", "bee", "cat"))
        dataset = small_set(["ant", "bee", "cat"])
        matrix = tc.recombination_matrix({"a": extractor}, {"few": head, "all": whole}, dataset)
        assert matrix.left_out == (20, 0)
        assert matrix.to_dict()["left_out"] == [20, 0]
        last = matrix.to_markdown().splitlines()[-1]
        assert [cell.strip() for cell in last.strip("|").split("|")] == ["images left out", "20 of 60", "0 of 60"]
        full = tc.recombination_matrix({"a": extractor}, {"all": whole}, dataset)
        assert "left out" not in full.to_markdown()


def test_many_classes_take_no_time() -> None:
    names = [f"class {number}" for number in range(21_000)]
    dataset = tc.data.ArrayDataset(torch.zeros(21_000, 1, 1, 1, dtype=torch.uint8), torch.arange(21_000), tuple(names))
    start = time.perf_counter()
    chosen = dataset.of_classes(names[::-1])
    renamed = dataset.renamed({name: name.upper() for name in names})
    assert time.perf_counter() - start < 3
    assert chosen.labels[0] == 20_999
    assert renamed.class_names[-1] == "CLASS 20999"
    with pytest.raises(tc.errors.DataError, match=r"got nothing, no 0, .* and 101 more"):
        dataset.of_classes(["nothing", *(f"no {number}" for number in range(200))])
