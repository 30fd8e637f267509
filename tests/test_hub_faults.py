"""Whatever goes wrong on the way ends in one of our errors that says what to do, and leaves nothing half-written."""

import copy
import hashlib
import json
import logging
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_parts import CLASSES, TOKEN, Parts, make_parts, run_python
from hub_server import LoopbackHub
from safetensors.torch import load, save

import timm_compat as tc

WEIGHTS = "GET .*resolve.*safetensors"


PUSHED: dict[str, Any] = {}  # what the Hub held after the one real push


@pytest.fixture
def published(hub: LoopbackHub, parts: Parts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LoopbackHub:
    """A Hub with the components, and a cache that has never seen them."""
    monkeypatch.setenv("HF_TOKEN", hub.user(TOKEN, "alice", "lab"))
    if not PUSHED:
        parts.extractor.push_to_hub("lab/extractor")
        parts.head.push_to_hub("lab/head")
        PUSHED.update(copy.deepcopy({name: getattr(hub.store, name) for name in ("repos", "blobs", "lfs")}))
    for name, value in copy.deepcopy(PUSHED).items():
        setattr(hub.store, name, value)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "fresh-cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "fresh-cache"))
    hub.seen.clear()
    return hub


def edit_config(hub: LoopbackHub, repo_id: str, change: Callable[[dict[str, Any]], None], **files: bytes) -> None:
    """Commit files with their SHA-256 recorded, and a changed config: a publisher who means harm, or is careless."""
    config = json.loads(hub.files(repo_id)["config.json"])
    for name, data in files.items():
        config["timm_compat"]["sha256"][name.replace("__", ".")] = hashlib.sha256(data).hexdigest()
    change(config)
    hub.edit(repo_id, config__json=json.dumps(config).encode(), **files)


def reweigh(hub: LoopbackHub, repo_id: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load(hub.files(repo_id)["model.safetensors"])
    change(tensors)
    edit_config(hub, repo_id, lambda config: None, model__safetensors=save(tensors))


def half(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({key: value.half() for key, value in tensors.items()})


def set_argument(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.setdefault("model_args", {}).update({name: value})


class Pickled:
    """What a malicious pickle does when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('a pickle was executed')",))


@dataclass(frozen=True)
class Case:
    """A fault, and the error in which pulling must end."""

    name: str
    spoil: Callable[[LoopbackHub], object]
    error: type[Exception]
    message: str
    repo_id: str = "lab/head"
    passing: bool = False  # gone once the fault is
    seconds: str = "20"  # time limit


CASES = [
    # The network and the server
    Case(
        "503",
        lambda hub: hub.fail("", "status", 503),
        tc.errors.HubConnectionError,
        "503.*try again later",
        passing=True,
    ),
    Case(
        "503 for the file",
        lambda hub: hub.fail("resolve", "status", 503),
        tc.errors.HubError,
        "within 3 s|503",  # the newer clients try again and again
        passing=True,
        seconds="3",
    ),
    Case(
        "hang",
        lambda hub: hub.fail("GET", "hang", 3),
        tc.errors.HubTimeoutError,
        "within 1 s.*TIMEOUT|does not answer",
        passing=True,
        seconds="1",
    ),
    Case(
        "hang in a file",
        lambda hub: hub.fail(WEIGHTS, "hang", 3),
        tc.errors.HubTimeoutError,
        "within 1 s",
        passing=True,
        seconds="1",
    ),
    Case(
        "junk for an answer",
        lambda hub: hub.fail("GET /api", "junk"),
        tc.errors.HubError,
        "lab/head at main",
        passing=True,
    ),
    Case("401", lambda hub: hub.store.users.clear(), tc.errors.HubAccessError, "401.*hf auth login.*HF_TOKEN"),
    Case(
        "403", lambda hub: hub.fail("GET", "status", 403), tc.errors.HubAccessError, "403.*ask the owner", passing=True
    ),
    Case("gated", lambda hub: gate(hub), tc.errors.HubAccessError, "ask the owner for access"),
    Case(
        "404", lambda hub: hub.store.repos.pop("lab/head"), tc.errors.HubNotFoundError, "no such repository.*spelling"
    ),
    Case("429", lambda hub: hub.fail("GET", "status", 429), tc.errors.HubConnectionError, "429", passing=True),
    Case(
        "wrong commit",
        lambda hub: hub.fail("resolve", "commit", "b" * 40),
        tc.errors.HubError,
        "at this commit, got it from",
    ),
    # The bytes
    Case(
        "bit flip",
        lambda hub: hub.fail(WEIGHTS, "flip"),
        tc.errors.ComponentFileError,
        "expected SHA-256",
        passing=True,
    ),
    Case("truncated for good", lambda hub: truncate(hub), tc.errors.ComponentFileError, "expected SHA-256"),
    Case("renamed pickle", lambda hub: put_pickle(hub), tc.errors.ComponentFileError, "expected a safetensors file"),
    Case(
        "NaN",
        lambda hub: reweigh(hub, "lab/head", lambda t: t["classifier.weight"].fill_(torch.nan)),
        tc.errors.ComponentFileError,
        "classifier.weight: expected finite",
    ),
    Case("fp16", lambda hub: reweigh(hub, "lab/head", half), tc.errors.ComponentFileError, r"float16; .*convert=True"),
    Case(
        "integers",
        lambda hub: reweigh(hub, "lab/head", lambda t: t.update({k: v.int() for k, v in t.items()})),
        tc.errors.ComponentFileError,
        "expected torch.float32, got torch.int32",
    ),
    Case(
        "missing tensor",
        lambda hub: reweigh(hub, "lab/head", lambda t: t.pop("classifier.bias")),
        tc.errors.ComponentFileError,
        "missing: classifier.bias",
    ),
    Case(
        "extra tensor",
        lambda hub: reweigh(hub, "lab/head", lambda t: t.update(extra=torch.zeros(1))),
        tc.errors.ComponentFileError,
        "not expected: extra",
    ),
    Case(
        "another shape",
        lambda hub: reweigh(hub, "lab/head", lambda t: t.update({"classifier.bias": torch.zeros(4)})),
        tc.errors.ComponentFileError,
        r"expected shape \(3,\), got \(4,\)",
    ),
    Case(
        "far too large",
        lambda hub: hub.edit("lab/head", model__safetensors=bytes(10**6)),
        tc.errors.ComponentFileError,
        "expected at most .* bytes, got 1000000",
    ),
    Case(
        "no weights",
        lambda hub: hub.edit("lab/head", model__safetensors=None),
        tc.errors.ComponentFileError,
        "found none",
    ),
    # The config
    Case(
        "bit flip in the config",
        lambda hub: hub.fail("GET .*resolve.*config", "flip"),
        tc.errors.ComponentFileError,
        "git's SHA-1 .* damaged on the way",
        passing=True,
    ),
    Case(
        "no config",
        lambda hub: hub.edit("lab/head", config__json=None),
        tc.errors.ComponentFileError,
        "config.json, found",
    ),
    Case(
        "config is no JSON",
        lambda hub: hub.edit("lab/head", config__json=b"\x80"),
        tc.errors.ComponentFileError,
        "JSON",
    ),
    Case(
        "huge config",
        lambda hub: hub.edit("lab/head", config__json=bytes(17 * 2**20)),
        tc.errors.ComponentFileError,
        "expected at most 16777216 bytes",
    ),
    Case(
        "plain timm model",
        lambda hub: hub.edit("lab/head", config__json=b'{"architecture": "resnet18"}'),
        tc.errors.ComponentFileError,
        "not a component of timm-compat",
    ),
    Case("newer format", lambda hub: ours(hub, format=3), tc.errors.ComponentFileError, "newer timm-compat; upgrade"),
    Case(
        "unknown role",
        lambda hub: ours(hub, role="builtins.exec"),
        tc.errors.ComponentFileError,
        "expected a role among",
    ),
    Case(
        "another role", lambda hub: None, tc.errors.ComponentFileError, "role 'head', got 'extractor'", "lab/extractor"
    ),
    Case(
        "giant head",
        lambda hub: ours(hub, head={"depth": 10**9, "hidden_dim": None, "drop_rate": 0.0}),
        tc.errors.ComponentFileError,
        "depth: expected",
    ),
    Case(
        "giant classes",
        lambda hub: ours(hub, class_names=[str(n) for n in range(200_000)]),
        tc.errors.ComponentFileError,
        r"SHA-256|shape \(200000",
    ),
    Case(
        "facts that are none",
        lambda hub: ours(hub, metrics=[{"accuracy": 7}]),
        tc.errors.ComponentFileError,
        "facts about",
    ),
    Case(
        "changed space",
        lambda hub: edit_config(hub, "lab/head", lambda c: c["timm_compat"]["space"].update(level="map")),
        tc.errors.ComponentFileError,
        "fingerprint",
    ),
]

EXTRACTOR_CASES = [
    ("path as architecture", lambda config: config.update(architecture="../../evil"), "name of a timm architecture"),
    ("source as architecture", lambda config: config.update(architecture="hf-hub:evil/model"), "timm architecture"),
    ("unknown architecture", lambda config: config.update(architecture="evil_net"), "cannot be built"),
    ("class path", set_argument("act_layer", "os.system"), "cannot be built"),
    ("checkpoint path", set_argument("checkpoint_path", "/etc/passwd"), "checkpoint_path"),
    ("weights from elsewhere", set_argument("pretrained_cfg", {"file": "/etc/passwd"}), "pretrained_cfg"),
    ("pretrained", set_argument("pretrained", True), "pretrained"),
    ("giant image", set_argument("img_size", 10**9), "img_size"),
    ("giant channels", set_argument("in_chans", 10**9), "in_chans"),
    ("giant width", set_argument("channel_multiplier", 10**12), "channel_multiplier: expected at most"),
    ("giant depth", set_argument("depths", [10**9, 2]), "depths: expected at most 1000"),
    ("infinite number", set_argument("drop_rate", float("inf")), "expected JSON.*finite number"),
    ("object", set_argument("norm_layer", {"py/object": "os.system"}), "expected numbers, strings"),
]


def gate(hub: LoopbackHub) -> None:
    hub.store.repos["lab/head"].gated = True
    hub.fail("resolve", "status", 403)


def truncate(hub: LoopbackHub) -> None:
    hub.edit("lab/head", model__safetensors=hub.files("lab/head")["model.safetensors"][:-20])


def put_pickle(hub: LoopbackHub) -> None:
    edit_config(hub, "lab/head", lambda config: None, model__safetensors=pickle.dumps(Pickled()))


def ours(hub: LoopbackHub, **facts: object) -> None:
    edit_config(hub, "lab/head", lambda config: config["timm_compat"].update(facts))


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Everything that any library logs, down to debugging."""
    caplog.set_level(logging.DEBUG)
    return lambda: caplog.text


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_fault_table(
    published: LoopbackHub, case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, logs: Any, capfd: Any
) -> None:
    monkeypatch.setenv("TIMM_COMPAT_HUB_TIMEOUT", case.seconds)
    case.spoil(published)
    start = time.perf_counter()
    with pytest.raises(case.error, match=f"(?s){case.message}") as caught:
        tc.TaskHead.from_pretrained(case.repo_id)
    assert isinstance(caught.value, tc.errors.CompatError)
    assert time.perf_counter() - start < 15
    with pytest.raises(case.error):
        tc.pull(case.repo_id, tmp_path / "pulled") if case.repo_id == "lab/head" else tc.TaskHead.from_pretrained(
            case.repo_id
        )
    assert [path.name for path in tmp_path.iterdir() if "pulled" in path.name] == []
    told = "".join(traceback.format_exception(caught.value)) + logs() + "".join(capfd.readouterr())
    assert TOKEN not in told
    assert "alicesecret" not in told
    if case.passing:
        published.faults.clear()
        monkeypatch.setenv("TIMM_COMPAT_HUB_TIMEOUT", "20")  # what hung may hold the client's lock a little longer
        assert tc.TaskHead.from_pretrained(case.repo_id).class_names == CLASSES


@pytest.mark.parametrize(("name", "spoil", "message"), EXTRACTOR_CASES, ids=[name for name, *_ in EXTRACTOR_CASES])
def test_a_config_that_means_harm(published: LoopbackHub, name: str, spoil: Any, message: str) -> None:
    edit_config(published, "lab/extractor", spoil)
    start = time.perf_counter()
    with pytest.raises(tc.errors.ComponentFileError, match=message):
        tc.CompatExtractor.from_pretrained("lab/extractor")
    assert time.perf_counter() - start < 10
    assert not [seen for seen in published.seen if "safetensors" in seen.path]


def test_no_network(published: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
    loaded = tc.TaskHead.from_pretrained("lab/head")
    monkeypatch.setattr(constants, "ENDPOINT", dead)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", dead + "/{repo_id}/resolve/{revision}/{filename}")
    with pytest.raises(tc.errors.HubConnectionError, match=re.escape(dead)):
        tc.TaskHead.from_pretrained("lab/head")  # the cache is not handed out as if it were the newest
    offline = tc.TaskHead.from_pretrained("lab/head", local_files_only=True)
    assert offline.source == loaded.source
    monkeypatch.setenv("TIMM_COMPAT_HUB_TIMEOUT", "2")  # here the client tries again and again
    with pytest.raises(tc.errors.HubError, match="check the network"):
        tc.search()
    with pytest.raises(tc.errors.HubConnectionError):
        loaded.push_to_hub("lab/head")


def test_offline_mode_of_the_client(published: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    tc.TaskHead.from_pretrained("lab/head")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    published.seen.clear()
    assert tc.TaskHead.from_pretrained("lab/head").class_names == CLASSES
    with pytest.raises(tc.errors.HubConnectionError, match="HF_HUB_OFFLINE"):
        tc.search()
    assert published.seen == []


def test_a_cache_that_holds_another_commit(published: LoopbackHub, parts: Parts) -> None:
    held = tc.TaskHead.from_pretrained("lab/head").source.commit
    newer = tc.TaskHead(parts.space, ["x", "y"]).push_to_hub("lab/head").commit
    with pytest.raises(tc.errors.HubNotFoundError, match=f"holds no revision '{newer}'.*{held}"):
        tc.TaskHead.from_pretrained("lab/head", revision=newer, local_files_only=True)
    assert tc.TaskHead.from_pretrained("lab/head", local_files_only=True).source.commit == held
    assert tc.TaskHead.from_pretrained("lab/head").source.commit == newer
    with pytest.raises(tc.errors.HubNotFoundError, match="held: none"):
        tc.TaskHead.from_pretrained("lab/other", local_files_only=True)


def test_a_stream_that_breaks_once_is_taken_up_again(published: LoopbackHub) -> None:
    published.fail(WEIGHTS, "truncate", times=1)
    assert tc.TaskHead.from_pretrained("lab/head").class_names == CLASSES


@pytest.mark.slow
def test_a_stream_that_always_breaks(published: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIMM_COMPAT_HUB_TIMEOUT", "2")
    published.fail(WEIGHTS, "truncate")
    with pytest.raises((tc.errors.HubError, tc.errors.ComponentFileError)):
        tc.pull("lab/extractor", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    assert list((tmp_path / "fresh-cache").rglob("snapshots/*/*.safetensors")) == []


def test_half_precision_is_converted_when_asked(published: LoopbackHub, parts: Parts) -> None:
    reweigh(published, "lab/head", half)
    head = tc.TaskHead.from_pretrained("lab/head", convert=True)
    expected = parts.head.classifier.weight.half().float()
    assert torch.equal(head.classifier.weight, expected)
    assert head.classifier.weight.dtype == torch.float32


def test_a_redirect_to_another_origin_carries_no_token(published: LoopbackHub) -> None:
    other = LoopbackHub(published.store)
    published.fail("resolve.*safetensors", "redirect", other.url.replace("127.0.0.1", "localhost"))
    assert tc.TaskHead.from_pretrained("lab/head", token=TOKEN).class_names == CLASSES
    assert {seen.token for seen in other.seen} == {None}
    assert {seen.token for seen in published.seen} == {TOKEN}
    other.close()


def test_a_server_that_repeats_the_token(published: LoopbackHub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    published.fail("GET /api", "echo")
    with pytest.raises(tc.errors.HubConnectionError, match=r"do not repeat \*\*\*") as caught:
        tc.TaskHead.from_pretrained("lab/head")
    # What the HTTP library writes down when it is told to debug is its own.
    logged = "".join(record.getMessage() for record in caplog.records if not record.name.startswith("httpcore"))
    assert TOKEN not in "".join(traceback.format_exception(caught.value)) + logged


def test_a_head_of_another_space(published: LoopbackHub) -> None:
    other = make_parts(seed=5)
    other.head.push_to_hub("lab/other-head")
    extractor = tc.CompatExtractor.from_pretrained("lab/extractor")
    with pytest.raises(tc.errors.SpaceMismatchError, match="would score at chance"):
        tc.compose(extractor, tc.TaskHead.from_pretrained("lab/other-head"))


def test_unknown_facts_warn_once(published: LoopbackHub) -> None:
    ours(published, colour_of_the_day="blue")
    with pytest.warns(UserWarning, match="unknown facts colour_of_the_day"):
        tc.TaskHead.from_pretrained("lab/head")
    tc.TaskHead.from_pretrained("lab/head")


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "nan", "inf"])
def test_a_time_limit_that_is_none(published: LoopbackHub, monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    monkeypatch.setenv("TIMM_COMPAT_HUB_TIMEOUT", seconds)
    with pytest.raises(tc.errors.ConfigError, match="TIMM_COMPAT_HUB_TIMEOUT: expected a positive number"):
        tc.TaskHead.from_pretrained("lab/head")


class TestPushing:
    @pytest.mark.parametrize(
        ("pattern", "kind", "value", "error"),
        [
            ("POST .*/commit/", "status", 503, tc.errors.HubConnectionError),
            ("POST .*/commit/", "hang", 3, tc.errors.HubTimeoutError),
            ("POST .*preupload", "status", 403, tc.errors.HubAccessError),
            ("PUT", "status", 400, tc.errors.HubError),
            ("POST .*/commit/", "echo", None, tc.errors.HubConnectionError),
        ],
    )
    def test_the_repository_stays_as_it_was(
        self,
        published: LoopbackHub,
        monkeypatch: pytest.MonkeyPatch,
        pattern: str,
        kind: str,
        value: Any,
        error: type[Exception],
    ) -> None:
        monkeypatch.setenv("TIMM_COMPAT_HUB_TIMEOUT", "1" if kind == "hang" else "20")
        before = published.files("lab/head")
        published.fail(pattern, kind, value)
        changed = make_parts().head
        torch.nn.init.ones_(changed.classifier.weight)
        with pytest.raises(error) as caught:
            changed.push_to_hub("lab/head")
        assert TOKEN not in "".join(traceback.format_exception(caught.value))
        assert published.files("lab/head") == before
        assert changed.source is None

    def test_a_token_that_may_only_read(self, published: LoopbackHub, parts: Parts) -> None:
        reader = published.user("hf_readersecret", "alice", "lab", may_write=False)
        with pytest.raises(tc.errors.HubAccessError, match=r"lacks the right.*may write") as caught:
            parts.head.push_to_hub("lab/new", token=reader)
        assert "readersecret" not in "".join(traceback.format_exception(caught.value))
        assert "lab/new" not in published.store.repos


@pytest.mark.slow
def test_two_processes_pull_at_once(published: LoopbackHub, tmp_path: Path) -> None:
    script = (
        "import sys, timm_compat as tc\n"
        "extractor = tc.CompatExtractor.from_pretrained('lab/extractor')\n"
        "print(extractor.digest(), extractor.source)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script], env=os.environ, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(answers) == 1
    assert answers.pop().split()[0] == tc.CompatExtractor.from_pretrained("lab/extractor").digest()


def test_threads_pull_at_once(published: LoopbackHub, parts: Parts) -> None:
    digests: list[str] = []

    def pull() -> None:
        digests.append(tc.CompatExtractor.from_pretrained("lab/extractor").digest())

    threads = [threading.Thread(target=pull) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == [parts.extractor.digest()] * 4


@pytest.mark.slow
def test_an_upload_over_xet_where_there_is_none(published: LoopbackHub) -> None:
    """hf_xet switched on against a Hub without it: our error, with the way out."""
    script = (
        "import torch, timm_compat as tc\n"
        "head = tc.TaskHead.from_pretrained('lab/head')\n"
        "torch.nn.init.ones_(head.classifier.weight)\n"
        "try:\n"
        "    head.push_to_hub('lab/head')\n"
        "except tc.errors.HubError as error:\n"
        "    print(error)\n"
    )
    before = published.files("lab/head")
    said = run_python(script, HF_HUB_DISABLE_XET="0").stdout
    assert "lab/head" in said
    assert published.files("lab/head") == before
    assert not run_python(script, HF_HUB_DISABLE_XET="1").stdout
    assert published.files("lab/head") != before
