"""Several components in one repository: each in a subfolder with its card, and nothing else is touched."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_parts import CLASSES, Parts, images
from hub_server import LoopbackHub
from hub_store import Repo

import timm_compat as tc
from timm_compat.cli import main

pytestmark = pytest.mark.usefixtures("alice")
REPO = "lab/birds"


def under(hub: LoopbackHub, folder: str) -> dict[str, bytes]:
    return {path: data for path, data in hub.files(REPO).items() if path.startswith(f"{folder}/")}


def others(hub: LoopbackHub, folder: str) -> dict[str, bytes]:
    return {path: data for path, data in hub.files(REPO).items() if not path.startswith(f"{folder}/")}


def test_nothing_outside_the_subfolder_is_touched(hub: LoopbackHub, parts: Parts) -> None:
    hub.store.repos[REPO] = Repo(REPO)
    hub.edit(REPO, README__md=b"Ours, by hand.\n", notes__txt=b"a", matrix__png=b"a picture of theirs")
    source = parts.head.push_to_hub(REPO, subfolder="heads/owls")
    assert (source.location, source.subfolder) == (REPO, "heads/owls")
    assert sorted(under(hub, "heads/owls")) == [
        f"heads/owls/{name}" for name in ("README.md", "config.json", "model.safetensors")
    ]
    parts.extractor.push_to_hub(REPO, subfolder="extractor")
    before = others(hub, "heads/owls")
    assert before["README.md"] == b"Ours, by hand.\n"
    tc.TaskHead(parts.space, ["x"]).push_to_hub(REPO, subfolder="heads/owls")
    assert others(hub, "heads/owls") == before
    loaded = tc.TaskHead.from_pretrained(REPO, subfolder="heads/owls")
    assert loaded.class_names == ("x",)
    assert torch.equal(
        tc.CompatExtractor.from_pretrained(REPO, subfolder="extractor")(images()), parts.extractor(images())
    )


def test_a_repository_without_a_card_gets_none_and_a_search_finds_what_the_root_says(
    hub: LoopbackHub, parts: Parts
) -> None:
    parts.head.push_to_hub(REPO, subfolder="head")
    assert "README.md" not in hub.files(REPO)
    assert list(tc.search(fits=parts.extractor)) == []
    parts.extractor.push_to_hub(REPO)  # components in subfolders are no reason not to
    found = tc.search(space=parts.space)
    assert [(row.repo_id, row.role) for row in found] == [(REPO, "extractor")]
    assert found.refused == ()
    assert tc.TaskHead.from_pretrained(REPO, subfolder="head").class_names == CLASSES


def test_a_persons_words_on_its_card_stay_and_old_files_go(hub: LoopbackHub, parts: Parts, tmp_path: Path) -> None:
    parts.head.facts = tc.Facts(
        license="mit", matrix={"rows": ["a"], "columns": ["a"], "accuracy": [[0.5]]}, citation="@me"
    )
    parts.head.push_to_hub(REPO, subfolder="head")
    card = under(hub, "head")["head/README.md"].decode()
    assert "head/matrix.png" in under(hub, "head")
    assert "![Recombination matrix](matrix.png)" in card
    commit = hub.store.repos[REPO]
    files = dict(commit.commits[commit.branches["main"]].files)
    files["head/README.md"] = hub.store.put(card.replace("# A comp", "My words.\n\n# A comp").encode())
    commit.branches["main"] = commit.add(files, commit.branches["main"], "by hand").oid
    parts.head.facts = tc.Facts(license="mit")
    parts.head.push_to_hub(REPO, subfolder="head")
    assert "My words." in under(hub, "head")["head/README.md"].decode()
    assert "head/matrix.png" not in hub.files(REPO)


@pytest.mark.parametrize("name", ["extractor", "head", "space", "model", "fused"])
def test_the_usage_on_its_card_runs_as_it_stands(hub: LoopbackHub, parts: Parts, name: str) -> None:
    parts.head.push_to_hub("lab/partner-head")
    parts.extractor.push_to_hub("lab/partner")
    model = tc.compose(parts.extractor, parts.head)
    component = {"extractor": parts.extractor, "head": parts.head, "space": parts.space}.get(name, model)
    component.push_to_hub(REPO, subfolder=f"parts/{name}", **({"fused": True} if name == "fused" else {}))
    card = under(hub, "parts")[f"parts/{name}/README.md"].decode()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert blocks
    assert f"parts/{name}" in blocks[-1]
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, REPO, "exec"), names)
    if name in ("fused", "model"):
        assert isinstance(names["model"], torch.nn.Module)


def test_plain_timm_is_right_from_a_subfolder(hub: LoopbackHub, parts: Parts, tmp_path: Path) -> None:
    model = tc.compose(parts.extractor, parts.head)
    model.push_to_hub(REPO, subfolder="fused", fused=True)
    folder = tc.pull(REPO, tmp_path / "fused", subfolder="fused")
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(plain(images()), model.eval()(images()), rtol=1e-4, atol=1e-4)


def test_a_pull_request_and_a_branch(hub: LoopbackHub, parts: Parts) -> None:
    hub.store.takes_pull_requests = True
    parts.head.push_to_hub(REPO, subfolder="head", revision="dev")
    assert hub.files(REPO) == {}
    assert set(hub.files(REPO, "dev")) == {"head/README.md", "head/config.json", "head/model.safetensors"}
    source = parts.head.push_to_hub(REPO, subfolder="head", create_pr=True)
    assert source.pull_request == f"{hub.url}/{REPO}/discussions/1"
    assert hub.files(REPO) == {}


def test_a_lost_answer(hub: LoopbackHub, parts: Parts) -> None:
    hub.fail(f"POST /api/models/{REPO}/commit", "lost", times=1)
    source = parts.head.push_to_hub(REPO, subfolder="head")
    assert source.commit == hub.store.repos[REPO].branches["main"]


class TestRefused:
    @pytest.mark.parametrize("name", ["..", "a/../b", "/a", "a/", "a//b", ".git", "a b", "a\\b", "ä", "a" * 201, 3])
    def test_names_that_are_none(self, hub: LoopbackHub, parts: Parts, name: Any) -> None:
        with pytest.raises(tc.errors.ConfigError, match="subfolder: expected"):
            parts.head.push_to_hub(REPO, subfolder=name)
        assert REPO not in hub.store.repos

    def test_what_is_something_else(self, hub: LoopbackHub, parts: Parts) -> None:
        parts.head.push_to_hub(REPO, subfolder="mine")
        before = hub.files(REPO)
        with pytest.raises(tc.errors.ConfigError, match=f"{REPO}/mine: holds a component of role 'head'"):
            parts.extractor.push_to_hub(REPO, subfolder="mine")
        with pytest.raises(tc.errors.ConfigError, match=r"expected a folder, got mine/config\.json, a file"):
            parts.head.push_to_hub(REPO, subfolder="mine/config.json/deep")
        assert hub.files(REPO) == before
        parts.extractor.push_to_hub(REPO, subfolder="mine", force=True)
        loaded = tc.CompatExtractor.from_pretrained(REPO, subfolder="mine")
        assert loaded.space.fingerprint == parts.space.fingerprint

    def test_a_foreign_folder_and_a_foreign_root(self, hub: LoopbackHub, parts: Parts) -> None:
        repo = hub.store.repos[REPO] = Repo(REPO)
        key = hub.store.put(b"theirs")
        repo.branches["main"] = repo.add({"unet/weights.bin": key}, repo.branches["main"], "theirs").oid
        with pytest.raises(tc.errors.ConfigError, match="holds something else"):
            parts.head.push_to_hub(REPO, subfolder="unet")
        with pytest.raises(tc.errors.ConfigError, match="holds something else"):
            parts.head.push_to_hub(REPO)


def test_on_the_command_line(hub: LoopbackHub, parts: Parts, tmp_path: Path, capsys: Any) -> None:
    parts.head.save_pretrained(tmp_path / "head")
    words = ("push", str(tmp_path / "head"), REPO, "--license", "mit", "--subfolder", "heads/owls")
    assert main([*words]) == 0
    assert capsys.readouterr().out == f"{REPO}/heads/owls at commit {hub.store.repos[REPO].branches['main']}\n"
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["subfolder"] == "heads/owls"
    assert main(["info", REPO, "--subfolder", "heads/owls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["license"] == "mit"
    tc.compose(parts.extractor, parts.head).save_pretrained(tmp_path / "fused", fused=True)
    assert main(["push", str(tmp_path / "fused"), REPO, "--subfolder", "fused"]) == 0
    assert "fused/README.md" in hub.files(REPO)
