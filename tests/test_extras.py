"""Optional packages: present, absent, and present but broken."""

import math
from pathlib import Path

import pytest

from timm_compat._extras import require
from timm_compat.errors import MissingExtraError


def test_a_module_that_is_there() -> None:
    assert require("math", "plots") is math


def test_a_missing_package_names_the_pip_line() -> None:
    with pytest.raises(MissingExtraError, match=r'pip install "timm-compat\[plots\]"') as caught:
        require("no_such_package.pyplot", "plots")
    assert isinstance(caught.value, ImportError)


def test_a_broken_package_keeps_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency") as caught:
        require("broken_package", "plots")
    assert not isinstance(caught.value, MissingExtraError)
