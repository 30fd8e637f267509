"""Push and pull over real HTTP: what was published comes back the same, from one commit, and only once."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from hub_parts import CLASSES, TOKEN, Parts, images, make_parts, run_python
from hub_server import LoopbackHub
from safetensors.torch import load_file
from torch import nn

import timm_compat as tc
from timm_compat.cli import main

pytestmark = pytest.mark.usefixtures("alice")


def sent(hub: LoopbackHub) -> list[str]:
    return [f"{seen.method} {seen.path.split('?')[0]}" for seen in hub.seen]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


class TestRoundTrip:
    @pytest.mark.parametrize("mode", ["lfs", "regular"])
    def test_extractor(self, hub: LoopbackHub, parts: Parts, mode: str) -> None:
        hub.store.upload_mode = mode
        pushed = parts.extractor.push_to_hub("lab/extractor")
        assert sum("/commit/" in line for line in sent(hub)) == 1
        loaded = tc.CompatExtractor.from_pretrained("lab/extractor")
        assert torch.equal(loaded(images()), parts.extractor(images()))
        assert loaded.source == pushed == parts.extractor.source
        assert loaded.source.commit == hub.store.repos["lab/extractor"].branches["main"]
        assert set(loaded.source.sha256) == {"model.safetensors", "interface.safetensors"}
        assert str(loaded.source) == f"lab/extractor@{loaded.source.commit[:12]}"

    def test_head_and_space(self, hub: LoopbackHub, parts: Parts) -> None:
        parts.head.push_to_hub("lab/head")
        parts.space.push_to_hub("lab/space")
        assert same_weights(tc.TaskHead.from_pretrained("lab/head"), parts.head)
        space = tc.CompatSpace.from_pretrained("lab/space")
        assert space.fingerprint == parts.space.fingerprint
        assert torch.equal(space.shared["common_classes.weight"], parts.space.shared["common_classes.weight"])

    def test_composed_model_and_load_of_any_role(self, hub: LoopbackHub, parts: Parts) -> None:
        parts.extractor.push_to_hub("lab/extractor")
        model = tc.compose(parts.extractor, parts.head)
        model.push_to_hub("lab/model")
        loaded = tc.load("lab/model")
        assert isinstance(loaded, tc.CompatModel)
        assert torch.equal(loaded(images()), model(images()))
        assert loaded.class_names == CLASSES
        assert isinstance(tc.load("lab/extractor"), tc.CompatExtractor)
        config = json.loads(hub.files("lab/model")["config.json"])["timm_compat"]
        assert config["parts"]["extractor"]["repo_id"] == "lab/extractor"
        assert config["parts"]["extractor"]["commit"] == parts.extractor.source.commit
        assert "repo_id" not in config["parts"]["head"]  # it was never published
        card = hub.files("lab/model")["README.md"].decode()
        assert f"| extractor | `lab/extractor` at commit `{parts.extractor.source.commit}` |" in card
        assert "base_model:\n- lab/extractor\n" in card
        assert "base_model_relation: merge\n" in card

    def test_a_part_that_was_trained_on_is_not_the_published_one(self, hub: LoopbackHub, tmp_path: Path) -> None:
        changed = make_parts()
        changed.head.push_to_hub("lab/head")
        with torch.no_grad():
            changed.head.classifier.weight.add_(1)
        folder = tc.compose(changed.extractor, changed.head).save_pretrained(tmp_path / "model")
        assert "repo_id" not in json.loads((folder / "config.json").read_text())["timm_compat"]["parts"]["head"]

    def test_nothing_else_is_downloaded(self, hub: LoopbackHub, parts: Parts, tmp_path: Path) -> None:
        parts.extractor.facts = tc.Facts(base_model="timm/test_efficientnet.r160_in1k")
        parts.extractor.push_to_hub("lab/extractor")
        hub.seen.clear()
        tc.CompatExtractor.from_pretrained("lab/extractor", cache_dir=tmp_path / "fresh")
        assert all("lab/extractor" in seen.path for seen in hub.seen)
        assert sum(seen.method == "GET" and "/resolve/" in seen.path for seen in hub.seen) == 3

    def test_the_base_model_and_its_commit_are_known(self, hub: LoopbackHub, parts: Parts, tmp_path: Path) -> None:
        base = tc.compose(parts.extractor, parts.head).push_to_hub("lab/base", fused=True)
        parts.extractor.push_to_hub("lab/extractor")
        made = tc.create_extractor("hf-hub:lab/base", parts.space, pretrained=True, trainable="adapter")
        assert (made.facts.base_model, made.facts.base_model_commit) == ("lab/base", base.commit)
        assert "base_model:\n- lab/base" in made.card()
        assert "base_model_relation: adapter" in made.card()
        assert tc.CompatExtractor.from_pretrained(made.save_pretrained(tmp_path / "made")).facts == made.facts
        assert tc.create_extractor("test_resnet", parts.space).facts == tc.Facts()

    def test_subfolder(self, hub: LoopbackHub, parts: Parts, tmp_path: Path) -> None:
        parts.head.save_pretrained(tmp_path / "repo" / "heads" / "first")
        loaded = tc.TaskHead.from_pretrained(str(tmp_path / "repo"), subfolder="heads/first")
        assert same_weights(loaded, parts.head)
        parts.head.push_to_hub("lab/head")
        moved = {f"heads/first/{name}": data for name, data in hub.files("lab/head").items()}
        repo = hub.store.repos["lab/head"]
        repo.branches["main"] = repo.add({p: hub.store.put(d) for p, d in moved.items()}, None, "moved").oid
        assert same_weights(tc.TaskHead.from_pretrained("lab/head", subfolder="heads/first"), parts.head)
        with pytest.raises(tc.errors.ConfigError, match="subfolder"):
            tc.TaskHead.from_pretrained("lab/head", subfolder="../head")


class TestRevisions:
    def test_branch_commit_and_main(self, hub: LoopbackHub, parts: Parts) -> None:
        first = parts.head.push_to_hub("lab/head").commit
        other = tc.TaskHead(parts.space, ["x", "y"])
        second = other.push_to_hub("lab/head", revision="two-classes").commit
        assert tc.TaskHead.from_pretrained("lab/head").class_names == CLASSES
        assert tc.TaskHead.from_pretrained("lab/head", revision="two-classes").class_names == ("x", "y")
        assert tc.TaskHead.from_pretrained("lab/head", revision=second).source.commit == second
        assert tc.TaskHead.from_pretrained("lab/head", revision=first).class_names == CLASSES
        with pytest.raises(tc.errors.HubNotFoundError, match="lab/head at nowhere: no such revision"):
            tc.TaskHead.from_pretrained("lab/head", revision="nowhere")
        with pytest.raises(tc.errors.ConfigError, match="revision"):
            tc.TaskHead.from_pretrained("lab/head", revision="../../etc")

    def test_everything_comes_from_one_commit(self, hub: LoopbackHub, parts: Parts, tmp_path: Path) -> None:
        """Someone pushes while we load: config and weights are still of one state."""
        parts.head.push_to_hub("lab/head")
        files = tc.storage.reading.open_files("lab/head", cache_dir=tmp_path / "cache")
        config = files.config("head")
        tc.TaskHead(parts.space, CLASSES).push_to_hub("lab/head")
        tensors = files.tensors("model.safetensors", config, parts.head.state_dict())
        assert torch.equal(tensors["classifier.weight"], parts.head.classifier.weight)

    def test_a_commit_in_the_cache_needs_no_network(self, hub: LoopbackHub, parts: Parts) -> None:
        commit = parts.head.push_to_hub("lab/head").commit
        tc.TaskHead.from_pretrained("lab/head")
        hub.seen.clear()
        tc.TaskHead.from_pretrained("lab/head", revision=commit)
        assert hub.seen == []
        assert tc.TaskHead.from_pretrained("lab/head", local_files_only=True).source.commit == commit
        assert hub.seen == []


class TestPush:
    def test_unchanged_files_are_not_sent_again(self, hub: LoopbackHub, parts: Parts) -> None:
        first = parts.extractor.push_to_hub("lab/extractor").commit
        hub.seen.clear()
        assert parts.extractor.push_to_hub("lab/extractor").commit == first
        assert not [line for line in sent(hub) if "/commit/" in line or line.startswith("PUT")]
        parts.extractor.facts = tc.Facts(license="mit")
        second = parts.extractor.push_to_hub("lab/extractor").commit
        assert second != first
        assert not [line for line in sent(hub) if line.startswith("PUT")]

    def test_private_repositories(self, hub: LoopbackHub, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
        parts.head.push_to_hub("lab/secret", private=True)
        assert hub.store.repos["lab/secret"].private
        hub.user("hf_bobsecret", "bob")
        with pytest.raises(tc.errors.HubNotFoundError, match="lab/secret"):
            tc.TaskHead.from_pretrained("lab/secret", token="hf_bobsecret")
        with pytest.raises(tc.errors.HubAccessError, match="401"):
            tc.TaskHead.from_pretrained("lab/secret", token=False)
        with pytest.raises(tc.errors.ConfigError, match="exists and is private"):
            parts.head.push_to_hub("lab/secret", private=False)
        monkeypatch.delenv("HF_TOKEN")
        assert same_weights(tc.TaskHead.from_pretrained("lab/secret", token=TOKEN), parts.head)

    def test_pull_requests_are_refused_cleanly(self, hub: LoopbackHub, parts: Parts) -> None:
        parts.head.push_to_hub("lab/head")
        before = hub.files("lab/head")
        with pytest.raises(tc.errors.HubAccessError, match="Pull requests are disabled"):
            tc.TaskHead(parts.space, ["x"]).push_to_hub("lab/head", create_pr=True)
        assert hub.files("lab/head") == before

    def test_a_pull_request_tells_its_address(
        self, hub: LoopbackHub, parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        parts.head.push_to_hub("lab/head")
        before = hub.files("lab/head")
        hub.store.takes_pull_requests = True
        other = tc.TaskHead(parts.space, CLASSES)
        source = other.push_to_hub("lab/head", create_pr=True)
        assert source.pull_request == f"{hub.url}/lab/head/discussions/1"
        assert hub.files("lab/head") == before
        other.save_pretrained(tmp_path / "head")
        assert main(["push", str(tmp_path / "head"), "lab/head", "--create-pr", "--license", "mit"]) == 0
        assert f"{hub.url}/lab/head/discussions/2" in capsys.readouterr().out

    def test_a_repository_holds_one_component(self, hub: LoopbackHub, parts: Parts) -> None:
        parts.head.push_to_hub("lab/part")
        with pytest.raises(tc.errors.ConfigError, match="lab/part: holds a component of role 'head' already"):
            parts.extractor.push_to_hub("lab/part")
        hub.edit("lab/part", config__json=b'{"architecture": "resnet18"}')
        with pytest.raises(tc.errors.ConfigError, match=r"something else \(config\.json\)"):
            parts.head.push_to_hub("lab/part")

    def test_drafts_and_bad_ids_never_reach_the_hub(self, hub: LoopbackHub, parts: Parts) -> None:
        with pytest.raises(tc.errors.DraftSpaceError):
            tc.TaskHead(tc.CompatSpace(8, methods=["rotation"]), ["x"]).push_to_hub("lab/head")
        for repo_id in ("head", "a/b/c", "../x/y", "lab/..", "lab/a--b", "lab/x y"):
            with pytest.raises(tc.errors.ConfigError, match="repo_id"):
                parts.head.push_to_hub(repo_id)
        assert hub.seen == []

    def test_a_persons_card_stays(self, hub: LoopbackHub, parts: Parts) -> None:
        parts.head.push_to_hub("lab/head")
        card = hub.files("lab/head")["README.md"].decode()
        mine = card.replace("# A compatible", "# My owls\n\nLook here.\n\n# A compatible").replace(
            "library_name", "language: en\nlibrary_name"
        )
        hub.edit("lab/head", README__md=mine.encode())
        parts.head.facts = tc.Facts(license="mit", results=(tc.Result("owls", 0.5),))
        parts.head.push_to_hub("lab/head")
        card = hub.files("lab/head")["README.md"].decode()
        assert "# My owls\n\nLook here.\n" in card
        assert "language: en" in card
        assert re.search(r"\| owls +\| test +\|", card)
        parts.head.push_to_hub("lab/head", overwrite_card=True)
        assert "My owls" not in hub.files("lab/head")["README.md"].decode()

    def test_a_matrix_comes_as_table_and_picture(self, hub: LoopbackHub, parts: Parts) -> None:
        matrix = {"rows": ["a", "b"], "columns": ["a", "b"], "accuracy": [[0.9, 0.8], [0.7, None]]}
        parts.space.facts = tc.Facts(matrix=matrix)
        parts.space.push_to_hub("lab/space")
        files = hub.files("lab/space")
        assert files["matrix.png"].startswith(b"\x89PNG")
        assert "![Recombination matrix](matrix.png)" in files["README.md"].decode()
        assert tc.CompatSpace.from_pretrained("lab/space").facts == parts.space.facts
        parts.space.facts = tc.Facts()
        parts.space.push_to_hub("lab/space")
        assert "matrix.png" not in hub.files("lab/space")

    def test_two_pushes_at_once(self, hub: LoopbackHub, parts: Parts) -> None:
        parts.head.push_to_hub("lab/head")
        hub.fail("POST .*/commit/", "status", 412, times=1)
        with pytest.raises(tc.errors.HubError, match="somebody else pushed meanwhile"):
            tc.TaskHead(parts.space, ["x"]).push_to_hub("lab/head")


class TestTimm:
    """What was pushed is of use to people who do not have this package."""

    script = """
