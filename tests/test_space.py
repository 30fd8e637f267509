"""The compatibility space: what its fingerprint covers, how a draft becomes final, and what a folder must withstand."""

import copy
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import timm_compat as tc

BASE: dict[str, Any] = {
    "feature_dim": 8,
    "class_names": ("cat", "dog", "owl"),
    "methods": ("common_classes", "rotation"),
    "level": "pooled",
    "normalization": "batch",
    "seed": 0,
}
DIGEST = "ab" * 32
HUGE = int("9" * 400)  # more than a float holds


def draft(**changes: Any) -> tc.CompatSpace:
    return tc.CompatSpace(**{**BASE, **changes})


def final(**changes: Any) -> tc.CompatSpace:
    return draft(**changes).finalize()


def changed(space: tc.CompatSpace, name: str) -> dict[str, Tensor]:
    """The shared tensors with the smallest possible change in one number of one of them."""
    shared = {key: value.clone() for key, value in space.shared.items()}
    first = shared[name].view(-1)
    first[0] = torch.nextafter(first[0], torch.tensor(10.0))
    return shared


class TestFingerprint:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("feature_dim", 9),
            ("class_names", ("cat", "dog", "emu")),
            ("class_names", ("dog", "cat", "owl")),
            ("class_names", ("cat", "dog")),
            ("methods", ("rotation",)),
            ("methods", ("common_classes", "rotation", "simplex")),
            ("methods", ("common_classes", "rotation", "initial_weights")),
            ("level", "map"),
            ("normalization", "layer"),
            ("seed", 1),  # through the auxiliary heads' initial tensors
        ],
    )
    def test_changes_with_every_field_that_decides(self, field: str, value: Any) -> None:
        assert final(**{field: value}).fingerprint != final().fingerprint

    @pytest.mark.parametrize("name", ["common_classes.weight", "common_classes.bias", "rotation.weight"])
    def test_changes_with_the_last_bit_of_a_shared_tensor(self, name: str) -> None:
        space = draft()
        assert draft().finalize(changed(space, name)).fingerprint != final().fingerprint

    def test_changes_with_the_reference(self) -> None:
        prints = {draft().finalize(reference=reference).fingerprint for reference in (DIGEST, "cd" * 32)}
        assert len(prints | {final().fingerprint}) == 3

    def test_changes_with_pinned_initial_weights(self) -> None:
        space = draft()
        space.pin_initial_weights("resnet18", DIGEST)
        assert space.finalize().fingerprint != final().fingerprint

    @pytest.mark.parametrize(
        "changes",
        [
            {"methods": ("rotation", "common_classes")},
            {"methods": ["common_classes", "rotation", "rotation"]},
            {"class_names": ["cat", "dog", "owl"]},
            {"class_names": iter(("cat", "dog", "owl"))},
        ],
        ids=["order of methods", "repeated method", "list", "iterator"],
    )
    def test_stays_with_how_it_is_written(self, changes: dict[str, Any]) -> None:
        assert final(**changes).fingerprint == final().fingerprint

    def test_stays_with_the_seed_where_nothing_is_drawn_from_it(self) -> None:
        assert final(methods=("simplex",), seed=1).fingerprint == final(methods=("simplex",)).fingerprint

    def test_stays_with_order_and_layout_of_the_shared_tensors(self) -> None:
        shared = {name: tensor.t().contiguous().t().double() for name, tensor in reversed(draft().shared.items())}
        assert draft().finalize(shared).fingerprint == final().fingerprint

    def test_is_the_published_hash(self) -> None:
        definition = {
            "format": 1,
            "feature_dim": 8,
            "level": "pooled",
            "normalization": "batch",
            "methods": [],
            "class_names": ["Fuß", "猫"],
            "shared": {},
            "initial_weights": {},
            "reference": DIGEST,
        }
        text = json.dumps(definition, sort_keys=True, separators=(",", ":"))
        space = tc.CompatSpace(8, ["Fuß", "猫"]).finalize(reference=DIGEST)
        assert space.fingerprint == hashlib.sha256(text.encode("ascii")).hexdigest()[:16] == "cd5c4f1691e7290c"


