"""Search: tags give candidates, configs decide; the command line; cards whose usage runs as it stands."""

import copy
import io
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_parts import CLASSES, TOKEN, D, Parts, images, make_parts
from hub_server import LoopbackHub
from PIL import Image

import timm_compat as tc
from timm_compat.cli import main


@pytest.fixture
def published(hub: LoopbackHub, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """All four roles in one space, and a head of another."""
    monkeypatch.setenv("HF_TOKEN", hub.user(TOKEN, "alice", "lab"))
    for part in (parts.space, parts.extractor, parts.head):
        part.facts, part.source = tc.Facts(), None
    parts.space.push_to_hub("lab/space")
    parts.extractor.push_to_hub("lab/extractor")
    parts.head.facts = tc.Facts(license="mit", results=(tc.Result("owls", 0.75),))
    parts.head.push_to_hub("lab/head")
    tc.compose(parts.extractor, parts.head).push_to_hub("alice/fused", fused=True)
    make_parts(seed=7).head.push_to_hub("lab/stranger")
    return hub


def ids(found: tc.SearchResult) -> list[str]:
    return [row.repo_id for row in found]


class TestSearch:
    def test_by_space_role_classes_dim_and_author(self, published: LoopbackHub, parts: Parts) -> None:
        assert ids(tc.search(space=parts.space)) == ["lab/space", "lab/extractor", "lab/head", "alice/fused"]
        assert ids(tc.search(space=parts.space.fingerprint, role="head")) == ["lab/head"]
        assert ids(tc.search(role="head")) == ["lab/head", "lab/stranger"]
        assert ids(tc.search(classes=["owl", "cat"], author="alice")) == ["alice/fused"]
        assert ids(tc.search(classes=["unicorn"])) == []
        assert ids(tc.search(dim=D + 1)) == []
        assert len(tc.search(limit=2)) == 2

    def test_what_a_row_says(self, published: LoopbackHub, parts: Parts) -> None:
        (head,) = tc.search(space=parts.space, role="head")
        assert head == tc.Found(
            repo_id="lab/head",
            commit=published.store.repos["lab/head"].branches["main"],
            role="head",
            space=parts.space.fingerprint,
            feature_dim=D,
            architecture=None,
            class_names=CLASSES,
            parameters=3 * D + 3,
            accuracy=0.75,
            license="mit",
            fused=False,
        )
        found = tc.search(space=parts.space)
        assert {row.repo_id: row.architecture for row in found}["alice/fused"] == "test_efficientnet"
        table = found.to_markdown()
        assert re.search(r"\| lab/head +\| head +\| +\| 8 +\| 3: cat; dog; owl +\| 27 +\| 0.750 +\| mit", table)
        assert "not stated" in table

    def test_tags_that_promise_more_than_the_config_holds(self, published: LoopbackHub, parts: Parts) -> None:
        card = published.files("lab/stranger")["README.md"].decode()
        lie = re.sub(r"timm-compat-space:\w+", f"timm-compat-space:{parts.space.fingerprint}", card)
        published.edit("lab/stranger", README__md=lie.encode())
        published.edit("lab/head", config__json=b"{}")
        found = tc.search(space=parts.space, role="head")
        assert ids(found) == []
        reasons = dict(found.refused)
        assert "its config.json says" in reasons["lab/stranger"]
        assert "not a component of timm-compat" in reasons["lab/head"]

    def test_private_components_are_found_by_those_who_may_see_them(self, published: LoopbackHub, parts: Parts) -> None:
        published.store.repos["lab/head"].private = True
        stranger = published.user("hf_bobsecret", "bob")
        assert "lab/head" in ids(tc.search(space=parts.space))
        assert "lab/head" not in ids(tc.search(space=parts.space, token=stranger))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"role": "backbone"}, "role: expected one of extractor, head, space, model"),
            ({"space": "xyz"}, "space: expected a CompatSpace or its fingerprint"),
            ({"dim": 0}, "dim: expected a positive integer"),
            ({"limit": -1}, "limit: expected a positive integer"),
            ({"limit": 0}, "limit: expected a positive integer"),
            ({"limit": True}, "limit: expected a positive integer"),
        ],
    )
    def test_bad_questions(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(tc.errors.ConfigError, match=message):
            tc.search(**settings)
        with pytest.raises(tc.errors.DraftSpaceError):
            tc.search(space=tc.CompatSpace(8, methods=["rotation"]))


@pytest.fixture
def crowded(hub: LoopbackHub, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """Forty heads in one space; only the last ten know unicorns. Sixteen are looked at in one go."""
    monkeypatch.setattr("timm_compat.hub.search.MOST_AT_ONCE", 16)
    monkeypatch.setattr("timm_compat.hub.listing.BATCH", 16)
    monkeypatch.setenv("HF_TOKEN", hub.user(TOKEN, "alice", "lab"))
    tc.TaskHead(parts.space, ["cat"]).push_to_hub("lab/head0")
    tc.TaskHead(parts.space, ["cat", "unicorn"]).push_to_hub("lab/head30")
    for number in range(40):
        twin = copy.copy(hub.store.repos["lab/head30" if number >= 30 else "lab/head0"])
        twin.repo_id = f"lab/head{number}"
        hub.store.repos[twin.repo_id] = twin
    hub.store.repos = dict(sorted(hub.store.repos.items(), key=lambda item: int(item[0].removeprefix("lab/head"))))
    hub.seen.clear()
    return hub


class TestManyCandidates:
    def test_the_limit_counts_what_fits(self, crowded: LoopbackHub) -> None:
        assert ids(tc.search(classes=["unicorn"], limit=3)) == ["lab/head30", "lab/head31", "lab/head32"]
        assert len(tc.search(role="head", limit=100)) == 40

    def test_pages_are_turned_as_they_are_needed(self, crowded: LoopbackHub) -> None:
        assert len(tc.search(limit=5)) == 5
        pages = [seen for seen in crowded.seen if seen.path.startswith("/api/models?")]
        assert len(pages) <= 9  # of twenty with two models each

    def test_candidates_are_looked_at_at_once(self, crowded: LoopbackHub) -> None:
        crowded.fail("GET /lab/", "slow", 0.3)
        start = time.monotonic()
        assert len(tc.search(limit=16)) == 16
        assert time.monotonic() - start < 0.3 * 16 * 0.8

    def test_broken_repositories_are_passed_over_and_told(self, crowded: LoopbackHub, capsys: Any) -> None:
        crowded.fail("/lab/head3[/?]", "status", 503)
        crowded.fail("/lab/head5[/?]", "status", 429, times=1)
        crowded.fail("GET /lab/head7/", "junk")
        found = tc.search(role="head", limit=100)
        assert len(found) == 38
        assert [repo_id for repo_id, _ in found.faults] == ["lab/head3", "lab/head7"]
        assert "503" in found.faults[0][1]
        assert main(["search", "--role", "head", "--limit", "5"]) == 0
        assert "left out lab/head3:" in capsys.readouterr().err

    def test_a_page_that_fails_once(self, crowded: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        crowded.fail("cursor=", "truncate", times=1)
        assert len(tc.search(role="head", limit=100)) == 40

    def test_a_list_that_breaks_off_gives_what_it_gave(self, crowded: LoopbackHub) -> None:
        crowded.fail("cursor=20", "status", 403)
        found = tc.search(role="head", limit=100)
        assert len(found) == 16
        (fault,) = found.faults
        assert fault[0] == "listing"
        assert "broke off after 16 candidates" in fault[1]

    def test_a_hub_that_fails_altogether_is_not_asked_for_ever(self, crowded: LoopbackHub) -> None:
        crowded.fail("GET /lab/", "status", 500)
        found = tc.search(role="head")
        assert not found
        assert "the search ends here" in dict(found.faults)["listing"]
        assert len(found.faults) == 17


class TestCards:
    @pytest.mark.parametrize("repo_id", ["lab/space", "lab/extractor", "lab/head", "lab/model", "alice/fused"])
    def test_usage_runs_as_it_stands(self, published: LoopbackHub, parts: Parts, repo_id: str, capsys: Any) -> None:
        if repo_id == "lab/model":
            tc.compose(parts.extractor, parts.head).push_to_hub("lab/model")
        card = published.files(repo_id)["README.md"].decode()
        blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        assert blocks
        names: dict[str, Any] = {}
        for block in blocks:
            exec(compile(block, repo_id, "exec"), names)
        printed = capsys.readouterr().out
        if repo_id in ("lab/extractor", "lab/head"):  # it found its partner
            assert {"lab/extractor": "lab/head", "lab/head": "lab/extractor"}[repo_id] in printed


class TestCommands:
    def run(self, capsys: Any, *words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    def test_search_and_info(self, published: LoopbackHub, parts: Parts, capsys: Any) -> None:
        code, out, _ = self.run(capsys, "search", "--space", "lab/space", "--role", "head")
        assert code == 0
        assert "lab/head" in out
        assert "lab/stranger" not in out
        assert self.run(capsys, "search", "--classes", "unicorn")[:2] == (0, "nothing that fits\n")
        code, out, _ = self.run(capsys, "info", "lab/head", "--json")
        facts = json.loads(out)
        assert (facts["role"], facts["space"], facts["class_names"]) == ("head", parts.space.fingerprint, [*CLASSES])
        assert facts["commit"] == published.store.repos["lab/head"].branches["main"]
        assert "license: mit" in self.run(capsys, "info", "lab/head", "--offline")[1]

    def test_push_and_pull(self, published: LoopbackHub, capsys: Any, tmp_path: Path) -> None:
        code, out, _ = self.run(capsys, "pull", "lab/head", "--output", tmp_path / "head")
        assert (code, out) == (0, f"{tmp_path / 'head'}: README.md, config.json, model.safetensors\n")
        words = ("push", tmp_path / "head", "lab/copy", "--private", "--revision", "dev", "--message", "a copy")
        code, out, err = self.run(capsys, *words, "--json")
        assert code == 0, err
        repo = published.store.repos["lab/copy"]
        assert (repo.private, repo.branches["dev"]) == (True, json.loads(out)["commit"])
        assert repo.commits[repo.branches["dev"]].title == "a copy"
        assert "license: mit" in published.files("lab/copy", "dev")["README.md"].decode()
        self.run(capsys, "pull", "alice/fused", "--output", tmp_path / "fused")
        code, _, err = self.run(capsys, "push", tmp_path / "fused", "alice/again")
        assert code == 0, err
        assert (
            published.files("alice/again")["model.safetensors"] == published.files("alice/fused")["model.safetensors"]
        )
        assert "hf-hub:alice/again" in published.files("alice/again")["README.md"].decode()

    def test_no_licence_is_made_up(self, published: LoopbackHub, parts: Parts, capsys: Any, tmp_path: Path) -> None:
        tc.TaskHead(parts.space, ["x"]).save_pretrained(tmp_path / "head")
        code, _, err = self.run(capsys, "push", tmp_path / "head", "lab/plain")
        assert code == 0
        assert "no licence is stated" in err
        assert "license" not in published.files("lab/plain")["README.md"].decode()

    def test_a_licence_is_asked_for(
        self, published: LoopbackHub, parts: Parts, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setattr(sys, "stdin", Terminal("bsd-3-clause\n"))
        tc.TaskHead(parts.space, ["x"]).save_pretrained(tmp_path / "head")
        code, _, err = self.run(capsys, "push", tmp_path / "head", "lab/plain")
        assert code == 0
        assert "Licence (an id such as apache-2.0" in err
        assert "license: bsd-3-clause" in published.files("lab/plain")["README.md"].decode()

    @pytest.mark.filterwarnings("ignore:join")  # so few images are too few for a good fit
    def test_join_takes_hub_ids(self, published: LoopbackHub, parts: Parts, capsys: Any, tmp_path: Path) -> None:
        ids = ("--reference", "lab/extractor", "--space", "lab/space", "--head", "lab/head")
        words = ("--backbone", "test_resnet", "--img-size", 32, "--images", "digits", "--limit", 40)
        code, _, err = self.run(capsys, "join", *ids, *words, "--output", tmp_path / "joined")
        assert code == 0, err
        joined = tc.CompatExtractor.from_pretrained(tmp_path / "joined")
        assert joined.space.fingerprint == parts.space.fingerprint
        assert joined.facts.training["method"] == "joined in closed form"

    def test_compose_says_in_one_line_what_does_not_fit(self, published: LoopbackHub, capsys: Any) -> None:
        published.seen.clear()
        code, _, err = self.run(capsys, "compose", "lab/extractor", "lab/stranger")
        assert code == 2
        assert err.count("\n") == 1
        assert "lab/extractor and lab/stranger do not fit: their spaces" in err
        assert not [seen for seen in published.seen if "safetensors" in seen.path]
        code, _, err = self.run(capsys, "compose", "lab/head", "lab/extractor")
        assert (code, "role 'extractor', got 'head'" in err) == (2, True)

    def test_compose_and_predict(self, published: LoopbackHub, parts: Parts, capsys: Any, tmp_path: Path) -> None:
        code, out, err = self.run(capsys, "compose", "lab/extractor", "lab/head", "--push", "lab/model", "--json")
        assert code == 0, err
        assert json.loads(out)["pushed"].startswith("lab/model@")
        torch.manual_seed(0)
        for number in range(3):
            pixels = (torch.rand(40, 40, 3) * 255).byte().numpy()
            (tmp_path / "photos" / "deep").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "photos" / "deep" / f"{number}.png")
        (tmp_path / "photos" / "notes.txt").write_text("no image")
        answers = []
        for words in (
            ["lab/extractor", "--head", "lab/head"],
            ["lab/model"],
            ["alice/fused"],
            ["lab/model", "--offline"],
        ):
            model, *rest = words
            code, out, err = self.run(capsys, "predict", model, tmp_path / "photos", *rest, "--json")
            assert code == 0, err
            answers.append([[c["name"] for c in one["classes"]] for one in json.loads(out)])
        assert answers[1:] == answers[:-1]
        assert len(answers[0]) == 3
        code, out, _ = self.run(capsys, "predict", "lab/model", tmp_path / "photos" / "deep" / "0.png", "--top", 2)
        assert re.fullmatch(r"\S+0\.png  (\w+ 0\.\d{3}) +(\w+ 0\.\d{3})\n", out)
        model = tc.compose(parts.extractor, parts.head)
        with Image.open(tmp_path / "photos" / "deep" / "0.png") as image, torch.no_grad():
            logits = model(parts.extractor.transform()(image)[None])
        assert out.split()[1] == CLASSES[logits.argmax()]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["predict", "lab/extractor", "."], "expected an image or a folder with images"),
            (["predict", "lab/extractor", "{image}"], "give it a head"),
            (["predict", "lab/space", "{image}"], "expected a classifier, got a CompatSpace"),
            (["predict", "lab/head", "{image}"], "expected a classifier, got a TaskHead"),
            (["predict", "alice/fused", "{image}", "--head", "lab/head"], "drop --head"),
            (["predict", "alice/fused", "{text}"], "expected an image that can be decoded"),
            (["predict", "alice/fused", "{image}", "--top", "0"], "top: expected"),
            (["pull", "lab/nothing", "--output", "{folder}/new"], "no such repository"),
            (["pull", "lab/head", "--output", "{folder}"], "expected a new or empty output folder"),
            (["info", "lab/head", "--revision", "v9"], "no such revision"),
            (["push", "{folder}", "lab/x"], "expected config.json"),
            (["search", "--role", "cook"], "role: expected one of"),
        ],
    )
    def test_errors_are_one_line(
        self, published: LoopbackHub, capsys: Any, tmp_path: Path, monkeypatch: Any, words: list[str], message: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "text").mkdir()
        (tmp_path / "text" / "a.png.txt").write_text("no image")
        Image.new("RGB", (8, 8)).save(tmp_path / "text" / "image.gif.bin", format="PNG")
        places = {
            "image": str(tmp_path / "text" / "image.gif.bin"),
            "text": str(tmp_path / "text" / "a.png.txt"),
            "folder": str(tmp_path / "text"),
        }
        code, _, err = self.run(capsys, *(word.format(**places) for word in words))
        assert code == 2
        assert message in err
        assert TOKEN not in err


def test_features_are_the_same_after_a_round_trip_by_search(published: LoopbackHub, parts: Parts) -> None:
    (found,) = tc.search(space=parts.space, role="extractor")
    loaded = tc.CompatExtractor.from_pretrained(found.repo_id, revision=found.commit)
    assert torch.equal(loaded(images()), parts.extractor(images()))
