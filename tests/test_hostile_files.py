"""Folders that strangers wrote: strict JSON, no raw error, and nothing that steers a terminal."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import timm_compat as tc
from timm_compat.cli import main
from timm_compat.storage.files import file_sha256, parse_json

FOLDER = Path(__file__).parent / "components_format_1"
ESCAPE = "\x1b[31m\x9b2J\u202e"


@pytest.fixture
def head(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER / "head", tmp_path / "head"))


def change(folder: Path, **facts: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["timm_compat"].update(facts)
    (folder / "config.json").write_text(json.dumps(config))


class TestJson:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"a": NaN}', "finite number, got NaN"),
            ('{"a": [-Infinity]}', "finite number, got -Infinity"),
            ('{"a": 1e999}', "finite number, got 1e999"),
            ('{"a": {"b": 1, "c": 2, "b": 3}}', "every key once, got 'b' twice"),
            ('{"a": "\\ud800"}', "surrogates not allowed"),
            ('{"\\uDFFF": 1}', "surrogates not allowed"),
            ('{"a": ' + "9" * 5000 + "}", "digits"),
            ("[" * 10**5, "nested too deeply"),
            ("", "Expecting value"),
            ("\ufeff{}", "BOM"),
        ],
    )
    def test_what_is_none(self, head: Path, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parse_json(text.encode())
        (head / "config.json").write_bytes(text.encode())
        with pytest.raises(tc.errors.ComponentFileError, match=f"expected JSON, got something else .*{message}"):
            tc.TaskHead.from_pretrained(head)

    def test_what_is_some(self) -> None:
        assert parse_json(b'{"a": [1.5, "\\ud83d\\ude00", null, {"a": {}}]}') == {"a": [1.5, "😀", None, {"a": {}}]}

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
    def test_it_is_not_written_either(self, tmp_path: Path, value: object) -> None:
        head = tc.TaskHead.from_pretrained(FOLDER / "head")
        head.facts = tc.Facts(training={"loss": value})
        with pytest.raises(tc.errors.ConfigError, match="expected JSON values as facts"):
            head.save_pretrained(tmp_path / "new")
        assert list(tmp_path.iterdir()) == []


class TestRawErrors:
    @pytest.mark.parametrize(
        "facts",
        [
            {"class_names": {"a": 1}},
            {"class_names": "ab"},
            {"class_names": [["a"], "b"]},
            {"head": "deep"},
            {"head": ["depth"]},
            {"space": {"format": 1}},
            {"metrics": [["accuracy"]]},
            {"metrics": 7},
            {"datasets": {"a": 1}},
            {"training": ["a"]},
            {"training": "ab"},
            {"matrix": "ab"},
            {"matrix": {"rows": 1, "columns": 2, "accuracy": 3}},
            {"matrix": {"rows": ["a"], "columns": ["a"], "accuracy": [[0.5]], "native": "x"}, "member": "a"},
            {"matrix": {"rows": ["a"], "columns": ["a"], "accuracy": [[10**400]]}, "member": "a"},
            {"metrics": [{"dataset": None, "accuracy": 0.5}]},
            {"metrics": [{"dataset": "a", "accuracy": 0.5, "split": []}]},
            {"metrics": [{"dataset": "a", "accuracy": 0.5, "num_images": "many"}]},
            {"license": 7},
            {"sha256": {"model.safetensors": 7}},
        ],
    )
    def test_facts_of_the_wrong_kind(self, head: Path, facts: dict[str, Any]) -> None:
        change(head, **facts)
        with pytest.raises(tc.errors.CompatError):
            tc.TaskHead.from_pretrained(head)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_links_to_where_nothing_can_be_read(self, head: Path, tmp_path: Path, name: str) -> None:
        for target in ("/proc/self/mem", "/dev/zero", str(tmp_path), str(head / name), str(tmp_path / "missing")):
            (head / name).unlink()
            (head / name).symlink_to(target)
            with pytest.raises(tc.errors.ComponentFileError):
                tc.TaskHead.from_pretrained(head)

    def test_a_pipe_is_not_waited_for(self, head: Path) -> None:
        (head / "config.json").unlink()
        os.mkfifo(head / "config.json")
        with pytest.raises(tc.errors.ComponentFileError, match=r"expected config\.json"):
            tc.TaskHead.from_pretrained(head)

    @pytest.mark.parametrize("location", ["x" * 5000, "a/" * 3000, "nul\0byte", "\ud800", ""])
    def test_places_that_are_none(self, location: str) -> None:
        with pytest.raises(tc.errors.CompatError):
            tc.load(location)


class TestTerminals:
    def messages(self, capsys: Any, *words: str) -> str:
        assert main(list(words)) == 2
        captured = capsys.readouterr()
        return captured.out + captured.err

    def test_keys_of_a_config(self, head: Path, capsys: Any) -> None:
        change(head, **{ESCAPE: "value", "training": {ESCAPE: ESCAPE}})
        with pytest.warns(UserWarning, match="unknown facts") as caught:
            assert main(["info", str(head)]) == 0
        printed = "".join(capsys.readouterr()) + "".join(str(warning.message) for warning in caught)
        assert not any(sign in printed for sign in ESCAPE if not sign.isprintable())

    def test_names_of_tensors(self, head: Path, capsys: Any) -> None:
        tensors = load_file(head / "model.safetensors")
        save_file({**tensors, ESCAPE: torch.zeros(1)}, head / "model.safetensors")
        change(head, sha256={"model.safetensors": file_sha256(head / "model.safetensors")})
        printed = self.messages(capsys, "push", str(head), "lab/head")
        assert "not expected: \\x1b[31m\\x9b2J\\u202e" in printed
        assert not any(sign in printed for sign in ESCAPE if not sign.isprintable())

    def test_names_of_folders_and_values(self, tmp_path: Path, capsys: Any) -> None:
        place = tmp_path / f"evil{ESCAPE}"
        place.mkdir()
        printed = self.messages(capsys, "info", str(place))
        assert "\x1b" not in printed
        assert "\\x1b" in printed

    def test_every_error_is_legible_and_stays_what_it_is(self) -> None:
        error = tc.errors.HubNotFoundError(f"two\nlines {ESCAPE}\ud800")
        assert str(error) == "two\nlines \\x1b[31m\\x9b2J\\u202e\\ud800"
        assert isinstance(error, FileNotFoundError)
        assert str(tc.errors.ConfigError("ünï 中")) == "ünï 中"