class TestDraft:
    def test_has_no_fingerprint(self) -> None:
        space = draft()
        assert not space.is_final
        with pytest.raises(tc.errors.DraftSpaceError, match="finalize"):
            space.fingerprint  # noqa: B018

    def test_is_not_saved(self, tmp_path: Path) -> None:
        with pytest.raises(tc.errors.DraftSpaceError, match="finalize"):
            draft().save_pretrained(tmp_path / "space")
        assert not any(tmp_path.iterdir())

    def test_two_of_one_definition_do_not_fit(self) -> None:
        assert draft().differences(draft()) == [
            "identity: two drafts of the same definition, each still to be trained on its own"
        ]

    def test_fits_itself_and_its_pickle(self) -> None:
        space = draft()
        assert space.differences(space) == []
        assert space.differences(pickle.loads(pickle.dumps(space))) == []

    def test_does_not_fit_the_final_one(self) -> None:
        lines = draft().differences(final())
        assert any(line.startswith("state: draft") for line in lines)


class TestFinalize:
    def test_keeps_the_object_and_is_idempotent(self) -> None:
        space = draft()
        assert space.finalize() is space
        before = space.fingerprint
        assert space.finalize().fingerprint == before
        assert len(before) == 16
        assert int(before, 16) >= 0

    @pytest.mark.parametrize("again", [{"reference": DIGEST}, {"shared": {}}])
    def test_happens_once(self, again: dict[str, Any]) -> None:
        space = final()
        before = space.fingerprint
        with pytest.raises(tc.errors.DraftSpaceError, match=f"expected a draft, got the final space {before}"):
            space.finalize(**again)
        assert space.fingerprint == before

    @pytest.mark.parametrize("methods", [(), ("initial_weights",)])
    def test_refuses_when_nothing_pins_the_coordinates(self, methods: tuple[str, ...]) -> None:
        space = tc.CompatSpace(8, methods=methods)
        with pytest.raises(tc.errors.DraftSpaceError, match="nothing pins the coordinates"):
            space.finalize()
        assert not space.is_final
        assert space.finalize(reference=DIGEST).reference == DIGEST

    @pytest.mark.parametrize("reference", ["", 7, b"ab", final()])
    def test_refuses_a_reference_that_is_no_digest(self, reference: Any) -> None:
        space = draft()
        with pytest.raises(tc.errors.ConfigError, match="reference: expected an extractor's digest"):
            space.finalize(reference=reference)
        assert not space.is_final

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda shared: shared.pop("rotation.bias"), r"expected tensors \['common_classes.bias'"),
            (lambda shared: shared.update(extra=torch.zeros(1)), "got .*'extra'"),
            (lambda shared: shared.update({"rotation.weight": torch.zeros(8, 4)}), r"shape \(4, 8\), got shape \(8, 4"),
            (lambda shared: shared["rotation.bias"].fill_(torch.nan), "with NaN or infinity"),
            (lambda shared: shared["rotation.bias"].fill_(torch.inf), "with NaN or infinity"),
        ],
        ids=["missing", "extra", "shape", "nan", "infinity"],
    )
    def test_refuses_tensors_that_do_not_fit(self, change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
        space = draft()
        shared = {name: tensor.clone() for name, tensor in space.shared.items()}
        change(shared)
        with pytest.raises(tc.errors.ConfigError, match=message):
            space.finalize(shared)
        assert not space.is_final

    def test_copies_the_given_tensors(self) -> None:
        shared = {name: tensor.clone() for name, tensor in draft().shared.items()}
        space = draft().finalize(shared)
        shared["rotation.weight"].zero_()
        assert space.shared["rotation.weight"].abs().sum() > 0

    def test_makes_the_mapping_read_only(self) -> None:
        with pytest.raises(TypeError):
            final().shared["rotation.weight"] = torch.zeros(4, 8)  # type: ignore[index]


class TestInitialWeights:
    def test_the_first_start_is_kept_and_the_same_one_accepted(self) -> None:
        space = tc.CompatSpace(8, methods=("initial_weights",))
        space.pin_initial_weights("resnet18", DIGEST)
        space.pin_initial_weights("resnet18", DIGEST)
        assert space.definition()["initial_weights"] == {"resnet18": DIGEST}

    @pytest.mark.parametrize("is_final", [False, True])
    def test_another_start_is_refused(self, is_final: bool) -> None:
        space = tc.CompatSpace(8, methods=("initial_weights",))
        space.pin_initial_weights("resnet18", DIGEST)
        if is_final:
            space.finalize()
        with pytest.raises(tc.errors.SpaceMismatchError, match=r"resnet18: expected initial weights abab.*, got cdcd"):
            space.pin_initial_weights("resnet18", "cd" * 32)

    def test_a_final_space_keeps_its_fingerprint_when_an_architecture_joins(self) -> None:
        space = final()
        space.pin_initial_weights("resnet18", DIGEST)
        assert space.definition()["initial_weights"] == {}
        assert space.differences(final()) == []


class TestDifferences:
    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"feature_dim": 9}, "feature_dim: 8 / 9"),
            ({"level": "map"}, "level: pooled / map"),
            ({"normalization": "none"}, "normalization: batch / none"),
            ({"class_names": ("cat", "emu")}, "class_names: cat, dog, owl / cat, emu"),
            ({"methods": ("rotation",)}, "methods: common_classes, rotation / rotation"),
        ],
    )
    def test_names_the_field_and_both_values(self, changes: dict[str, Any], expected: str) -> None:
        assert expected in final().differences(final(**changes))

    def test_names_nothing_else(self) -> None:
        (line,) = final(methods=("simplex",)).differences(final(methods=("simplex",), normalization="none"))
        assert line == "normalization: batch / none"

    def test_cuts_a_long_vocabulary_short(self) -> None:
        long = final(class_names=[f"class {number}" for number in range(500)])
        assert all(len(line) < 200 for line in final().differences(long))

    def test_two_final_spaces_of_one_content_are_one(self) -> None:
        assert final().differences(final()) == []
        final().require_same(final(), "the extractor", "the head")

    def test_the_refusal_lists_them_and_the_way_out(self) -> None:
        with pytest.raises(tc.errors.SpaceMismatchError) as caught:
            final().require_same(final(feature_dim=9, normalization="none"), "the extractor", "the head")
        message = str(caught.value)
        for part in ("the extractor and the head", "feature_dim: 8 / 9", "normalization: batch / none", "join"):
            assert part in message


