"""Settings that libraries read when they are imported, so they are made here, before anything else."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hub_server import LoopbackHub

if TYPE_CHECKING:
    from hub_parts import Parts

_HF_HOME = tempfile.mkdtemp(prefix="timm-compat-hf-")
_LOOPBACK = "localhost,127.0.0.1,::1"

_HUB = LoopbackHub()  # clients read HF_ENDPOINT when they are imported, so the server is there first

os.environ.update(
    HF_ENDPOINT=_HUB.url,
    HF_HOME=_HF_HOME,
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_XET="1",
    MPLBACKEND="Agg",
)
for _name in ("NO_PROXY", "no_proxy"):
    os.environ[_name] = ",".join(filter(None, (os.environ.get(_name), _LOOPBACK)))


@pytest.fixture(scope="session", autouse=True)
def _hf_home() -> Iterator[None]:
    yield
    shutil.rmtree(_HF_HOME, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Threads only get in each other's way on networks as small as those of the tests."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """An empty Hub of the suite's own, online for this test only, with a cache of the test's own."""
    from huggingface_hub import constants

    _HUB.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr("timm_compat.storage.hub_calls.FIRST_WAIT", 0.01)  # before a failed call is tried again
    yield _HUB
    _HUB.clear()


@pytest.fixture(scope="module")
def parts() -> "Parts":
    """A space, an extractor and a head to publish."""
    from hub_parts import make_parts

    return make_parts()


@pytest.fixture
def alice(hub: LoopbackHub, parts: "Parts", monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of the Hub, member of "lab", is logged in; nothing is known of the parts yet."""
    from hub_parts import TOKEN

    import timm_compat as tc

    for part in (parts.space, parts.extractor, parts.head):
        part.facts, part.source = tc.Facts(), None
    monkeypatch.setenv("HF_TOKEN", hub.user(TOKEN, "alice", "lab"))


@pytest.fixture(scope="module")
def gallery_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of four classes, two extractors of different spaces, and the first one's gallery."""
    from gallery_parts import fill

    folder = tmp_path_factory.mktemp("gallery")
    fill(folder)
    return folder


@pytest.fixture
def gallery_copy(gallery_files: Path, tmp_path: Path) -> Path:
    """A copy of all that, to change."""
    return Path(shutil.copytree(gallery_files, tmp_path / "copy"))