import sys, timm, torch
from safetensors.torch import save_file
images, folder = torch.load(sys.argv[1]), sys.argv[2]
backbone = timm.create_model("hf-hub:lab/extractor", pretrained=True, num_classes=5).eval()
fused = timm.create_model("hf-hub:lab/fused", pretrained=True).eval()
assert not any(name.startswith("timm_compat") for name in sys.modules)
save_file({"five": backbone(images).contiguous(), "fused": fused(images).contiguous()}, folder + "/logits")
save_file({key: value.contiguous().clone() for key, value in backbone.state_dict().items()}, folder + "/weights")
print(fused.pretrained_cfg["label_names"])
"""

    @pytest.mark.slow
    def test_without_this_package(self, hub: LoopbackHub, parts: Parts, tmp_path: Path) -> None:
        model = tc.compose(parts.extractor, parts.head)
        parts.extractor.push_to_hub("lab/extractor")
        model.push_to_hub("lab/fused", fused=True)
        assert set(hub.files("lab/fused")) == {"README.md", "config.json", "model.safetensors"}
        torch.save(images(), tmp_path / "images")
        arguments = [str(tmp_path / "images"), str(tmp_path)]
        done = run_python(f"import sys; sys.argv[1:] = {arguments!r}\n{self.script}")
        assert done.stdout.strip() == str(list(CLASSES))
        weights, own = load_file(tmp_path / "weights"), parts.extractor.backbone.model.state_dict()
        assert own.keys() < weights.keys()
        assert all(torch.equal(weights[key], own[key]) for key in own)
        logits = load_file(tmp_path / "logits")
        assert logits["five"].shape == (2, 5)
        torch.testing.assert_close(logits["fused"], model(images()), atol=1e-4, rtol=0)

    def test_a_fused_model_loads_here_too(self, hub: LoopbackHub, parts: Parts) -> None:
        model = tc.compose(parts.extractor, parts.head)
        pushed = model.push_to_hub("lab/fused", fused=True)
        plain = tc.load("lab/fused", revision=pushed.commit)
        assert not isinstance(plain, tc.CompatModel)
        torch.testing.assert_close(plain(images()), model(images()), atol=1e-4, rtol=0)
        with pytest.raises(
            tc.errors.ComponentFileError, match=r"timm.create_model\('hf-hub:lab/fused', pretrained=True\)"
        ):
            tc.CompatModel.from_pretrained("lab/fused")

    def test_composed_model_through_timm_after_the_import(self, hub: LoopbackHub, tmp_path: Path) -> None:
        unfusable = make_parts(normalization="layer")
        model = tc.compose(unfusable.extractor, unfusable.head)
        with pytest.raises(tc.errors.FuseError):
            model.push_to_hub("lab/model", fused=True)
        assert "lab/model" not in hub.store.repos
        commit = model.push_to_hub("lab/model").commit
        for name in ("hf-hub:lab/model", f"hf-hub:lab/model@{commit}"):
            loaded = timm.create_model(name, pretrained=True).eval()
            assert isinstance(loaded, tc.CompatModel)
            assert torch.equal(loaded(images()), model(images()))
        assert timm.create_model("hf-hub:lab/model", num_classes=3).class_names == CLASSES
        with pytest.raises(tc.errors.ConfigError, match="num_classes: the published model has 3, got 7"):
            timm.create_model("hf-hub:lab/model", num_classes=7)
        with pytest.raises(tc.errors.ConfigError, match="backbone"):
            timm.create_model("hf-hub:lab/model", backbone="resnet18")
        folder = model.save_pretrained(tmp_path / "model")
        assert torch.equal(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images()), model(images()))
        by_id = timm.create_model("compat_extractor", backbone="test_resnet", space=self.published_space(unfusable))
        assert by_id.space.fingerprint == unfusable.space.fingerprint

    def published_space(self, parts: Parts) -> str:
        parts.space.push_to_hub("lab/space")
        return "lab/space"


class TestPull:
    def test_a_pulled_folder_is_whole(self, hub: LoopbackHub, parts: Parts, tmp_path: Path) -> None:
        parts.extractor.push_to_hub("lab/extractor")
        folder = tc.pull("lab/extractor", tmp_path / "extractor")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == hub.files("lab/extractor")
        assert not any(path.is_symlink() for path in folder.iterdir())
        assert same_weights(tc.CompatExtractor.from_pretrained(folder), parts.extractor)
        with pytest.raises(tc.errors.OutputExistsError):
            tc.pull("lab/extractor", tmp_path / "extractor")

    def test_a_damaged_component_leaves_no_folder(self, hub: LoopbackHub, parts: Parts, tmp_path: Path) -> None:
        parts.head.push_to_hub("lab/head")
        hub.fail("GET .*resolve.*safetensors", "flip", times=1)
        with pytest.raises(tc.errors.ComponentFileError, match="SHA-256"):
            tc.pull("lab/head", tmp_path / "head")
        assert list(tmp_path.glob("*head*")) == []
        tc.pull("lab/head", tmp_path / "head")  # the damaged copy has left the cache