class TestCopies:
    @pytest.mark.parametrize("make", [draft, final])
    def test_deepcopy_stays_in_the_space(self, make: Callable[[], tc.CompatSpace]) -> None:
        space = make()
        assert copy.deepcopy(space) is space
        assert copy.deepcopy(tc.TaskHead(space, ["a"])).space is space

    def test_pickle_keeps_everything(self) -> None:
        space = draft(seed=3).finalize(reference=DIGEST)
        other = pickle.loads(pickle.dumps(space))
        assert other.to_config() == space.to_config()
        assert_same_tensors(other.shared, space.shared)

    def test_repr_names_state_and_dimension(self) -> None:
        space = final()
        assert f"CompatSpace({space.fingerprint}, feature_dim=8" in repr(space)
        assert "CompatSpace(draft " in repr(draft())


class TestBadDefinition:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *[("feature_dim", value) for value in (0, -1, 2.0, True, "8", None, 10**6)],
            *[("class_names", value) for value in ("cat", ["cat", "cat"], [""], ["  "], [1], None, 3)],
            *[("methods", value) for value in ("rotations", ["rotation", "x"], [None], None, 3)],
            *[("level", value) for value in ("maps", None, ["map"])],
            *[("normalization", value) for value in ("bn", None)],
            *[("seed", value) for value in ("0", 1.0, None, True)],
        ],
    )
    def test_the_field_is_named(self, field: str, value: Any) -> None:
        with pytest.raises(tc.errors.ConfigError, match=f"{field}: expected"):
            draft(**{field: value})

    @pytest.mark.parametrize("method", ["common_classes", "simplex"])
    def test_a_vocabulary_is_needed(self, method: str) -> None:
        with pytest.raises(tc.errors.ConfigError, match=f"class_names: {method} needs a vocabulary"):
            tc.CompatSpace(8, methods=(method,))

    def test_a_simplex_holds_one_class_more_than_dimensions(self) -> None:
        names = [str(number) for number in range(10)]
        assert tc.CompatSpace(9, names, ("simplex",)).shared["simplex.weight"].shape == (10, 9)
        with pytest.raises(tc.errors.ConfigError, match="raise feature_dim to at least 9"):
            tc.CompatSpace(8, names, ("simplex",))

    def test_a_single_method_may_be_text(self) -> None:
        assert draft(methods="rotation").methods == ("rotation",)


