"""Components of format 1 stay loadable, compatible and findable, whatever formats come later.

``components_format_1`` was written once, by version 0.1.0 with timm 1.0.31 and torch 2.14.1; nothing writes it again.
``expected.json`` holds the spaces' fingerprints and the outputs that its components gave then.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import LoopbackHub

import timm_compat as tc

FOLDER = Path(__file__).parent / "components_format_1"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
ROLES = ("extractor", "head", "space", "fused", "composed")


def images(channels: int) -> torch.Tensor:
    """The images that the recorded outputs belong to, from integers only: (2, C, 32, 32)."""
    count = 2 * channels * 32 * 32
    return ((torch.arange(count) * 7919 % 1009).float() / 504.5 - 1).reshape(2, channels, 32, 32)


@torch.no_grad()
def output_of(role: str) -> torch.Tensor:
    component: Any = tc.load(FOLDER / role)
    if role == "space":
        return torch.cat([tensor.flatten() for _, tensor in sorted(component.shared.items())])[None]
    if role == "head":
        return component(torch.linspace(-1, 1, 16).reshape(2, 8))
    return component(images(3 if role == "composed" else 1))


@pytest.fixture
def newer_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package as it will be once it writes a format 3."""
    set_format(monkeypatch, FORMAT=3, NEWEST_FORMAT=3)


def set_format(monkeypatch: pytest.MonkeyPatch, **numbers: int) -> None:
    for name, module in list(sys.modules.items()):
        for constant, number in numbers.items():
            if name.startswith("timm_compat.") and hasattr(module, constant):
                monkeypatch.setattr(module, constant, number)


@pytest.mark.parametrize("role", ROLES)
def test_format_1_gives_the_recorded_outputs(role: str) -> None:
    torch.testing.assert_close(output_of(role), torch.tensor(EXPECTED[role]["output"]), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("role", ROLES)
def test_a_newer_version_reads_it_by_its_own_rules(newer_format: None, role: str) -> None:
    torch.testing.assert_close(output_of(role), torch.tensor(EXPECTED[role]["output"]), atol=2e-4, rtol=1e-4)
    component: Any = tc.load(FOLDER / role)
    if role != "fused":
        space = component if role == "space" else getattr(component, "extractor", component).space
        assert space.fingerprint == EXPECTED[role]["space"]


def test_a_newer_version_keeps_the_space_of_what_it_saves_anew(newer_format: None, tmp_path: Path) -> None:
    head = tc.TaskHead.from_pretrained(FOLDER / "head")
    head.save_pretrained(tmp_path / "head")
    config = json.loads((tmp_path / "head" / "config.json").read_text())["timm_compat"]
    assert (config["format"], config["space"]["format"]) == (3, 1)
    again = tc.TaskHead.from_pretrained(tmp_path / "head")
    assert tc.compose(tc.CompatExtractor.from_pretrained(FOLDER / "extractor"), again).class_names == ("owl", "cat")
    assert tc.CompatSpace(8, methods=["rotation"]).definition()["format"] == 3


def test_facts_of_format_1() -> None:
    facts = tc.load(FOLDER / "extractor").facts
    assert (facts.license, facts.base_model, facts.member) == ("mit", "timm/test_efficientnet.r160_in1k", "a")
    assert facts.results == (tc.Result("cats", 0.875, num_images=40, partner="lab/head"),)
    assert facts.matrix["accuracy"] == [[0.9, 0.8], [0.7, None]]


@pytest.mark.parametrize("number", [0, 2, True, "1", None])
def test_a_space_of_a_format_that_cannot_be_read(tmp_path: Path, number: object) -> None:
    folder = Path(shutil.copytree(FOLDER / "head", tmp_path / "head"))
    config = json.loads((folder / "config.json").read_text())
    config["timm_compat"]["space"]["format"] = number
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(tc.errors.ComponentFileError, match=r"space: expected (a )?format"):
        tc.TaskHead.from_pretrained(folder)


def test_a_search_finds_every_format_that_can_be_read(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.user("hf_alicesecret", "alice", "lab"))
    head = tc.TaskHead.from_pretrained(FOLDER / "head")
    head.push_to_hub("lab/old")
    request.getfixturevalue("newer_format")
    head.push_to_hub("lab/new")
    assert [found.repo_id for found in tc.search(space=head.space, role="head")] == ["lab/old", "lab/new"]
    assert b"timm-compat-format:3" in hub.files("lab/new")["README.md"]


def test_a_format_that_is_too_new_is_left_out_with_a_reason(
    hub: LoopbackHub, newer_format: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.user("hf_alicesecret", "alice", "lab"))
    head = tc.TaskHead.from_pretrained(FOLDER / "head")
    head.push_to_hub("lab/new")
    set_format(monkeypatch, FORMAT=1, NEWEST_FORMAT=2)
    found = tc.search(space=head.space)
    assert not found
    assert [(repo_id, "upgrade" in reason) for repo_id, reason in found.refused] == [("lab/new", True)]
