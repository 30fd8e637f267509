"""The demonstration with pretrained networks: weights fetched in a bounded time, one head on both networks."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_server import LoopbackHub
from hub_store import Repo
from safetensors.torch import save, save_file

import timm_compat as tc
from timm_compat.cli import demo as command
from timm_compat.cli import main
from timm_compat.experiments.demo_pretrained import PretrainedDemoConfig, PretrainedDemoResult, run_pretrained_demo

NAMES = ("test_efficientnet", "test_resnet")
BACKBONES = ("--backbones", ",".join(NAMES))
REPO_ID = "timm/test_efficientnet.r160_in1k"
SIZE = 32
TIMEOUT = "TIMM_COMPAT_HUB_TIMEOUT"


def made(name: str, in_chans: int = 3) -> Any:
    """A network with a classifier over ImageNet's classes, which says nothing: it is random."""
    torch.manual_seed(0)
    return timm.create_model(name, in_chans=in_chans)


@pytest.fixture
def published(hub: LoopbackHub) -> LoopbackHub:
    """Both networks where timm looks for them."""
    for name in NAMES:
        repo_id = timm.models.get_pretrained_cfg(name).hf_hub_id
        hub.store.repos[repo_id] = Repo(repo_id)
        hub.edit(repo_id, model__safetensors=save(made(name).state_dict()))
    return hub


def run(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "timm_compat", "demo", *arguments]
    environment = {**os.environ, **env}
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def accuracy(extractor: tc.CompatExtractor, head: tc.TaskHead) -> float:
    test = tc.data.load_digits("test")
    return float(tc.recombination_matrix({"x": extractor}, {"x": head}, test).accuracy[0, 0])


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> PretrainedDemoResult:
    folder = tmp_path_factory.mktemp("weights")
    files = [folder / f"{name}.safetensors" for name in NAMES]
    for name, file in zip(NAMES, files, strict=True):
        save_file(made(name, 1).state_dict(), file)
    said: list[str] = []
    with pytest.warns(UserWarning, match="expect lower accuracy"):  # random classifiers agree on nothing
        found = run_pretrained_demo(PretrainedDemoConfig(NAMES, img_size=SIZE), files, said.append)
    assert [line[:3] for line in said] == ["1/3", "2/3", "3/3"]
    return found


class TestResult:
    def test_one_head_on_both_networks(self, result: PretrainedDemoResult) -> None:
        summary = result.summary()
        assert result.matrix.native[:, 0].tolist() == [True, False, False, False]
        assert summary["native"] == accuracy(result.reference, result.head) > 0.5  # untrained networks, trained heads
        assert summary["joined"] == accuracy(result.joined, result.head)
        assert summary["independent"] is None  # 256 features for a head of 384, or the other way round
        assert summary["ceiling"] > 0.5
        assert summary["chance"] == pytest.approx(0.1)
        assert (result.report.num_common_classes, result.report.num_images) == (1000, 674)
        assert 0 <= result.expected.low <= result.expected.share <= result.expected.high <= 1
        json.dumps([summary, result.matrices()], allow_nan=False)

    def test_what_is_saved_is_what_was_measured(self, result: PretrainedDemoResult, tmp_path: Path) -> None:
        folder = result.save(tmp_path / "out")
        assert sorted(path.name for path in folder.iterdir()) == [
            "extractor-a", "extractor-b", "head-digits", "matrices.json", "recombination.png", "space",
        ]  # fmt: skip
        assert json.loads((folder / "matrices.json").read_text()) == result.matrices()
        head = tc.TaskHead.from_pretrained(folder / "head-digits")
        joined = tc.CompatExtractor.from_pretrained(folder / "extractor-b")
        assert accuracy(joined, head) == result.summary()["joined"]
        assert joined.facts.base_model == "timm/test_resnet.r160_in1k"
        head.space.require_same(tc.CompatSpace.from_pretrained(folder / "space"), "the head's", "the saved one")


