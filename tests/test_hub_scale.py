"""A Hub with a thousand components: few requests, spaces with their parts counted, what fits in one command."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hub_parts import CLASSES, TOKEN, Parts, make_parts
from hub_server import REAL_PAGE, LoopbackHub

import timm_compat as tc
from timm_compat.cli import main

REQUESTS = 20  # of a cold search


@pytest.fixture(scope="module")
def spaces() -> list[Parts]:
    return [make_parts(seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def pushed() -> dict[str, Any]:
    """What the first test pushed, so that the others need not."""
    return {}


@pytest.fixture
def large(
    hub: LoopbackHub, spaces: list[Parts], pushed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> LoopbackHub:
    """1,000 components in two spaces, the second one's space not published; one head knows unicorns."""
    monkeypatch.setenv("HF_TOKEN", hub.user(TOKEN, "alice", "lab"))
    hub.page, store = REAL_PAGE, hub.store
    if not pushed:
        push_one_of_each(spaces)
        pushed.update(repos=store.repos, blobs=store.blobs, lfs=store.lfs)
    store.repos, store.blobs, store.lfs = dict(pushed["repos"]), pushed["blobs"], pushed["lfs"]
    for repo_id, count in (("lab/extractor", 200), ("lab/head", 298)):
        for number in range(len(spaces)):
            store.copy(f"{repo_id}{number}", [f"{repo_id}{number}-{copy}" for copy in range(1, count)])
    for repo_id in pushed["repos"]:
        store.copy(repo_id, [repo_id])
    assert len(store.repos) == 1000
    hub.seen.clear()
    return hub


def push_one_of_each(spaces: list[Parts]) -> None:
    for number, parts in enumerate(spaces):
        parts.extractor.push_to_hub(f"lab/extractor{number}")
        parts.head.push_to_hub(f"lab/head{number}")
    spaces[0].space.push_to_hub("lab/space")
    tc.TaskHead(spaces[1].space, ["cat", "unicorn"]).push_to_hub("alice/unicorns")
    tc.TaskHead(spaces[1].space, [str(number) for number in range(101)]).push_to_hub("alice/many")
    tc.compose(spaces[0].extractor, spaces[0].head).push_to_hub("alice/fused", fused=True)


