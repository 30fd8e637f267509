"""Settings that libraries read when they are imported, so they are made here, before anything else."""

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

_HF_HOME = tempfile.mkdtemp(prefix="timm-compat-hf-")
_LOOPBACK = "localhost,127.0.0.1,::1"

os.environ.update(
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