class TestFolder:
    @pytest.mark.parametrize(
        "space",
        [
            final(),
            final(level="map", normalization="layer", methods=("simplex",), seed=5),
            tc.CompatSpace(8, ["Fuß", "猫", 'a"b\\c']).finalize(reference=DIGEST),
        ],
        ids=["auxiliary heads", "simplex", "reference"],
    )
    def test_round_trip(self, space: tc.CompatSpace, tmp_path: Path) -> None:
        folder = space.save_pretrained(tmp_path / "deep" / "space")
        assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
        loaded = tc.CompatSpace.from_pretrained(folder)
        assert loaded.to_config() == space.to_config()
        assert loaded.differences(space) == []
        assert_same_tensors(loaded.shared, space.shared)

    def test_the_definition_comes_with_every_component(self, tmp_path: Path) -> None:
        space = final(seed=4)
        head = tc.TaskHead.from_pretrained(tc.TaskHead(space, ["a", "b"]).save_pretrained(tmp_path / "head"))
        assert head.space.to_config() == space.to_config()
        with pytest.raises(tc.errors.DraftSpaceError, match=f"definition only .*{space.fingerprint}"):
            head.space.shared  # noqa: B018

    def test_an_empty_folder_is_taken(self, tmp_path: Path) -> None:
        final().save_pretrained(tmp_path)
        assert tc.CompatSpace.from_pretrained(str(tmp_path)).fingerprint == final().fingerprint

    def test_nothing_is_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(tc.errors.OutputExistsError, match="expected a new or empty output folder"):
            final().save_pretrained(tmp_path)
        assert listing(tmp_path) == ["notes.txt"]
        assert (tmp_path / "notes.txt").read_text() == "mine"

    @pytest.mark.parametrize("below", ["", "deeper", "deeper/still"])
    def test_a_file_in_the_way_is_kept(self, below: str, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.write_text("mine")
        with pytest.raises(tc.errors.OutputExistsError, match="expected a new or empty output folder"):
            final().save_pretrained(file / below)
        assert file.read_text() == "mine"

    def test_a_dangling_link_is_kept(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        with pytest.raises(tc.errors.OutputExistsError):
            final().save_pretrained(tmp_path / "link")
        assert listing(tmp_path) == ["link"]

    @pytest.mark.parametrize(
        "step", ["timm_compat.storage.files.save_file", "timm_compat.storage.files.library_versions"]
    )
    def test_nothing_is_left_when_writing_fails(
        self, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: Any) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(step, fail)
        with pytest.raises(OSError, match="no space left"):
            final().save_pretrained(tmp_path / "space")
        assert listing(tmp_path) == []

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_weights_that_could_not_be_read_back_are_not_written(self, value: float, tmp_path: Path) -> None:
        head = tc.TaskHead(final(), ["a", "b"])
        head.classifier.bias.data[0] = value
        with pytest.raises(tc.errors.ConfigError, match=r"classifier.bias: expected finite numbers"):
            head.save_pretrained(tmp_path / "head")
        assert listing(tmp_path) == []

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_another_precision_is_not_written(self, dtype: torch.dtype, tmp_path: Path) -> None:
        head = tc.TaskHead(final(), ["a", "b"]).to(dtype)
        with pytest.raises(tc.errors.ConfigError, match=r"expected torch.float32, got .*; call \.float\(\)"):
            head.save_pretrained(tmp_path / "head")
        assert listing(tmp_path) == []


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One component of each role, by the name of its folder."""
    root = tmp_path_factory.mktemp("components")
    space = final()
    space.save_pretrained(root / "space")
    tc.TaskHead(space, ["a", "b"], depth=2, hidden_dim=4).save_pretrained(root / "head")
    tc.create_extractor("test_efficientnet", space, img_size=64).save_pretrained(root / "extractor")
    return root


@pytest.fixture
def folders(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(written, tmp_path / "components"))


LOADERS: dict[str, Callable[[Path], object]] = {
    "space": tc.CompatSpace.from_pretrained,
    "head": tc.TaskHead.from_pretrained,
    "extractor": tc.CompatExtractor.from_pretrained,
}
ROLES = sorted(LOADERS)


def short(value: object) -> str:
    return f"{value!r:.20}"


def listing(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def assert_same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], whole: bool = False) -> None:
    """Change our part of a config, or the whole of it."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config if whole else config["timm_compat"])
    file.write_text(json.dumps(config))


def edit_space(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a space's definition and make the fingerprint fit, as a careful attacker would."""

    def apply(ours: dict[str, Any]) -> None:
        space = ours["space"]
        change(space)
        definition = {key: value for key, value in space.items() if key not in ("seed", "fingerprint")}
        text = json.dumps(definition, sort_keys=True, separators=(",", ":"))
        space["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()[:16]

    edit(folder, apply)


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change tensors and make the recorded hash fit."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    edit(folder, lambda ours: ours["sha256"].update({file.name: digest}))


def refuse(role: str, folder: Path, message: str) -> None:
    with pytest.raises(tc.errors.ComponentFileError, match=message) as caught:
        LOADERS[role](folder)
    assert isinstance(caught.value, tc.errors.CompatError)


def some_tensor(tensors: dict[str, Tensor]) -> str:
    return next(name for name in sorted(tensors) if tensors[name].is_floating_point())


@pytest.mark.parametrize("role", ROLES)
class TestDamagedFolder:
    """Whatever stands in a folder, loading it gives our error or the component, and never another exception."""

    def test_an_untouched_copy_loads(self, role: str, folders: Path) -> None:
        assert LOADERS[role](folders / role) is not None

    def test_no_folder(self, role: str, folders: Path) -> None:
        refuse(role, folders / "nowhere", "found none at .*nowhere.*check the path")

    def test_a_file_for_a_folder(self, role: str, folders: Path) -> None:
        refuse(role, folders / role / "config.json", "expected a component's folder")

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_a_missing_file(self, role: str, name: str, folders: Path) -> None:
        (folders / role / name).unlink()
        refuse(role, folders / role, f"expected {name} in .*found none")

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_a_renamed_file(self, role: str, name: str, folders: Path) -> None:
        (folders / role / name).rename(folders / role / f"old-{name}")
        refuse(role, folders / role, f"expected {name} in .*found none")

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"{",
            b"\xff\xfe\x00",
            b"[]",
            b"null",
            b"{}",
            b'{"timm_compat": 1}',
            b"[" * 100_000,
            b'{"timm_compat": {"format": ' + b"9" * 5_000 + b"}}",
        ],
        ids=["empty", "cut", "binary", "list", "null", "object", "number", "nested", "digits"],
    )
    def test_a_config_that_is_none(self, role: str, text: bytes, folders: Path) -> None:
        (folders / role / "config.json").write_bytes(text)
        refuse(role, folders / role, r"config\.json")

    def test_a_huge_config(self, role: str, folders: Path) -> None:
        (folders / role / "config.json").write_bytes(b" " * (16 * 2**20 + 1))
        refuse(role, folders / role, "expected at most 16777216 bytes")

    def test_a_newer_format(self, role: str, folders: Path) -> None:
        edit(folders / role, lambda ours: ours.update(format=3))
        newest = 2 if role == "extractor" else 1
        refuse(role, folders / role, f"expected format {newest} or older, got 3: made by a newer timm-compat; upgrade")

    @pytest.mark.parametrize("number", [0, -1, 1.0, "1", None, True, []])
    def test_no_format(self, role: str, number: Any, folders: Path) -> None:
        edit(folders / role, lambda ours: ours.update(format=number))
        refuse(role, folders / role, "expected a format number from 1 to ")

    @pytest.mark.parametrize("other", [*ROLES, "model"])
    def test_another_role(self, role: str, other: str, folders: Path) -> None:
        edit(folders / role, lambda ours: ours.update(role=other))
        if other != role:
            refuse(role, folders / role, f"expected a component of role '{role}', got '{other}'")

    @pytest.mark.parametrize("other", ["timm_compat.space.CompatSpace", "../head", None, 3, ["head"], {}])
    def test_a_role_outside_the_list(self, role: str, other: Any, folders: Path) -> None:
        edit(folders / role, lambda ours: ours.update(role=other))
        refuse(role, folders / role, "expected a role among extractor, head, space, model")

    def test_one_flipped_bit(self, role: str, folders: Path) -> None:
        file = folders / role / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        refuse(role, folders / role, "expected SHA-256 .*the file is damaged or was exchanged")

    @pytest.mark.parametrize("hashes", [None, [], {}, {"model.safetensors": None}, {"../model.safetensors": "0"}])
    def test_no_hash(self, role: str, hashes: Any, folders: Path) -> None:
        edit(folders / role, lambda ours: ours.update(sha256=hashes))
        refuse(role, folders / role, "SHA-256")

    @pytest.mark.parametrize("data", [b"", b"\x80\x04K\x01.", b"\xff" * 64], ids=["empty", "pickle", "header"])
    def test_weights_that_are_no_safetensors(self, role: str, data: bytes, folders: Path) -> None:
        (folders / role / "model.safetensors").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        edit(folders / role, lambda ours: ours["sha256"].update({"model.safetensors": digest}))
        refuse(role, folders / role, "expected a safetensors file")

    def test_a_missing_tensor(self, role: str, folders: Path) -> None:
        edit_weights(folders / role, lambda tensors: tensors.pop(some_tensor(tensors)))
        refuse(role, folders / role, r"missing: \S+; not expected: none")

    def test_an_extra_tensor(self, role: str, folders: Path) -> None:
        edit_weights(folders / role, lambda tensors: tensors.update(backdoor=torch.zeros(1)))
        refuse(role, folders / role, "missing: none; not expected: backdoor")

    def test_another_shape(self, role: str, folders: Path) -> None:
        edit_weights(folders / role, lambda tensors: tensors.update({some_tensor(tensors): torch.zeros(1, 2, 3)}))
        refuse(role, folders / role, r"expected shape \(.*\), got \(1, 2, 3\)")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.int32, torch.float8_e4m3fn])
    def test_another_dtype(self, role: str, dtype: torch.dtype, folders: Path) -> None:
        def convert(tensors: dict[str, Tensor]) -> None:
            name = some_tensor(tensors)
            tensors[name] = tensors[name].to(dtype)

        edit_weights(folders / role, convert)
        refuse(role, folders / role, f"expected torch.float32, got {dtype}")

    @pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
    def test_a_number_that_is_none(self, role: str, number: float, folders: Path) -> None:
        edit_weights(folders / role, lambda tensors: tensors[some_tensor(tensors)].view(-1)[:1].fill_(number))
        refuse(role, folders / role, "expected finite numbers, got NaN or infinity")

    @pytest.mark.parametrize("space", [None, [], "x", {}])
    def test_no_space(self, role: str, space: Any, folders: Path) -> None:
        edit(folders / role, lambda ours: ours.update(space=space))
        refuse(role, folders / role, "space: expected")

    @pytest.mark.parametrize("fingerprint", [None, 0, "0" * 16, [], "../../x"])
    def test_another_fingerprint(self, role: str, fingerprint: Any, folders: Path) -> None:
        edit(folders / role, lambda ours: ours["space"].update(fingerprint=fingerprint))
        refuse(role, folders / role, "space: expected fingerprint .*changed by hand or is damaged")

    def test_a_changed_definition(self, role: str, folders: Path) -> None:
        edit(folders / role, lambda ours: ours["space"].update(normalization="none"))
        refuse(role, folders / role, "space: expected fingerprint")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("feature_dim", 10**30),
            ("feature_dim", 0),
            ("feature_dim", "8"),
            ("feature_dim", float("nan")),
            ("feature_dim", [8]),
            ("class_names", None),
            ("class_names", 3),
            ("class_names", ["cat", "cat"]),
            ("class_names", [["cat"]]),
            ("methods", None),
            ("methods", [{}]),
            ("methods", ["os.system"]),
            ("level", {}),
            ("level", "../map"),
            ("normalization", "torch.nn.BatchNorm1d"),
            ("seed", "0"),
            ("seed", 1e400),
            ("shared", None),
            ("shared", {"rotation.weight": 1}),
            ("initial_weights", []),
            ("initial_weights", {"resnet18": None}),
            ("reference", 7),
            ("reference", {}),
        ],
    )
    def test_a_definition_out_of_range(self, role: str, field: str, value: Any, folders: Path) -> None:
        edit_space(folders / role, lambda space: space.update({field: value}))
        refuse(role, folders / role, "space: expected a complete definition|expected a finite number")

    @pytest.mark.parametrize("field", ["feature_dim", "class_names", "level", "shared", "reference"])
    def test_a_definition_without_a_field(self, role: str, field: str, folders: Path) -> None:
        edit_space(folders / role, lambda space: space.pop(field))
        refuse(role, folders / role, f"space: expected a complete definition, got .*{field}")

    def test_a_definition_of_gigabytes_allocates_nothing(self, role: str, folders: Path) -> None:
        huge = {"feature_dim": 65_536, "methods": ["common_classes", "simplex"]}
        edit_space(folders / role, lambda space: space.update(huge))
        refuse(role, folders / role, r"65536|65537|missing")


