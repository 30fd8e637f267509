"""Pushing over what is there: nothing of others is lost, nothing old stays, nothing is told that did not happen."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from hub_parts import CLASSES, Parts, images, make_parts
from hub_server import LoopbackHub
from hub_store import Repo

import timm_compat as tc
from timm_compat.cli import main

pytestmark = pytest.mark.usefixtures("alice")
WEBSITE_CARD = "---\nlicense: mit\n---\n"


def repository(hub: LoopbackHub, repo_id: str, **files: bytes) -> None:
    hub.store.repos[repo_id] = Repo(repo_id)
    hub.edit(repo_id, **files)


def card(hub: LoopbackHub, repo_id: str) -> tuple[dict[str, Any], str]:
    _, front, body = hub.files(repo_id)["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(front), body


class TestForeignRepositories:
    def test_they_are_refused_without_force(self, hub: LoopbackHub, parts: Parts) -> None:
        theirs = {"model__safetensors": b"theirs", "config__json": b'{"architecture": "resnet18"}', "matrix__png": b"p"}
        for left_out in (None, "config__json"):
            repository(hub, "lab/theirs", **{name: data for name, data in theirs.items() if name != left_out})
            before = hub.files("lab/theirs")
            with pytest.raises(
                tc.errors.ConfigError, match=r"lab/theirs: holds something else \(.*force=True \(--force\)"
            ):
                parts.head.push_to_hub("lab/theirs")
            assert hub.files("lab/theirs") == before
        parts.head.push_to_hub("lab/theirs", force=True)
        assert tc.TaskHead.from_pretrained("lab/theirs").class_names == CLASSES

    def test_force_on_the_command_line(self, hub: LoopbackHub, parts: Parts, capsys: Any, tmp_path: Path) -> None:
        repository(hub, "lab/theirs", weights__bin=b"theirs")
        folder = str(parts.head.save_pretrained(tmp_path / "head"))
        assert main(["push", folder, "lab/theirs"]) == 2
        assert "--force" in capsys.readouterr().err
        assert main(["push", folder, "lab/theirs", "--force"]) == 0
        assert hub.files("lab/theirs")["weights.bin"] == b"theirs"

    def test_one_made_on_the_website_gets_a_whole_card(self, hub: LoopbackHub, parts: Parts) -> None:
        repository(hub, "lab/fresh", README__md=WEBSITE_CARD.encode(), LICENSE=b"MIT", __gitattributes=b"x")
        parts.head.push_to_hub("lab/fresh")
        front, body = card(hub, "lab/fresh")
        assert front["license"] == "mit"
        assert body == parts.head.card("lab/fresh").split("---\n", 2)[2]
        assert hub.files("lab/fresh")["LICENSE"] == b"MIT"

    def test_a_damaged_config_of_theirs(self, hub: LoopbackHub, parts: Parts) -> None:
        for text in (b"\x80", b"[]", b'{"timm_compat": 7}', b'{"timm_compat": {"role": ["head"]}}', b"{" * 10**5):
            repository(hub, "lab/theirs", config__json=text)
            with pytest.raises(tc.errors.ConfigError, match="lab/theirs: holds"):
                parts.head.push_to_hub("lab/theirs")


class TestLostAnswers:
    @pytest.mark.parametrize("kind", ["lost", "hang"])
    def test_a_commit_that_landed_is_a_success(
        self, hub: LoopbackHub, parts: Parts, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        parts.head.push_to_hub("lab/head")
        other = tc.TaskHead(parts.space, ["x", "y"])
        if kind == "hang":
            monkeypatch.setenv("TIMM_COMPAT_HUB_TIMEOUT", "1")
            hub.fail("POST .*/commit/", "late", 3)
        else:
            hub.fail("POST .*/commit/", "lost")
        source = other.push_to_hub("lab/head")
        assert source.commit == hub.store.repos["lab/head"].branches["main"]
        assert other.source == source
        assert tc.TaskHead.from_pretrained("lab/head").class_names == ("x", "y")

    def test_one_that_did_not_is_told_with_the_repository(self, hub: LoopbackHub, parts: Parts) -> None:
        parts.head.push_to_hub("lab/head")
        hub.fail("POST .*/commit/", "drop")
        with pytest.raises(
            tc.errors.HubConnectionError, match=r"lab/head: nothing was changed there so far, but .* look there"
        ):
            tc.TaskHead(parts.space, ["x"]).push_to_hub("lab/head")

    def test_the_hub_cannot_be_asked_either(self, hub: LoopbackHub, parts: Parts) -> None:
        parts.head.push_to_hub("lab/head")
        hub.fail("POST .*/commit/", "breakdown")
        with pytest.raises(tc.errors.HubConnectionError, match=r"cannot be asked what arrived .*look at lab/head"):
            tc.TaskHead(parts.space, ["x"]).push_to_hub("lab/head")

    def test_a_refusal_stays_one(self, hub: LoopbackHub, parts: Parts) -> None:
        parts.head.push_to_hub("lab/head")
        hub.fail("POST .*/commit/", "status", 412)
        with pytest.raises(tc.errors.HubError, match=r"somebody else pushed meanwhile \(412\), so nothing was changed"):
            tc.TaskHead(parts.space, ["x"]).push_to_hub("lab/head")


class TestOldFacts:
    def test_another_heads_results_do_not_stay(self, hub: LoopbackHub, parts: Parts) -> None:
        first = tc.TaskHead(parts.space, CLASSES)
        result = tc.Result("cats", 0.9, partner="lab/extractor")
        first.facts = tc.Facts(license="mit", base_model="timm/old", datasets=("lab/cats",), results=(result,))
        first.push_to_hub("lab/head")
        text = hub.files("lab/head")["README.md"].decode()
        mine = text.replace("\ndatasets:\n", "\ndatasets:\n- my/own\n")
        mine = mine.replace("\nmetrics:\n", "\nlanguage: de\nmetrics:\n- f1\n")
        hub.edit("lab/head", README__md=mine.encode())
        tc.TaskHead(parts.space, ["x", "y"]).push_to_hub("lab/head")
        front, _ = card(hub, "lab/head")
        assert not {"model-index", "base_model", "base_model_relation"} & front.keys()
        assert (front["license"], front["language"]) == ("mit", "de")  # a person's, or nobody else's to drop
        assert (front["datasets"], front["metrics"]) == (["my/own"], ["f1"])

    def test_a_model_of_other_parts_has_other_base_models(self, hub: LoopbackHub, parts: Parts) -> None:
        parts.extractor.push_to_hub("lab/extractor")
        tc.compose(parts.extractor, parts.head).push_to_hub("lab/model")
        assert card(hub, "lab/model")[0]["base_model"] == ["lab/extractor"]
        other = make_parts()
        other.head.push_to_hub("lab/head")
        tc.compose(other.extractor, other.head).push_to_hub("lab/model")
        assert card(hub, "lab/model")[0]["base_model"] == ["lab/head"]

    @pytest.mark.parametrize(("trainable", "relation"), [("adapter", "adapter"), ("full", "finetune")])
    def test_the_relation_to_the_base_model_travels(
        self, hub: LoopbackHub, parts: Parts, tmp_path: Path, trainable: str, relation: str
    ) -> None:
        made = tc.create_extractor("test_resnet", parts.space, trainable=trainable, img_size=32)
        made.facts = tc.Facts(base_model="timm/test_resnet.r160_in1k", license="mit")
        folder = made.save_pretrained(tmp_path / "extractor")
        assert main(["push", str(folder), "lab/extractor"]) == 0
        assert card(hub, "lab/extractor")[0]["base_model_relation"] == relation
        loaded = tc.CompatExtractor.from_pretrained("lab/extractor", trainable="full")
        assert loaded.relation == relation
        with torch.no_grad():
            next(loaded.parameters()).add_(1)
        assert loaded.relation == "finetune"  # it is another network now, and all of it could learn


class TestFusedFolders:
    @pytest.fixture
    def folder(self, parts: Parts, tmp_path: Path) -> Path:
        return tc.compose(parts.extractor, parts.head).save_pretrained(tmp_path / "fused", fused=True)

    def change(self, folder: Path, **facts: Any) -> None:
        config = json.loads((folder / "config.json").read_text())
        config.update(facts)
        (folder / "config.json").write_text(json.dumps(config))

    @pytest.mark.parametrize("architecture", ["compat_model", "compat_extractor"])
    def test_its_config_opens_nothing_else(
        self, hub: LoopbackHub, parts: Parts, folder: Path, tmp_path: Path, architecture: str
    ) -> None:
        elsewhere = str(parts.extractor.save_pretrained(tmp_path / "elsewhere"))
        for place in (elsewhere, "lab/extractor"):
            self.change(folder, architecture=architecture, model_args={"extractor": place, "backbone": place})
            with pytest.raises(tc.errors.ComponentFileError, match="expected a model name that timm"):
                tc.load(folder)
        assert hub.seen == []

    def test_licence_card_and_a_persons_words(self, hub: LoopbackHub, folder: Path, capsys: Any) -> None:
        text = (folder / "README.md").read_text()
        (folder / "README.md").write_text(
            text.replace("<!-- timm-compat:usage", "My words.\n\n<!-- timm-compat:usage", 1)
        )
        assert main(["push", str(folder), "lab/fused", "--license", "apache-2.0"]) == 0, capsys.readouterr().err
        front, body = card(hub, "lab/fused")
        assert (front["license"], front["library_name"]) == ("apache-2.0", "timm")
        assert "timm-compat-fused" in front["tags"]
        assert "My words." in body
        assert "hf-hub:lab/fused" in body
        assert json.loads(hub.files("lab/fused")["config.json"])["timm_compat"]["license"] == "apache-2.0"
        loaded, own = tc.load("lab/fused"), tc.load(folder)
        assert torch.equal(loaded(images()), own(images()))
        assert timm.create_model("hf-hub:lab/fused", pretrained=True).pretrained_cfg["label_names"] == list(CLASSES)

    def test_without_a_card(self, hub: LoopbackHub, parts: Parts, folder: Path) -> None:
        (folder / "README.md").unlink()
        assert main(["push", str(folder), "lab/fused"]) == 0
        expected = tc.compose(parts.extractor, parts.head).card("lab/fused", fused=True)
        assert hub.files("lab/fused")["README.md"].decode() == expected

    @pytest.mark.parametrize("name", ["README.md", "model.safetensors", "config.json", "matrix.png"])
    def test_links_are_not_followed(
        self, hub: LoopbackHub, folder: Path, tmp_path: Path, capsys: Any, name: str
    ) -> None:
        secret = tmp_path / "secret"
        if (folder / name).exists():
            (folder / name).rename(secret)
        else:
            secret.write_text("a private matter")
        (folder / name).symlink_to(secret)
        assert main(["push", str(folder), "lab/fused"]) == 2
        assert "expected a plain file, got a link" in capsys.readouterr().err
        assert "lab/fused" not in hub.store.repos


class TestScratch:
    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_a_killed_push_leaves_no_weights(
        self, hub: LoopbackHub, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        scratch = tmp_path / "tmp"
        scratch.mkdir()
        monkeypatch.setenv("TMPDIR", str(scratch))
        monkeypatch.setattr(tempfile, "tempdir", None)
        folder = parts.head.save_pretrained(tmp_path / "head")
        hub.fail("POST .*/commit/", "hang", 60)
        words = [sys.executable, "-m", "timm_compat", "push", str(folder), "lab/head"]
        process = subprocess.Popen(words, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 100
        while not any("/commit/" in seen.path for seen in hub.seen) and time.monotonic() < end:
            time.sleep(0.05)
        (left,) = scratch.glob("timm-compat-push-*")
        process.send_signal(number)
        process.wait(timeout=60)
        if number == signal.SIGKILL:
            assert left.exists()
            hub.faults.clear()
            os.utime(left, (0, 0))
            parts.head.push_to_hub("lab/other")
        assert not left.exists()

    def test_what_was_left_behind_goes_and_what_another_push_uses_stays(
        self, hub: LoopbackHub, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import fcntl

        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        left, used, young = (tmp_path / f"timm-compat-push-{name}" for name in ("left", "used", "young"))
        for each in (left, used, young):
            (each / "component").mkdir(parents=True)
        os.utime(left, (0, 0))
        descriptor = os.open(used, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.utime(used, (0, 0))
        parts.head.push_to_hub("lab/head")
        os.close(descriptor)
        assert sorted(path.name for path in tmp_path.glob("timm-compat-*")) == [used.name, young.name]


def test_pull_tells_of_a_damaged_card(hub: LoopbackHub, parts: Parts, tmp_path: Path) -> None:
    parts.head.push_to_hub("lab/head")
    hub.fail("GET .*resolve.*README", "flip", times=1)
    with pytest.raises(tc.errors.ComponentFileError, match=r"README\.md: .*damaged on the way"):
        tc.pull("lab/head", tmp_path / "head")
    assert not (tmp_path / "head").exists()
    tc.pull("lab/head", tmp_path / "head")
    assert (tmp_path / "head" / "README.md").is_file()
    hub.edit("lab/head", README__md=None)
    tc.pull("lab/head", tmp_path / "bare")
    assert not (tmp_path / "bare" / "README.md").exists()
    shutil.rmtree(tmp_path / "bare")
    assert re.search("[0-9a-f]{12}", str(tc.TaskHead.from_pretrained("lab/head").source))