class TestChoice:
    def test_a_minute_is_a_bound(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv(TIMEOUT, "0.1")
        start = time.perf_counter()
        assert main(["demo", "--pretrained"]) == 2
        assert time.perf_counter() - start < 10  # ended before it has even imported torch
        *_, error = capsys.readouterr().err.splitlines()
        assert error.startswith("timm-compat: error: tf_efficientnet_lite1 and tf_efficientnet_lite0: the pretrained ")
        assert "not here within 0 s" in error
        assert f"{TIMEOUT}=seconds" in error
        assert list(tmp_path.iterdir()) == []

    def test_a_hub_that_hangs_is_left(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        hub.fail("", "hang", 30)
        monkeypatch.setenv(TIMEOUT, "0.5")
        start = time.perf_counter()
        assert main(["demo", "--pretrained", *BACKBONES]) == 2
        assert time.perf_counter() - start < 10
        assert hub.seen, "the Hub was not asked at all"
        assert f"error: {REPO_ID} at main: the Hub " in capsys.readouterr().err.splitlines()[-1]

    def test_without_weights_networks_are_trained(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
    ) -> None:
        trained: list[Any] = []
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv(TIMEOUT, "0.1")
        monkeypatch.setattr(command, "run_demo", lambda config, say: trained.append(config) or stop())
        with pytest.raises(KeyError, match="trained"):
            main(["demo", "--seed", "3"])
        assert [(config.backbones, config.seed) for config in trained] == [(("test_resnet", "test_efficientnet"), 3)]
        assert "no pretrained weights, so small networks are trained instead: tf_eff" in capsys.readouterr().err

    @pytest.mark.parametrize("words", [["--no-pretrained"], ["--epochs", "2"]])
    def test_who_wants_to_train_waits_for_no_weights(self, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(command, "run_demo", lambda config, say: stop())
        monkeypatch.setattr(
            command, "fetch_pretrained", lambda *names, **arguments: pytest.fail("weights were fetched")
        )
        with pytest.raises(KeyError, match="trained"):
            main(["demo", *words])

    def test_pretrained_networks_have_no_epochs(self, capsys) -> None:
        assert main(["demo", "--pretrained", "--epochs", "2"]) == 2
        assert "epochs: expected none with --pretrained" in capsys.readouterr().err


def stop() -> None:
    raise KeyError("trained")


@pytest.mark.slow
class TestProcesses:
    """Real processes, the Hub's real client, a Hub of the tests' own."""

    def test_from_the_hub_then_from_the_cache_alone(self, published: LoopbackHub, tmp_path: Path) -> None:
        words = (*BACKBONES, "--img-size", str(SIZE), "--json")
        first = run(*words, "--output", "one", cwd=tmp_path)
        assert first.returncode == 0, first.stderr
        found = json.loads(first.stdout)
        assert found["pretrained"] is True
        assert found["backbones"] == list(NAMES)
        facts = tc.CompatExtractor.from_pretrained(tmp_path / "one" / "extractor-b").facts
        commit = published.store.repos["timm/test_resnet.r160_in1k"].branches["main"]
        assert (facts.base_model, facts.base_model_commit) == ("timm/test_resnet.r160_in1k", commit)

        published.fail("", "hang", 60)
        again = run(*words, "--output", "two", cwd=tmp_path, HF_HUB_OFFLINE="1")
        assert again.returncode == 0, again.stderr
        own = {"seconds", "output"}
        assert {k: v for k, v in json.loads(again.stdout).items() if k not in own} == {
            k: v for k, v in found.items() if k not in own
        }

    def test_report_ends_with_lines_that_run(self, published: LoopbackHub, tmp_path: Path) -> None:
        done = run(*BACKBONES, "--img-size", str(SIZE), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "The last join rests on 1,000 classes in common and 674 unlabelled images;" in done.stdout
        code = done.stdout[done.stdout.index("import timm_compat as tc") :]
        assert len(code.strip().splitlines()) == 5
        ran = subprocess.run(
            [sys.executable, "-c", code + "\nprint(tuple(logits.shape))"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.stdout.strip() == "(449, 10)", ran.stderr

    def test_a_download_that_never_ends_is_left(self, published: LoopbackHub, tmp_path: Path) -> None:
        published.fail("GET .*safetensors", "drip", 0.5)
        start = time.perf_counter()
        done = run("--pretrained", *BACKBONES, cwd=tmp_path, **{TIMEOUT: "30"})
        assert done.returncode == 2
        assert time.perf_counter() - start < 120  # two processes that import torch on a busy machine
        assert any(one.method == "GET" and "safetensors" in one.path for one in published.seen)
        assert "the pretrained weights were not here within 30 s" in done.stderr
        assert "Traceback" not in done.stderr
        assert {path.name for path in tmp_path.iterdir()} == {"hub-cache"}

        published.faults.clear()  # what is left of it in the cache is in nobody's way
        done = run("--pretrained", *BACKBONES, "--img-size", str(SIZE), "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("HF_HUB_OFFLINE", "1", "test_efficientnet: its pretrained weights could not be fetched ("),
            ("HF_ENDPOINT", "http://127.0.0.1:9", f"{REPO_ID} at main: no sound answer from the Hub at http://127"),
            ("HF_ENDPOINT", "http://no-such-host.invalid", f"{REPO_ID} at main: no sound answer from the Hub at http:"),
        ],
        ids=["offline", "absent", "unknown"],
    )
    def test_no_hub_at_all(self, name: str, value: str, message: str, hub: LoopbackHub, tmp_path: Path) -> None:
        done = run("--pretrained", *BACKBONES, cwd=tmp_path, HF_TOKEN="hf_alicesecret", **{name: value})
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(f"timm-compat: error: {message}")
        assert "alicesecret" not in done.stderr
        assert "Traceback" not in done.stderr