class TestDamagedSpace:
    def test_tensors_of_another_space(self, folders: Path) -> None:
        edit_weights(folders / "space", lambda tensors: tensors["rotation.bias"].add_(1))
        refuse("space", folders / "space", "auxiliary heads are not those of space")


class TestDamagedHead:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *[("depth", value) for value in (0, 17, 10**30, "1", None, 1.5, True)],
            *[("hidden_dim", value) for value in (0, -4, 10**30, "4", 4.5)],
            *[("drop_rate", value) for value in (1, -0.1, float("nan"), HUGE, "0", None)],
        ],
        ids=short,
    )
    def test_a_setting_out_of_range(self, name: str, value: Any, folders: Path) -> None:
        edit(folders / "head", lambda ours: ours["head"].update({name: value}))
        refuse("head", folders / "head", f"expected a head's settings, got .*{name}|expected a finite number")

    @pytest.mark.parametrize("settings", [None, [], "depth", {}, {"depth": 1}])
    def test_no_settings(self, settings: Any, folders: Path) -> None:
        edit(folders / "head", lambda ours: ours.update(head=settings))
        refuse("head", folders / "head", "expected a head's settings")

    @pytest.mark.parametrize("names", [None, [], "ab", ["a", "a"], [1, 2], ["a", ""]])
    def test_class_names_that_are_none(self, names: Any, folders: Path) -> None:
        edit(folders / "head", lambda ours: ours.update(class_names=names))
        refuse("head", folders / "head", "expected a head's settings")

    def test_more_class_names_than_logits(self, folders: Path) -> None:
        edit(folders / "head", lambda ours: ours.update(class_names=["a", "b", "c"]))
        refuse("head", folders / "head", r"classifier.*: expected shape \(3.*got \(2")

    def test_a_width_of_gigabytes_allocates_nothing(self, folders: Path) -> None:
        edit(folders / "head", lambda ours: ours["head"].update(depth=16, hidden_dim=65_536))
        refuse("head", folders / "head", "parameters")