class TestAThousandComponents:
    @pytest.mark.parametrize(
        ("asked", "rows", "more"),
        [
            ({}, 16, True),
            ({"role": "head"}, 16, True),
            ({"classes": ["unicorn"]}, 1, False),
            ({"classes": ["100"]}, 1, False),
            ({"role": "model"}, 1, False),
            ({"role": "space"}, 1, False),
            ({"author": "alice"}, 3, False),
        ],
    )
    def test_a_cold_search_takes_few_requests(
        self, large: LoopbackHub, asked: dict[str, Any], rows: int, more: bool
    ) -> None:
        found = tc.search(**asked)
        assert (len(found), found.more, found.refused, found.faults) == (rows, more, (), ())
        assert len(large.seen) <= REQUESTS, [seen.path for seen in large.seen]
        paths = {seen.path for seen in large.seen}  # the client asks again where a connection drops
        assert sum("/config.json" in path for path in paths) == len(paths) - 1

    def test_a_warm_search_asks_for_the_list_only(self, large: LoopbackHub) -> None:
        cold = tc.search(role="head")
        large.seen.clear()
        assert tc.search(role="head") == cold
        assert [seen.path.partition("?")[0] for seen in large.seen] == ["/api/models"]

    def test_others_are_looked_at_for_those_that_are_refused(self, large: LoopbackHub) -> None:
        shown = [row.repo_id for row in tc.search(role="head")]
        for repo_id in shown[:2]:
            large.edit(repo_id, config__json=b"{}")
        found = tc.search(role="head")
        assert [repo_id for repo_id, _ in found.refused] == shown[:2]
        assert len(found) == 16
        assert [row.repo_id for row in found][:14] == shown[2:]

    def test_what_was_found_loads_from_the_commit_that_was_looked_at(self, large: LoopbackHub) -> None:
        (found,) = tc.search(classes=["unicorn"])
        tc.TaskHead(make_parts(seed=1).space, ["newer"]).push_to_hub("alice/unicorns")
        large.seen.clear()
        head = tc.TaskHead.from_pretrained(found.repo_id, revision=found.commit)
        assert head.class_names == ("cat", "unicorn")
        assert not any("config.json" in seen.path for seen in large.seen)

    @pytest.mark.parametrize(("kind", "value"), [("flip", None), ("commit", "f" * 40), ("junk", None)])
    def test_a_config_that_was_damaged_on_the_way_is_no_answer(
        self, large: LoopbackHub, kind: str, value: str | None
    ) -> None:
        large.fail("GET /alice/unicorns/resolve", kind, value)
        found = tc.search(classes=["unicorn"])
        assert (len(found), [repo_id for repo_id, _ in found.faults]) == (0, ["alice/unicorns"])
        large.faults.clear()
        assert [row.repo_id for row in tc.search(classes=["unicorn"])] == ["alice/unicorns"]

    def test_a_config_without_end_is_not_read_to_its_end(
        self, large: LoopbackHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("timm_compat.storage.reading.MAX_CONFIG_BYTES", 100)
        assert "expected at most 100 bytes" in dict(tc.search(author="alice").refused)["alice/unicorns"]

    def test_cards_name_the_classes_that_a_search_asks_for(self, large: LoopbackHub, spaces: list[Parts]) -> None:
        assert "class_names:\n- cat\n- unicorn\n" in large.files("alice/unicorns")["README.md"].decode()
        assert "class_names" not in large.files("alice/many")["README.md"].decode().split("---")[1]
        tc.TaskHead(spaces[1].space, [str(number) for number in range(101)]).push_to_hub("alice/unicorns")
        assert "unicorn\n" not in large.files("alice/unicorns")["README.md"].decode().split("---")[1]


class TestSpaces:
    def test_their_parts_are_counted(self, large: LoopbackHub, spaces: list[Parts]) -> None:
        first, second = (parts.space.fingerprint for parts in spaces)
        found = tc.search(role="space")
        assert [row.repo_id for row in found] == ["lab/space"]
        assert found.members == {
            first: {"extractor": 200, "head": 298, "space": 1, "model": 1},
            second: {"extractor": 200, "head": 300, "space": 0, "model": 0},
        }
        assert tc.search(role="space", author="lab").members == found.members
        assert tc.search(role="head").members == {}

    def test_on_the_command_line(self, large: LoopbackHub, spaces: list[Parts], capsys: Any) -> None:
        first, second = (parts.space.fingerprint for parts in spaces)
        assert main(["search", "--role", "space"]) == 0
        out = re.sub(" +", " ", capsys.readouterr().out)
        assert f"| {first} | 8 | 200 | 298 | 1 | lab/space | not stated |" in out
        assert f"not published itself: {second} (200 extractors, 300 heads, 0 models)" in out
        assert main(["search", "--role", "space", "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["repo_id"], row["extractors"], row["heads"], row["models"]) == ("lab/space", 200, 298, 1)

    def test_a_cut_list_is_told(self, large: LoopbackHub, capsys: Any) -> None:
        assert main(["search", "--role", "head", "--limit", "2"]) == 0
        assert "there may be more than these 2: see --limit" in capsys.readouterr().err


class TestWhatFits:
    def test_a_component_or_its_folder_or_its_id(
        self, large: LoopbackHub, spaces: list[Parts], tmp_path: Path, capsys: Any
    ) -> None:
        parts = spaces[1]
        parts.head.save_pretrained(tmp_path / "head")
        expected = {f"lab/extractor1{end}" for end in ("", *(f"-{number}" for number in range(1, 200)))}
        for head in (parts.head, "lab/head1", tmp_path / "head", str(tmp_path / "head")):
            large.seen.clear()
            found = tc.search(fits=head)
            assert len(found) == 16
            assert len(large.seen) <= REQUESTS
            assert {row.repo_id for row in found} <= expected
        assert main(["search", "--fits", str(tmp_path / "head"), "--limit", "3"]) == 0
        assert capsys.readouterr().out.count("| extractor |") == 3

    def test_what_fits_depends_on_the_role(self, large: LoopbackHub, spaces: list[Parts]) -> None:
        parts = spaces[1]
        assert {row.role for row in tc.search(fits=parts.extractor)} == {"head"}
        for component in (parts.space, tc.compose(parts.extractor, parts.head)):
            found = tc.search(fits=component)
            assert {row.role for row in found} <= {"extractor", "head"}
            assert {row.space for row in found} == {parts.space.fingerprint}
        assert [row.repo_id for row in tc.search(fits=parts.extractor, classes=["unicorn"])] == ["alice/unicorns"]
        assert {row.role for row in tc.search(fits="alice/fused", role="head")} == {"head"}

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({"fits": "head", "role": "model"}, "role: expected extractor, which fit a head, got 'model'"),
            ({"fits": "head", "space": "0" * 16}, "fits: expected it without space="),
            ({"fits": 3}, "fits: expected a component, its folder or its Hub id"),
            ({"classes": "cat"}, "classes: expected a list of names"),
        ],
    )
    def test_bad_questions(self, spaces: list[Parts], asked: dict[str, Any], message: str) -> None:
        if asked.get("fits") == "head":
            asked = {**asked, "fits": spaces[0].head}
        with pytest.raises(tc.errors.ConfigError, match=message):
            tc.search(**asked)

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(tc.errors.ComponentFileError, match=r"config\.json"):
            tc.search(fits=tmp_path)
        with pytest.raises(tc.errors.DraftSpaceError):
            tc.search(fits=tc.CompatSpace(8, CLASSES, ["common_classes"]))
