"""Settings that libraries read when they are imported, so they are made here, before anything else."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import LoopbackHub

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