class TestDamagedExtractor:
    @pytest.mark.parametrize(
        "architecture",
        [
            None,
            3,
            [],
            "",
            "resnet",
            "../../etc/passwd",
            "/etc/passwd",
            "local-dir:/etc",
            "hf-hub:timm/resnet18",
            "https://example.org/x",
            "torch.nn.Linear",
            "compat_extractor",
        ],
    )
    def test_an_architecture_that_is_none(self, architecture: Any, folders: Path) -> None:
        edit(folders / "extractor", lambda config: config.update(architecture=architecture), whole=True)
        refuse("extractor", folders / "extractor", r"config\.json: (architecture: )?(expected|its backbone cannot)")

    def test_another_architecture(self, folders: Path) -> None:
        edit(folders / "extractor", lambda config: config.update(architecture="test_resnet"), whole=True)
        refuse("extractor", folders / "extractor", "missing: .*not expected")

    @pytest.mark.parametrize(
        "args",
        [
            None,
            [],
            {"checkpoint_path": "/etc/passwd"},
            {"pretrained": True},
            {"pretrained_cfg": {"file": "/etc/passwd"}},
            {"pretrained_cfg_overlay": {"url": "http://localhost:1"}},
            {"cache_dir": "/etc"},
            {"features_only": True},
            {"num_classes": 5},
            {"level": "map"},
            {"model_name": "resnet18"},
            {"act_layer": {"_target_": "os.system"}},
            {"act_layer": "os.system"},
            {"no_such_argument": 1},
            {"in_chans": 0},
            {"in_chans": -3},
            {"in_chans": 10**30},
            {"in_chans": "three"},
            {"in_chans": 10**9},
            {"stem_size": 10**12},
            {"img_size": 10**30},
            {"img_size": [64]},
            {"img_size": "64"},
            {"global_pool": "os.system"},
        ],
        ids=lambda args: f"{args!r:.60}",
    )
    def test_arguments_that_are_not_allowed(self, args: Any, folders: Path) -> None:
        edit(folders / "extractor", lambda config: config.update(model_args=args), whole=True)
        refuse("extractor", folders / "extractor", "expected|cannot be built here")

    @pytest.mark.parametrize("interface", [None, [], 1])
    def test_no_interface(self, interface: Any, folders: Path) -> None:
        edit(folders / "extractor", lambda ours: ours.update(interface=interface))
        refuse("extractor", folders / "extractor", r"config\.json: interface: expected dict")

    @pytest.mark.parametrize("preprocessing", [None, [], {}, {"input_size": [3, 64, 64]}])
    def test_no_preprocessing(self, preprocessing: Any, folders: Path) -> None:
        edit(folders / "extractor", lambda ours: ours.update(preprocessing=preprocessing))
        refuse("extractor", folders / "extractor", r"config\.json: preprocessing: expected")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *[("input_size", value) for value in ([3, 64], [3, 0, 64], [3, 10**9, 64], [1, 64, 64], ["3", 64, 64], 3)],
            *[("mean", value) for value in ([0.5], ["x"] * 3, [float("nan")] * 3, None, [HUGE] * 3)],
            *[("std", value) for value in ([0, 1, 1], [-1, 1, 1], [float("inf")] * 3)],
            *[("crop_pct", value) for value in (0, -1, 1e-9, 1e9, float("nan"), "x", None, HUGE)],
            *[("interpolation", value) for value in ("magic", "nearest-exact", None, 2, "../x")],
            *[("crop_mode", value) for value in ("corner", None)],
        ],
        ids=short,
    )
    def test_preprocessing_out_of_range(self, name: str, value: Any, folders: Path) -> None:
        edit(folders / "extractor", lambda ours: ours["preprocessing"].update({name: value}))
        refuse("extractor", folders / "extractor", r"config\.json: (preprocessing|.*expected a finite number)")

    def test_a_missing_interface_file(self, folders: Path) -> None:
        (folders / "extractor" / "interface.safetensors").unlink()
        refuse("extractor", folders / "extractor", "expected interface.safetensors in")
